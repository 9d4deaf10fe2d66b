"""``lichen evaluate``: rate and distortion on a folder of images, from real bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen import completion
from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError

if TYPE_CHECKING:
    from lichen.codec.evaluate import Codec, Metric


@click.command(cls=Command)
@click.argument("sources", metavar="NET/CKPT...", nargs=-1, required=True,
                shell_complete=completion.networks)  # fmt: skip
@click.option("--images", required=True, metavar="DIR", help="Folder of images.")
@click.option("--name", help="Of the curve, for plots and tables [default: from the networks'].")
@click.option(
    "--ms-ssim/--no-ms-ssim", "wanted", default=None,
    help="Measure MS-SSIM, which needs the quant extra [default: if that is installed].",
)  # fmt: skip
@click.option(
    "--container", "version", type=click.IntRange(1, 2), metavar="1|2",
    help="Version of networks' files [default: 2, or 1 for networks without context models].",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0,
              help="Threads for FP32 and MS-SSIM (0: torch's choice).")  # fmt: skip
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    sources: tuple[str, ...],
    images: str,
    name: str | None,
    wanted: bool | None,
    version: int | None,
    threads: int,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Measure rate and distortion on a folder of images.

    Every image is coded to bytes and decoded from them. NET is a network file or the name of a
    shipped network; CKPT an FP32 checkpoint or NAME.fp32, the FP32 parent of a shipped network
    (this takes the quant extra). jpeg:QUALITY, webp:QUALITY and avif:QUALITY measure image
    formats instead; without :QUALITY, a set of qualities. Several NETs make several points of one
    curve.

    The JSON is that of CompressAI's eval_model, with each point's name and images in "points". bpp
    counts the whole file less EXIF, XMP, ICC profile and alpha, bpp_streams the streams alone;
    FP32 models make no file, so for them both count streams.
    """
    from tqdm import tqdm

    from lichen.codec.evaluate import evaluate, to_json
    from lichen.sim.images import list_images

    files = list_images(images)
    if threads:
        _set_threads(threads)
    metric = _ms_ssim(wanted)
    codecs = [codec for source in sources for codec in _codecs(source, version)]
    points = []
    with tqdm(total=len(codecs) * len(files), unit="image", disable=quiet) as bar:
        for codec in codecs:
            bar.set_description(codec.name)
            points.append(evaluate(codec, files, ms_ssim=metric, progress=lambda _: bar.update()))
    report = to_json(points, name) | {"set": Path(images).resolve().name}
    if json_file != "-":
        _print_table(report)
    _options.report(
        report,
        json_file,
        f"{report['name']}: {len(points)} point{'s' * (len(points) > 1)} on {len(files)} "
        f"image{'s' * (len(files) > 1)} of {images}",
    )


def _set_threads(threads: int) -> None:
    """Torch's threads, where there is a torch."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


def _ms_ssim(wanted: bool | None) -> Metric | None:
    """The metric, if it is wanted and there."""
    if wanted is False:
        return None
    try:
        with _options.quant_extra("MS-SSIM"):
            from lichen.quant.training.evaluate import ms_ssim
    except UserError:
        if wanted is None:
            return None
        raise
    return ms_ssim


def _codecs(source: str, version: int | None) -> list[Codec]:
    """What a source names: one codec, or one for each quality of an image format."""
    from lichen import models
    from lichen.codec.evaluate import PILLOW_FORMATS, NetworkCodec, PillowCodec

    path = Path(source)
    if path.is_dir() or not path.exists():
        if match := re.fullmatch(rf"({'|'.join(PILLOW_FORMATS)})(?::(\d+))?", source):
            kind, quality = match[1], match[2]
            qualities = PILLOW_FORMATS[kind].curve if quality is None else [int(quality)]
            return [PillowCodec(kind, value) for value in qualities]
        if models.shipped_network(source) is not None or source.endswith(".lichen"):
            return [NetworkCodec(models.load_network(source), version)]
    elif _is_network(path):
        return [NetworkCodec(models.load_network(source), version)]
    return [_float_codec(source)]


def _is_network(path: Path) -> bool:
    """Whether a file is, or should be, an integer network."""
    from safetensors import SafetensorError, safe_open

    from lichen.network.file import holds_network

    if path.suffix == ".lichen" or path.is_dir():
        return True
    try:
        with safe_open(path, framework="np") as file:
            return holds_network(file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _float_codec(source: str) -> Codec:
    """An FP32 checkpoint or zoo model."""
    with _options.quant_extra(f"{source} is no integer network, and measuring an FP32 one"):
        from lichen.quant.float.architectures import build_model
        from lichen.quant.float.checkpoint import load_checkpoint
        from lichen.quant.training.evaluate import FloatCodec
    checkpoint = load_checkpoint(source)
    path = Path(source)
    stem = path.name.removesuffix(".tar").removesuffix(".pth").removesuffix(".safetensors")
    name = stem if stem.endswith(".fp32") or not path.exists() else f"{stem}.fp32"
    return FloatCodec(build_model(*checkpoint[:4]), name)


def _print_table(report: dict[str, Any]) -> None:
    """The points, one line each."""
    results = report["results"]
    titles = {"bpp": "bpp", "bpp_streams": "streams", "psnr-rgb": "PSNR (dB)",
              "ms-ssim-rgb": "MS-SSIM", "encoding_time": "enc. s",
              "decoding_time": "dec. s"}  # fmt: skip
    shown = [key for key in titles if key in results]
    width = max(len(point["name"]) for point in report["points"])
    click.echo(" ".join([" " * width, *(f"{titles[key]:>9}" for key in shown)]))
    digits = {
        "bpp": 4,
        "bpp_streams": 4,
        "psnr-rgb": 3,
        "ms-ssim-rgb": 5,
        "encoding_time": 3,
        "decoding_time": 3,
    }
    for i, point in enumerate(report["points"]):
        values = [f"{results[key][i]:9.{digits[key]}f}" for key in shown]
        click.echo(" ".join([f"{point['name']:{width}}", *values]))
