"""Finer activations: what a trained network computes stays, only rounded more finely."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lichen import models
from lichen.errors import UserError
from lichen.quant.draq.refine import refine_input, refine_output
from lichen.sim.golden import run_stages, trace_stage


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    with Image.open(models.photograph()) as photo:
        return np.asarray(photo.convert("RGB"))[128:192, 256:320].astype(np.int64)


@pytest.mark.parametrize("more", [1, 2, 4])
def test_steps_get_finer_and_nothing_else_changes(pixels: np.ndarray, more: int) -> None:
    g_a = models.load_network("tiny").transforms["g_a"]
    coarse = run_stages(g_a, pixels)
    for index in range(len(g_a.stages) - 1):
        bits = g_a.stages[index].output.bits + more
        finer = refine_output(g_a, index, bits)
        assert finer.stages[index].output.bits == bits
        fine = run_stages(finer, pixels)
        # Where nothing is clipped, the old value is the new one, rounded once more.
        hi = g_a.stages[index].output.hi
        inside = np.abs(coarse[index]) < hi
        apart = np.abs(fine[index] / 2**more - coarse[index])[inside]
        assert 0 < apart.max() <= 0.5 + 2.0**-more
        # The stages that follow see the same but for that rounding.
        later = np.abs(fine[index + 1] - coarse[index + 1])
        assert later.max() <= 12 and later.mean() < 0.6


@pytest.mark.parametrize("key", ["g_a", "g_s"])
@pytest.mark.parametrize("more", [1, 4])
def test_inputs_of_normalizations_get_finer(pixels: np.ndarray, key: str, more: int) -> None:
    transforms = models.load_network("tiny").transforms
    transform = transforms[key]
    source: np.ndarray = pixels
    if key == "g_s":
        source = run_stages(transforms["g_a"], pixels)[-1]
    for index, stage in enumerate(transform.stages):
        if stage.normalization is None:
            continue
        bits = stage.requantizer.output.bits + more
        finer = refine_input(transform, index, bits)
        assert finer.stages[index].requantizer.output.bits == bits
        before = transform.input if index == 0 else transform.stages[index - 1].output
        x = source if index == 0 else run_stages(transform, source)[index - 1]
        coarse = trace_stage(stage, before, x)
        fine = trace_stage(finer.stages[index], before, x)
        # the same values, rounded more finely, and clipped where they were
        apart = np.abs(fine.x / 2**more - coarse.x)
        assert 0 < apart.max() <= 0.5
        assert np.abs(fine.x).max() <= stage.requantizer.output.hi * 2**more
        assert np.abs(fine.output - coarse.output).max() <= 4
        assert np.abs(fine.output - coarse.output).mean() < 0.6


@pytest.mark.parametrize(
    ("refine", "bits_now"),
    [
        (refine_output, lambda stage: stage.output.bits),
        (refine_input, lambda stage: stage.requantizer.output.bits),
    ],
)
def test_what_cannot_be_refined(refine, bits_now) -> None:
    g_a = models.load_network("tiny").transforms["g_a"]
    assert refine(g_a, 0, bits_now(g_a.stages[0])) is g_a
    with pytest.raises(UserError, match="cannot be given 7 bits"):
        refine(g_a, 0, 7)
    with pytest.raises(UserError, match="cannot be given 12 bits"):
        refine(g_a, len(g_a.stages) - 1, 12)
    with pytest.raises(UserError, match="cannot have 40 bits"):
        refine(g_a, 0, 40)
