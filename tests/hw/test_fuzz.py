"""Random networks, random foldings: the gateware equals the golden model, bit for bit.

Reproduce one case with the command its failure prints, or run any range of seeds:

    pytest tests/hw/test_fuzz.py --fuzz-seeds 100-199
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lichen.network.description import Transform
from lichen.sim.golden import run_stages
from lichen.sim.runner import Simulator
from lichen.sim.transform import deviation
from tests.hw.cases import Case, random_case, random_upsampling


def stage_outputs(transform: Transform, frames: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The golden output of every stage for every frame, as `Simulator.run` wants it."""
    outputs = [run_stages(transform, frame) for frame in frames]
    return {
        stage.name: [stages[k] for stages in outputs] for k, stage in enumerate(transform.stages)
    }


def part(case: Case, rng: np.random.Generator) -> np.ndarray:
    """A smaller frame out of the case's, where any smaller one leaves an output."""
    height, width, _ = case.image.shape
    for _ in range(20):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        try:
            case.transform.sizes(h, w)
        except ValueError:
            continue
        return case.image[-h:, -w:]
    return case.image


@pytest.mark.parametrize(
    "make", [random_case, pytest.param(random_upsampling, marks=pytest.mark.slow)]
)
def test_random_network(fuzz_seed: int, make: Callable[[int], Case]) -> None:
    check(make(fuzz_seed), fuzz_seed)


# The first seed has a stride of 3, whose tables of steps Icarus once ran for ever at time zero.
@pytest.mark.parametrize("seed", [2, 4])
def test_random_upsampling(seed: int) -> None:
    check(random_upsampling(seed), seed)


def check(case: Case, seed: int) -> None:
    """A case's values, cycles and order, alone and with pauses."""
    pipeline = case.pipeline()
    expected = stage_outputs(case.transform, [case.image])
    last = list(expected.values())[-1]
    reproduce = f"reproduce: pytest tests/hw/test_fuzz.py --fuzz-seeds {seed} -m 'slow or not slow'"
    simulator = Simulator(pipeline, simulator="icarus", taps=True)
    result = simulator.run([case.image], last, expected_taps=expected, drain=True)
    assert result.ok, f"{result.faults}; {reproduce}"
    assert result.compared == last[0].size
    assert deviation(pipeline, result.marks, [case.image]) is None, reproduce
    assert result.cycles == pipeline.predicted_cycles(*case.image.shape[:2]), reproduce
    # Back to back with another size in between, with random pauses: order and content must not
    # change.
    frames = [case.image, part(case, np.random.default_rng(seed)), case.image]
    expected = stage_outputs(case.transform, frames)
    result = simulator.run(
        frames,
        list(expected.values())[-1],
        expected_taps=expected,
        idle=0.3,
        backpressure=0.4,
        hold=1 << (seed % 6),
        seed=seed,
    )
    assert result.ok, f"with pauses: {result.faults}; {reproduce}"


@pytest.mark.parametrize("seed", [3])
def test_cases_are_lively(seed: int) -> None:
    """A case whose outputs are constant could hide any fault."""
    case = random_case(seed)
    outputs = stage_outputs(case.transform, [case.image])
    assert all(tensor.std() > 1 for (tensor,) in outputs.values())
