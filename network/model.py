"""Records that are checked when they are made, and never change: what descriptions are made of.

A `Model` lists its fields as a dataclass does. Each annotation says what a field takes: ``int``,
``float``, ``bool``, ``str``, an enumeration, a ``Literal``, another `Model`, ``X | None``,
``list[X]``, ``tuple[X, ...]``, ``dict[str, X]``, or ``Annotated[X, check, ...]`` whose functions
take a value and return the one to keep. Constructors check all of it, and so does reading a tree
of JSON values (`Model.model_validate`); a `ValidationError` tells the path of what is wrong.

This stands on the path of every command. The libraries that do the same make and compile code for
each class when they are imported, which takes longer than to decode a photograph's symbols
(docs/notes/speed.md).
"""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import FrozenInstanceError
from typing import Annotated, Any, ClassVar, Literal, Self, dataclass_transform

import numpy as np

Path = tuple[str | int, ...]
Check = Callable[[Any], Any]
"""Takes a value and returns the one to keep; ValueError for what a field does not take."""

_MISSING: Any = object()


class ValidationError(ValueError):
    """What a record refuses.

    Attributes
    ----------
    errors : list of (path, reason)
        Names of fields, keys and positions that lead to a value, and what is wrong with it.
    """

    def __init__(self, errors: list[tuple[Path, str]]):
        super().__init__(errors)
        self.errors = errors

    @property
    def path(self) -> Path:
        """Of the first error."""
        return self.errors[0][0]

    @property
    def reason(self) -> str:
        """What is wrong first."""
        return self.errors[0][1]

    @property
    def where(self) -> str:
        """`path` for people; empty for the whole."""
        return ".".join(str(part) for part in self.path)

    @property
    def others(self) -> str:
        """What a sentence on the first error says of those after it."""
        return f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""

    def __str__(self) -> str:
        return (f"{self.where}: {self.reason}" if self.where else self.reason) + self.others


class _Limits:
    """What `Field` says of a field."""

    def __init__(self, default: Any, factory: Callable[[], Any] | None, check: Check):
        self.default, self.factory, self.check = default, factory, check


def Field(  # noqa: N802
    *,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
    ge: int | None = None,
    le: int | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    pattern: str | None = None,
) -> Any:
    """A field with limits, and what it holds where nobody says.

    Parameters
    ----------
    default, default_factory
        A value, or what makes one.
    ge, le : int or None
        Least and greatest integer.
    min_length, max_length : int or None
        Of text and lists.
    pattern : str or None
        Regular expression that all of a text matches.
    """

    def check(value: Any) -> Any:
        if value is None:
            return value
        if ge is not None and value < ge:
            raise ValueError(f"must be {_span(ge, le)}")
        if le is not None and value > le:
            raise ValueError(f"must be {_span(ge, le)}")
        if min_length is not None and len(value) < min_length:
            raise ValueError(f"must have at least {min_length} items")
        if max_length is not None and len(value) > max_length:
            kind = "characters" if isinstance(value, str) else "items"
            raise ValueError(f"must have at most {max_length} {kind}")
        if pattern is not None and re.fullmatch(pattern, value) is None:
            raise ValueError(f"must match {pattern}")
        return value

    return _Limits(default, default_factory, check)


