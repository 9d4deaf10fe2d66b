"""MS-SSIM, and FP32 models measured by `lichen evaluate`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.commands.evaluate import command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.network.file import load  # noqa: E402
from lichen.quant.float.architectures import new_model, parameters_of  # noqa: E402
from lichen.quant.float.checkpoint import save_checkpoint  # noqa: E402
from lichen.quant.training.evaluate import MS_SSIM_MIN, ms_ssim  # noqa: E402


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    with Image.open(models.photograph()) as picture:
        return np.asarray(picture.convert("RGB"))[200:380, 300:500]


def test_ms_ssim(photo):
    assert ms_ssim(photo, photo) == 1
    noise = np.random.default_rng(1).normal(0, 1, photo.shape)
    worse = [
        ms_ssim(photo, np.clip(photo + sigma * noise, 0, 255).astype(np.uint8))
        for sigma in (4, 16, 64)
    ]
    assert 1 > worse[0] > worse[1] > worse[2] > 0
    small = photo[:MS_SSIM_MIN, :MS_SSIM_MIN]
    assert ms_ssim(small, small) == 1
    assert ms_ssim(small[1:], small[1:]) is None


def test_fp32_parents_are_measured(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "x.png")
    arguments = ["tiny", "tiny.fp32", "--images", tmp_path, "--json", "-", "--quiet"]
    # version 1 has a table for each channel, as the real network has
    arguments += ["--threads", "1", "--container", "1"]
    result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    assert result.exception is None
    report = json.loads(result.stdout)
    points = {point["name"]: point for point in report["points"]}
    integer, real = points["tiny"]["results"], points["tiny.fp32"]["results"]
    assert points["tiny.fp32"]["description"] == "FP32, ans"
    # the same network: some loss, but of the size of rounding errors
    assert abs(integer["psnr-rgb"] - real["psnr-rgb"]) < 0.5
    assert integer["bpp"] == pytest.approx(real["bpp"], rel=0.05)
    assert integer["ms-ssim-rgb"] == pytest.approx(real["ms-ssim-rgb"], abs=0.02)


def test_checkpoints_are_told_from_networks(photo, tmp_path):
    """Both are safetensors with a header named lichen."""
    (tmp_path / "images").mkdir()
    Image.fromarray(photo).save(tmp_path / "images" / "x.png")
    torch.manual_seed(4)
    model = new_model("bmshj2018-hyperprior", 4, 6)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, "bmshj2018-hyperprior", 4, 6, parameters_of(model), {})
    arguments = [str(path), "--images", str(tmp_path / "images"), "--json", "-", "--quiet"]
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert result.exception is None
    assert json.loads(result.stdout)["points"][0]["name"] == "a.fp32"
    with pytest.raises(UserError, match="make one of a checkpoint with `lichen quantize`"):
        load(path)
