"""GDN-Slimming: what leaves together, what stays equal, and what the command makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.commands.slim import SLIM, command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.quant import channels, slim  # noqa: E402
from lichen.quant.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.checkpoint import (  # noqa: E402
    ARCHS,
    Checkpoint,
    build_model,
    infer_architecture,
    load_checkpoint,
    new_model,
    other_widths,
    parameters_of,
    save_checkpoint,
    widths_of,
)
from lichen.quant.data import CropSource  # noqa: E402
from lichen.quant.train import TrainConfig, forward_train, train  # noqa: E402

N, M = 8, 12


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A few crops of the shipped photographs, as a folder to train on."""
    folder = tmp_path_factory.mktemp("images")
    for i, path in enumerate(models.calibration_photographs()[:4]):
        with Image.open(path) as image:
            image.crop((0, 0, 160, 160)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def crops() -> CalibrationImages:
    return load_calibration(models.calibration_photographs()[4:], 64, size=128, limit=3)


def lively(arch: str, seed: int = 0):
    """A random model whose channels, norms and latents are all alive."""
    torch.manual_seed(seed)
    model = new_model(arch, N, M)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter += 0.2 * torch.rand_like(parameter)
            elif name.endswith("bias"):
                parameter += 0.1 * torch.randn_like(parameter)
        model.g_a[6].weight *= 30
        if hasattr(model, "h_a"):
            model.h_a[4].weight *= 10
            model.h_s[4].weight *= 10
    return model.train()


def batches(images: Path, count: int = 2, size: int = 2) -> list[torch.Tensor]:
    source = CropSource(sorted(images.iterdir()), patch=64)
    return [torch.from_numpy(source.batch(0, i, size)).float() / 255 for i in range(count)]


@pytest.mark.parametrize("name", ["small-q3", "small-hyper-q3", "tiny"])
def test_macs_are_those_of_the_integer_network(name):
    from lichen.commands.models import _total

    loaded = load_checkpoint(f"{name}.fp32")
    counted = channels.macs(loaded.arch, widths_of(loaded.arch, loaded.state_dict))
    assert sum(counted.values()) == _total(models.load_network(name), "macs")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("compensation", ["none", "mean"])
def test_a_closed_gate_is_a_channel_removed(arch, compensation, images):
    """Every group loses two channels: the gates say what the smaller network does."""
    model = lively(arch)
    pictures = batches(images)
    moments = slim.Gates(model, arch).measure(pictures)
    gates = slim.Gates(model, arch, moments if compensation == "mean" else None)
    x = pictures[0]
    whole = gates.loss(x, 0.01, 0).item()
    kept = {}
    for i, group in enumerate(channels.groups_of(arch)):
        count = widths_of(arch, parameters_of(model))[group.name]
        gone = [i % count, (i + 3) % count]
        kept[group.name] = np.setdiff1d(np.arange(count), gone)
        gates.values[group.name] = torch.ones(1, count)
        gates.values[group.name][0, gone] = 0
    state = slim.remove(model, arch, kept, moments, compensation)
    smaller = infer_architecture(state, "x")
    assert smaller == (arch, N - 2, M - 2)
    pruned = build_model(*smaller, state).train()
    run = slim.Gates(pruned, arch)

    def coded(model, run):
        with torch.no_grad():
            y = run("g_a", x)
            if "hyperprior" not in arch and "mean" not in arch:
                return y, run("g_s", y)
            z = run("h_a", y.abs() if arch == "bmshj2018-hyperprior" else y)
            return y, run("g_s", y), z, run("h_s", z)

    mine, theirs = coded(pruned, run), coded(model, gates)
    rows = [kept["g_a.conv4"], slice(None)]
    if len(mine) == 4:
        y_rows = kept["g_a.conv4"]
        both = y_rows if arch != "mbt2018-mean" else np.concatenate([y_rows, y_rows + M])
        rows += [kept["h_a.conv3"], both]
    for a, b, row in zip(mine, theirs, rows, strict=True):
        b = b[:, row]
        assert b.std() > 0.01
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.std()) + 1e-5)
    assert gates.loss(x, 0.01, 0).item() != pytest.approx(whole, rel=1e-4)
