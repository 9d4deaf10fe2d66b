# amaranth: UnusedElaboratable=no
"""What the arrays do with their cycles: counted in simulation, against counts by definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lichen import models
from lichen.boards.design import read_folding
from lichen.commands.simulate import command
from lichen.hw.plan.planner import PHOTO, evaluate
from lichen.hw.plan.tiling import tiles
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Activation, Network, Transform
from lichen.network.file import save
from lichen.network.random import StageShape, random_factorized, random_transform
from lichen.sim.images import load_image
from lichen.sim.transform import Pauses, efficiency, simulate_transform

FOLDINGS = Path(__file__).parents[2] / "benchmarks" / "foldings"
BUILDS = FOLDINGS.parent / "builds"
HEIGHT, WIDTH, TILE = 8, 52, 20


@pytest.fixture(scope="module")
def transform() -> Transform:
    """Channels that fill neither lanes nor passes, rows that do not fill groups."""
    shapes = [
        StageShape(out_channels=6, kernel=3, activation=Activation.GDN),
        StageShape(out_channels=5, kernel=3),
    ]
    return random_transform(np.random.default_rng(4), shapes)


FOLDING = Folding(
    max_width=TILE,
    stages=[
        StageFolding(
            chains=1,
            convolution=ArrayFolding(pixels=4, chain_length=4, lanes=2),
            normalization=ArrayFolding(pixels=1, chain_length=4, lanes=4),
        ),
        StageFolding(chains=1, convolution=ArrayFolding(pixels=2, chain_length=2, lanes=4)),
    ],
)


def test_arrays_are_counted_as_they_are_built(transform: Transform) -> None:
    """Steps and products of every tile, put together from the shapes alone."""
    image = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3))
    run = simulate_transform(transform, FOLDING, image, simulator="icarus")
    assert not run.faults and run.tiles > 2
    assert [use.name for use in run.arrays] == ["conv1", "conv1_norm", "conv2"]
    busy, needed = [0, 0, 0], [0, 0, 0]
    for tile in tiles(transform, WIDTH, TILE):
        (_, _), (h1, w1), (h2, w2) = transform.sizes(HEIGHT, tile.stop - tile.start)
        # groups x passes x steps: 3 channels are two steps of 2 lanes, 6 are two of 4
        busy[0] += h1 * ceil_div(w1, 4) * 2 * (9 * 2)
        busy[1] += h1 * w1 * 2 * 2
        busy[2] += h2 * ceil_div(w2, 2) * 3 * (9 * 2)
        needed[0] += h1 * w1 * 6 * 9 * 3
        needed[1] += h1 * w1 * 6 * 6
        needed[2] += h2 * w2 * 5 * 9 * 6
    assert [use.busy_cycles for use in run.arrays] == busy
    assert [use.macs for use in run.arrays] == needed
    assert [use.multipliers for use in run.arrays] == [32, 16, 16]
    for use in run.arrays:
        assert use.cycles == run.cycles
        assert use.efficiency == use.macs / (use.multipliers * run.cycles) < use.busy < 1
    assert run.bottleneck is run.arrays[0]
    assert efficiency(run.arrays) == sum(needed) / (64 * run.cycles)


def test_pauses_measure_nothing(transform: Transform) -> None:
    image = np.zeros((HEIGHT, TILE, 3), dtype=int)
    pauses = Pauses(idle=0.1, backpressure=0.1, hold=1, seed=1)
    run = simulate_transform(transform, FOLDING, image, simulator="icarus", pauses=pauses)
    assert not run.faults and run.arrays == []


def test_the_command_says_it(transform: Transform, tmp_path: Path) -> None:
    network = Network(architecture="custom", n=6, m=5, transforms={"g_a": transform})
    save(network, tmp_path / "net.lichen")
    (tmp_path / "folding.json").write_text(json.dumps(FOLDING.model_dump(mode="json")))
    Image.fromarray(np.zeros((4, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "net.lichen"), "--image", str(tmp_path / "a.png")]
    arguments += ["--simulator", "icarus", "--folding", str(tmp_path / "folding.json")]
    done = CliRunner().invoke(command, [*arguments, "--json", str(tmp_path / "run.json")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run.json").read_text())
    uses = report["arrays"]
    assert [use["name"] for use in uses] == ["conv1", "conv1_norm", "conv2"]
    assert sum(use["macs"] for use in uses) == network.transform("g_a").macs(4, 8)
    assert sum(use["multipliers"] for use in uses) == report["multipliers"]
    work = report["multipliers"] * report["cycles"]
    assert report["efficiency"] == sum(use["macs"] for use in uses) / work
    lines = done.stdout.splitlines()
    assert lines[1].split()[0] == "conv1" and lines[1].endswith(f"{uses[0]['efficiency']:.1%}")
    assert lines[4].split()[0] == "all" and lines[4].endswith(f"{report['efficiency']:.1%}")
    paused = CliRunner().invoke(command, [*arguments, "--backpressure", "1", "--json", "-"])
    assert json.loads(paused.stdout)["efficiency"] is None


def test_a_decoder_on_record_keeps_its_arrays_busy() -> None:
    """g_s of small-opt-q3, as built: no product with an inserted zero among those it needs, so that
    an array that made some would show here. Cycles of the model are those of simulation."""
    report = json.loads((BUILDS / "small-opt-decoder.json").read_text())
    network = models.load_network(report["network"]["name"])
    transform = network.transform(report["transform"])
    height, width = network.frames(*PHOTO)[report["transform"]]
    folding = read_folding(BUILDS / "small-opt-decoder.json", report["transform"])
    plan = evaluate(transform, folding, (height, width))
    needed = dict.fromkeys(plan.pipeline.names, 0)
    for tile in tiles(transform, width, folding.max_width):
        for name, macs in plan.pipeline.macs(height, tile.stop - tile.start).items():
            needed[name] += macs
    # by hand, of the untiled image: a fourth of 5x5 taps for every output pixel
    assert sum(plan.pipeline.macs(height, width).values()) == pytest.approx(4268e6, rel=1e-3)
    uses = {
        name: macs / (plan.pipeline.multipliers()[name] * plan.cycles_per_frame)
        for name, macs in needed.items()
    }
    made = sum(plan.pipeline.multipliers().values()) * plan.cycles_per_frame
    assert 0.9 <= max(uses.values()) < 1
    assert 0.85 <= sum(needed.values()) / made < 1


@pytest.mark.slow
def test_a_whole_photograph_keeps_the_arrays_busy() -> None:
    """N = 64 with 6-bit weights, folded by hand, on 768x512 pixels in three tiles.

    All stages bit for bit, cycles as planned, and the shares of them that were of use.
    """
    transform = random_factorized(0, n=64, m=96, weight_bits=6).transform("g_a")
    folding = read_folding(FOLDINGS / "small-w6.json", "g_a")
    image, _ = load_image(models.photograph())
    assert image.shape[:2] == PHOTO
    run = simulate_transform(transform, folding, image)
    assert run.faults == [] and run.mismatches == 0
    assert run.tiles == 3
    assert run.cycles == evaluate(transform, folding).cycles_per_frame
    macs = [
        Pipeline(transform, folding).macs(PHOTO[0], tile.stop - tile.start)
        for tile in tiles(transform, PHOTO[1], folding.max_width)
    ]
    assert sum(use.macs for use in run.arrays) == sum(sum(m.values()) for m in macs)
    assert run.bottleneck.efficiency >= 0.92
    assert efficiency(run.arrays) >= 0.9
    for stage in transform.stages:
        assert efficiency([u for u in run.arrays if u.name.split("_")[0] == stage.name]) >= 0.8
