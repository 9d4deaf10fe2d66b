"""Options of a command as records, each of what belongs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def records(values: Mapping[str, Any], *kinds: type) -> tuple[Any, ...]:
    """One record of each kind (a dataclass), of the options that its fields are named after.

    Raises TypeError when an option belongs to none of them, or one is missing.
    """
    owner = {field.name: kind for kind in kinds for field in fields(kind)}
    strange = sorted(set(values) - set(owner))
    if strange:
        raise TypeError(f"no record takes the option {strange[0]}")
    return tuple(
        kind(**{name: values[name] for name, of in owner.items() if of is kind}) for kind in kinds
    )
