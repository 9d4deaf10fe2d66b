# amaranth: UnusedElaboratable=no
"""Mixed bit-widths, as a search leaves them, in hardware: equal to the golden model, bit for bit.

The network is a cut of the shipped `tiny` with another number of channels in every stage.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.boards.board import find  # noqa: E402
from lichen.hw.device.device import Resources  # noqa: E402
from lichen.hw.plan.planner import fits, plan  # noqa: E402
from lichen.hw.plan.price import Pace  # noqa: E402
from lichen.hw.stage.folding import Folding  # noqa: E402
from lichen.network.description import Network, Transform  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.calibration.options import Options, Widths, bits_of  # noqa: E402
from lichen.quant.calibration.quantize import quantize  # noqa: E402
from lichen.quant.float.network import FloatNetwork, FloatStage, FloatTransform  # noqa: E402
from lichen.quant.float.source import load_float_network  # noqa: E402
from lichen.quant.search.costs import HardwareCost  # noqa: E402
from lichen.quant.search.search import Search  # noqa: E402
from lichen.quant.search.state import SearchOptions  # noqa: E402
from lichen.sim.golden import run_stages  # noqa: E402
from lichen.sim.transform import simulate_transform  # noqa: E402
from tests.hw.cases import random_folding  # noqa: E402

CHANNELS = {"g_a": (5, 6, 7, 8), "g_s": (7, 6, 5, 3)}


def cut(stage: FloatStage, before: int, after: int) -> FloatStage:
    """The first channels of a stage."""
    changes: dict = {
        "weight": stage.weight[:after, :before],
        "bias": stage.bias[:after],
    }
    if stage.gamma is not None and stage.beta is not None:
        changes |= {"gamma": stage.gamma[:after, :after], "beta": stage.beta[:after]}
    return replace(stage, **changes)


@pytest.fixture(scope="module")
def slim() -> FloatNetwork:
    tiny, transforms = load_float_network("tiny"), {}
    for key, channels in CHANNELS.items():
        inputs = (3 if key == "g_a" else CHANNELS["g_a"][-1], *channels)
        transforms[key] = FloatTransform(
            [
                cut(stage, before, after)
                for stage, before, after in zip(
                    tiny.transforms[key].stages, inputs, channels, strict=False
                )
            ]
        )
    return replace(tiny, m=CHANNELS["g_a"][-1], transforms=transforms, bottlenecks={})


@pytest.fixture(scope="module")
def images(slim: FloatNetwork) -> CalibrationImages:
    return load_calibration(models.calibration_photographs(), slim.factor, size=64, limit=4)


def quantized(slim: FloatNetwork, images: CalibrationImages, per_stage) -> Network:
    options = Options(samples=400, latent_bits=8, per_stage=per_stage)
    return quantize(slim, images, options).network


def check(transform: Transform, folding: Folding, image: np.ndarray) -> None:
    """Gateware against golden, every stage; and the cycles that were promised."""
    assert all(tensor.std() > 0 for tensor in run_stages(transform, image)[:-1])
    simulation = simulate_transform(transform, folding, image, simulator="icarus")
    assert not simulation.faults, simulation.faults
    assert simulation.compared > 0
    assert simulation.cycles == simulation.predicted_cycles


ODD = {
    "g_a.conv1": Widths(weight=3, activation=5, gamma=5, u=7, gdn_input=9),
    "g_a.conv2": Widths(weight=10, activation=9, gamma=3, u=11, gdn_input=12),
    "g_a.conv3": Widths(weight=4, activation=16, gamma=12, u=5, gdn_input=6),
    "g_a.conv4": Widths(weight=12),
}


def test_odd_widths(slim, images) -> None:
    network = quantized(slim, images, ODD)
    transform = network.transforms["g_a"]
    assert transform.stages[0].convolution.weight_bits == 3
    assert transform.sources[1].bits == 5 and transform.sources[3].bits == 16
    budget = Resources(dsp=40, bram=60, lut=30_000)
    found = plan(transform, budget, max_width=64)
    assert fits(found.resources, budget)
    check(transform, found.folding, images.crops[0][16:32, :32])


def test_what_a_search_finds(slim, images) -> None:
    """The last network of a search for a board, and one on the way, on folded hardware."""
    board = find("ulx3s-85f").pipeline_budget
    options = SearchOptions(
        quantization=Options(samples=400),
        lmbda=0.013,
        max_loss=0.5,
        layers=("g_a.conv1", "g_a.conv2", "g_a.conv3", "g_a.conv4"),
        tries=3,
    )

    def cost(start: Network) -> HardwareCost:
        pace = Pace(budget=board, max_width=768, cycles_per_frame=1_000_000)
        made = HardwareCost(start, "g_a", pace)
        made.reached = lambda network, cost: None  # type: ignore[method-assign]
        return made

    run = Search(slim, images, options, cost)
    on_the_way = []
    while run.state.ended is None and len(run.state.log) < 12:
        run.step()
        on_the_way.append(run.state.network)
    assert run.state.log[-1]["cost"] < run.state.log[0]["cost"]
    kinds = {tuple(vars(w).values()) for k, w in bits_of(on_the_way[-1]).items() if "g_a" in k}
    assert len(kinds) > 1  # mixed
    rng = np.random.default_rng(0)
    for network in (on_the_way[len(on_the_way) // 2], on_the_way[-1]):
        transform = network.transforms["g_a"]
        check(transform, random_folding(rng, transform, 32), images.crops[1][:16, 16:48])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_any_widths(slim, images, seed: int) -> None:
    """Whatever bits: it quantizes, plans, elaborates, and computes the same."""
    rng = np.random.default_rng(seed)
    per_stage = {
        f"g_a.{stage.name}": Widths(
            weight=int(rng.integers(2, 13)),
            activation=int(rng.integers(4, 17)),
            gamma=int(rng.integers(2, 13)),
            u=int(rng.integers(2, 17)),
            gdn_input=int(rng.integers(4, 17)),
        )
        for stage in slim.transforms["g_a"].stages
    }
    transform = quantized(slim, images, per_stage).transforms["g_a"]
    budget = find("ulx3s-85f").pipeline_budget
    found = plan(transform, budget, max_width=64)
    assert fits(found.resources, budget)
    check(transform, random_folding(rng, transform, 32), images.crops[seed % 4][:32, :16])
