"""`lichen slim`: channels leave an FP32 network where they are missed least."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError

# Defaults of `lichen.quant.slim.config.SlimConfig` (a test compares them), which cannot be imported
# before the extra is known to be there.
SLIM: dict[str, Any] = {
    "rounds": 4,
    "steps": 500,
    "multiple": 8,
    "importance": "taylor",
    "compensation": "linear",
    "sparsity": 0.0,
    "batches": 16,
    "lr": 3e-4,
    "lr_adam": 3e-4,
    "batch": 8,
    "patch": 128,
    "optimizer": "soap",
    "precision": "auto",
    "seed": 0,
}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@click.command(
    cls=Command, name="slim", help="Take channels out of an FP32 network (GDN-Slimming)."
)
@click.argument("checkpoint", metavar="CKPT")
@click.option(
    "-o", "--output", required=True, metavar="CKPT.safetensors", type=click.Path(path_type=Path),
    help="Checkpoint to write; what --resume needs lies beside it meanwhile (CKPT.slim/).",
)  # fmt: skip
@click.option("--train", "train_folder", required=True, metavar="DIR",
              help="Folder of photographs to measure channels and to fine-tune on.")  # fmt: skip
@click.option("--macs", type=float, required=True, metavar="PART",
              help="Part of the MACs to keep, 0 .. 1.")  # fmt: skip
@click.option("--rounds", default=SLIM["rounds"], show_default=True,
              help="Rounds of pruning and fine-tuning to get there in.")  # fmt: skip
@click.option("--steps", default=SLIM["steps"], show_default=True,
              help="Steps of fine-tuning in each round.")  # fmt: skip
@click.option("--final-steps", type=int, help="Steps in the last one [default: as --steps].")
@click.option(
    "--transforms", default="g_a,g_s,h_a,h_s,latents", show_default=True, metavar="NAMES",
    help="Whose channels may leave; latents are those of y and z.",
)  # fmt: skip
@click.option(
    "--count", default="g_a,g_s,h_a,h_s", show_default=True, metavar="NAMES",
    help="Transforms whose MACs --macs is about.",
)  # fmt: skip
@click.option("--multiple", default=SLIM["multiple"], show_default=True,
              help="Layers keep a multiple of this many channels.")  # fmt: skip
@click.option(
    "--importance", type=click.Choice(["taylor", "exact", "magnitude", "random"]),
    default=SLIM["importance"], show_default=True,
    help="taylor: the loss's squared derivative by a gate on the channel. exact: the loss with "
    "the gate closed, channel by channel. magnitude (of the weights), random: baselines.",
)  # fmt: skip
@click.option(
    "--compensation", type=click.Choice(["linear", "mean", "none"]),
    default=SLIM["compensation"], show_default=True,
    help="What of a channel moves into those that stay: its mean, or also what they explain of it.",
)  # fmt: skip
@click.option("--sparsity", default=SLIM["sparsity"], show_default=True,
              help="Weight of the factors' magnitudes while it trains.")  # fmt: skip
@click.option("--batches", default=SLIM["batches"], show_default=True,
              help="Batches that importance is measured on.")  # fmt: skip
@click.option("--lmbda", type=click.FloatRange(min=0, min_open=True),
              help="Weight of the distortion [default: the checkpoint's].")  # fmt: skip
@click.option("--lr", default=SLIM["lr"], show_default=True, help="Peak learning rate.")
@click.option("--lr-adam", default=SLIM["lr_adam"], show_default=True,
              help="Peak learning rate of what Adam optimizes beside soap.")  # fmt: skip
@click.option("--batch", default=SLIM["batch"], show_default=True, help="Crops per step.")
@click.option("--patch", default=SLIM["patch"], show_default=True,
              help="Size of a crop in pixels.")  # fmt: skip
@click.option("--optimizer", default=SLIM["optimizer"], show_default=True, help="soap or adam.")
@click.option("--precision", default=SLIM["precision"], show_default=True,
              help="bfloat16, float32, or auto, as in lichen train.")  # fmt: skip
@click.option("--compile", is_flag=True,
              help="Compile each round's network: half a minute, for many steps.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=SLIM["seed"], show_default=True,
              help="Of crops and noise.")  # fmt: skip
@click.option(
    "--validate", metavar="DIR",
    help="Photographs whose middles the losses are reported on [default: those that ship with "
    "Lichen].",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the interrupted run beside CKPT.")
@click.option("--overwrite", is_flag=True, help="Start anew though there is one.")
@click.option("--half", is_flag=True, help="Store the checkpoint in float16, half the size.")
@_options.torch_threads
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    checkpoint: str,
    output: Path,
    train_folder: str,
    final_steps: int | None,
    transforms: str,
    count: str,
    lmbda: float | None,
    validate: str | None,
    resume: bool,
    overwrite: bool,
    half: bool,
    threads: int,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Slim, fine-tune, write, and say what it cost."""
    with _options.quant_extra("slimming"):
        import torch

        from lichen.quant.float.architectures import ARCHS
        from lichen.quant.float.checkpoint import load_checkpoint, stated_lambda
        from lichen.quant.slim.config import SlimConfig
        from lichen.quant.slim.slim import slim, work_folder
        from lichen.quant.training.data import CropSource
    from lichen.models import calibration_photographs
    from lichen.quant.calibration.calibrate import load_calibration
    from lichen.sim.images import list_images

    if threads:
        torch.set_num_threads(threads)
    if resume and overwrite:
        raise UserError("give either --resume or --overwrite, not both.")
    _options.check_state(work_folder(output), resume=resume, overwrite=overwrite)
    start = load_checkpoint(checkpoint)
    weight = _options.known_lambda(
        stated_lambda(start.metadata) if lmbda is None else lmbda, checkpoint
    )
    _options.remark_on_precision(options["precision"])
    config = SlimConfig(
        **options,
        final_steps=final_steps,
        kinds=_names(transforms),
        count=_names(count),
        lmbda=weight,
    )
    crops = load_calibration(
        validate if validate is not None else calibration_photographs(), ARCHS[start.arch].factor
    )
    result = slim(
        start,
        config,
        CropSource(list_images(train_folder), patch=config.patch),
        crops,
        output,
        resume=resume,
        half=half,
        progress=not quiet,
        log=(lambda line: None) if quiet else _options.note,
    )
    report = {"checkpoint": str(output), **result.json()}
    _options.report(report, json_file, _summary(output, report))


def _summary(output: Path, report: dict[str, Any]) -> str:
    macs, loss = report["macs"], report["loss"]
    lines = [f"{name}: {len(kept)} channels" for name, kept in report["kept_channels"].items()]
    before, after = loss["before"], loss["after"]
    return "\n".join(
        [
            *lines,
            f"{output}: {macs['after'] / 1e6:.0f} of {macs['before'] / 1e6:.0f} million MACs "
            f"({100 * macs['after'] / macs['before']:.1f} %), R + lambda D {before['loss']:.4f} "
            f"before, {after['loss']:.4f} after ({before['bpp']:.4f} bpp, {before['psnr']:.2f} dB; "
            f"{after['bpp']:.4f} bpp, {after['psnr']:.2f} dB)",
        ]
    )
