"""Records: every kind of field takes what it should and refuses the rest, with its path."""

from __future__ import annotations

import copy
import enum
import pickle
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest

from lichen.network.model import Field, Model, ValidationError


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


class Point(Model):
    SIDES: ClassVar[int] = 2
    x: int = Field(ge=-3, le=3)
    y: int = 0

    def _check(self) -> None:
        if self.x == self.y:
            raise ValueError("x and y must differ")


class Named(Point):
    name: str = Field(default="", max_length=3)


class Shape(Model):
    points: list[Point] = Field(min_length=1, max_length=2)
    fixed: tuple[int, ...] = ()
    by_name: dict[str, Point] = Field(default_factory=dict)
    centre: Point | None = None
    colour: Colour = Colour.RED
    version: Literal[2] = 2
    closed: bool = False
    weight: float = 1.0
    code: str = Field(default="a", pattern="[a-z]+")
    count: Annotated[int, even] = 0
    least: int | None = Field(default=None, ge=1)
    anything: Any = None


POINT = {"x": 1}

REFUSED = [
    ({}, (), "points: is missing"),
    ({"points": [POINT], "sides": 3}, (), "sides: is unknown"),
    ({"points": []}, (), "points: must have at least 1 items"),
    ({"points": [POINT] * 3}, (), "points: must have at most 2 items"),
    ({"points": {"x": 1}}, (), "points: must be a list"),
    ({"points": "ab"}, (), "points: must be a list"),
    ({"points": [POINT, {"x": 4}]}, (), "points.1.x: must be -3 .. 3"),
    ({"points": [POINT, {"x": 0}]}, (), "points.1: x and y must differ"),
    ({"points": [POINT, 7]}, (), "points.1: must be an object"),
    ({"points": [{1: 1}]}, (), "points.0: must have names of fields for keys"),
    ({"points": [{"x": 9, "y": "a"}]}, (), "points.0.x: must be -3 .. 3 (and 1 more)"),
    ({"by_name": {"a": {"x": 0}}}, POINT, "by_name.a: x and y must differ"),
    ({"by_name": {1: {"x": 1}}}, POINT, "by_name: must have text for keys"),
    ({"by_name": [POINT]}, POINT, "by_name: must be an object"),
    ({"centre": {"y": 1}}, POINT, "centre.x: is missing"),
    ({"colour": "green"}, POINT, "colour: must be one of red, blue"),
    ({"colour": []}, POINT, "colour: must be one of red, blue"),
    ({"version": 3}, POINT, "version: must be 2"),
    ({"version": 2.0}, POINT, "version: must be 2"),
    ({"closed": 1}, POINT, "closed: must be true or false"),
    ({"closed": "true"}, POINT, "closed: must be true or false"),
    ({"weight": "1"}, POINT, "weight: must be a number"),
    ({"weight": True}, POINT, "weight: must be a number"),
    ({"weight": 10**400}, POINT, "weight: "),
    ({"code": "a1"}, POINT, "code: must match [a-z]+"),
    ({"code": "a\n"}, POINT, "code: must match [a-z]+"),
    ({"code": 1}, POINT, "code: must be text"),
    ({"count": 3}, POINT, "count: must be even"),
    ({"count": 2.0}, POINT, "count: must be an integer"),
    ({"count": True}, POINT, "count: must be an integer"),
    ({"count": "2"}, POINT, "count: must be an integer"),
    ({"count": None}, POINT, "count: must be an integer"),
    ({"least": 0}, POINT, "least: must be at least 1"),
    ({"fixed": [1, "a"]}, POINT, "fixed.1: must be an integer"),
]


@pytest.mark.parametrize(("fields", "point", "sentence"), REFUSED)
def test_what_is_refused(fields, point, sentence):
    whole = fields if point == () else {"points": [point]} | fields
    for make in (Shape.model_validate, lambda tree: Shape(**tree)):
        with pytest.raises(ValidationError) as error:
            make(whole)
        assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("value", [None, [], "a", 1])
def test_what_is_no_object(value):
    with pytest.raises(ValidationError, match=r"^must be an object$"):
        Shape.model_validate(value)


def test_what_is_taken():
    tree = {
        "points": ({"x": np.int8(1)}, Point(x=2)),
        "fixed": [1, 2],
        "by_name": {"a": {"x": 3, "y": -9}},
        "centre": Named(x=1, name="abc"),
        "colour": "blue",
        "closed": np.True_,
        "weight": 2,
        "count": 4,
        "least": None,
        "anything": {"b": [1]},
    }
    shape = Shape.model_validate(tree)
    assert shape.points == [Point(x=1), Point(x=2)] and type(shape.points[0].x) is int
    assert shape.fixed == (1, 2) and shape.by_name["a"].y == -9
    assert type(shape.centre) is Named and shape.colour is Colour.BLUE
    assert shape.closed is True and type(shape.weight) is float
    assert Shape.model_validate(shape) is shape
    assert Shape.model_validate(shape.model_dump(exclude={"centre"})) == shape.model_copy(
        update={"centre": None}
    )
    assert type(shape.model_dump()["colour"]) is Colour
    assert type(shape.model_dump(mode="json")["colour"]) is str


def test_records_do_not_change():
    point = Point(x=1)
    with pytest.raises(AttributeError, match="does not change"):
        point.x = 2
    with pytest.raises(AttributeError, match="does not change"):
        del point.x
    assert point.model_copy(update={"x": 2}) == Point(x=2) != point


def test_copies_share_nothing_only_when_deep():
    shape = Shape(points=[Point(x=1)])
    assert shape.model_copy().points is shape.points
    deep = shape.model_copy(deep=True)
    assert deep == shape and deep.points is not shape.points
    assert copy.deepcopy(shape) == pickle.loads(pickle.dumps(shape)) == shape
    # nothing that a record makes for itself is another's
    assert Shape(points=[POINT]).by_name is not Shape(points=[POINT]).by_name


def test_what_a_record_is():
    assert Named.model_fields == ("x", "y", "name") and Point.SIDES == 2
    assert repr(Named(x=1, name="a")) == "Named(x=1, y=0, name='a')"
    assert dict(Point(x=1)) == {"x": 1, "y": 0}
    assert Point(x=1) != Named(x=1)
    assert len({Point(x=1), Point(x=1, y=0), Point(x=2)}) == 2
