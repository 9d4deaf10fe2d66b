"""`lichen quantize`: an FP32 checkpoint becomes an integer network."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from lichen.network.description import Network
    from lichen.quant.contexts.fit import ContextFit


def _import_quant() -> None:
    """Fail with a sentence when the extra is missing."""
    with _options.quant_extra("quantizing"):
        import lichen.quant.float.checkpoint  # noqa: F401


def find_clip_factor(
    network: Any, images: Any, options: Any, weight: float, *, quiet: bool
) -> tuple[float, dict[float, float]]:
    """`lichen.quant.calibration.quantize.choose_clip_factor`, with a progress bar."""
    from tqdm import tqdm

    from lichen.quant.calibration.quantize import CLIP_FACTORS, choose_clip_factor

    with tqdm(total=len(CLIP_FACTORS), desc="clip factor", unit="try", disable=quiet) as bar:
        return choose_clip_factor(
            network, images, options, weight, progress=lambda step: bar.update() and None
        )


REGULARIZE_LR = 1e-4
"""Default of `lichen.quant.draq.draq.DraqOptions` (a test compares them)."""

# Defaults of `lichen.quant.training.finetune.TuneConfig` (a test compares them), which cannot be
# imported before the extra is known to be there.
TUNE = {
    "lr": 1e-3,
    "lr_scales": 3.0,
    "distill": 0.0,
    "penalty": 0.01,
    "sigmas": 4.0,
    "optimizer": "soap",
    "distortion": "mse",
}


@click.command(
    cls=Command, name="quantize", help="Turn an FP32 checkpoint into an integer network."
)
@click.argument("checkpoint", metavar="CKPT")
@click.option(
    "-o", "--output", required=True, metavar="NET.lichen", type=click.Path(path_type=Path),
    help="Network file to write.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(["draq", "ptq", "minmax"]), default="ptq", show_default=True,
    help="ptq: per-channel scales, error-minimizing clipping and rounding. "
    "minmax: the greatest magnitudes, rounded to nearest; the baseline. "
    "draq: ptq, then regularization of outlying weights and fine-tuning; needs --train.",
)  # fmt: skip
@click.option("--train", "train_folder", metavar="DIR",
              help="Folder of photographs that draq trains on.")  # fmt: skip
@click.option(
    "--calibrate", metavar="DIR",
    help="Folder of 20 to 40 photographs [default: the photographs that ship with Lichen].",
)  # fmt: skip
@click.option(
    "--weight-bits", type=click.IntRange(2, 12), default=8, show_default=True,
    help="Weights of the convolutions.",
)  # fmt: skip
@click.option(
    "--activation-bits", type=click.IntRange(2, 16), default=8, show_default=True,
    help="Outputs of the stages.",
)  # fmt: skip
@click.option(
    "--gamma-bits", type=click.IntRange(2, 12), default=8, show_default=True,
    help="Weights of the normalizations.",
)  # fmt: skip
@click.option(
    "--u-bits", type=click.IntRange(2, 16), default=8, show_default=True,
    help="Squares that the normalizations sum.",
)  # fmt: skip
@click.option(
    "--gdn-input-bits", type=click.IntRange(2, 16), default=8, show_default=True,
    help="Input of the normalizations (no operand of a multiplier array).",
)  # fmt: skip
@click.option(
    "--latent-bits", type=click.IntRange(2, 16),
    help="Symbols, or of a mean-scale hyperprior latents with their fraction "
    "[default: 8, or as many as the calibration images need].",
)  # fmt: skip
@click.option(
    "--latent-fraction", type=click.IntRange(0, 8),
    help="Fractional bits of the latent of a hyperprior [default: what calibration finds best].",
)  # fmt: skip
@click.option(
    "--bits-from", metavar="NET",
    help="Give every stage the bits that it has in this network, of `lichen search` for example, "
    "whatever the options above say.",
)  # fmt: skip
@click.option(
    "--clip", type=click.Choice(["mse", "percentile", "rd"]), default="mse", show_default=True,
    help="How ptq and draq find the clipping ranges of activations; rd (draq only): whichever "
    "estimator loses the least rate and distortion, tensor by tensor.",
)  # fmt: skip
@click.option(
    "--clip-factor", type=click.FloatRange(0, 4, min_open=True),
    help="What the ranges of --clip mse (and rd's start) are multiplied with [default: of 1, 1.25, "
    "1.5 and 2 what loses least on the calibration images; 1 where lambda is not known].",
)  # fmt: skip
@click.option(
    "--percentile", type=click.FloatRange(50, 100), default=99.99, show_default=True,
    help="Of the magnitudes, for --clip percentile.",
)  # fmt: skip
@click.option(
    "--split-channels", "split", type=click.FloatRange(0, 1), default=0.0, metavar="PART",
    help="Make channels that cost the others their precision several times, for so many more "
    "products [default: 0].",
)  # fmt: skip
@click.option(
    "--latent-gain", type=click.FloatRange(0.25, 4), default=1.0, show_default=True,
    help="Scale the latents: above 1, more rate and less distortion (no hyperpriors). The losses "
    "reported are against the scaled network, those of --evaluate against the checkpoint.",
)  # fmt: skip
@click.option(
    "--equations", type=click.IntRange(min=1), default=8, show_default=True,
    help="Positions of the calibration images per weight of an output channel that ptq's rounding "
    "looks at, at least; with many images more of them suit unseen ones better.",
)  # fmt: skip
@click.option(
    "--rounding", type=click.Choice(["optimal", "nearest"]), default="optimal", show_default=True,
    help="How ptq rounds weights: so as to preserve each stage's output, or each to its nearest.",
)  # fmt: skip
@click.option(
    "--refit/--no-refit", default=True, show_default=True,
    help="Refine the entropy tables with the calibration images' symbols, where that helps.",
)  # fmt: skip
@click.option(
    "--crop", type=click.IntRange(min=16),
    help="Pixels a side that are used of the middle of each calibration image "
    "[default: 256, or 512 for a hyperprior, whose z is coarse].",
)  # fmt: skip
@click.option(
    "--max-images", type=click.IntRange(min=1), metavar="N",
    help="Calibrate on N images at even distances [default: all].",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the positions sampled.")  # fmt: skip
@click.option("--steps", type=click.IntRange(min=0),
              help="draq: steps of fine-tuning [default: 2000].")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0),
              help="draq: minutes of fine-tuning, instead of steps.")  # fmt: skip
@click.option(
    "--regularize-steps", type=click.IntRange(min=0), default=0, show_default=True,
    help="draq: steps of the real network with a growing outlier penalty, before calibration.",
)  # fmt: skip
@click.option("--regularize-lr", type=click.FloatRange(min=0, min_open=True),
              default=REGULARIZE_LR, show_default=True,
              help="draq: peak learning rate of these steps.")  # fmt: skip
@click.option("--lmbda", type=click.FloatRange(min=0, min_open=True),
              help="Weight of the distortion, for draq and where clip factors are compared "
              "[default: the checkpoint's].")  # fmt: skip
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=TUNE["lr"],
              show_default=True, help="draq: peak learning rate, of full scale.")  # fmt: skip
@click.option("--lr-scales", type=click.FloatRange(min=0), default=TUNE["lr_scales"],
              show_default=True,
              help="draq: learning rate of the scales, relative to --lr.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["soap", "adam"]), default=TUNE["optimizer"],
              show_default=True, help="draq: what moves weights and gammas.")  # fmt: skip
@click.option(
    "--distortion", type=click.Choice(["mse", "psnr"]), default=TUNE["distortion"],
    show_default=True,
    help="draq: psnr counts each crop's squared error relative to itself, as a mean of PSNRs does.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True,
              help="draq: crops per step.")  # fmt: skip
@click.option("--patch", type=click.IntRange(min=16), default=128, show_default=True,
              help="draq: size of a crop in pixels.")  # fmt: skip
@click.option(
    "--distill", type=click.FloatRange(0, 1), default=TUNE["distill"], show_default=True,
    help="draq: part of the distortion taken against the FP32 parent's reconstruction.",
)  # fmt: skip
@click.option("--penalty", type=click.FloatRange(min=0), default=TUNE["penalty"],
              show_default=True, help="draq: weight of the outlier penalty; 0 is best without "
              "--regularize-steps (docs/notes/draq.md).")  # fmt: skip
@click.option(
    "--sigmas", type=click.FloatRange(min=0, min_open=True), default=TUNE["sigmas"],
    show_default=True, help="draq: bound of the penalty, in standard deviations.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True,
              help="draq: cpu, cuda, or auto (a GPU when there is one).")  # fmt: skip
@click.option("--resume", is_flag=True, help="draq: go on from the state beside NET.")
@click.option("--overwrite", is_flag=True, help="draq: start anew though a state exists.")
@click.option("--outlier-plot", metavar="FILE", type=click.Path(path_type=Path),
              help="draq: plot of the outlier ratios before and after.")  # fmt: skip
@click.option("--contexts/--no-contexts", default=True, show_default=True,
              help="Fit context models to the calibration images; lichen fit-tables does it "
              "better on more.")  # fmt: skip
@click.option("--name", help="Name of the network [default: of the file].")
@click.option(
    "--evaluate", metavar="DIR",
    help="Measure the result on these images (whole) and record it in the network.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0,
              help="Threads for FP32 (0: torch's choice).")  # fmt: skip
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    checkpoint: str,
    output: Path,
    method: str,
    train_folder: str | None,
    calibrate: str | None,
    weight_bits: int,
    activation_bits: int,
    gamma_bits: int,
    u_bits: int,
    gdn_input_bits: int,
    latent_bits: int | None,
    latent_fraction: int | None,
    bits_from: str | None,
    clip: str,
    percentile: float,
    clip_factor: float | None,
    split: float,
    latent_gain: float,
    equations: int,
    rounding: str,
    refit: bool,
    crop: int | None,
    max_images: int | None,
    seed: int,
    steps: int | None,
    minutes: float | None,
    regularize_steps: int,
    regularize_lr: float,
    lmbda: float | None,
    lr: float,
    lr_scales: float,
    optimizer: str,
    distortion: str,
    batch: int,
    patch: int,
    distill: float,
    penalty: float,
    sigmas: float,
    device: str,
    resume: bool,
    overwrite: bool,
    outlier_plot: Path | None,
    contexts: bool,
    name: str | None,
    evaluate: str | None,
    threads: int,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Quantize, save, and say what it cost."""
    if not output.parent.is_dir():
        raise UserError(f"cannot write {output}: the folder {output.parent} does not exist.")
    if output.is_dir():
        raise UserError(f"cannot write {output}: it is a folder.")
    if method == "draq" and train_folder is None:
        raise UserError("--method draq trains; give a folder of photographs with --train DIR.")
    if method != "draq" and (clip == "rd" or resume or train_folder is not None):
        raise UserError("--train, --resume and --clip rd go with --method draq only.")
    if steps is not None and minutes is not None:
        raise UserError("give either --steps or --minutes, not both.")
    _import_quant()
    import numpy as np
    import torch
    from tqdm import tqdm

    from lichen.codec.evaluate import NetworkCodec
    from lichen.codec.evaluate import evaluate as evaluate_codec
    from lichen.files import write_atomically
    from lichen.models import calibration_photographs, load_network
    from lichen.network.file import dumps, load
    from lichen.quant.calibration.calibrate import load_calibration, usual_size
    from lichen.quant.calibration.latents import scale_latents
    from lichen.quant.calibration.ptq import Options, Widths, bits_of
    from lichen.quant.calibration.quantize import (
        check_supported,
        measure_float,
        quantize,
    )
    from lichen.quant.calibration.quantize import steps as quantize_steps
    from lichen.quant.calibration.split import split_channels
    from lichen.quant.draq import outliers
    from lichen.quant.draq.draq import DraqOptions, DraqResult, draq, lambda_of
    from lichen.quant.float.source import load_float_network
    from lichen.quant.training.finetune import TuneConfig, state_path
    from lichen.sim.images import list_images, read_image

    if threads:
        torch.set_num_threads(threads)
    started = time.monotonic()
    original = network = load_float_network(checkpoint)
    check_supported(network)
    per_stage = {} if bits_from is None else bits_of(load_network(bits_from))
    if calibrate is not None:
        source: str | list[Path] = calibrate
    else:
        source = calibration_photographs()
        click.echo(
            f"lichen: calibrating on the {len(source)} crops of photographs that ship with "
            "Lichen; 20 to 40 photographs of your own (--calibrate DIR) may suit it better.",
            err=True,
        )
    size = crop or usual_size(network.hyper)
    images = load_calibration(source, network.factor, size=size, limit=max_images)
    evaluated = [] if evaluate is None else list_images(evaluate)
    options = Options(
        method="ptq" if method == "draq" else method,
        widths=Widths(
            weight=weight_bits,
            activation=activation_bits,
            gamma=gamma_bits,
            u=u_bits,
            gdn_input=gdn_input_bits,
        ),
        per_stage=per_stage,
        latent_bits=latent_bits,
        latent_fraction=latent_fraction,
        clip="mse" if clip == "rd" else clip,
        percentile=percentile,
        clip_factor=clip_factor or 1.0,
        equations=equations,
        rounding=rounding,
        seed=seed,
    )
    label = output.stem if name is None else name
    weight = lambda_of(network) if lmbda is None else lmbda
    state = state_path(output)
    if method == "draq":
        weight = _options.known_lambda(weight, checkpoint)
        _options.check_state(state, resume=resume, overwrite=overwrite)
    factors: dict[float, float] | None = None
    if clip_factor is None and weight is not None and method != "minmax" and clip != "percentile":
        chosen, factors = find_clip_factor(network, images, options, weight, quiet=quiet)
        options = replace(options, clip_factor=chosen)
    if latent_gain != 1:
        network = scale_latents(network, np.full(network.m, latent_gain))
        network = replace(network, provenance=network.provenance | {"latent_gain": latent_gain})
    if split:
        network = split_channels(network, images, options, split)
    tuned: DraqResult | None = None
    if method == "draq":
        assert train_folder is not None and weight is not None
        tuned = draq(
            network,
            images,
            list_images(train_folder),
            DraqOptions(
                quantization=options,
                tune=TuneConfig(
                    steps=2000 if steps is None and minutes is None else steps,
                    minutes=minutes,
                    batch=batch,
                    patch=patch,
                    lr=lr,
                    lr_scales=lr_scales,
                    optimizer=optimizer,
                    distortion=distortion,
                    lmbda=weight,
                    distill=distill,
                    penalty=penalty,
                    sigmas=sigmas,
                    seed=seed,
                ),
                rd_clip=clip == "rd",
                regularize_steps=regularize_steps,
                regularize_lr=regularize_lr,
                device=device,
            ),
            state=state,
            resume=resume,
            name=label,
            refit=refit,
            progress=not quiet,
        )
        if outlier_plot is not None:
            outliers.plot(tuned.outliers, outlier_plot)
    done = 0 if tuned is not None else quantize_steps(network)
    with tqdm(total=done + len(evaluated), desc="quantize", unit="step", disable=quiet) as bar:

        def progress(step: str) -> None:
            bar.set_postfix_str(step)
            bar.update()

        if tuned is not None:
            result = tuned.final
        else:
            result = quantize(network, images, options, name=label, refit=refit, progress=progress)
        integer = result.network
        rd = None
        if evaluated:
            # static tables, so that what differs from FP32 is what integers cost
            coded = evaluate_codec(NetworkCodec(integer, 1), evaluated, progress=progress)
            before = measure_float(original, (read_image(file) for file in evaluated), integer)
            rd = {
                "set": Path(str(evaluate)).resolve().name,
                "images": len(coded.images),
                "bpp": round(coded.bpp_streams or 0.0, 5),
                "psnr": round(coded.psnr, 4),
                "bits_from": "coded bytes",
                "fp32": {
                    "bpp": round(before.bpp, 5),
                    "psnr": round(before.psnr, 4),
                    "bits_from": "entropy model (estimated)",
                },
            }
            provenance = integer.provenance | {"rd": rd}
            integer = integer.model_copy(update={"provenance": provenance})
    fitted = _contexts(integer, images.crops) if contexts else None
    if fitted is not None:
        integer = fitted.network
    data = dumps(integer)
    write_atomically(output, data)
    load(output)  # what was written is a valid network
    report = {
        "network": str(output),
        "name": integer.name,
        "architecture": integer.architecture,
        "n": integer.n,
        "m": integer.m,
        "method": method,
        "layers": [stage.json() for stage in result.stages],
        "latent_bits": integer.transforms["g_s"].input.bits,
        "latent_fraction": integer.latent_fraction,
        "loss": {
            "before": result.before.json(),
            "after": result.after.json(),
            "psnr_db": round(result.before.psnr - result.after.psnr, 4),
        },
        "entropy": {
            name: {
                "bits_per_symbol_prior": round(fit.bits_prior, 5),
                "bits_per_symbol": round(fit.bits, 5),
                "prior_strength": fit.strength if math.isfinite(fit.strength) else None,
            }
            for name, fit in result.tables.items()
        },
        "contexts": None if fitted is None else fitted.json(),
        "clip_factor": options.clip_factor,
        "clip_factor_losses": factors,
        "draq": None if tuned is None else tuned.json(),
        "rd": rd,
        "size_bytes": len(data),
        "provenance": integer.provenance,
        "seconds": round(time.monotonic() - started, 2),
    }
    _options.report(
        report,
        json_file,
        f"{output}: {method}, {result.before.psnr:.2f} dB at {result.before.bpp:.3f} bpp in FP32, "
        f"{result.after.psnr:.2f} dB at {result.after.bpp:.3f} bpp in integers "
        f"({len(images.crops)} calibration crops, bits estimated)",
    )


def _contexts(network: Network, crops: Sequence[npt.NDArray[np.uint8]]) -> ContextFit | None:
    """Context models where they are possible and worth it."""
    from lichen.quant.contexts.fit import add_contexts

    try:
        return add_contexts(network, crops)
    except ValueError as error:
        _options.note(f"no context models: {error}.")
        return None
