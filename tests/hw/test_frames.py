# amaranth: UnusedElaboratable=no
"""Frames back to back whose sizes change, without anybody waiting for anything.

The bench gives a frame's size with its first beat and another one with every other beat, and
offers that first beat while the pipeline is still busy with the frame before.
"""

from __future__ import annotations

import numpy as np
import pytest

from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import Activation, Transform
from lichen.network.random import StageShape, random_transform
from lichen.sim.golden import run_stages
from lichen.sim.runner import SimulationResult, Simulator

GDN = Activation.GDN


def stage(kernel: int, stride: int, padding: int, activation=Activation.NONE) -> StageShape:
    return StageShape(
        out_channels=4, kernel=kernel, stride=stride, padding=padding, activation=activation
    )


UNUSED_ROWS = {
    # by the second stage: the last row and column of what the first one makes
    "conv2 leaves a row": [stage(3, 1, 1), stage(1, 2, 0)],
    # by the only stage: up to three rows and columns of the input
    "conv1 leaves rows": [stage(1, 4, 0)],
    # behind a normalization, whose rows end where its convolution's do
    "conv2 leaves a row of a GDN": [stage(3, 1, 1, GDN), stage(2, 3, 0)],
    # whole frames that give the last stage nothing but its first row
    "one row is enough": [stage(3, 2, 1), stage(3, 4, 1), stage(1, 2, 0, GDN)],
}


def folding(transform: Transform, max_width: int, pixels: int = 2) -> Folding:
    stages = []
    for stage in transform.stages:
        norm = None
        if stage.normalization is not None:
            norm = ArrayFolding(pixels=pixels, chain_length=2, lanes=2)
        conv = ArrayFolding(pixels=pixels, chain_length=2, lanes=1)
        stages.append(StageFolding(chains=2, convolution=conv, normalization=norm))
    return Folding(max_width=max_width, stages=stages)


def frames_of(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    """Frames (height, width, 3) whose every pixel differs from zero, the padding."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 256, (*size, 3)) for size in sizes]


def run(
    pipeline: Pipeline, frames: list[np.ndarray], simulator: str = "icarus", **knobs
) -> SimulationResult:
    """All frames through the pipeline, every stage compared with the golden model."""
    transform = pipeline.transform
    outputs = [run_stages(transform, frame) for frame in frames]
    return Simulator(pipeline, simulator=simulator, taps=True).run(
        frames,
        [stages[-1] for stages in outputs],
        expected_taps={
            stage.name: [stages[k] for stages in outputs]
            for k, stage in enumerate(transform.stages)
        },
        **knobs,
    )


@pytest.mark.parametrize("name", UNUSED_ROWS)
def test_a_size_waits_for_rows_that_no_output_needs(name: str) -> None:
    transform = random_transform(np.random.default_rng(1), UNUSED_ROWS[name])
    frames = frames_of([(6, 8), (5, 5), (6, 8), (8, 11), (7, 3), (7, 3), (5, 11), (5, 11)])
    pipeline = Pipeline(transform, folding(transform, 11), debug=True)
    result = run(pipeline, frames)
    assert result.ok, result.faults
