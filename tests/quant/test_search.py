"""The mixed-precision search, on the shipped tiny network and small crops."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.boards.board import find  # noqa: E402
from lichen.cli import main  # noqa: E402
from lichen.commands.quantize import command as quantize_command  # noqa: E402
from lichen.commands.search import command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.hw.device.families import PORTABLE  # noqa: E402
from lichen.hw.plan.price import Pace, with_widths  # noqa: E402
from lichen.network.description import PHOTO, Network  # noqa: E402
from lichen.network.file import dumps, load, save  # noqa: E402
from lichen.network.random import random_factorized, random_hyperprior  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.calibration.options import Options, Widths, bits_of  # noqa: E402
from lichen.quant.calibration.quantize import quantize  # noqa: E402
from lichen.quant.float.architectures import new_model  # noqa: E402
from lichen.quant.float.network import FloatNetwork, from_compressai  # noqa: E402
from lichen.quant.float.source import load_float_network  # noqa: E402
from lichen.quant.search import costs  # noqa: E402
from lichen.quant.search.costs import BopsCost, HardwareCost  # noqa: E402
from lichen.quant.search.executors import Cluster  # noqa: E402
from lichen.quant.search.parents import float_network  # noqa: E402
from lichen.quant.search.search import Search  # noqa: E402
from lichen.quant.search.state import SearchOptions  # noqa: E402
from lichen.quant.search.trial import (  # noqa: E402
    Bench,
    Change,
    Trial,
    try_move,
)
from lichen.quant.training.tune_config import TuneConfig  # noqa: E402
from lichen.sim.golden import analysis  # noqa: E402

THREE = ("g_a.conv1", "g_a.conv2", "g_s.conv3")
OPTIONS = SearchOptions(
    quantization=Options(samples=600),
    lmbda=0.013,
    max_loss=0.03,
    least=6,
    layers=THREE,
    kinds=("weight", "gamma"),
    tries=2,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny() -> FloatNetwork:
    return load_float_network("tiny")


@pytest.fixture(scope="module")
def images(tiny: FloatNetwork) -> CalibrationImages:
    return load_calibration(models.calibration_photographs(), tiny.factor, size=96, limit=6)


def searched(network, images, options=OPTIONS, **arguments) -> Search:
    return Search(network, images, options, BopsCost, **arguments)


def finished(run: Search) -> bytes:
    return dumps(run.run().final.network)


# Costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        random_factorized(0, n=5, m=7, weight_bits=5, x_bits=9, u_bits=7, gamma_bits=6),
        random_hyperprior(1, n=4, m=6, means=True, weight_bits=6, output_bits=7),
        random_hyperprior(2, n=4, m=6, output_bits=9),
    ],
    ids=["factorized", "means", "scales"],
)
def test_bops_are_those_of_the_network(network: Network) -> None:
    assert BopsCost(network)(bits_of(network)) == network.bops(*PHOTO)


def test_macs_and_bops_add_up() -> None:
    network = random_factorized(0, n=5, m=7)
    g_a, g_s = network.transforms["g_a"], network.transforms["g_s"]
    size = g_a.sizes(*PHOTO)[-1]
    assert network.macs(*PHOTO) == g_a.macs(*PHOTO) + g_s.macs(*size)
    # 8 bits everywhere
    assert network.bops(*PHOTO) == 64 * network.macs(*PHOTO)


@pytest.fixture(scope="module")
def hardware() -> HardwareCost:
    budget = find("ulx3s-85f").pipeline_budget
    pace = Pace(budget=budget, max_width=768, cycles_per_frame=1_000_000)
    return HardwareCost(models.load_network("tiny"), "g_a", pace)


def test_hardware_cost_is_the_boards_share(hardware: HardwareCost) -> None:
    budget, prices = hardware.pace.budget, hardware.prices
    whole = prices.dsp * budget.dsp + prices.bram * budget.bram + prices.lut * budget.lut
    assert whole == pytest.approx(1)
    network = models.load_network("tiny")
    need = hardware.pace.need(network.transforms["g_a"], prices)
    # integers that are only scaled to the bits they have are what they were
    assert hardware(bits_of(network)) == pytest.approx(prices.of(need))


def test_the_plan_is_one_for_the_boards_family(hardware: HardwareCost, monkeypatch) -> None:
    network = models.load_network("tiny")
    pace = replace(hardware.pace, device=PORTABLE, cycles_per_frame=30_000_000)

    def plan(*arguments: Any, device: Any = None, **options: Any) -> None:
        raise LookupError(device.name)

    monkeypatch.setattr(costs.planner, "plan", plan)
    with pytest.raises(LookupError, match=PORTABLE.name):
        HardwareCost(network, "g_a", pace).reached(network, 0.5)


def test_hardware_cost_follows_the_bits(hardware: HardwareCost) -> None:
    widths = bits_of(models.load_network("tiny"))
    costs = [
        hardware({k: replace(w, weight=b) for k, w in widths.items()}) for b in range(12, 2, -1)
    ]
    assert all(a > b for a, b in itertools.pairwise(costs))
    fewer = hardware({k: replace(w, activation=6) for k, w in widths.items()})
    assert fewer < hardware(widths)
    # the other transform's bits count nothing
    others = {k: replace(w, weight=3) if k.startswith("g_s") else w for k, w in widths.items()}
    assert hardware(others) == hardware(widths)


def test_what_is_known_changes_no_cost(hardware: HardwareCost) -> None:
    """Costs from shared tables are those of a search that knows nothing yet."""
    rng = np.random.default_rng(0)
    pace = hardware.pace
    for _ in range(4):
        widths = {
            stage.name: Widths(
                weight=int(rng.integers(2, 13)),
                activation=int(rng.integers(2, 13)),
                gamma=int(rng.integers(2, 13)),
                u=int(rng.integers(2, 13)),
                gdn_input=int(rng.integers(4, 13)),
            )
            for stage in hardware.shape.stages
        }
        transform = with_widths(hardware.shape, widths)
        fresh = Pace(
            budget=pace.budget, max_width=pace.max_width, cycles_per_frame=pace.cycles_per_frame
        )
        assert pace.need(transform, hardware.prices) == fresh.need(transform, hardware.prices)
        for stage in transform.stages:
            own = widths[stage.name]
            assert stage.convolution.weight_bits == own.weight
            if stage.normalization is not None:
                assert stage.normalization.gamma_bits == own.gamma
                assert stage.output.bits == own.activation


def test_an_impossible_pace_is_refused() -> None:
    budget = find("ulx3s-85f").pipeline_budget
    shape = models.load_network("tiny").transforms["g_a"]
    for width, cycles, words in ((768, 100, "fewer frames"), (100, 10**6, "multiple of 16")):
        pace = Pace(budget=budget, max_width=width, cycles_per_frame=cycles)
        with pytest.raises(UserError, match=words):
            pace.prices(shape)


# Requantizing -------------------------------------------------------------------------------


@pytest.mark.parametrize("follow", [True, False], ids=["ptq", "trained"])
@pytest.mark.parametrize(
    ("layer", "what", "bits", "touched"),
    [
        ("g_a.conv2", "weight", 3, {"g_a.conv2"}),
        ("g_a.conv4", "weight", 10, {"g_a.conv4"}),
        ("g_a.conv1", "activation", 5, {"g_a.conv1", "g_a.conv2"}),
        ("g_s.conv2", "activation", 9, {"g_s.conv2", "g_s.conv3"}),
        ("g_a.conv3", "gamma", 4, {"g_a.conv3"}),
        ("g_s.conv1", "u", 5, {"g_s.conv1"}),
        ("g_a.conv1", "gdn_input", 10, {"g_a.conv1"}),
    ],
)
def test_a_change_touches_what_it_must(bench, layer, what, bits, touched, follow) -> None:
    problem, start, _ = bench
    problem = replace(problem, follow=follow, key=f"{problem.key} {follow}")
    trial = try_move(problem, start, (Change(layer, what, bits),))
    assert trial.network is not None
    expected = bits_of(start)
    expected[layer] = replace(expected[layer], **{what: bits})
    assert bits_of(trial.network) == expected
    changed = {
        f"{key}.{a.name}"
        for key in start.transforms
        for a, b in zip(
            start.transforms[key].stages, trial.network.transforms[key].stages, strict=True
        )
        if a is not b
    }
    if follow:
        # those after it make good what it lost
        key, first = min(name.split(".") for name in touched)
        names = [stage.name for stage in start.transforms[key].stages]
        touched = {f"{key}.{name}" for name in names[names.index(first) :]}
    assert changed == touched
    # measured from the changed stage on, it is what the whole network does
    assert trial.rd == Bench(problem, trial.network).own()
    Network.model_validate(trial.network.model_dump())
    # bits matter, but no change of one thing breaks the picture
    assert abs(trial.rd.loss / bench[2].loss - 1) < 0.2
    assert trial.rd != bench[2]


@pytest.fixture(scope="module")
def bench(tiny: FloatNetwork, images: CalibrationImages):
    """A problem, its starting network, and what that one reaches."""
    run = searched(tiny, images)
    return run._problem(), run.state.start, run.state.first


@pytest.mark.parametrize("arch", ["bmshj2018-hyperprior", "mbt2018-mean"])
def test_hyperpriors(arch: str) -> None:
    """With fractions, means and transforms of their own: measured as a whole, equal."""
    torch.manual_seed(0)
    model = new_model(arch, 4, 6)
    network = from_compressai(model, arch, 4, 6)
    images = load_calibration(models.calibration_photographs(), network.factor, size=64, limit=3)
    options = replace(OPTIONS, layers=(), kinds=(), quantization=Options(samples=300))
    run = searched(network, images, options)
    problem, start = run._problem(), run.state.start
    for change in (
        Change("g_a.conv4", "weight", 5),
        Change("h_a.conv1", "activation", 6),
        Change("h_a.conv3", "weight", 5),
        Change("h_s.conv3", "weight", 6),
        Change("g_s.conv1", "weight", 4),
    ):
        trial = try_move(problem, start, (change,))
        assert trial.network is not None
        assert trial.rd == Bench(problem, trial.network).own(), change
        key, name = change.layer.split(".")
        before, after = (
            next(s for s in n.transforms[key].stages if s.name == name)
            for n in (start, trial.network)
        )
        if change.what != "activation":
            assert after.output.bits == before.output.bits
            assert after.output.hi == before.output.hi
    assert all(what != "gdn_input" for _, what in run.knobs())
    assert ("h_a.conv3", "activation") not in run.knobs()


def test_a_loss_depends_on_bits_and_not_on_their_order(bench) -> None:
    problem, start, _ = bench
    first, second = Change("g_a.conv1", "weight", 4), Change("g_a.conv3", "gamma", 5)
    one = try_move(problem, start, (first, second))
    other = try_move(problem, start, (second, first))
    assert one.network is not None and other.network is not None
    assert dumps(one.network) == dumps(other.network) and one.rd == other.rd
    # fitted to what reaches them, the stages after a change end nearer to the real network
    deaf = try_move(replace(problem, follow=False, key=f"{problem.key} deaf"), start, (first,))
    heard = try_move(problem, start, (first,))

    def distance(trial: Trial) -> float:
        assert trial.network is not None
        scale = trial.network.transforms["g_a"].stages[-1].scales["output"]
        return sum(
            float(np.mean((analysis(trial.network, crop)["y"].symbols * scale - y) ** 2))
            for crop in problem.calibration
            for y in (problem.real.analyze(crop),)
        )

    assert distance(heard) < distance(deaf)


def test_integers_read_as_real_numbers(tiny, images) -> None:
    """A network's own integers, as a real network, compute what the integers compute."""
    start = quantize(tiny, images, Options(samples=600, latent_bits=8)).network
    real = float_network(start, tiny)
    for crop in images.crops[:2]:
        symbols = analysis(start, crop)["y"].symbols
        near = np.abs(real.analyze(crop) - symbols)
        far = np.abs(tiny.analyze(crop) - symbols)
        assert np.median(near) < 0.5 and near.mean() <= far.mean() + 0.05
    run = searched(tiny, images, start=start)
    assert dumps(run.state.start) == dumps(start)
    assert run.state.follow is False
    with pytest.raises(UserError, match="other stages"):
        searched(tiny, images, start=random_factorized(0, n=4, m=6))


