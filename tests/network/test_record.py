"""Records: what a field takes, what it refuses, and where it says so."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from lichen.network.record import After, Before, Field, Model, ValidationError


class Kind(StrEnum):
    PLAIN = "plain"
    OTHER = "other"


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


class Part(Model):
    size: int = Field(ge=1, le=9)
    flag: bool = False
    kind: Kind = Kind.PLAIN


class Whole(Model):
    name: str = Field(default="", max_length=4)
    parts: list[Part] = Field(min_length=1, max_length=2)
    named: dict[str, Part] = Field(default_factory=dict)
    fixed: Literal[16] = 16
    maybe: int | None = Field(default=None, ge=0)
    array: Annotated[Any, Before(np.asarray)] = None
    number: Annotated[int, After(even)] = 0

    def _validate(self, context: Mapping[str, Any]) -> None:
        if len(self.parts) == self.maybe and not context.get("lax"):
            raise ValueError("maybe must not count the parts")


def tree(**changes: Any) -> dict[str, Any]:
    return {"parts": [{"size": 3, "kind": "other"}]} | changes


def test_what_a_record_is_made_of():
    whole = Whole.model_validate(tree(array=[1, 2], named={"a": Part(size=np.int16(4))}))
    assert whole.parts == [Part(size=3, kind=Kind.OTHER)] and whole.parts[0].kind is Kind.OTHER
    assert type(whole.named["a"].size) is int and isinstance(whole.array, np.ndarray)
    assert (whole.name, whole.maybe, whole.number) == ("", None, 0)
    assert whole.model_fields_set == {"parts", "array", "named"}
    assert Whole.model_validate(whole) is whole
    dumped = whole.model_dump(exclude={"name"})
    assert dumped["named"] == {"a": {"size": 4, "flag": False, "kind": "plain"}}
    assert "name" not in dumped and dumped["array"] is whole.array
    assert Whole.model_validate(dumped) == whole
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert other == whole and other.model_fields_set == whole.model_fields_set
    assert whole != whole.model_copy(update={"array": np.array([1, 3])})
    assert len({Part(size=3), Part(size=3), Part(size=4)}) == 2


def test_records_never_change():
    part = Part(size=3)
    with pytest.raises(AttributeError, match="never changes"):
        part.size = 4
    assert part.model_copy(update={"size": 4}).size == 4 and part.size == 3
    # which nothing looks at, as nothing looks at what a record already is
    assert part.model_copy(update={"size": 400}).size == 400


@pytest.mark.parametrize(
    ("changes", "path", "sentence"),
    [
        ({"parts": [{"size": 3}, {"size": 0}]}, ("parts", 1, "size"), "must be at least 1"),
        ({"parts": [{"size": 10}]}, ("parts", 0, "size"), "must be at most 9"),
        ({"parts": [{}]}, ("parts", 0, "size"), "is missing"),
        ({"parts": [{"size": True}]}, ("parts", 0, "size"), "must be an integer"),
        ({"parts": [{"size": 3.0}]}, ("parts", 0, "size"), "must be an integer"),
        ({"parts": [{"size": "3"}]}, ("parts", 0, "size"), "must be an integer"),
        ({"parts": [{"size": 3, "flag": 1}]}, ("parts", 0, "flag"), "must be true or false"),
        ({"parts": [{"size": 3, "kind": "x"}]}, ("parts", 0, "kind"), "one of plain, other"),
        ({"parts": [{"size": 3, "kind": []}]}, ("parts", 0, "kind"), "one of plain, other"),
        ({"parts": [{"size": 3, "more": 1}]}, ("parts", 0, "more"), "is not known here"),
        ({"parts": [7]}, ("parts", 0), "must be an object"),
        ({"parts": {}}, ("parts",), "must be a list"),
        ({"parts": []}, ("parts",), "must have at least 1 items, not 0"),
        ({"parts": [{"size": 3}] * 3}, ("parts",), "must have at most 2 items, not 3"),
        ({"named": []}, ("named",), "must be an object"),
        ({"named": {"a": {"size": None}}}, ("named", "a", "size"), "must be an integer"),
        ({"named": {3: {"size": 3}}}, ("named", 3), "must be a string"),
        ({"name": "abcde"}, ("name",), "must have at most 4 characters, not 5"),
        ({"name": b"a"}, ("name",), "must be a string"),
        ({"fixed": 15}, ("fixed",), "must be 16"),
        ({"fixed": 16.0}, ("fixed",), "must be 16"),
        ({"maybe": -1}, ("maybe",), "must be at least 0"),
        ({"number": 3}, ("number",), "must be even"),
        ({"maybe": 1}, (), "maybe must not count the parts"),
        ({"model_fields": 1}, ("model_fields",), "is not known here"),
        ({"_validate": 1}, ("_validate",), "is not known here"),
    ],
)
def test_what_a_record_refuses(changes, path, sentence):
    Whole.model_validate(tree())
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(tree(**changes))
    assert error.value.found[0][0] == path and sentence in error.value.found[0][1]
    assert sentence in str(error.value)


def test_everything_that_is_wrong_is_found():
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(tree(name=1, parts=[{"size": 0}, {}], extra=2))
    paths = [path for path, _ in error.value.found]
    assert paths == [("name",), ("parts", 0, "size"), ("parts", 1, "size"), ("extra",)]
    assert pickle.loads(pickle.dumps(error.value)).found == error.value.found
    for nothing in (None, 3, [], "x"):
        with pytest.raises(ValidationError, match="must be an object"):
            Whole.model_validate(nothing)


def test_what_is_checked_may_depend_on_the_context():
    assert Whole.model_validate(tree(maybe=1), context={"lax": True}).maybe == 1
