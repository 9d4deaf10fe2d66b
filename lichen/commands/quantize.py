"""`lichen quantize`: an FP32 checkpoint becomes an integer network."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from lichen.errors import UserError


def _import_quant() -> None:
    """Fail with a sentence when the extra is missing."""
    try:
        import lichen.quant.checkpoint  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"quantizing needs the quant extra ({error.name} is missing); "
            "install it with: pip install 'lichen[quant]'"
        ) from None


def _load(checkpoint: str) -> Any:
    """The float network of a checkpoint."""
    from lichen.quant.checkpoint import build_model, load_checkpoint
    from lichen.quant.float_network import from_compressai

    loaded = load_checkpoint(checkpoint)
    # The header may hold anything; what has no place in JSON is left out.
    source = {
        key: value
        for key, value in loaded.metadata.items()
        if isinstance(value, str | int | bool) or (isinstance(value, float) and value == value)
    }
    source["file"] = source.pop("source", Path(checkpoint).name)
    return from_compressai(
        build_model(loaded.arch, loaded.n, loaded.m, loaded.state_dict),
        loaded.arch,
        loaded.n,
        loaded.m,
        provenance={"source": source},
    )


@click.command(name="quantize", help="Turn an FP32 checkpoint into an integer network.")
@click.argument("checkpoint", metavar="CKPT")
@click.option(
    "-o", "--output", required=True, metavar="NET.lichen", type=click.Path(path_type=Path),
    help="Network file to write.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(["ptq", "minmax"]), default="ptq", show_default=True,
    help="ptq: per-channel scales, error-minimizing clipping and rounding. "
    "minmax: the greatest magnitudes, rounded to nearest; the baseline.",
)  # fmt: skip
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
    help="Symbols of the latent [default: 8, or as many as the calibration images need].",
)  # fmt: skip
@click.option(
    "--clip", type=click.Choice(["mse", "percentile"]), default="mse", show_default=True,
    help="How ptq finds the clipping ranges of activations.",
)  # fmt: skip
@click.option(
    "--percentile", type=click.FloatRange(50, 100), default=99.99, show_default=True,
    help="Of the magnitudes, for --clip percentile.",
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
    "--crop", type=click.IntRange(min=16), default=256, show_default=True,
    help="Pixels a side that are used of the middle of each calibration image.",
)  # fmt: skip
@click.option(
    "--max-images", type=click.IntRange(min=1), metavar="N",
    help="Calibrate on N images at even distances [default: all].",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the positions sampled.")  # fmt: skip
@click.option("--name", help="Name of the network [default: of the file].")
@click.option(
    "--evaluate", metavar="DIR",
    help="Measure the result on these images (whole) and record it in the network.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0,
              help="Threads for FP32 (0: torch's choice).")  # fmt: skip
@click.option(
    "--json", "json_file", metavar="FILE", help="Write the result as JSON (- for stdout)."
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    checkpoint: str,
    output: Path,
    method: str,
    calibrate: str | None,
    weight_bits: int,
    activation_bits: int,
    gamma_bits: int,
    u_bits: int,
    gdn_input_bits: int,
    latent_bits: int | None,
    clip: str,
    percentile: float,
    rounding: str,
    refit: bool,
    crop: int,
    max_images: int | None,
    seed: int,
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
    _import_quant()
    import torch
    from tqdm import tqdm

    from lichen.models import calibration_photographs
    from lichen.network.file import dumps, load, write_atomically
    from lichen.quant.calibrate import load_calibration
    from lichen.quant.ptq import Options, Widths
    from lichen.quant.quantize import check_supported, measure, measure_float, quantize, steps
    from lichen.sim.images import list_images, read_image

    if threads:
        torch.set_num_threads(threads)
    started = time.monotonic()
    network = _load(checkpoint)
    check_supported(network)
    if calibrate is not None:
        source: str | list[Path] = calibrate
    else:
        source = calibration_photographs()
        click.echo(
            f"lichen: calibrating on the {len(source)} crops of photographs that ship with "
            "Lichen; 20 to 40 photographs of your own (--calibrate DIR) may suit it better.",
            err=True,
        )
    images = load_calibration(source, network.factor, size=crop, limit=max_images)
    evaluated = [] if evaluate is None else list_images(evaluate)
    options = Options(
        method=method,
        widths=Widths(
            weight=weight_bits,
            activation=activation_bits,
            gamma=gamma_bits,
            u=u_bits,
            gdn_input=gdn_input_bits,
        ),
        latent_bits=latent_bits,
        clip=clip,
        percentile=percentile,
        rounding=rounding,
        seed=seed,
    )
    with tqdm(
        total=steps(network) + len(evaluated), desc="quantize", unit="step", disable=quiet
    ) as bar:

        def progress(step: str) -> None:
            bar.set_postfix_str(step)
            bar.update()

        result = quantize(
            network,
            images,
            options,
            name=output.stem if name is None else name,
            refit=refit,
            progress=progress,
        )
        integer = result.network
        rd = None
        if evaluated:
            whole = []
            for file in evaluated:
                image = [read_image(file)]
                whole.append((measure_float(network, image, integer), measure(integer, image)))
                progress(file.name)
            rd = {
                "set": Path(str(evaluate)).resolve().name,
                "images": len(whole),
                "bpp": round(sum(after.bpp for _, after in whole) / len(whole), 5),
                "psnr": round(sum(after.psnr for _, after in whole) / len(whole), 4),
                "bits_from": "entropy tables (estimated)",
                "fp32": {
                    "bpp": round(sum(before.bpp for before, _ in whole) / len(whole), 5),
                    "psnr": round(sum(before.psnr for before, _ in whole) / len(whole), 4),
                },
            }
            provenance = integer.provenance | {"rd": rd}
            integer = integer.model_copy(update={"provenance": provenance})
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
        "latent_bits": integer.transforms["g_a"].output.bits,
        "loss": {
            "before": result.before.json(),
            "after": result.after.json(),
            "psnr_db": round(result.before.psnr - result.after.psnr, 4),
        },
        "entropy": {
            "bits_per_symbol_prior": round(result.tables.bits_prior, 5),
            "bits_per_symbol": round(result.tables.bits, 5),
            "prior_strength": integer.provenance["quantization"]["tables_prior_strength"],
        },
        "rd": rd,
        "size_bytes": len(data),
        "provenance": integer.provenance,
        "seconds": round(time.monotonic() - started, 2),
    }
    if json_file is not None and json_file != "-":
        write_atomically(json_file, (json.dumps(report, indent=2) + "\n").encode())
    if json_file == "-":
        click.echo(json.dumps(report, indent=2))
    click.echo(
        f"{output}: {method}, {result.before.psnr:.2f} dB at {result.before.bpp:.3f} bpp in FP32, "
        f"{result.after.psnr:.2f} dB at {result.after.bpp:.3f} bpp in integers "
        f"({len(images.crops)} calibration crops, bits estimated)",
        err=json_file == "-",
    )
