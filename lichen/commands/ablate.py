"""`lichen ablate`: what each part of DRAQ changes, as a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.commands._quant import TUNE, find_clip_factor
from lichen.errors import UserError

ROWS = ("minmax", "calibrated clipping", "+ regularization", "+ fine-tuning")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| quantization | bpp | PSNR / dB | against FP32 / dB | bits against FP32 / % "
        "| R + lambda D against FP32 / % |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['bpp']:.4f} | {row['psnr']:.3f} | {row['psnr_change']:+.3f} "
            f"| {row['bits_change']:+.2f} | {row['loss_change']:+.2f} |"
        )
    return "\n".join(lines)


@click.command(cls=Command, name="ablate", help="Measure what each part of DRAQ changes.")
@click.argument("checkpoint", metavar="CKPT")
@click.option("--calibrate", required=True, metavar="DIR", help="Photographs to calibrate on.")
@click.option("--train", "train_folder", required=True, metavar="DIR",
              help="Photographs to train on.")  # fmt: skip
@click.option("--images", required=True, metavar="DIR", help="Photographs to measure on, whole.")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path),
              help="Folder for the networks of the rows.")  # fmt: skip
@click.option("--regularize-steps", type=click.IntRange(min=1), default=300, show_default=True,
              help="Steps of the real network with the outlier penalty.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True,
              help="Steps of fine-tuning.")  # fmt: skip
@click.option("--lmbda", type=click.FloatRange(min=0, min_open=True),
              help="Weight of the distortion [default: the checkpoint's].")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True,
              help="Crops per step.")  # fmt: skip
@click.option("--patch", type=click.IntRange(min=16), default=128, show_default=True,
              help="Size of a crop in pixels.")  # fmt: skip
@click.option("--crop", type=click.IntRange(min=16),
              help="Pixels a side of each calibration image [default: as quantize].")  # fmt: skip
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=TUNE["lr"],
              show_default=True, help="Peak learning rate, of full scale.")  # fmt: skip
@click.option("--lr-scales", type=click.FloatRange(min=0), default=TUNE["lr_scales"],
              show_default=True, help="Learning rate of the scales, relative to --lr.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["soap", "adam"]), default=TUNE["optimizer"],
              show_default=True, help="What moves weights and gammas.")  # fmt: skip
@click.option("--max-images", type=click.IntRange(min=1), metavar="N",
              help="Calibrate on N images at even distances [default: all].")  # fmt: skip
@click.option("--gdn-input-bits", type=click.IntRange(2, 16), default=8, show_default=True,
              help="Input of the normalizations (no operand of a multiplier array).")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of everything random.")  # fmt: skip
@_options.torch_threads
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    checkpoint: str,
    calibrate: str,
    train_folder: str,
    images: str,
    output: Path | None,
    regularize_steps: int,
    steps: int,
    lmbda: float | None,
    batch: int,
    patch: int,
    crop: int | None,
    lr: float,
    lr_scales: float,
    optimizer: str,
    max_images: int | None,
    gdn_input_bits: int,
    device: str,
    seed: int,
    threads: int,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Quantize four ways, measure each on the same images, print the table."""
    from lichen.commands._quant import import_quant

    import_quant()
    import torch

    from lichen.network.file import save
    from lichen.quant.calibration.calibrate import load_calibration, usual_size
    from lichen.quant.calibration.options import Options, Widths
    from lichen.quant.calibration.quantize import quantize
    from lichen.quant.draq.draq import DraqOptions, draq, lambda_of
    from lichen.quant.float.source import load_float_network
    from lichen.quant.training.tune_config import TuneConfig
    from lichen.sim.images import list_images, read_image

    if threads:
        torch.set_num_threads(threads)
    if output is not None and not output.is_dir():
        raise UserError(f"{output} is not a folder; make it first.")
    network = load_float_network(checkpoint)
    weight = _options.known_lambda(lambda_of(network) if lmbda is None else lmbda, checkpoint)
    size = crop or usual_size(network.hyper)
    crops = load_calibration(calibrate, network.factor, size=size, limit=max_images)
    train = list_images(train_folder)
    photos = [read_image(file) for file in list_images(images)]
    # the latent as wide as the other activations, in every row; that of a hyperprior has a
    # fraction, and bits of its own
    latent_bits = None if network.hyper else 8
    options = Options(widths=Widths(gdn_input=gdn_input_bits), latent_bits=latent_bits, seed=seed)
    factor, _ = find_clip_factor(network, crops, options, weight, quiet=quiet)
    options = replace(options, clip_factor=factor)
    tune = TuneConfig(
        steps=steps,
        batch=batch,
        patch=patch,
        optimizer=optimizer,
        lmbda=weight,
        lr=lr,
        lr_scales=lr_scales,
        seed=seed,
    )

    def tuned(regularize: int, fine_tune: int) -> Any:
        return draq(
            network,
            crops,
            train,
            DraqOptions(
                quantization=options,
                tune=replace(tune, steps=fine_tune),
                regularize_steps=regularize,
                device=device,
            ),
            progress=not quiet,
        )

    def whole() -> Iterator[Any]:
        """The rows' networks, one by one; the last run makes two of them."""
        yield quantize(network, crops, replace(options, method="minmax")).network
        yield tuned(0, 0).final.network
        result = tuned(regularize_steps, steps)
        yield result.start.network
        yield result.final.network

    def save_row(name: str, result: Any) -> None:
        if output is not None:
            save(result, output / f"{name.strip('+ ').replace(' ', '-')}.lichen")

    rows = _measured(network, whole(), photos, weight, save_row)
    report = {
        "checkpoint": checkpoint,
        "sha256": network.provenance["source"].get("sha256"),
        "lmbda": weight,
        "regularize_steps": regularize_steps,
        "steps": steps,
        "optimizer": optimizer,
        "lr": lr,
        "lr_scales": lr_scales,
        "clip_factor": factor,
        "rows": rows,
    }
    _options.report(report, json_file, table(rows))


def _measured(
    network: Any,
    results: Iterator[Any],
    photos: list[Any],
    weight: float,
    done: Callable[[str, Any], None],
) -> list[dict[str, Any]]:
    """The table's rows: FP32, and each result as soon as it is there."""
    from lichen.quant.calibration.measure import measure, measure_float

    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for name, result in zip(ROWS, results, strict=True):
        rd = measure(result, photos)
        if not rows:  # a network without an entropy model is given this row's tables
            before = measure_float(network, photos, result)
            fp32_loss = before.bpp + weight * before.mse
            zeros = {"psnr_change": 0.0, "bits_change": 0.0, "loss_change": 0.0}
            rows.append({"name": "FP32", **before.json(), **zeros})
        rows.append(
            {
                "name": name,
                **rd.json(),
                "psnr_change": round(rd.psnr - before.psnr, 4),
                "bits_change": round(100 * (rd.bpp / before.bpp - 1), 3),
                # what is trained for: the mean squared error, not the mean of PSNRs
                "loss_change": round(100 * ((rd.bpp + weight * rd.mse) / fp32_loss - 1), 3),
                "seconds": round(time.monotonic() - started, 1),
            }
        )
        started = time.monotonic()
        done(name, result)
    return rows
