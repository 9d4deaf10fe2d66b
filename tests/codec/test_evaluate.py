"""Rate and distortion from real bytes: codecs, figures, JSON, command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lichen.cli import main
from lichen.codec.container import Container, ContainerError, inspect
from lichen.codec.evaluate import (
    PILLOW_FORMATS,
    NetworkCodec,
    PillowCodec,
    code,
    common_name,
    evaluate,
    to_json,
)
from lichen.commands.evaluate import command
from lichen.errors import UserError
from lichen.network.random import random_hyperprior
from lichen.sim.golden import analysis, estimate_bits, reconstruct
from lichen.sim.quality import PSNR_EXACT, psnr


@pytest.mark.parametrize("size", [(97, 83), (16, 16), (1, 1), (1, 40), (33, 192)])
@pytest.mark.parametrize("kind", ["tiny", "bmshj2018-hyperprior", "mbt2018-mean"])
def test_networks_code_what_the_golden_model_makes(kind, tiny_network, photo, size):
    means = kind == "mbt2018-mean"
    network = tiny_network if kind == "tiny" else random_hyperprior(3, n=4, m=6, means=means)
    image = photo[: size[0], : size[1]]
    codec = NetworkCodec(network, 1)
    (data,), decoded = code(codec, image)
    latents = analysis(network, image)
    assert data == Container(network, version=1).encode(image)
    assert np.array_equal(decoded, reconstruct(network, latents))
    parts = inspect(data).parts
    for part, ideal in zip(parts, estimate_bits(network, latents).values(), strict=True):
        assert ideal / 8 - 1 <= part.length <= 1.005 * ideal / 8 + 8
    assert codec.sizes([data]) == (len(data), sum(part.length for part in parts))


def test_the_decoder_reads_the_bytes(tiny_network, photo):
    codec = NetworkCodec(tiny_network)
    streams, decoded = code(codec, photo)
    other = codec.encode(photo[::-1])
    assert not np.array_equal(codec.decode(other, *photo.shape[:2]), decoded)
    with pytest.raises(ContainerError):
        codec.decode([streams[0][:-4]], *photo.shape[:2])


def test_rates_are_of_files_and_of_streams(tiny_network, photo):
    """Whole files for networks, streams alone beside them; image formats have no streams."""
    found = {version: evaluate(NetworkCodec(tiny_network, version), [photo]) for version in (1, 2)}
    for version, one in found.items():
        data = Container(tiny_network, version=version).encode(photo)
        pixels = photo.shape[0] * photo.shape[1]
        assert one.images[0].bytes == len(data)
        assert one.bpp == 8 * len(data) / pixels
        assert one.bpp_streams == 8 * inspect(data).stream_bytes / pixels
        assert one.results()["bpp_streams"] == one.bpp_streams < one.bpp
    assert found[2].bpp < found[1].bpp
    assert found[2].psnr == found[1].psnr
    jpeg = evaluate(PillowCodec("jpeg", 50), [photo])
    assert jpeg.bpp_streams is None
    assert "bpp_streams" not in jpeg.results()


def test_networks_that_cannot_code(tiny_network):
    for update, reason in (
        ({"entropy": {}}, "no entropy tables"),
        ({"transforms": {"g_a": tiny_network.transforms["g_a"]}}, "no g_s"),
    ):
        with pytest.raises(UserError, match=reason):
            NetworkCodec(tiny_network.model_copy(update=update))


@pytest.mark.parametrize("kind", PILLOW_FORMATS)
def test_image_formats(kind, photo):
    points = [evaluate(PillowCodec(kind, quality), [photo]) for quality in (30, 80)]
    assert points[0].bpp < points[1].bpp
    assert 20 < points[0].psnr < points[1].psnr < PSNR_EXACT
    streams, decoded = code(PillowCodec(kind, 80), photo)
    assert points[1].images[0].bytes == len(streams[0])
    assert points[1].psnr == psnr(photo, decoded)
    codec = PillowCodec(kind, PILLOW_FORMATS[kind].highest)
    assert codec.name == f"{kind}:{PILLOW_FORMATS[kind].highest}"
    with pytest.raises(UserError, match="quality runs from"):
        PillowCodec(kind, PILLOW_FORMATS[kind].highest + 1)


def test_unknown_formats():
    with pytest.raises(UserError, match="no image format"):
        PillowCodec("gif", 50)


class Lossless(PillowCodec):
    """PNG, which gives every pixel back."""

    def __init__(self) -> None:
        self.name, self.description = "png", "PNG"

    def encode(self, image):
        return [b"12345", image.tobytes()]

    def decode(self, streams, height, width):
        return np.frombuffer(streams[1], np.uint8).reshape(height, width, 3)


def test_figures(photo):
    seen = []
    result = evaluate(
        Lossless(), [photo, photo[:10, :20]], ms_ssim=lambda a, b: 0.25, progress=seen.append
    )
    assert seen == ["image 0", "image 1"]
    assert result.psnr == PSNR_EXACT
    assert result.ms_ssim == 0.25
    first, second = result.images
    assert (first.width, first.height) == (192, 128)
    assert (second.bytes, second.bpp) == (605, 605 * 8 / 200)
    # the mean of images, as CompressAI's, and not of pixels
    assert result.bpp == pytest.approx((first.bpp + second.bpp) / 2)
    sizes = iter([0.5, None])
    partly = evaluate(Lossless(), [photo, photo], ms_ssim=lambda a, b: next(sizes))
    assert partly.ms_ssim is None
    assert "ms-ssim-rgb" not in partly.results()
    with pytest.raises(UserError, match="no images"):
        evaluate(Lossless(), [])


def test_json_has_compressais_form(photo, tiny_network):
    codecs = [PillowCodec("jpeg", 80), PillowCodec("jpeg", 20)]
    report = to_json([evaluate(codec, [photo]) for codec in codecs])
    assert report["name"] == "jpeg"
    assert report["description"].startswith("Inference (JPEG, Pillow")
    assert set(report["results"]) == {"bpp", "psnr-rgb", "encoding_time", "decoding_time"}
    assert report["results"]["bpp"] == sorted(report["results"]["bpp"])
    assert [point["name"] for point in report["points"]] == ["jpeg:20", "jpeg:80"]
    image = report["points"][0]["images"][0]
    assert image["psnr-rgb"] == report["results"]["psnr-rgb"][0]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_names_of_curves():
    assert common_name(["small-q1", "small-q4"]) == "small"
    assert common_name(["small-q1.fp32", "small-q4.fp32"]) == "small.fp32"
    assert common_name(["jpeg:5", "jpeg:95"]) == "jpeg"
    assert common_name(["bmshj2018-factorized-1", "bmshj2018-factorized-8"]) == (
        "bmshj2018-factorized"
    )
    assert common_name(["tiny"]) == "tiny"
    assert common_name(["tiny", "webp:3"]) == "tiny + webp"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``lichen evaluate``."""
    result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_command(image_folder, tmp_path):
    target = tmp_path / "points.json"
    arguments = ["tiny", "jpeg:30", "--images", image_folder, "--no-ms-ssim", "--quiet"]
    status, stdout, _ = run(*arguments, "--name", "mixed", "--json", target)
    assert status == 0
    assert "tiny" in stdout
    report = json.loads(target.read_text())
    assert report["name"] == "mixed"
    assert report["set"] == image_folder.name
    assert {point["name"] for point in report["points"]} == {"tiny", "jpeg:30"}
    for point in report["points"]:
        assert [image["name"] for image in point["images"]] == ["a.png", "b.png", "c.png"]
        sizes = [(image["width"], image["height"]) for image in point["images"]]
        assert sizes == [(83, 97), (192, 20), (1, 1)]
        for image in point["images"]:
            assert image["bpp"] == 8 * image["bytes"] / (image["width"] * image["height"])
    status, stdout, stderr = run(*arguments[1:], "--json", "-")
    assert json.loads(stdout)["name"] == "jpeg:30"
    assert "1 point on 3 images" in stderr


