# amaranth: UnusedElaboratable=no
"""Hardware broken on purpose: the run fails and names the stage, the channel and the pixel.

Where the first difference must show is computed from the golden model of the broken network,
never read off the simulation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from click.testing import CliRunner
from PIL import Image

from lichen.commands.simulate import command
from lichen.hw.engine.pipe import Pipe
from lichen.hw.engine.requantize import Requantize
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.arithmetic import clamp, rshift_round, saturate18
from lichen.network.description import Activation, Requantizer, Transform
from lichen.network.file import save
from lichen.network.random import StageShape, random_factorized, random_transform
from lichen.sim import transform as sim_transform
from lichen.sim.golden import run_stages, trace_stage
from lichen.sim.images import pad_image
from lichen.sim.runner import SimulationResult, Simulator
from lichen.sim.transform import simulate_transform

HEIGHT, WIDTH = 9, 11


def network() -> Transform:
    """GDN, then a leaky stage, then a plain one: three kinds of requantizer."""
    return random_transform(
        np.random.default_rng(5),
        [
            StageShape(out_channels=6, kernel=3, stride=1, activation=Activation.GDN),
            StageShape(out_channels=5, kernel=3, stride=2, activation=Activation.LEAKY_RELU),
            StageShape(out_channels=4, kernel=3, stride=1),
        ],
    )


FOLDING = Folding(
    max_width=WIDTH,
    stages=[
        StageFolding(
            chains=2,
            convolution=ArrayFolding(pixels=2, chain_length=2, lanes=3),
            normalization=ArrayFolding(chain_length=3, lanes=2),
        ),
        StageFolding(chains=1, convolution=ArrayFolding(chain_length=5, lanes=2)),
        StageFolding(chains=3, convolution=ArrayFolding(pixels=2, chain_length=1, lanes=1)),
    ],
)


def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3))


def flip_weight(transform: Transform, stage: int, where: tuple[int, ...], bit: int) -> Transform:
    """The transform with one bit of one weight flipped, as stored in two's complement."""
    old = transform.stages[stage]
    conv = old.convolution
    weight = conv.weight.copy()
    width = conv.weight_bits
    code = (int(weight[where]) & ((1 << width) - 1)) ^ (1 << bit)
    weight[where] = code - (1 << width) if code >> (width - 1) else code
    # validated again: a flip to the most negative code is no weight
    conv = type(conv).model_validate(conv.model_dump() | {"weight": weight})
    stages = list(transform.stages)
    stages[stage] = old.model_copy(update={"convolution": conv})
    return transform.model_copy(update={"stages": stages})


def first_difference(
    right: list[np.ndarray], wrong: list[np.ndarray], names: list[str]
) -> dict[str, Any]:
    """Where two runs part: the first stage, there the first pixel, there the first channel."""
    for name, expected, actual in zip(names, right, wrong, strict=True):
        differing = np.argwhere(expected != actual)
        if len(differing):
            y, x, channel = (int(i) for i in differing[0])
            return {
                "stage": name,
                "frame": 0,
                "y": y,
                "x": x,
                "channel": channel,
                "expected": int(expected[y, x, channel]),
                "actual": int(actual[y, x, channel]),
            }
    raise AssertionError("the fault changes nothing")


def run(pipeline: Pipeline, transform: Transform, image: np.ndarray) -> SimulationResult:
    """The pipeline's gateware against the golden model of ``transform``."""
    outputs = run_stages(transform, image)
    return Simulator(pipeline, simulator="icarus", taps=True).run(
        [image],
        [outputs[-1]],
        expected_taps={
            stage.name: [output] for stage, output in zip(transform.stages, outputs, strict=True)
        },
        drain=True,
    )


def names_of(transform: Transform) -> list[str]:
    return [stage.name for stage in transform.stages]


def check_report(result: SimulationResult, expected: dict[str, Any]) -> None:
    assert not result.ok
    assert result.deadlock is None
    assert result.first_mismatch == expected
    words = (
        f"first at row {expected['y']}, column {expected['x']}, channel {expected['channel']}: "
        f"{expected['actual']} instead of {expected['expected']}"
    )
    assert result.faults[0].startswith(f"{expected['stage']}: ")
    assert result.faults[0].endswith(words)


def test_the_intact_pipeline_passes() -> None:
    """Without a fault the same bench finds nothing, so what it finds below is the fault."""
    result = run(Pipeline(network(), FOLDING, debug=True), network(), picture())
    assert result.ok and result.mismatches == 0, result.faults


@pytest.mark.parametrize(
    ("stage", "where", "bit"),
    [
        (0, (3, 1, 2, 0), 6),  # in front of a normalization, which spreads it to other channels
        (1, (4, 5, 0, 1), 3),
        (2, (1, 0, 1, 1), 0),  # the least it can be
    ],
)
def test_a_flipped_weight_bit_is_located(stage: int, where: tuple[int, ...], bit: int) -> None:
    transform, image = network(), picture()
    broken = flip_weight(transform, stage, where, bit)
    expected = first_difference(
        run_stages(transform, image), run_stages(broken, image), names_of(transform)
    )
    assert expected["stage"] == f"conv{stage + 1}"
    if transform.stages[stage].normalization is None:
        assert expected["channel"] == where[0]
    check_report(run(Pipeline(broken, FOLDING, debug=True), transform, image), expected)


