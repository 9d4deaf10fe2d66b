"""Random networks, random foldings: the gateware equals the golden model, bit for bit.

Reproduce one case with the command its failure prints, or run any range of seeds:

    pytest tests/hw/test_fuzz.py --fuzz-seeds 100-199
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lichen.network.description import Transform
from lichen.sim.golden import run_transform
from lichen.sim.runner import Simulator
from tests.hw.cases import Case, random_case, random_upsampling


def stage_outputs(case: Case) -> dict[str, list]:
    """The golden output of every stage, as `Simulator.run` wants it."""
    outputs, tensor = {}, case.image
    transform = case.transform
    for stage, source in zip(transform.stages, transform.sources, strict=True):
        tensor = run_transform(Transform(input=source, stages=[stage]), tensor)
        outputs[stage.name] = [tensor]
    return outputs


@pytest.mark.parametrize("make", [random_case, random_upsampling])
def test_random_network(fuzz_seed: int, make: Callable[[int], Case]) -> None:
    case = make(fuzz_seed)
    pipeline = case.pipeline()
    predicted = pipeline.predicted_cycles(*case.image.shape[:2])
    expected = stage_outputs(case)
    last = list(expected.values())[-1]
    reproduce = f"reproduce: pytest tests/hw/test_fuzz.py --fuzz-seeds {fuzz_seed}"
    simulator = Simulator(pipeline, simulator="icarus", taps=True)
    result = simulator.run([case.image], last, expected_taps=expected, drain=True)
    assert result.ok, f"{result.faults}; {reproduce}"
    assert result.compared == last[0].size
    assert result.cycles == predicted, reproduce
    # The same frame twice, with random pauses: order and content must not change.
    result = simulator.run(
        [case.image, case.image],
        last * 2,
        expected_taps={name: tensors * 2 for name, tensors in expected.items()},
        idle=0.3,
        backpressure=0.4,
        hold=1 << (fuzz_seed % 6),
        seed=fuzz_seed,
        drain=True,
    )
    assert result.ok, f"with pauses: {result.faults}; {reproduce}"


@pytest.mark.parametrize("seed", [3])
def test_cases_are_lively(seed: int) -> None:
    """A case whose outputs are constant could hide any fault."""
    outputs = stage_outputs(random_case(seed))
    assert all(tensor.std() > 1 for (tensor,) in outputs.values())
