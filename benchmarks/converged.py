"""What integers cost a network that was trained until the end, by bytes really coded.

    python benchmarks/converged.py bls2017.lichen --parent bls2017 --tables TRAIN --images KODAK

The FP32 parent brings no entropy model: its symbols are coded with tables fitted to them on crops
of the photographs in TRAIN, as those of the integer network are by `lichen quantize`. Bits are
means over the images of bits per pixel.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from lichen.codec.entropy import encode
from lichen.codec.evaluate import NetworkCodec, evaluate
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.models import load_network
from lichen.quant.calibration.calibrate import load_calibration
from lichen.quant.calibration.constants import symmetric
from lichen.quant.calibration.entropy import fit_tables
from lichen.quant.float.source import load_float_network
from lichen.sim.golden import channel_indices
from lichen.sim.images import list_images, read_image
from lichen.sim.quality import psnr

SYMBOL_BITS = 9
"""Of the symbols in the parent's tables: FP32 has no range to keep to."""


def measure(net: str, parent: str, tables: str, images: str, crop: int, limit: int) -> dict:
    """Per image, FP32 and integers: PSNR in dB and bits per pixel."""
    integer, real = load_network(net), load_float_network(parent)
    if real.hyper:
        raise UserError("the parent must be factorized: its own tables are fitted here.")
    files = list_images(images)
    crops = load_calibration(tables, real.factor, size=crop, limit=limit).crops
    with tqdm(total=len(crops) + 2 * len(files), unit="image") as bar:
        symbols = []
        for image in crops:
            symbols.append(real.code(image).y)
            bar.update()
        fit = fit_tables(None, symbols, symmetric(SYMBOL_BITS), refit=True).tables
        rows = []
        for file in files:
            image = read_image(file)
            latents = real.code(image)
            data = encode(latents.y, channel_indices(latents.y.shape), fit)
            height, width = image.shape[:2]
            quality = psnr(real.reconstruct(latents, height, width), image)
            bits = 8 * len(data) / (height * width)
            rows.append({"image": file.name, "fp32": {"psnr": quality, "bpp": bits}})
            bar.update()
        ours = evaluate(NetworkCodec(integer), files, progress=lambda _: bar.update())
    for row, image in zip(rows, ours.images, strict=True):
        row["integer"] = {"psnr": image.psnr, "bpp": image.bpp}
    mean = {
        key: {what: float(np.mean([row[key][what] for row in rows])) for what in ("psnr", "bpp")}
        for key in ("fp32", "integer")
    }
    return {
        "images": rows,
        "mean": mean,
        "psnr_change": mean["integer"]["psnr"] - mean["fp32"]["psnr"],
        "bits_change_percent": 100 * (mean["integer"]["bpp"] / mean["fp32"]["bpp"] - 1),
    }


@click.command()
@click.argument("net")
@click.option("--parent", metavar="CKPT", required=True, help="The FP32 network.")
@click.option("--tables", metavar="DIR", required=True, help="Photographs for FP32's tables.")
@click.option("--images", metavar="DIR", required=True, help="Photographs to measure on.")
@click.option("--crop", type=click.IntRange(min=16), default=384, show_default=True)
@click.option("--max-images", type=click.IntRange(min=1), default=90, show_default=True)
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Where to write all of it.")  # fmt: skip
def command(
    net: str,
    parent: str,
    tables: str,
    images: str,
    crop: int,
    max_images: int,
    json_file: Path | None,
) -> None:
    """Measure NET and its FP32 parent."""
    try:
        found = measure(net, parent, tables, images, crop, max_images)
    except UserError as error:
        raise click.UsageError(str(error)) from None
    if json_file is not None:
        write_atomically(json_file, (json.dumps(found, indent=1) + "\n").encode())
    for key, mean in found["mean"].items():
        click.echo(f"{key:8} {mean['psnr']:.3f} dB  {mean['bpp']:.4f} bpp")
    click.echo(
        f"integers: {found['psnr_change']:+.4f} dB, {found['bits_change_percent']:+.3f} % of bits"
    )


if __name__ == "__main__":
    command()
