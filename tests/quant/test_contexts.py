"""Fitting context models: what they save, and that they keep to what gateware has room for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lichen import models
from lichen.cli import main
from lichen.codec.context import predictions
from lichen.codec.layout import Layout
from lichen.network.context import BITS_MAX, ENTRIES_MAX
from lichen.network.file import load
from lichen.network.identity import static_digest
from lichen.quant.contexts import fit, tables
from lichen.quant.contexts.weights import Learner, Schedule, Shape, Symbols, neighbours
from lichen.sim.images import read_image


def test_the_command_makes_a_network_that_saves_bits(tmp_path, capsys):
    for folder, paths in zip("ab", (models.calibration_photographs()[i::2] for i in (0, 1)),
                             strict=True):  # fmt: skip
        (tmp_path / folder).mkdir()
        for i, path in enumerate(paths[:5]):
            Image.fromarray(read_image(path)[:128, :128]).save(tmp_path / folder / f"{i}.png")
    output = tmp_path / "net.lichen"
    arguments = ["fit-tables", "tiny", "-o", str(output), "--train", str(tmp_path / "a")]
    arguments += ["--calibrate", str(tmp_path / "b"), "--passes", "20", "--quiet", "--json", "-"]
    try:
        main(arguments)
    except SystemExit as exit_:
        assert not exit_.code
    report = json.loads(capsys.readouterr().out)
    # few symbols of few images: less than what the shipped networks' contexts save
    assert report["saved"] > 0.05
    network, before = load(output), models.load_network("tiny")
    assert network.contexts.entries == report["entries"] <= ENTRIES_MAX
    assert network.contexts.bits == report["bits"] <= BITS_MAX
    assert static_digest(network) == static_digest(before)


@pytest.mark.parametrize("channels", [3, 48, 96, 192, 480])
@pytest.mark.parametrize("levels", [0, 64])
def test_shapes_fit_the_limits(channels, levels):
    latents = {"y": channels} | ({"z": min(channels, 128)} if levels else {})
    if (channels, levels) == (480, 64):
        with pytest.raises(ValueError, match="no context model of so many channels"):
            fit.choose_shapes(latents, levels)
        return
    for shapes in fit.choose_shapes(latents, levels):
        total = sum(
            fit._weight_bits(shapes[name], count, levels if name == "y" else 0)
            + fit._bin_bits(shapes[name]) * (fit.BINS_LEAST if name == "y" else shapes[name].bins)
            for name, count in latents.items()
        )
        assert total <= BITS_MAX


@pytest.mark.parametrize("room", [12000, 2500, 1200])
def test_bins_take_the_room_that_weights_leave(monkeypatch, room):
    """However wide weights come out: fewer bins, or a smaller model, never a refusal."""
    monkeypatch.setattr(fit, "BITS_MAX", room)
    rng = np.random.default_rng(2)
    images = {
        "y": [
            Symbols(
                np.rint(rng.laplace(0, 3, (8, 8, 12))).astype(np.int32),
                rng.integers(0, 6, (8, 8, 12)).astype(np.int32),
            )
            for _ in range(2)
        ]
    }
    levels = np.geomspace(0.2, 6, 6)
    for contexts in fit.fit_contexts(images, levels, schedule=Schedule(passes=2)):
        assert contexts.bits <= room
        assert len(contexts.latents["y"].edges) >= 10


def test_the_learner_looks_where_the_coder_looks():
    """Neighbours at edges and group starts: those of `predictions` with one weight at a time."""
    import torch

    from lichen.network.context import ContextModel

    y = np.arange(1, 1 + 5 * 4).reshape(5, 4, 1).astype(np.int32)
    around = neighbours(torch.from_numpy(y.astype(np.float32)), 3)
    for k in range(4):
        slope = np.zeros((4, 1), int)
        slope[k] = 1
        model = ContextModel(
            bias=np.zeros(1, int), near=np.zeros((2, 1), int), slope=slope,
            inner=np.zeros((0, 1), int), outer=np.zeros((0, 1), int), near_shift=0, shift=0,
            edges=np.zeros(0, int), phase=np.zeros(17, int), choice=np.zeros((1, 1), int),
        )  # fmt: skip
        means = predictions(model, y, None, Layout(rows=3))[1]
        assert np.array_equal(means, around[k].numpy().astype(int))


def test_merging_keeps_to_its_limits_and_joins_what_is_alike():
    rng = np.random.default_rng(1)
    width = 2 * tables.REACH + 1
    counts = np.zeros((12, width))
    for i in range(12):
        scale = (1.0, 8.0)[i % 2]
        found = np.rint(rng.laplace(0, scale, 4000)).astype(int) + tables.REACH
        counts[i] = np.bincount(found, minlength=width)
    member = tables.merge(counts, 6000, 2, 1e-3)
    assert len(set(member[::2])) == len(set(member[1::2])) == 1
    assert member[0] != member[1]
    one = tables.merge(counts, 30, 12, 1e-3)
    assert set(one) == {0}


def test_learners_start_with_equal_weights():
    one, two = (Learner(4, Shape(), None, 8, seed) for seed in (1, 1))
    assert all((a == b).all() for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_learner_computes_what_the_coder_does():
    """With rounded weights: scales within a step, for corrections of a hyperprior's, too."""
    import torch

    from lichen.network.context import ContextModel
    from lichen.quant.contexts.weights import integers

    rng = np.random.default_rng(4)
    y = np.rint(rng.laplace(0, 2, (9, 5, 12))).astype(np.int32)
    indices = rng.integers(0, 6, y.shape).astype(np.int32)
    levels = np.geomspace(0.2, 6, 6)
    corrected = Shape(2, 4, 2, excess=True)
    for shape in (
        corrected, Shape(4, 2, 3), replace(corrected, carry=True), Shape(4, 2, 3, carry=True),
    ):  # fmt: skip
        learner = Learner(12, shape, levels, 8, 1)
        with torch.no_grad():
            learner.outer.mul_(0.3)
            learner.spread.add_(0.2 * torch.rand(12))
        learner.balance()
        fields = integers(learner)
        draft = ContextModel(
            **fields, edges=np.zeros(0, int), phase=np.zeros(17, int),
            choice=np.zeros((1, 1), int),
        )  # fmt: skip
        scales, means = predictions(draft, y, indices, Layout())
        with torch.no_grad():
            learned = learner(torch.from_numpy(y).float(), torch.from_numpy(indices).long())
        # levels are rounded to 1/64 of a symbol once more, and a gain multiplies them
        assert np.abs(scales / 64 - learned[0].numpy()).max() < 4 / 64
        assert np.abs(means / 32 - learned[1].numpy()).max() < 1e-4
        assert len(np.unique(scales)) > 20