# The search ---------------------------------------------------------------------------------


def test_an_interrupted_search_ends_the_same(tiny, images, tmp_path) -> None:
    whole = searched(tiny, images, state=tmp_path / "a.state.safetensors", name="net")
    expected = finished(whole)
    assert whole.state.log[-1]["cost"] < whole.state.log[0]["cost"]
    assert all(entry["loss"] <= 0.03 + 1e-12 for entry in whole.state.log)

    class StopError(Exception):
        pass

    path = tmp_path / "b.state.safetensors"
    for after in (5, 4):

        def stop(phrase: str, trials: int, left=[after]) -> None:  # noqa: B006
            left[0] -= trials
            if left[0] < 0:
                raise StopError

        with pytest.raises(StopError):
            searched(tiny, images, state=path, resume=path.exists(), name="net", watch=stop).run()
    between = searched(tiny, images, state=path, resume=True, name="net")
    between.run(stop_after=1)
    resumed = searched(tiny, images, state=path, resume=True, name="net")
    assert finished(resumed) == expected
    assert resumed.state.log == whole.state.log


def test_a_state_is_for_one_search_only(tiny, images, tmp_path) -> None:
    path = tmp_path / "net.state.safetensors"
    searched(tiny, images, state=path)
    for options, words in (
        (replace(OPTIONS, max_loss=0.5), "options differ"),
        (replace(OPTIONS, quantization=Options(samples=700)), "options differ"),
    ):
        with pytest.raises(UserError, match=words):
            searched(tiny, images, options, state=path, resume=True)
    fewer = CalibrationImages(images.crops[1:])
    with pytest.raises(UserError, match="calibration images differ"):
        searched(tiny, fewer, state=path, resume=True)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not the state of a search"):
        searched(tiny, images, state=path, resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        searched(tiny, images, state=tmp_path / "none", resume=True)


def on_the_same_kernels(test: Callable[..., None]) -> Callable[..., None]:
    """The test in a process whose convolutions are those of AVX2, wherever it runs.

    What it finds hangs on losses of a thousandth, and so do roundings of FP32 sums, which differ
    from one instruction set to the next; oneDNN chooses one for a whole process.
    """

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        if os.environ.get(KERNELS) == "AVX2":
            test(*args, **kwargs)
            return
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        done = subprocess.run(
            [*words, f"{__file__}::{test.__name__}"],
            env=environment | {KERNELS: "AVX2"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout

    return run


KERNELS = "ONEDNN_MAX_CPU_ISA"


@on_the_same_kernels
def test_greedy_choices_come_close_to_the_best(tiny) -> None:
    """Of all 27 assignments of 4, 6 or 8 bits to the weights of three stages, none that loses no
    more is 5 % cheaper than what the search finds."""
    # fewer or smaller crops say too little about losses of a percent
    images = load_calibration(models.calibration_photographs(), tiny.factor, size=160)
    options = replace(
        OPTIONS,
        quantization=Options(samples=1500),
        kinds=("weight",),
        among=(4, 6, 8),
        least=4,
        tries=4,
        max_loss=0.0,
    )
    run = searched(tiny, images, options)
    problem = run._problem()
    losses: dict[tuple[int, ...], float] = {}
    costs: dict[tuple[int, ...], float] = {}

    def walk(network: Network, loss: float, chosen: tuple[int, ...]) -> None:
        if len(chosen) == len(THREE):
            losses[chosen], costs[chosen] = loss, run.cost(bits_of(network))
            return
        for bits in (8, 6, 4):
            if bits == 8:
                walk(network, loss, (*chosen, bits))
                continue
            trial = try_move(problem, network, (Change(THREE[len(chosen)], "weight", bits),))
            assert trial.network is not None
            walk(trial.network, run.loss(trial.rd), (*chosen, bits))

    walk(run.state.start, 0.0, ())
    assert len(losses) == 27
    found = set()
    for budget in (0.005, 0.01, 0.02, 0.2):
        run = searched(tiny, images, replace(options, max_loss=budget))
        while run.state.ended is None:
            run.step()
        widths = bits_of(run.state.network)
        chosen = tuple(widths[layer].weight for layer in THREE)
        best = min(costs[other] for other in losses if losses[other] <= losses[chosen])
        assert costs[chosen] <= 1.05 * best, (budget, chosen)
        found.add(chosen)
    assert len(found) > 1


def test_fine_tuning_in_rounds(tiny, images, tmp_path) -> None:
    """Every few changes the network is trained through its integers; resumed, it is the same."""
    tune = TuneConfig(steps=2, batch=1, patch=64, penalty=0.0)
    options = replace(OPTIONS, tune=tune, tune_every=2, max_loss=0.05, layers=THREE[:1])
    train = models.calibration_photographs()[:2]
    whole = searched(tiny, images, options, train=train, name="net")
    expected = finished(whole)
    steps = [entry["step"] for entry in whole.state.log]
    assert "tune" in steps and steps.count("lower") >= 2
    path = tmp_path / "net.state.safetensors"
    searched(tiny, images, options, train=train, name="net", state=path).run(stop_after=3)
    resumed = searched(tiny, images, options, train=train, name="net", state=path, resume=True)
    assert finished(resumed) == expected


@on_the_same_kernels
def test_bits_are_given_back_where_that_is_free(tiny) -> None:
    """With a cost that counts one stage only, the others are raised if that helps."""

    class One(BopsCost):
        def __call__(self, widths):
            return float(widths["g_a.conv1"].weight)

    # smaller crops say nothing about losses of a thousandth
    images = load_calibration(models.calibration_photographs(), tiny.factor, size=160)
    options = replace(OPTIONS, kinds=("weight", "gdn_input"), max_loss=0.0, tries=4)
    run = Search(tiny, images, options, One)
    run.cost.kinds = ("weight", "gdn_input")  # type: ignore[misc]
    while run.state.ended is None and len(run.state.log) < 6:
        run.step()
    raised = [entry for entry in run.state.log if entry["step"] == "raise"]
    assert raised and all(c["to"] > c["from"] for entry in raised for c in entry["changes"])
    for before, entry in itertools.pairwise(run.state.log):
        if entry["step"] == "raise":
            assert entry["rd"] < before["rd"] and entry["cost"] == before["cost"]
    # until bits are taken away, which may lose again what was won
    takes = ("lower", "exchange")
    losses = [e["rd"] for e in itertools.takewhile(lambda e: e["step"] not in takes, run.state.log)]
    assert min(losses) == losses[-1]


def test_bits_are_bought_where_something_is_to_be_won(tiny, images) -> None:
    """From 3-bit weights: the loss falls until as much is won as was asked for."""
    # A loss differs by up to a tenth between processors' convolutions; that of the last stage's
    # fourth bit, by which a quarter to four fifths is won, is far above it.
    coarse = replace(OPTIONS.quantization, widths=Widths(weight=3))
    two = {"layers": ("g_a.conv1", "g_s.conv3"), "kinds": ("weight",)}
    options = replace(OPTIONS, quantization=coarse, **two, max_loss=-0.2, least=2)
    run = Search(tiny, images, options, BopsCost)
    while run.loss(run.state.now) > options.max_loss and run.state.ended is None:
        run.step()
    assert run.loss(run.state.now) <= options.max_loss
    bought = [(a, b) for a, b in itertools.pairwise(run.state.log) if b["step"] == "buy"]
    assert bought
    for before, entry in bought:
        assert entry["rd"] < before["rd"] and entry["cost"] > before["cost"]
        (change,) = entry["changes"]
        assert change["what"] == "weight" and change["to"] == change["from"] + 1
    # What was bought is not taken away again.
    names = {f"{c['layer']}.{c['what']}" for _, entry in bought for c in entry["changes"]}
    while run.state.ended is None and len(run.state.log) < 12:
        run.step()
    for entry in run.state.log:
        if entry["step"] == "lower":
            assert not names & {f"{c['layer']}.{c['what']}" for c in entry["changes"]}


def test_options_are_checked(tiny, images) -> None:
    for changes, words in (
        ({"max_loss": -1.1}, "between -100 and 100 %"),
        ({"least": 1}, "fewest bits"),
        ({"tries": 0}, "at least one change"),
        ({"held_out": 1}, "held out"),
        ({"quantization": Options(method="minmax")}, "starts from ptq"),
    ):
        with pytest.raises(UserError, match=words):
            replace(OPTIONS, **changes)
    with pytest.raises(UserError, match=r"no stage g_a\.conv9"):
        searched(tiny, images, replace(OPTIONS, layers=("g_a.conv9",)))
    with pytest.raises(UserError, match="nothing to search"):
        searched(tiny, images, replace(OPTIONS, layers=("g_a.conv4",), kinds=("gamma",)))
    with pytest.raises(UserError, match="at least two"):
        searched(tiny, CalibrationImages(images.crops[:1]))


# The command --------------------------------------------------------------------------------

SMALL = ["--crop", "96", "--max-images", "4", "--samples", "600", "--threads", "1", "--quiet"]
ONE = ["--layer", "g_a.conv2", "--bits", "weight", "--bits", "gamma"]


def test_the_command_and_the_bits_it_hands_on(tmp_path: Path) -> None:
    net, rest = tmp_path / "net.lichen", [*SMALL, *ONE, "--max-loss", "5%"]
    rest += ["--plot", str(tmp_path / "path.png"), "--log", str(tmp_path / "log.jsonl")]
    done = CliRunner().invoke(
        command, ["tiny", "-o", str(net), "--json", "-", *rest], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    integer = load(net)
    assert integer.name == "net" and report["ended"] == "loss"
    widths = bits_of(integer)
    assert {layer: Widths(**bits) for layer, bits in report["layers"].items()} == widths
    assert min(widths["g_a.conv2"].weight, widths["g_a.conv2"].gamma) < 8
    assert all(own == Widths() for layer, own in widths.items() if layer != "g_a.conv2")
    assert report["after"]["bops"] == integer.bops(*PHOTO) < report["before"]["bops"]
    assert report["after"]["macs"] == integer.macs(*PHOTO) == report["before"]["macs"]
    assert report["after"]["loss"] <= 0.05
    assert integer.provenance["quantization"]["method"] == "search"
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == report["log"] and lines[0]["step"] == "start"
    assert (tmp_path / "path.png").read_bytes()[:4] == b"\x89PNG"
    assert "fewer bit-operations" in done.stderr
    # and again: the state is in the way; as it has ended, resuming gives the same file
    before = net.read_bytes()
    assert "--resume" in refusal(["tiny", "-o", str(net), *rest])
    CliRunner().invoke(command, ["tiny", "-o", str(net), *rest, "--resume"])
    assert net.read_bytes() == before
    # another network takes the bits over
    other = tmp_path / "other.lichen"
    arguments = ["tiny", "-o", str(other), "--bits-from", str(net), "--method", "minmax"]
    arguments += ["--crop", "96", "--max-images", "2", "--threads", "1", "--quiet"]
    done = CliRunner().invoke(quantize_command, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and bits_of(load(other)) == widths
    # a network is searched from its own integers
    again = tmp_path / "again.lichen"
    arguments = [str(net), "-o", str(again), *SMALL, *ONE, "--max-loss", "5%", "--stop-after", "1"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert load(again).bops(*PHOTO) <= integer.bops(*PHOTO)


@pytest.mark.parametrize(("fps", "fits"), [("5", True), ("160", False)])
def test_the_command_with_a_board(fps: str, fits: bool, tmp_path: Path) -> None:
    """What fits already needs no search; what cannot be reached is not said to fit."""
    net = tmp_path / "net.lichen"
    arguments = ["tiny", "-o", str(net), "--json", "-", "--board", "ulx3s-85f", "--fps", fps]
    arguments += ["--width", "288", *SMALL, "--layer", "g_a.conv1", "--bits", "weight"]
    done = CliRunner().invoke(command, [*arguments, "--stop-after", "1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    target, before, after = report["target"], report["before"], report["after"]
    assert report["cost_counts"]["name"] == "hardware" and target["fits"] is fits
    assert target["width"] == 288 and report["cost"] == after["cost"]
    if fits:
        assert report["ended"] == "target" and report["steps"] == 0 and before["cost"] < 1
        assert target["plan"]["cycles_per_frame"] * 5 <= target["clock_mhz"] * 1e6
        assert "; fits ulx3s-85f" in done.stderr
    else:
        assert before["cost"] > 1 and target["plan"] is None
        assert "does not fit yet" in done.stderr


def test_the_search_ends_at_the_target(tiny, images, hardware, tmp_path) -> None:
    class Target(HardwareCost):
        def reached(self, network, cost):
            return {"cycles_per_frame": 1} if cost < 0.995 * first else None

    first = 1e9
    options = replace(OPTIONS, layers=THREE[:2], max_loss=0.5)
    path = tmp_path / "net.state.safetensors"

    def make(start: Network) -> HardwareCost:
        return Target(start, "g_a", hardware.pace)

    first = make(quantize(tiny, images, OPTIONS.quantization).network)(
        {layer: Widths() for layer in bits_of(models.load_network("tiny"))}
    )
    result = Search(tiny, images, options, make, state=path).run()
    assert result.ended == "target" and result.target == {"cycles_per_frame": 1}
    costs = [entry["cost"] for entry in result.log]
    assert costs[-1] < 0.995 * first and all(c >= 0.995 * first for c in costs[:-1])
    assert Search(tiny, images, options, make, state=path, resume=True).run().log == result.log


def refusal(arguments: list[str]) -> str:
    with CliRunner().isolation() as streams:
        with pytest.raises(SystemExit) as caught:
            main(["search", *arguments])
        assert caught.value.code == 2
        return streams[1].getvalue().decode()


def test_bad_input_gets_one_sentence(tmp_path: Path) -> None:
    out = str(tmp_path / "net.lichen")
    random = tmp_path / "random.lichen"
    save(random_factorized(0, n=4, m=6), random)
    for arguments, words in (
        (["tiny", "-o", str(tmp_path / "no" / "net.lichen")], "does not exist"),
        (["tiny", "-o", str(tmp_path)], "it is a folder"),
        (["tiny", "-o", out, "--cost", "hardware"], "needs a board"),
        (["tiny", "-o", out, "--board", "nothing"], "no board"),
        (["tiny", "-o", out, "--steps-per-round", "5"], "--train"),
        (["tiny", "-o", out, "--train", str(tmp_path)], "--steps-per-round"),
        (["tiny", "-o", out, "--resume", *SMALL], "nothing to resume"),
        (["tiny", "-o", out, "--start", str(random), *SMALL], "other stages"),
        ([str(random), "-o", out, "--start", "tiny", *SMALL], "starts from itself"),
        ([str(random), "-o", out, "--lmbda", "0.1", *SMALL], "does not say its scales"),
        (["tiny", "-o", out, "--layer", "g_a.x", *SMALL], "no stage g_a.x"),
    ):
        said = refusal([*arguments, "--quiet"])
        assert said.startswith("lichen: ") and said.count("\n") == 1, said
        assert words in said, said
    for value in ("150%", "lots"):
        assert "no share" in refusal(["tiny", "-o", out, "--max-loss", value])
    assert not Path(out).exists()


# A cluster ----------------------------------------------------------------------------------


def test_without_the_extra_or_a_scheduler(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(UserError, match=r"lichen\[cluster\]"):
        Cluster("tcp://127.0.0.1:1")


@pytest.mark.slow
def test_a_cluster_finds_the_same(tiny, images, monkeypatch) -> None:
    distributed = pytest.importorskip("distributed")
    # workers are new processes: they must find this package and compute alike
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    expected = finished(searched(tiny, images))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        executor = Cluster(cluster.scheduler_address)
        assert finished(searched(tiny, images, executor=executor)) == expected
        executor.client.close()


@pytest.mark.slow
def test_a_scheduler_that_is_not_there() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match="no Dask scheduler"):
        Cluster("tcp://127.0.0.1:1")