def test_command_takes_a_format_as_a_curve(tmp_path, photo):
    Image.fromarray(photo[:40, :40]).save(tmp_path / "x.png")
    _, stdout, _ = run("jpeg", "--images", tmp_path, "--no-ms-ssim", "--quiet", "--json", "-")
    report = json.loads(stdout)
    assert len(report["results"]["bpp"]) == len(PILLOW_FORMATS["jpeg"].curve)
    assert report["results"]["psnr-rgb"] == sorted(report["results"]["psnr-rgb"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tiny", "--images", "nowhere"], "nowhere is not a folder"),
        (["tiny", "--images", "empty"], "holds no images"),
        (["nothing", "--images", "."], "nothing is neither"),
        (["nothing.lichen", "--images", "."], "nothing.lichen does not exist"),
        (["empty", "--images", "."], "empty is a folder"),
        (["text.lichen", "--images", "."], "text.lichen is not a readable Lichen network"),
        (["text", "--images", "."], "text is neither"),
        (["jpeg:96", "--images", "."], "quality runs from 1 to 95"),
        (["tiny", "--images", "broken"], "bad.png"),
        (["tiny", "--images", ".", "--json", "no/where.json"], "cannot write no/where.json"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(
    arguments, reason, tmp_path, photo, monkeypatch, capsys
):
    if "is neither" in reason:
        pytest.importorskip("torch")  # that it is missing would be said first
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "text").write_text("hello, world")
    (tmp_path / "text.lichen").write_text("hello, world")
    Image.fromarray(photo[:32, :32]).save(tmp_path / "x.png")
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", *arguments, "--quiet"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error


LIGHT = """
import sys
for name in ("torch", "compressai", "pytorch_msssim"):
    sys.modules[name] = None
from lichen.cli import main
main(sys.argv[1:])
"""


def light(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """``lichen`` where torch is not installed."""
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_light_install(image_folder):
    run = light("evaluate", "tiny", "--images", image_folder, "--quiet", "--json", "-")
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)["results"]
    assert "psnr-rgb" in results
    assert "ms-ssim-rgb" not in results
    for arguments, reason in (
        (["tiny.fp32"], "needs the quant extra"),
        (["tiny", "--ms-ssim"], "needs the quant extra"),
    ):
        run = light("evaluate", *arguments, "--images", image_folder, "--quiet")
        assert run.returncode == 2
        assert reason in run.stderr
        assert "Traceback" not in run.stderr
