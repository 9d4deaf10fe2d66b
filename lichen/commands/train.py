"""`lichen train`: the FP32 baseline for an architecture and a lambda."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from tqdm import tqdm

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError


def _import_quant() -> None:
    """Fail with a sentence when the extra is missing."""
    with _options.quant_extra("training"):
        import lichen.quant.training.train  # noqa: F401


@click.command(cls=Command, name="train", help="Train an FP32 network on a folder of images.")
@click.option("--images", required=True, metavar="DIR", help="Folder of training images.")
@click.option(
    "-o", "--output", required=True, metavar="RUN.safetensors",
    help="Checkpoint to write; the training state goes beside it (RUN.state.safetensors).",
)  # fmt: skip
@click.option(
    "--arch", default="bmshj2018-factorized", show_default=True,
    help="bmshj2018-factorized, bmshj2018-factorized-relu, bmshj2018-hyperprior or mbt2018-mean.",
)  # fmt: skip
@click.option("--n", default=16, show_default=True, help="Channels of the inner layers.")
@click.option("--m", default=48, show_default=True, help="Channels of the latent.")
@click.option(
    "--lmbda", default=0.013, show_default=True,
    help="Weight of the distortion: the loss is lmbda * 255^2 * MSE + bits per pixel.",
)  # fmt: skip
@click.option("--steps", type=int, help="Length of the run in steps.")
@click.option("--minutes", type=float, help="Length of the run in minutes of training.")
@click.option("--batch", default=8, show_default=True, help="Crops per step.")
@click.option("--patch", default=128, show_default=True, help="Size of a crop in pixels.")
@click.option(
    "--optimizer", default="soap", show_default=True,
    help="soap (for the transforms' weights, Adam for the rest) or adam.",
)  # fmt: skip
@click.option(
    "--precision", default="auto", show_default=True,
    help="bfloat16, float32, or auto: bfloat16 where the processor multiplies it.",
)  # fmt: skip
@click.option(
    "--compile", is_flag=True,
    help="Compile the transforms first: half a minute for a third less time per step.",
)  # fmt: skip
@click.option("--lr", default=2e-3, show_default=True, help="Peak learning rate.")
@click.option(
    "--lr-adam", default=1e-3, show_default=True,
    help="Peak learning rate of what Adam optimizes beside soap.",
)  # fmt: skip
@click.option(
    "--lr-end", default=0.01, show_default=True,
    help="Where the rates' cosine ends, relative to their peaks (1: they stay; with --ema).",
)  # fmt: skip
@click.option("--warmup", default=200, show_default=True, help="Steps of linear warm-up.")
@click.option(
    "--ema", default=0.0, show_default=True,
    help="Save an exponential average of the weights with this decay (0: the last weights).",
)  # fmt: skip
@click.option(
    "--round-from", default=0.5, show_default=True,
    help="Part of the run after which the synthesis reads rounded latents (1: never).",
)  # fmt: skip
@click.option(
    "--downscale", default=0.0, show_default=True,
    help="Probability that a crop is taken larger and reduced.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of weights, crops and noise.")
@click.option(
    "--init", metavar="CKPT",
    help="Start from a checkpoint (sets arch, N, M and lambda unless given; with another --arch, "
    "only its g_a and g_s are taken).",
)  # fmt: skip
@click.option(
    "--prior", metavar="CKPT",
    help="With --init of another architecture: where everything but g_a and g_s comes from.",
)  # fmt: skip
@click.option(
    "--freeze", "frozen", metavar="NAMES",
    help="Transforms that keep their weights, such as g_a,g_s while a new prior learns.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the saved state of this run.")
@click.option("--overwrite", is_flag=True, help="Start anew though a saved state exists.")
@click.option("--save-every", default=60.0, show_default=True, help="Seconds between saves.")
@click.option("--half", is_flag=True, help="Store the checkpoint in float16, half the size.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--tensorboard", metavar="DIR", help="Write TensorBoard's event files there.")
@click.option("--threads", default=0, help="Threads to compute with (0: torch's choice).")
@click.option(
    "--validate", metavar="DIR",
    help="Images to measure the result on (default: eight of the training images).",
)  # fmt: skip
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def command(
    ctx: click.Context,
    images: str,
    output: str,
    init: str | None,
    prior: str | None,
    resume: bool,
    overwrite: bool,
    save_every: float,
    half: bool,
    device: str,
    tensorboard: str | None,
    threads: int,
    validate: str | None,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Train or resume, then measure bpp and PSNR from really coded bytes."""
    _import_quant()
    import torch

    if options["frozen"]:
        options["frozen"] = [name.strip() for name in options["frozen"].split(",")]

    from lichen.quant.float.architectures import build_model, other_channel_counts
    from lichen.quant.float.checkpoint import load_checkpoint, stated_lambda
    from lichen.quant.training.evaluate import evaluate_fp32
    from lichen.quant.training.runs import state_path
    from lichen.quant.training.train import load_state, train
    from lichen.quant.training.trainer import TrainConfig
    from lichen.sim.images import list_images

    if threads < 0:
        raise UserError(f"--threads must not be negative, not {threads}.")
    if threads:
        torch.set_num_threads(threads)

    def given(name: str) -> bool:
        typed = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
        return ctx.get_parameter_source(name) in typed

    target = Path(output)
    start = first_prior = None
    _options.check_state(state_path(target), resume=resume, overwrite=overwrite)
    if resume:
        if init or prior or overwrite:
            raise UserError("--resume goes with none of --init, --prior and --overwrite.")
        # What is not typed again is taken from the saved run.
        saved = load_state(target)[1]["config"]
        if given("steps") or given("minutes"):
            saved = {**saved, "steps": None, "minutes": None}
        options = {**saved, **{k: v for k, v in options.items() if given(k)}}
    elif prior and not init:
        raise UserError("--prior goes with --init, which gives g_a and g_s.")
    elif init:
        start = load_checkpoint(init)
        first_prior = load_checkpoint(prior) if prior else None
        found = {"arch": start.arch, "n": start.n, "m": start.m}
        lmbda = stated_lambda(start.metadata)
        if lmbda is not None:
            found["lmbda"] = lmbda
        options |= {k: v for k, v in found.items() if not given(k)}
        # a slimmed network's layers keep their channels; another architecture takes g_a and g_s
        counts = other_channel_counts(*start[:4])
        options["widths"] = {
            name: width
            for name, width in counts.items()
            if options["arch"] == start.arch or name.startswith(("g_a.", "g_s."))
        } or None
    _options.remark_on_precision(options["precision"], device)
    measured = list_images(validate) if validate else list_images(images)[:8]
    trainer = train(
        TrainConfig(**options),
        images,
        target,
        init=start,
        prior=first_prior,
        resume=resume,
        save_every=save_every,
        progress=not quiet,
        device=device,
        half=half,
        tensorboard=tensorboard,
        log=None if quiet else lambda line: tqdm.write(line, file=sys.stderr),
    )
    if trainer.processes.rank:
        return
    checkpoint = load_checkpoint(target)
    result = evaluate_fp32(build_model(*checkpoint[:4]), measured)
    report = {
        "checkpoint": str(target),
        "arch": checkpoint.arch,
        "n": checkpoint.n,
        "m": checkpoint.m,
        "lmbda": trainer.config.lmbda,
        "steps": trainer.step,
        "minutes": trainer.elapsed / 60,
        "bpp": result.bpp,
        "psnr": result.psnr,
        "measured_on": {"set": validate or images, "images": len(measured)},
    }
    _options.report(
        report,
        json_file,
        f"{target}: {trainer.step} steps, {result.bpp:.4f} bpp, {result.psnr:.2f} dB on "
        f"{len(measured)} {'validation' if validate else 'training'} images",
    )
