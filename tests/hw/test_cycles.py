# amaranth: UnusedElaboratable=no
"""Where cycles of gateware and model part, the unit is named; no plan is faster than its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lichen.hw.stage import timing
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import Activation
from lichen.network.random import StageShape, random_transform
from lichen.sim.transform import deviation
from tests.hw.test_frames import folding

FRAME = np.zeros((7, 9, 3), dtype=np.int64)
NAMES = ["conv1", "conv1_norm", "conv2"]


@pytest.fixture
def pipeline() -> Pipeline:
    shapes = [
        StageShape(out_channels=4, kernel=3, stride=2, activation=Activation.GDN),
        StageShape(out_channels=4, kernel=3),
    ]
    transform = random_transform(np.random.default_rng(1), shapes)
    return Pipeline(transform, folding(transform, 9))


def test_equal_cycles_are_no_deviation(pipeline: Pipeline) -> None:
    assert pipeline.names == NAMES
    assert deviation(pipeline, [timing.marks(pipeline, 7, 9)], [FRAME]) is None


@pytest.mark.parametrize("number", range(len(NAMES)))
@pytest.mark.parametrize("field", ["fill_latency", "post_latency", "group_cycles"])
def test_the_unit_that_is_slower_is_named(
    pipeline: Pipeline, number: int, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marks are those of gateware in which one unit takes longer than it says, so long that
    those before it are held up and those behind it wait."""
    unit = pipeline.units[number]
    right = unit.timing

    def slower(height: int, width: int) -> dict[str, Any]:
        fields = right(height, width)
        value = fields[field]
        more = tuple(v + 40 for v in value) if isinstance(value, tuple) else value + 40
        return fields | {field: more}

    with monkeypatch.context() as patch:
        patch.setattr(unit, "timing", slower)
        marks = timing.marks(pipeline, 7, 9)
    sentence = deviation(pipeline, [marks], [FRAME])
    assert sentence is not None and sentence.startswith(f"{NAMES[number]}: its "), sentence


def test_a_missing_bit_is_a_deviation(pipeline: Pipeline) -> None:
    marks = timing.marks(pipeline, 7, 9)
    del marks["beats_conv1_norm"]
    sentence = deviation(pipeline, [marks], [FRAME])
    assert sentence is not None and sentence.startswith("conv1_norm: its first beat leaves in")


def test_no_frame_is_faster_than_its_arrays(pipeline: Pipeline) -> None:
    """A bound that shares no constant with the model: products, and beats of the drain."""
    size, bound = (7, 9), 0
    for unit in pipeline.units:
        size = unit.output_size(*size)
        bound = max(bound, unit.core.shape.frame_cycles(*size))
    assert bound < pipeline.predicted_cycles(7, 9) < 3 * bound