class Truncating(Requantize):
    """A requantizer whose last shift forgets to round."""

    def elaborate(self, platform: object) -> Module:
        rounded = Pipe.shift_round

        def shift(pipe: Pipe, name: str, amount: int) -> None:
            if name == "y":
                pipe.register(y=pipe["y"] >> amount)
            else:
                rounded(pipe, name, amount)

        Pipe.shift_round = shift  # type: ignore[method-assign]
        try:
            return super().elaborate(platform)
        finally:
            Pipe.shift_round = rounded  # type: ignore[method-assign]


def truncated(accumulator: np.ndarray, r: Requantizer) -> np.ndarray:
    """What `Truncating` makes of accumulators (height, width, channels)."""
    a = saturate18(rshift_round(accumulator, r.pre_shift.astype(np.int64)))
    m = r.multiplier.astype(np.int64)
    if r.negative_multiplier is not None:
        m = np.where(a < 0, r.negative_multiplier.astype(np.int64), m)
    return clamp((a * m) >> r.shift, r.output.lo, r.output.hi)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_requantizer_without_rounding_is_located(stage: int) -> None:
    transform, image = network(), picture()
    pipeline = Pipeline(transform, FOLDING, debug=True)
    unit = next(u for u in pipeline.units if getattr(u, "stage", None) is transform.stages[stage])
    unit.post = Truncating(
        bias=[int(b) for b in unit.stage.convolution.bias],
        constants=unit.stage.requantizer,
        accumulator_shape=unit.post.accumulator_shape,
        lanes=unit.post.lanes,
    )
    assert unit.stage.requantizer.shift > 0
    outputs = run_stages(transform, image)
    trace = trace_stage(transform.stages[stage], transform.sources[stage], outputs[stage - 1])
    wrong = [*outputs]
    wrong[stage] = truncated(trace.accumulator, unit.stage.requantizer)
    expected = first_difference(outputs, wrong, names_of(transform))
    assert expected["stage"] == f"conv{stage + 1}"
    check_report(run(pipeline, transform, image), expected)


def test_simulate_transform_locates_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, image = network(), picture()
    broken = flip_weight(transform, 1, (2, 3, 1, 1), 4)
    monkeypatch.setattr(
        sim_transform, "Pipeline", lambda _, folding, **kw: Pipeline(broken, folding, **kw)
    )
    simulation = simulate_transform(transform, FOLDING, image, simulator="icarus")
    expected = first_difference(
        run_stages(transform, image), run_stages(broken, image), names_of(transform)
    )
    check_report(simulation.result, expected)
    assert simulation.faults == simulation.result.faults
    assert simulation.mismatches == simulation.result.mismatches > 0


def test_a_fault_in_a_tile_is_told_in_columns_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = StageShape(out_channels=4, kernel=3, stride=2)
    transform = random_transform(np.random.default_rng(6), [shape, shape])
    stage = StageFolding(chains=1, convolution=ArrayFolding(chain_length=4, lanes=1))
    folding = Folding(max_width=32, stages=[stage, stage])
    broken = flip_weight(transform, 0, (2, 1, 1, 1), 5)
    # black in the first tiles: a weight of the first stage makes no difference there
    image = np.zeros((8, 96, 3), dtype=np.int64)
    image[:, 64:] = np.random.default_rng(4).integers(1, 256, (8, 32, 3))
    monkeypatch.setattr(
        sim_transform, "Pipeline", lambda _, folding, **kw: Pipeline(broken, folding, **kw)
    )
    simulation = simulate_transform(transform, folding, image, simulator="icarus")
    expected = first_difference(
        run_stages(transform, image), run_stages(broken, image), names_of(transform)
    )
    found = simulation.first_mismatch
    assert simulation.tiles > 2 and found is not None and found["tile"] > 0
    assert {k: found[k] for k in expected} == expected
    assert expected["stage"] == "conv1" and expected["x"] >= 30


def test_the_command_fails_on_tampered_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``lichen simulate`` of a network whose gateware has one bit of one weight flipped."""
    intact = random_factorized(3, n=8, m=8)
    save(intact, tmp_path / "net.lichen")
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    transform = intact.transforms["g_a"]
    broken = flip_weight(transform, 3, (5, 1, 2, 2), 5)
    monkeypatch.setattr(
        sim_transform, "Pipeline", lambda _, folding, **kw: Pipeline(broken, folding, **kw)
    )
    padded = pad_image(image, 16)
    expected = first_difference(
        run_stages(transform, padded), run_stages(broken, padded), names_of(transform)
    )
    assert expected["stage"] == "conv4" and expected["channel"] == 5
    arguments = [str(tmp_path / "net.lichen"), "--image", str(tmp_path / "image.png")]
    arguments += ["--simulator", "icarus", "--multipliers", "40", "--max-width", "96"]
    arguments += ["--json", "-"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 1, done.output
    report = json.loads(done.stdout)
    assert report["mismatches"] > 0
    assert report["first_mismatch"] == {**expected, "tile": 0}
    assert "FAIL: conv4" in done.stderr
    where = f"row {expected['y']}, column {expected['x']}, channel {expected['channel']}"
    assert where in done.stderr
