"""`lichen quantize`: an FP32 checkpoint becomes an integer network."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.commands._quant import (
    REGULARIZE_LR,
    TUNE,
    contexts_of,
    find_clip_factors,
    import_quant,
    measure_whole,
)
from lichen.commands._records import records
from lichen.errors import UserError

if TYPE_CHECKING:
    from lichen.network.description import Network
    from lichen.quant.calibration.calibrate import CalibrationImages
    from lichen.quant.calibration.options import Options
    from lichen.quant.calibration.quantize import Quantized
    from lichen.quant.draq.draq import DraqResult
    from lichen.quant.float.network import FloatNetwork


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is read and written, and how the command runs."""

    checkpoint: str
    output: Path
    method: str
    train_folder: str | None
    calibrate: str | None
    evaluate: str | None
    outlier_plot: Path | None
    contexts: bool
    name: str | None
    resume: bool
    overwrite: bool
    threads: int
    json_file: str | None
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Widths; ``bits_from`` goes before all but ``some_bits``."""

    weight_bits: int
    activation_bits: int
    gamma_bits: int
    u_bits: int
    gdn_input_bits: int
    latent_bits: int | None
    latent_fraction: int | None
    bits_from: str | None
    some_bits: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration does."""

    clip: str
    percentile: float
    clip_factor: float | None
    gdn_input_clip_factor: float | None
    split: float
    widen: float
    latent_gain: float
    equations: int
    rounding: str
    refit: bool
    crop: int | None
    max_images: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What draq does besides; most of it is a `lichen.quant.training.tune_config.TuneConfig`."""

    steps: int | None
    minutes: float | None
    regularize_steps: int
    regularize_lr: float
    lmbda: float | None
    lr: float
    ema: float
    lr_scales: float
    optimizer: str
    distortion: str
    batch: int
    patch: int
    distill: float
    penalty: float
    sigmas: float
    device: str


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
    "--bits", "some_bits", multiple=True, metavar="NAME=BITS",
    help="Bits of single tensors, such as g_s.conv1.activation=10 or g_s.*.weight=9, whatever all "
    "else says; may be given several times.",
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
    "--gdn-input-clip-factor", type=click.FloatRange(0, 4, min_open=True),
    help="The same for what is before a normalization [default: --clip-factor's if that is given; "
    "otherwise chosen like it, after it].",
)  # fmt: skip
@click.option(
    "--percentile", type=click.FloatRange(50, 100), default=99.99, show_default=True,
    help="Of the magnitudes, for --clip percentile.",
)  # fmt: skip
@click.option(
    "--widen", type=click.FloatRange(0, 1), default=0.0, metavar="PART",
    help="Give activations and squares up to 10 bits and weights 9 where they win most, measured "
    "one by one, for at most so many more bit-operations and bits of weights, each as a part of "
    "what there are [default: 0].",
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
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True), default=TUNE["ema"],
              show_default=True,
              help="draq: decay of an average of what is learned, to end with (0: the last "
              "step).")  # fmt: skip
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
def command(**values: Any) -> None:
    """Quantize, save, and say what it cost."""
    request: Request
    tuning: Tuning
    request, bits, calibration, tuning = records(values, Request, Bits, Calibration, Tuning)
    _check(request, calibration, tuning)
    import_quant()
    import torch

    from lichen.files import write_atomically
    from lichen.network.file import dumps, load
    from lichen.quant.training import outliers
    from lichen.quant.training.runs import state_path
    from lichen.sim.images import list_images

    if request.threads:
        torch.set_num_threads(request.threads)
    started = time.monotonic()
    work = _prepare(request, bits, calibration, tuning)
    if request.method == "draq":
        state = state_path(request.output)
        _options.check_state(state, resume=request.resume, overwrite=request.overwrite)
    evaluated = [] if request.evaluate is None else list_images(request.evaluate)
    _choose_clip_factors(work, request, calibration)
    _rescale(work, calibration)
    _widen(work, request, calibration)
    tuned = None
    if request.method == "draq":
        tuned = _fine_tune(work, request, calibration, tuning)
        if request.outlier_plot is not None:
            outliers.plot(tuned.outliers, request.outlier_plot)
    result, rd = _finish(work, request, calibration, tuned, evaluated)
    integer = result.network.model_copy(update={"provenance": _provenance(work, result, rd)})
    fitted = contexts_of(integer, work.images.crops) if request.contexts else None
    if fitted is not None:
        integer = fitted.network
    data = dumps(integer)
    write_atomically(request.output, data)
    load(request.output)  # what was written is a valid network
    report = _report(work, request, result, integer) | {
        "contexts": None if fitted is None else fitted.json(),
        "draq": None if tuned is None else tuned.json(),
        "rd": rd,
        "size_bytes": len(data),
        "provenance": integer.provenance,
        "seconds": round(time.monotonic() - started, 2),
    }
    _options.report(
        report,
        request.json_file,
        f"{request.output}: {request.method}, {result.before.psnr:.2f} dB at "
        f"{result.before.bpp:.3f} bpp in FP32, {result.after.psnr:.2f} dB at "
        f"{result.after.bpp:.3f} bpp in integers ({len(work.images.crops)} calibration crops, "
        "bits estimated)",
    )


def _check(request: Request, calibration: Calibration, tuning: Tuning) -> None:
    """UserError for options that don't go together."""
    output, draq = request.output, request.method == "draq"
    if not output.parent.is_dir():
        raise UserError(f"cannot write {output}: the folder {output.parent} does not exist.")
    if output.is_dir():
        raise UserError(f"cannot write {output}: it is a folder.")
    if draq and request.train_folder is None:
        raise UserError("--method draq trains; give a folder of photographs with --train DIR.")
    if not draq and (calibration.clip == "rd" or request.resume or request.train_folder):
        raise UserError("--train, --resume and --clip rd go with --method draq only.")
    if tuning.steps is not None and tuning.minutes is not None:
        raise UserError("give either --steps or --minutes, not both.")


