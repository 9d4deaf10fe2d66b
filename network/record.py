"""Records whose fields are checked when they are made: what a network's description consists of.

`Model` has pydantic's names and manners, and of its features those that a description needs.
Pydantic itself takes as long to import as a photograph takes to decode, and every command that
codes one would wait for it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from inspect import get_annotations
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

Path = tuple[str | int, ...]
"""Where in a tree of records, lists and objects a value stands."""

Check = Callable[[Any], Any]
"""Returns what a field keeps of a value; raises ValueError for one that it refuses."""

Parse = Callable[[Any, Any], Any]
"""A `Check` that is told the context, too."""

_NOTHING: Any = object()


class ValidationError(ValueError):
    """Values that a record refuses.

    Attributes
    ----------
    found : list of (path, sentence)
        In the order of the fields; at least one.
    """

    def __init__(self, title: str, found: list[tuple[Path, str]]):
        self.title, self.found = title, found
        lines = [f"{'.'.join(map(str, path)) or title}: {sentence}" for path, sentence in found]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.title, self.found)


class Before(NamedTuple):
    """Beside a type in ``Annotated``: applied to a value before its type is looked at."""

    check: Check


class After(NamedTuple):
    """Beside a type in ``Annotated``: applied to what has the right type."""

    check: Check


class _Field(NamedTuple):
    default: Any
    default_factory: Callable[[], Any] | None
    ge: int | None
    le: int | None
    min_length: int | None
    max_length: int | None
    pattern: str | None

    @property
    def required(self) -> bool:
        return self.default is _NOTHING and self.default_factory is None

    def make(self) -> Any:
        return self.default if self.default_factory is None else self.default_factory()

    def check(self, value: Any) -> Any:
        if value is None:
            return value
        if self.ge is not None and value < self.ge:
            raise ValueError(f"must be at least {self.ge}")
        if self.le is not None and value > self.le:
            raise ValueError(f"must be at most {self.le}")
        unit = "characters" if isinstance(value, str) else "items"
        if self.min_length is not None and len(value) < self.min_length:
            raise ValueError(f"must have at least {self.min_length} {unit}, not {len(value)}")
        if self.max_length is not None and len(value) > self.max_length:
            raise ValueError(f"must have at most {self.max_length} {unit}, not {len(value)}")
        if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"must match {self.pattern}")
        return value


def Field(  # noqa: N802
    *,
    default: Any = _NOTHING,
    default_factory: Callable[[], Any] | None = None,
    ge: int | None = None,
    le: int | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    pattern: str | None = None,
) -> Any:
    """What a field is where it is not given, and the limits of its value or of its length."""
    return _Field(default, default_factory, ge, le, min_length, max_length, pattern)


def _plain(value: Any) -> _Field:
    """The field of a class attribute."""
    return value if isinstance(value, _Field) else _Field(value, *[None] * 6)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Model:
    """A record that is checked when it is made, and never changes.

    Fields are annotated class attributes, but for names that begin with an underscore. Their
    types are ``int``, ``bool``, ``str``, enumerations, literals, records, lists and objects of
    these, what is optional, and ``Annotated`` with `Before` and `After`. A field takes no other
    type for the one it has, but that anything with ``__index__`` is an integer. After them
    `_validate` looks at the whole record.
    """

    model_fields: ClassVar[dict[str, Any]] = {}
    """The fields by name, in order."""

    _checks: ClassVar[dict[str, Parse] | None] = None

    def __init_subclass__(cls) -> None:
        own = {
            name: _plain(cls.__dict__.get(name, _NOTHING))
            for name, hint in get_annotations(cls).items()
            if not name.startswith("_") and "ClassVar" not in str(hint)
        }
        cls.model_fields = cls.model_fields | own
        cls._checks = None
        for name in own:  # so that no record has the attribute that lacks the field
            if name in cls.__dict__:
                delattr(cls, name)

    def __init__(self, **fields: Any):
        self._fill(fields, {})

    @classmethod
    def model_validate(cls, value: Any, *, context: Mapping[str, Any] | None = None) -> Self:
        """A record of an object's values; a record of this kind is returned as it is.

        ``context`` reaches `_validate` of the record and of those within it. Raises
        ValidationError with everything that was found.
        """
        return _record(cls, value, context or {})

    @property
    def model_fields_set(self) -> set[str]:
        """Which fields were given."""
        given: set[str] = self.__dict__["_given"]
        return given

    def _validate(self, context: Mapping[str, Any]) -> None:
        """Raise ValueError unless the fields suit each other."""

    def _fill(self, given: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        cls = type(self)
        if cls._checks is None:
            hints = get_type_hints(cls, include_extras=True)
            cls._checks = {name: _compile(hints[name]) for name in cls.model_fields}
        found: list[tuple[Path, str]] = []
        values = self.__dict__
        values["_given"] = {name for name in cls.model_fields if name in given}
        for name, field in cls.model_fields.items():
            if name not in given:
                if field.required:
                    found.append(((name,), "is missing"))
                else:
                    values[name] = field.make()
                continue
            try:
                values[name] = field.check(cls._checks[name](given[name], context))
            except ValidationError as error:
                found += [((name, *path), sentence) for path, sentence in error.found]
            except ValueError as error:
                found.append(((name,), str(error)))
        found += [((name,), "is not known here") for name in given if name not in cls.model_fields]
        if found:
            raise ValidationError(cls.__name__, found)
        try:
            self._validate(context)
        except ValidationError:
            raise
        except ValueError as error:
            raise ValidationError(cls.__name__, [((), str(error))]) from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """A copy with changes, which are not looked at."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        if update:
            copy.__dict__.update(update)
            copy.__dict__["_given"] = self.model_fields_set | set(update)
        return copy

    def model_dump(self, *, exclude: set[str] | None = None) -> dict[str, Any]:
        """The values as objects and lists; arrays are those that the record has."""
        return {name: _dumped(value) for name, value in self if name not in (exclude or ())}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, self.__dict__[name]) for name in type(self).model_fields)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            raise AttributeError(f"{type(self).__name__}.{name} never changes; use model_copy")
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = zip(self, other, strict=True)
        return all(_equal(mine, yours) for (_, mine), (_, yours) in pairs)

    def __hash__(self) -> int:
        """TypeError for records with arrays, lists or objects in them."""
        return hash((type(self), *(value for _, value in self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self)})"


