"""Which stages cost the same: all that a description says, whatever fields it has or gets."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

import numpy as np

from lichen.network.description import Format, Stage
from lichen.network.model import Model

FREE = frozenset({"name", "scales", "kept_channels"})
"""Fields of a `Stage` that no gateware is made of. Every other field counts."""


def signature(stage: Stage, source: Format) -> Hashable:
    """Equal for stages that are made, and cost, the same behind inputs of this format.

    It is derived from the description field by field, so that no field can be forgotten.
    """
    named = ((name, getattr(stage, name)) for name in type(stage).model_fields)
    return _frozen(source), tuple((n, _frozen(value)) for n, value in named if n not in FREE)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Model):
        return tuple(_frozen(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, np.ndarray):
        integers = np.ascontiguousarray(value, dtype=np.int64)
        return value.shape, hashlib.blake2b(integers.tobytes(), digest_size=16).digest()
    hash(value)  # a field of another kind needs a rule of its own
    return value
