# amaranth: UnusedElaboratable=no
"""Decoders in gateware: every transform of a network, tiles, files, and faults that are located."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lichen import models
from lichen.boards.board import find
from lichen.codec.container import Container
from lichen.commands import _options, decode, plan, simulate
from lichen.hw.engine import row_buffer
from lichen.hw.engine.transposed_window import TransposedWindow
from lichen.hw.stage import transposed
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.network.description import Activation, Network, Transform
from lichen.network.file import save
from lichen.network.random import (
    StageShape,
    random_factorized,
    random_hyperprior,
    random_transform,
    symmetric,
)
from lichen.sim import golden, inputs
from lichen.sim import transform as sim_transform
from lichen.sim.golden import run_stages
from lichen.sim.images import crop_middle, load_image
from lichen.sim.transform import TransformSimulation, simulate_transform
from tests.sim.test_faults import first_difference, flip_weight, names_of


def folded(transform: Transform, max_width: int, pixels: int = 1) -> Folding:
    """Something small."""
    stages = []
    for stage in transform.stages:
        norm = None
        if stage.normalization is not None:
            norm = ArrayFolding(chain_length=1, lanes=1)
        conv = ArrayFolding(pixels=pixels, chain_length=min(2, stage.out_channels), lanes=1)
        stages.append(StageFolding(chains=1, convolution=conv, normalization=norm))
    return Folding(max_width=max_width, stages=stages)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(transform: Transform, tensor: np.ndarray, max_width: int, **more) -> TransformSimulation:
    return simulate_transform(
        transform, folded(transform, max_width), tensor, simulator="icarus", **more
    )


class TestInputs:
    """What the transforms read on the way of an image."""

    @pytest.mark.parametrize("means", [False, True])
    def test_they_make_golden_s_image(self, means: bool) -> None:
        network, pixels = random_hyperprior(2, n=4, m=6, means=means), image(64, 64)
        reads = inputs.transform_inputs(network, pixels)
        assert set(reads) == {"g_a", "h_a", "h_s", "g_s"}
        made = golden.run_transform(network.transform("g_s"), reads["g_s"])
        latents = golden.analysis(network, pixels)
        np.testing.assert_array_equal(made, golden.reconstruct(network, latents))
        z = golden.run_transform(network.transform("h_a"), reads["h_a"])
        np.testing.assert_array_equal(z, latents["z"].symbols)
        if not means:
            assert reads["h_a"].min() >= 0

    def test_what_does_not_suit_is_told(self) -> None:
        network = random_factorized(2, n=4, m=6)
        with pytest.raises(ValueError, match="g_a takes 3 channels, but the image has 1"):
            inputs.transform_input(network, "g_a", image(16, 16)[:, :, :1])
        with pytest.raises(ValueError, match="no transform h_a"):
            inputs.transform_input(network, "h_a", image(16, 16))


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("name", ["h_a", "h_s"])
def test_hyper_transforms(means: bool, name: str) -> None:
    """Of 16 bits, signed or not; h_a reads magnitudes where the prior is one of scales."""
    network = random_hyperprior(4, n=3, m=4, means=means)
    reads = inputs.transform_inputs(network, image(64, 64))[name]
    found = run(network.transform(name), reads, reads.shape[1])
    assert not found.faults and found.compared > 0
    assert found.cycles == found.predicted_cycles


@pytest.mark.slow
def test_g_s_in_tiles() -> None:
    """Halos where the receptive field has latents; all tiles as predicted."""
    network = random_factorized(5, n=3, m=4)
    reads = inputs.transform_inputs(network, image(16, 112))["g_s"]
    found = run(network.transform("g_s"), reads, 4)
    assert not found.faults and found.tiles > 2
    assert found.output is not None and found.output.shape == (16, 112, 3)


def test_a_file_through_both_simulated_transforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece of a photograph, encoded from gateware's latents and decoded to gateware's pixels:
    golden's bytes and golden's pixels, exactly."""
    made = _options.design_of
    monkeypatch.setattr(
        _options,
        "design_of",  # small, and quickly planned
        lambda net, name, board, width=None, *_: made(net, name, board, 64, 24),
    )
    network = models.load_network("tiny")
    pixels = crop_middle(load_image(models.photograph())[0], 16, 24)
    y = _options.run_gateware(network, "g_a", inputs.transform_input(network, "g_a", pixels))
    container = Container(network)
    file = container.pack(golden.code_latent(network, y, 16, 24))
    assert file == container.pack(golden.analysis(network, pixels))
    (tmp_path / "x.lic").write_bytes(file)
    arguments = [str(tmp_path / "x.lic"), "-o", str(tmp_path / "x.png"), "--engine", "verilator"]
    done = CliRunner().invoke(decode.command, [*arguments, "--json", "-"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["engine"] == "verilator"
    decoded = np.asarray(Image.open(tmp_path / "x.png"))
    np.testing.assert_array_equal(decoded, container.decode(file).picture.pixels)


@pytest.mark.slow
def test_the_command_simulates_g_s(tmp_path: Path) -> None:
    save(random_factorized(7, n=4, m=6), tmp_path / "net.lichen")
    Image.fromarray(image(16, 16)).save(tmp_path / "image.png")
    arguments = [str(tmp_path / "net.lichen"), "--image", str(tmp_path / "image.png")]
    arguments += ["--transform", "g_s", "--simulator", "icarus", "--multipliers", "24"]
    arguments += ["--max-width", "64", "--json", "-"]
    done = CliRunner().invoke(simulate.command, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["transform"], report["mismatches"], report["compared"]) == ("g_s", 0, 768)
    assert report["cycles"] == report["predicted_cycles"]


def test_plan_shows_encoder_and_decoder(tmp_path: Path) -> None:
    network: Network = random_factorized(7, n=2, m=2)
    save(network, tmp_path / "net.lichen")
    arguments = [str(tmp_path / "net.lichen"), "--board", "ulx3s-85f", "--max-width", "128"]
    both = CliRunner().invoke(plan.command, [*arguments, "--json", "-"])
    assert both.exit_code == 0, both.output
    plans = json.loads(both.stdout)["transforms"]
    assert list(plans) == ["g_a", "g_s"]
    # columns of what each of them reads
    assert (plans["g_a"]["tile_width"], plans["g_s"]["tile_width"]) == (128, 8)
    one = CliRunner().invoke(plan.command, [*arguments, "--transform", "g_s", "--json", "-"])
    assert json.loads(one.stdout) == plans["g_s"]


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    save(random_hyperprior(7, n=56, m=64), tmp_path / "net.lichen")
    arguments = [str(tmp_path / "net.lichen"), "--board", "ulx3s-25f", "--transform", "h_s"]
    done = CliRunner().invoke(plan.command, [*arguments, "--max-width", "768", "--json", "-"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    weights = sum(row["bram_weights"] for row in report["stages"])
    assert not report["fits"] and any("block RAMs too many" in text for text in report["overruns"])
    have = find("ulx3s-25f").pipeline_budget.bram
    assert weights > have
    assert f"weights alone take {weights} block RAMs, and there are {have} for them" in done.stderr


UP = {"kernel": 5, "stride": 2, "transposed": True}


def decoder() -> Transform:
    """An inverse normalization, then pixels, both with an odd number of rows and columns."""
    return random_transform(
        np.random.default_rng(5),
        [
            StageShape(out_channels=3, activation=Activation.IGDN, output_padding=0, **UP),
            StageShape(out_channels=2, output_padding=1, **UP),
        ],
        in_channels=2,
        source=symmetric(6),
    )


def tensor() -> np.ndarray:
    return np.random.default_rng(6).integers(-31, 32, (3, 4, 2))


def located(
    monkeypatch: pytest.MonkeyPatch, made: Transform, wrong: list[np.ndarray], stage: int
) -> None:
    """The gateware of ``made`` computes ``wrong``; the report says where that parts from golden."""
    right = run_stages(decoder(), tensor())
    expected = first_difference(right, wrong, names_of(decoder()))
    assert expected["stage"] == f"conv{stage + 1}"
    pipeline = sim_transform.Pipeline
    monkeypatch.setattr(
        sim_transform, "Pipeline", lambda _, folding, **more: pipeline(made, folding, **more)
    )
    found = run(decoder(), tensor(), 4)
    assert found.first_mismatch is not None
    assert {k: found.first_mismatch[k] for k in expected} == expected
    assert found.faults[0].startswith(f"{expected['stage']}: ")


@pytest.mark.slow
@pytest.mark.parametrize("tap", [(0, 0), (1, 2), (3, 1), (4, 4)])
def test_a_phase_s_tap_is_located(monkeypatch: pytest.MonkeyPatch, tap: tuple[int, int]) -> None:
    broken = flip_weight(decoder(), 1, (1, 2, *tap), 5)
    located(monkeypatch, broken, run_stages(broken, tensor()), 1)


@pytest.mark.slow
def test_a_row_of_the_other_parity_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window starts a row of phases late: padding 1 in place of 2, one row more cropped."""
    intact = transposed.phase_order

    def swapped(weight: np.ndarray, stride: int, lanes: int) -> np.ndarray:
        # the weights of even rows where those of odd ones belong
        other = np.zeros_like(weight)
        other[:, :, : weight.shape[2] - 1] = weight[:, :, 1:]
        return intact(other, stride, lanes)

    monkeypatch.setattr(transposed, "phase_order", swapped)
    stages = list(decoder().stages)
    for number, stage in enumerate(stages):
        weight = np.zeros_like(stage.convolution.weight)
        weight[:, :, :-1] = stage.convolution.weight[:, :, 1:]
        conv = stage.convolution.model_copy(update={"weight": weight})
        stages[number] = stage.model_copy(update={"convolution": conv})
    wrong = run_stages(decoder().model_copy(update={"stages": stages}), tensor())
    located(monkeypatch, decoder(), wrong, 0)


def test_the_last_column_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows take the last column of their input for padding."""
    intact = row_buffer.Frame
    monkeypatch.setattr(
        row_buffer, "Frame", lambda size, right, *others: intact(size, right - 1, *others)
    )
    x, wrong = tensor(), []
    for stage, source in zip(decoder().stages, decoder().sources, strict=True):
        x = x.copy()
        x[:, -1] = 0
        (x,) = run_stages(Transform(input=source, stages=[stage]), x)
        wrong.append(x)
    located(monkeypatch, decoder(), wrong, 0)


@pytest.mark.slow
def test_an_output_padding_too_few_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last row and column are missing: what follows waits for them, and that is told."""
    intact = TransposedWindow._made_of
    monkeypatch.setattr(
        TransposedWindow,
        "_made_of",
        lambda self, size: intact(self, size) - self.shape.geometry.output_padding,
    )
    found = run(decoder(), tensor(), 4)
    assert found.faults and found.result.deadlock is not None
    assert found.result.stuck_stage == "conv2"