def _equal(mine: Any, yours: Any) -> bool:
    if isinstance(mine, np.ndarray) or isinstance(yours, np.ndarray):
        return type(mine) is type(yours) and np.array_equal(mine, yours)
    return bool(mine == yours)


def _dumped(value: Any) -> Any:
    if isinstance(value, Model):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _dumped(item) for key, item in value.items()}
    return [_dumped(item) for item in value] if isinstance(value, list | tuple) else value


# Types of fields ------------------------------------------------------------------------------


def _compile(hint: Any) -> Parse:
    """``check(value, context)`` of a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        kinds = [one for one in arguments if one is not NoneType]
        if len(kinds) != 1:
            raise TypeError(f"a record has no fields of type {hint}")
        inner = _compile(kinds[0])
        return lambda value, context: None if value is None else inner(value, context)
    if origin is Literal:
        return lambda value, context: _literal(arguments, value)
    if origin in (list, dict):
        return _container(origin, _compile(arguments[-1]))
    if hint is Any:
        return lambda value, context: value
    if issubclass(hint, Model):
        return lambda value, context: _record(hint, value, context)
    if issubclass(hint, Enum):
        return lambda value, context: _member(hint, value)
    plain: dict[type, Check] = {bool: _boolean, int: _integer, str: _text}
    check = plain[hint]
    return lambda value, context: check(value)


def _annotated(kind: Any, notes: tuple[Any, ...]) -> Parse:
    inner = _compile(kind)
    before = [note.check for note in notes if isinstance(note, Before)]
    after = [note.check for note in notes if isinstance(note, After)]

    def check(value: Any, context: Any) -> Any:
        for one in before:
            value = one(value)
        value = inner(value, context)
        for one in after:
            value = one(value)
        return value

    return check


def _container(kind: type, inner: Parse) -> Parse:
    """Of lists, or of objects by strings."""

    def check(value: Any, context: Any) -> Any:
        if not isinstance(value, Mapping if kind is dict else (list, tuple)):
            raise ValueError(f"must be {'an object' if kind is dict else 'a list'}")
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        kept: dict[Any, Any] = {}
        found: list[tuple[Path, str]] = []
        for key, item in items:
            try:
                kept[_text(key) if kind is dict else key] = inner(item, context)
            except ValidationError as error:
                found += [((key, *rest), sentence) for rest, sentence in error.found]
            except ValueError as error:
                found.append(((key,), str(error)))
        if found:
            raise ValidationError(kind.__name__, found)
        return kept if kind is dict else list(kept.values())

    return check


AnyModel = TypeVar("AnyModel", bound=Model)


def _record(kind: type[AnyModel], value: Any, context: Mapping[str, Any]) -> AnyModel:
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ValidationError(kind.__name__, [((), "must be an object")])
    record = object.__new__(kind)
    record._fill(value, context)
    return record


def _literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise ValueError(f"must be {' or '.join(map(repr, choices))}")


def _member(kind: type[Enum], value: Any) -> Enum:
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(str(one.value) for one in kind)
        raise ValueError(f"must be one of {names}") from None


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError("must be true or false")
    return bool(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise ValueError("must be an integer")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError("must be an integer") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value