def _span(least: int | None, most: int | None) -> str:
    if least is None or most is None:
        return f"at most {most}" if least is None else f"at least {least}"
    return f"{least} .. {most}"


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Model:
    """A description that is checked when it is made, and never changes.

    Attributes
    ----------
    model_fields : tuple of str
        Names of the fields, in order.

    Raises ValidationError for fields that are missing, unknown or wrong.
    """

    model_fields: ClassVar[tuple[str, ...]] = ()
    _limits: ClassVar[dict[str, _Limits]] = {}

    def __init_subclass__(cls) -> None:
        limits = dict(cls._limits)
        for name, annotation in inspect.get_annotations(cls).items():
            if name.startswith("_") or str(annotation).startswith("ClassVar"):
                continue
            said = cls.__dict__.get(name, _MISSING)
            if isinstance(said, _Limits):
                delattr(cls, name)
            else:
                said = _Limits(said, None, _anything)
            limits[name] = said
        cls._limits, cls.model_fields = limits, tuple(limits)

    def __init__(self, **fields: Any) -> None:
        self._fill(fields)
        self._complete(fields)
        try:
            self._check()
        except ValueError as error:
            raise ValidationError(_errors_of(error)) from None

    def _fill(self, fields: Mapping[Any, Any]) -> None:
        """Take the fields that are given, each checked by itself, and defaults for the others."""
        values = self.__dict__
        errors: list[tuple[Path, str]] = []
        checks = _checks(type(self))
        for name, limits in self._limits.items():
            value = fields.get(name, _MISSING)
            if value is _MISSING:
                if limits.factory is not None:
                    values[name] = limits.factory()
                elif limits.default is _MISSING:
                    errors.append(((name,), "is missing"))
                else:
                    values[name] = limits.default
                continue
            try:
                values[name] = limits.check(checks[name](value))
            except (ValueError, TypeError, OverflowError) as error:
                errors += _errors_of(error, name)
        errors += [((str(name),), "is unknown") for name in fields if name not in self._limits]
        if errors:
            raise ValidationError(errors)

    def _complete(self, given: Collection[str]) -> None:
        """Fill in what follows from other fields; ``given`` are the fields that were."""

    def _check(self) -> None:
        """Raise ValueError unless the fields suit each other."""

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        """A record of a tree of dicts, lists and values; one that is a record already stays it."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValidationError([((), "must be an object")])
        if not all(isinstance(key, str) for key in value):
            raise ValidationError([((), "must have names of fields for keys")])
        return cls(**value)

    def model_dump(self, *, mode: Literal["python", "json"] = "python",
                   exclude: Collection[str] = ()) -> dict[str, Any]:  # fmt: skip
        """A tree of dicts, lists and values, without some fields; with ``json`` enumerations
        are text."""
        return {name: _dumped(value, mode) for name, value in self if name not in exclude}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy; changes are not checked."""
        made = copy.deepcopy(self) if deep else copy.copy(self)
        made.__dict__.update(update or {})
        return made

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Names and values of the fields."""
        return ((name, self.__dict__[name]) for name in self.model_fields)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash((type(self), *self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self)})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"{type(self).__name__} does not change; make a copy")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"{type(self).__name__} does not change; make a copy")


def _errors_of(error: Exception, *where: str | int) -> list[tuple[Path, str]]:
    """The errors of something that lies at ``where``."""
    if isinstance(error, ValidationError):
        return [((*where, *path), reason) for path, reason in error.errors]
    return [(where, str(error))]


def _dumped(value: Any, mode: Literal["python", "json"]) -> Any:
    if isinstance(value, Model):
        return value.model_dump(mode=mode)
    if isinstance(value, dict):
        return {key: _dumped(item, mode) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_dumped(item, mode) for item in value]
    return value.value if mode == "json" and isinstance(value, enum.Enum) else value


# What annotations say ----------------------------------------------------------------------------


def _checks(cls: type[Model]) -> dict[str, Check]:
    """Of each field, from its annotation; looked at when the first record is made."""
    if cls not in _known:
        hints = typing.get_type_hints(cls, include_extras=True)
        _known[cls] = {name: _check_of(hints[name]) for name in cls.model_fields}
    return _known[cls]


_known: dict[type[Model], dict[str, Check]] = {}


def _check_of(hint: Any) -> Check:
    """What an annotation takes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return functools.partial(_all_of, [_check_of(arguments[0]), *hint.__metadata__])
    if origin in (typing.Union, types.UnionType):
        (inside,) = (one for one in arguments if one is not types.NoneType)
        return functools.partial(_or_none, _check_of(inside))
    if origin is Literal:
        return functools.partial(_one_of, arguments)
    if origin in (list, tuple):
        return functools.partial(_sequence, origin, _check_of(arguments[0]))
    if origin is dict:
        return functools.partial(_mapping, _check_of(arguments[1]))
    if isinstance(hint, type) and issubclass(hint, Model):
        return hint.model_validate
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return functools.partial(_member, hint)
    return _SIMPLE[hint]


def _anything(value: Any) -> Any:
    return value


def _all_of(checks: list[Check], value: Any) -> Any:
    for check in checks:
        value = check(value)
    return value


def _or_none(check: Check, value: Any) -> Any:
    return None if value is None else check(value)


def _one_of(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise ValueError(f"must be {' or '.join(map(str, choices))}")


def _sequence(kind: type, check: Check, value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a list")
    return kind(_each(check, enumerate(value)).values())


def _mapping(check: Check, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")
    if not all(isinstance(key, str) for key in value):
        raise ValueError("must have text for keys")
    return _each(check, value.items())


def _each(check: Check, items: typing.Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    kept: dict[Any, Any] = {}
    errors: list[tuple[Path, str]] = []
    for key, item in items:
        try:
            kept[key] = check(item)
        except (ValueError, TypeError, OverflowError) as error:
            errors += _errors_of(error, key)
    if errors:
        raise ValidationError(errors)
    return kept


def _member(kind: type[enum.Enum], value: Any) -> enum.Enum:
    try:
        return kind(value)
    except ValueError:
        names = ", ".join(str(member.value) for member in kind)
        raise ValueError(f"must be one of {names}") from None


def _integer(value: Any) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError("must be an integer")


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError("must be a number")


def _boolean(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError("must be true or false")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    return value


_SIMPLE: dict[Any, Check] = {
    Any: _anything, int: _integer, float: _number, bool: _boolean, str: _text,
}  # fmt: skip