@dataclass
class _Work:
    """What is quantized, on what, and how; ``original`` as the checkpoint has it."""

    original: FloatNetwork
    network: FloatNetwork
    images: CalibrationImages
    crop: int
    options: Options
    name: str
    lmbda: float | None
    factors: dict[str, dict[float, float]] = field(default_factory=dict)
    widened: dict[str, Any] | None = None
    bits_from: str | None = None


def _prepare(request: Request, bits: Bits, calibration: Calibration, tuning: Tuning) -> _Work:
    """Load the checkpoint and the calibration images."""
    from lichen.models import calibration_photographs, load_network
    from lichen.quant.calibration.calibrate import load_calibration, usual_size
    from lichen.quant.calibration.options import Options, Widths, bits_of, with_bits
    from lichen.quant.calibration.quantize import check_supported
    from lichen.quant.draq.draq import lambda_of
    from lichen.quant.float.source import load_float_network

    network = load_float_network(request.checkpoint)
    check_supported(network)
    giver = None if bits.bits_from is None else load_network(bits.bits_from)
    per_stage = {} if giver is None else bits_of(giver)
    source: str | list[Path] | None = request.calibrate
    if source is None:
        source = calibration_photographs()
        click.echo(
            f"lichen: calibrating on the {len(source)} crops of photographs that ship with "
            "Lichen; 20 to 40 photographs of your own (--calibrate DIR) may suit it better.",
            err=True,
        )
    size = calibration.crop or usual_size(network.hyper)
    images = load_calibration(source, network.factor, size=size, limit=calibration.max_images)
    widths = Widths(
        weight=bits.weight_bits,
        activation=bits.activation_bits,
        gamma=bits.gamma_bits,
        u=bits.u_bits,
        gdn_input=bits.gdn_input_bits,
    )
    options = Options(
        method="ptq" if request.method == "draq" else request.method,
        widths=widths,
        per_stage=with_bits(per_stage, widths, network.stage_names, bits.some_bits),
        latent_bits=bits.latent_bits,
        latent_fraction=bits.latent_fraction,
        clip="mse" if calibration.clip == "rd" else calibration.clip,
        percentile=calibration.percentile,
        clip_factor=calibration.clip_factor or 1.0,
        gdn_input_clip_factor=calibration.gdn_input_clip_factor,
        equations=calibration.equations,
        rounding=calibration.rounding,
        seed=calibration.seed,
    )
    lmbda = lambda_of(network) if tuning.lmbda is None else tuning.lmbda
    if request.method == "draq":
        lmbda = _options.known_lambda(lmbda, request.checkpoint)
    name = request.output.stem if request.name is None else request.name
    bits_from = None if giver is None else giver.name
    return _Work(network, network, images, size, options, name, lmbda, bits_from=bits_from)


def _choose_clip_factors(work: _Work, request: Request, calibration: Calibration) -> None:
    """Where none is given and lambda is known, those that lose least."""
    by_hand = request.method == "minmax" or calibration.clip == "percentile"
    if calibration.clip_factor is None and work.lmbda is not None and not by_hand:
        work.options, work.factors = find_clip_factors(
            work.network, work.images, work.options, work.lmbda, quiet=request.quiet
        )


