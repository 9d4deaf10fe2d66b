"""Stages that could cost otherwise never share a price."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lichen.hw.plan.signature import FREE, signature
from lichen.network.arithmetic import NormKind
from lichen.network.description import Activation, Format, Stage
from lichen.network.model import Model
from lichen.network.random import StageShape, random_transform

SOURCE = Format(bits=8, signed=True, lo=-127, hi=127)


def stage(activation: Activation) -> Stage:
    shape = StageShape(
        out_channels=4, kernel=3, transposed=True, output_padding=1, activation=activation
    )
    return random_transform(np.random.default_rng(0), [shape], source=SOURCE).stages[0]


def other(value: Any) -> Any:
    """Anything else of the same kind."""
    if isinstance(value, np.ndarray):
        changed = value.copy()
        changed.reshape(-1)[-1] += 1
        return changed
    if isinstance(value, bool):
        return not value
    if isinstance(value, NormKind | Activation):
        return next(kind for kind in type(value) if kind is not value)
    return value + 1 if isinstance(value, int) else None if value is not None else np.ones(4, int)


def variants(model: Model) -> Iterator[tuple[str, Any]]:
    """The model with every field changed in turn, those of models within it too."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, Model):
            for inner, changed in variants(value):
                yield f"{name}.{inner}", model.model_copy(update={name: changed})
        else:
            yield name, model.model_copy(update={name: other(value)})


@pytest.mark.parametrize("activation", [Activation.IGDN, Activation.LEAKY_RELU])
def test_no_field_is_forgotten(activation: Activation) -> None:
    original = stage(activation)
    seen = {}
    for name, changed in variants(original):
        seen[name] = signature(changed, SOURCE)
        assert (seen[name] == signature(original, SOURCE)) == (name in FREE), name
    assert {"convolution.transposed", "convolution.output_padding"} <= set(seen)
    counted = [key for name, key in seen.items() if name not in FREE]
    assert len(set(counted)) == len(counted)


def test_the_source_counts() -> None:
    original = stage(Activation.IGDN)
    for _, source in variants(SOURCE):
        assert signature(original, source) != signature(original, SOURCE)


def test_a_copy_shares_its_price() -> None:
    original = stage(Activation.IGDN)
    copy = Stage.model_validate(original.model_dump() | {"name": "another"})
    assert signature(copy, SOURCE) == signature(original, SOURCE)