def _rescale(work: _Work, calibration: Calibration) -> None:
    """Scale latents and split channels, if asked."""
    import numpy as np

    from lichen.quant.calibration.latents import scale_latents
    from lichen.quant.calibration.split import split_channels

    network, gain = work.network, calibration.latent_gain
    if gain != 1:
        network = scale_latents(network, np.full(network.m, gain))
        network = replace(network, provenance=network.provenance | {"latent_gain": gain})
    if calibration.split:
        network = split_channels(network, work.images, work.options, calibration.split)
    work.network = network


def _widen(work: _Work, request: Request, calibration: Calibration) -> None:
    """More bits for some tensors, if asked."""
    from tqdm import tqdm

    from lichen.quant.calibration.widths import widen

    if not calibration.widen:
        return
    lmbda = _options.known_lambda(work.lmbda, request.checkpoint)
    with tqdm(desc="widths", unit="try", disable=request.quiet) as bar:
        work.options, work.widened = widen(
            work.network,
            work.images,
            work.options,
            lmbda,
            calibration.widen,
            progress=lambda tensor: bar.update() and None,
        )


def _fine_tune(
    work: _Work, request: Request, calibration: Calibration, tuning: Tuning
) -> DraqResult:
    """Calibrate, regularize and fine-tune."""
    from lichen.quant.draq.draq import DraqOptions, draq
    from lichen.quant.training.runs import state_path
    from lichen.quant.training.tune_config import TuneConfig
    from lichen.sim.images import list_images

    assert request.train_folder is not None and work.lmbda is not None
    names = {field.name for field in fields(TuneConfig)}
    values = {name: value for name, value in asdict(tuning).items() if name in names}
    if tuning.steps is None and tuning.minutes is None:
        values["steps"] = 2000
    return draq(
        work.network,
        work.images,
        list_images(request.train_folder),
        DraqOptions(
            quantization=work.options,
            tune=TuneConfig(**values | {"lmbda": work.lmbda, "seed": calibration.seed}),
            rd_clip=calibration.clip == "rd",
            regularize_steps=tuning.regularize_steps,
            regularize_lr=tuning.regularize_lr,
            device=tuning.device,
        ),
        state=state_path(request.output),
        resume=request.resume,
        name=work.name,
        refit=calibration.refit,
        progress=not request.quiet,
    )


def _finish(
    work: _Work,
    request: Request,
    calibration: Calibration,
    tuned: DraqResult | None,
    evaluated: Sequence[Path],
) -> tuple[Quantized, dict[str, Any] | None]:
    """The quantized network, and its rate and distortion on whole images."""
    from tqdm import tqdm

    from lichen.quant.calibration.quantize import quantize, steps

    total = len(evaluated) + (0 if tuned is not None else steps(work.network))
    with tqdm(total=total, desc="quantize", unit="step", disable=request.quiet) as bar:

        def progress(step: str) -> None:
            bar.set_postfix_str(step)
            bar.update()

        if tuned is not None:
            result = tuned.final
        else:
            result = quantize(
                work.network,
                work.images,
                work.options,
                name=work.name,
                refit=calibration.refit,
                progress=progress,
            )
        rd = None
        if evaluated:
            rd = measure_whole(work.original, result.network, evaluated, progress)
            rd = {"set": Path(str(request.evaluate)).resolve().name} | rd
    return result, rd


def _provenance(work: _Work, result: Quantized, rd: dict[str, Any] | None) -> dict[str, Any]:
    """What the network's file says of its making, with what only this command knows."""
    before = result.network.provenance
    how = before["quantization"]
    how = how | {"calibration": how["calibration"] | {"crop": work.crop}}
    if work.widened is not None:
        how |= {"widened": work.widened}
    if work.bits_from is not None:
        how |= {"bits_from": work.bits_from}
    return before | {"quantization": how} | ({} if rd is None else {"rd": rd})


def _report(work: _Work, request: Request, result: Quantized, integer: Network) -> dict[str, Any]:
    """What is said of the network, as JSON values."""
    return {
        "network": str(request.output),
        "name": integer.name,
        "architecture": integer.architecture,
        "n": integer.n,
        "m": integer.m,
        "method": request.method,
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
        "clip_factor": work.options.clip_factor,
        "clip_factor_losses": work.factors.get("clip_factor"),
        "gdn_input_clip_factor": work.options.gdn_input_clip_factor,
        "gdn_input_clip_factor_losses": work.factors.get("gdn_input_clip_factor"),
        "widened": work.widened,
    }
