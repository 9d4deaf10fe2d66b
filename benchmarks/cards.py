"""Model cards of the trained networks, from what their files and measurements say.

    python benchmarks/cards.py small-q1 small-q2 --rd docs/notes/rd.json

writes models/measured.json, which `lichen models` reads, and models/NAME.md: training from the
header of models/NAME.safetensors, quantization from that of models/NAME.lichen, rates and
distortions from the measurements that benchmarks/rd.py made.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from safetensors import safe_open

from lichen import models
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.network.description import Network
from lichen.quant.calibration.options import Widths, bits_of
from lichen.quant.float.checkpoint import Checkpoint, load_checkpoint
from lichen.quant.training.trainer import TrainConfig

IMAGES = "073e0d7b7f5db68ea865eaade37549ad042d9cc625a7f18a589c2fc9ca9b5fd0"
"""Digest of the decoded training images that the licences below are of."""

TRAINING_IMAGES = 235
"""How many these are."""

DATA = f"""## Data and licences

- 209 images of the CID22-512 training set: Cloudinary Image Dataset '22, (c) Cloudinary,
  [CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/).
- 26 photographs of the CLIC 2025 validation set, halved in size with a Lanczos filter:
  [Unsplash License](https://unsplash.com/license).
- Validated, and calibrated where a command says CALIBRATE, on the CID22-512 validation set (41
  images, CC BY-SA 4.0); TRAIN are the images above. Kodak's were used for the figures above only.

The {TRAINING_IMAGES} training images' decoded pixels have the SHA-256 `{IMAGES[:16]}...` that the
checkpoint's header states.
"""


def _run(run: dict[str, Any]) -> str:
    """One training run in words."""
    arch = f"{run['arch']}, " if run.get("arch") else ""
    minutes = f" in {run['minutes_done']:.0f} minutes" if "minutes_done" in run else ""
    return (
        f"{arch}lambda {run['lmbda']}: {run['steps_done']} steps of {run['batch']} crops of "
        f"{run['patch']}x{run['patch']}{minutes}, {run.get('optimizer', 'adam')}, peak "
        f"{run['lr']:g}, {run.get('precision', 'float32')}"
        + (f"; {' and '.join(run['frozen'])} kept" if run.get("frozen") else "")
    )


def _start(name: str, meta: dict[str, Any]) -> str | None:
    """What a checkpoint's last run started from, under a name that it does not overwrite."""
    source = meta.get("init", {}).get("source")
    return f"{name}.before.safetensors" if source == f"{name}.safetensors" else source


def _command(name: str, meta: dict[str, Any]) -> str:
    """The command of a checkpoint's last run."""
    length = ("minutes", meta["minutes"]) if meta["steps"] is None else ("steps", meta["steps"])
    parts = ["lichen train --images TRAIN", f"-o {name}.safetensors"]
    if _start(name, meta) is not None:
        parts.append(f"--init {_start(name, meta)}")
    prior = meta.get("init", {}).get("prior", {}).get("source")
    if prior is not None:
        parts.append(f"--prior {prior}")
    if meta.get("frozen"):
        parts.append(f"--freeze {','.join(meta['frozen'])}")
    parts.append(f"--arch {meta['arch']} --n {meta['n']} --m {meta['m']}")
    parts.append(f"--lmbda {meta['lmbda']} --{length[0]} {length[1]:g}")
    for option in ("batch", "patch", "lr", "warmup", "round_from", "optimizer"):
        parts.append(f"--{option.replace('_', '-')} {meta[option]}")
    for option, default in (("lr_adam", TrainConfig.lr_adam), ("ema", 0.0), ("seed", 0)):
        if meta[option] != default:
            parts.append(f"--{option.replace('_', '-')} {meta[option]}")
    if meta["compile"]:
        parts.append("--compile")
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) > 90:
            lines[-1] += "\\"
            lines.append("    ")
        lines[-1] += part + " "
    return "\n".join(line.rstrip() for line in lines)


def _quantization(name: str) -> list[str]:
    """The section on the integer network."""
    network = models.load_network(name)
    how = network.provenance["quantization"]
    options = how.get("quantization", how)
    widths, refined = dict(options["widths"]), how.get("refined", {})
    widths["gdn_input"] = refined.get("x", widths["gdn_input"])
    bits = bits_of(network)
    mixed = bool(options["per_stage"])
    text = [
        "## Integer network\n",
        f"Method {how['method']}, calibrated on {how['calibration']['images']} images. Bits: "
        + (
            "by stage."
            if mixed
            else ", ".join(f"{k.replace('_', ' ')} {b}" for k, b in widths.items()) + "."
        ),
    ]
    if mixed:
        kinds = [field.name for field in fields(Widths)]
        text += [
            "",
            "| stage | " + " | ".join(kind.replace("_", " ") for kind in kinds) + " |",
            "|---" * (len(kinds) + 1) + "|",
            *(
                f"| {stage} | " + " | ".join(str(getattr(own, kind)) for kind in kinds) + " |"
                for stage, own in bits.items()
            ),
            "",
        ]
    # what `benchmarks/refine.py` reads has a name of its own
    tuned = f"{name}.tuned.lichen" if refined else f"{name}.lichen"
    if "tune" in how:
        tune, tuned_x = how["tune"], options["widths"]["gdn_input"]
        text.append(
            f"Fine-tuned through its own integers for {how['steps_done']} steps of {tune['batch']} "
            f"crops of {tune['patch']}x{tune['patch']}, {tune['optimizer']}, peak {tune['lr']:g} "
            f"of full scale, scales {tune['lr_scales']:g} times that, on the same images:\n\n```\n"
            f"lichen quantize {name}{models.PARENT_SUFFIX} -o {tuned} --method draq "
            "--calibrate CALIBRATE \\\n"
            f"    --train TRAIN --steps {how['steps_done']} --batch {tune['batch']} "
            f"--patch {tune['patch']} --lr {tune['lr']:g} --lr-scales {tune['lr_scales']:g} \\\n"
            f"    --penalty {tune['penalty']:g} --crop 256 "
            + (f"--bits-from {name} " if mixed else "")
            + (f"--gdn-input-bits {tuned_x} " if tuned_x != 8 else "")
            + f"--clip-factor {how['quantization']['clip_factor']:g} "
            f"--max-images {how['calibration']['images']}\n```"
        )
        if "lr_hyper" not in tune:
            text.append(
                "\nThat was before biases of symbols moved as in FP32 and h_a and h_s more slowly "
                "(docs/notes/draq.md): the command ends elsewhere now."
            )
    elif how["method"] == "ptq":
        text.append(_calibration(name, how))
    if refined:
        words = " ".join(f"{layer}={bits}" for layer, bits in refined.items())
        text.append(
            "\nThe activations named here (x: inputs of normalizations) had 8 bits until then: "
            f"`python benchmarks/refine.py {tuned} {words} -o {name}.lichen`."
        )
    return [*text, "", *_tables(name, network)]


def _tables(name: str, network: Network) -> list[str]:
    """The command that fitted the tables of version 2 of the file."""
    fitted = None if network.contexts is None else network.contexts.provenance
    if not fitted or "passes" not in fitted:
        return []
    count = "" if fitted["images"] == TRAINING_IMAGES else f"--count {fitted['images']} "
    return [
        "The tables that files are coded with were fitted after that:\n",
        "```",
        f"lichen fit-tables {name}.lichen -o {name}.fitted.lichen --train TRAIN --calibrate "
        f"CALIBRATE \\\n    {count}--passes {fitted['passes']} --seed {fitted['seed']}",
        "```\n",
    ]


def _calibration(name: str, how: dict[str, Any]) -> str:
    """How a network was made by calibration alone."""
    bits = ""
    if "widened" in how:
        bits = f"--widen {how['widened']['part']:g} "
    elif "bits_from" in how:
        bits = f"--bits-from {how['bits_from']} "
    own = how.get("gdn_input_clip_factor")
    own = "" if own is None else f"--gdn-input-clip-factor {own:g} "
    defaults, widths = Widths(), how["widths"]
    for field in fields(Widths):
        if widths[field.name] != getattr(defaults, field.name):
            bits += f"--{field.name.replace('_', '-')}-bits {widths[field.name]} "
    return (
        "Calibrated only: no weight was trained through the integers "
        "([why](../docs/notes/draq.md)).\n\n```\n"
        f"lichen quantize {name}{models.PARENT_SUFFIX} -o {name}.lichen "
        f"--calibrate TRAIN --max-images {how['calibration']['images']} \\\n"
        f"    --crop {how['calibration']['crop']} --equations {how['equations']} "
        f"--clip-factor {how['clip_factor']:g} {own}{bits}\n```"
    ).replace(" \n", "\n")


def card(name: str, checkpoint: Checkpoint, points: dict[str, dict[str, float]]) -> str:
    """The text of models/NAME.md.

    Raises UserError when the training images are not those whose licences the card repeats.
    """
    meta = checkpoint.metadata
    if meta["images_sha256"] != IMAGES:
        raise UserError(f"{name} was trained on other images than the card's licences are of.")
    slim = meta.get("slim")
    runs = [*meta.get("init", {}).get("history", []), meta]
    if slim is not None:
        # Its own rounds have a row of their own; the header repeats the parent's last run.
        runs = runs[: -len(slim["rounds"])]
    with safe_open(models.folder() / f"{name}.safetensors", framework="numpy") as file:
        dtype = file.get_slice(next(iter(file.keys()))).get_dtype()
    stored = {"F16": "float16", "F32": "float32"}[dtype]
    text = [
        f"# {name}\n",
        f"FP32 network (`{name}.safetensors`, stored in {stored}) of CompressAI's\n"
        f"`{checkpoint.arch}` with N = {checkpoint.n} channels and M = {checkpoint.m} latent "
        f"channels, GDN,\nat lambda {meta['lmbda']}, and the integer network made of it "
        f"(`{name}.lichen`).\n",
        "| | |",
        "|---|---|",
        f"| loss | {meta['lmbda']} * 255^2 * MSE + bits per pixel (optimised for MSE) |",
        "| crops | random, flipped; gradient norm clipped to 1 |",
        *(f"| run {i} | {_run(run)} |" for i, run in enumerate(runs, 1)),
        *([] if slim is None else _slimming(slim)),
        "",
        "Measured from really coded bytes (of integers whole files with contexts, of FP32 streams "
        "without), symbols on\nthe integer grid, 8-bit pixels, means over Kodak's 24 images "
        "(`benchmarks/rd.py`):\n",
        "| network | bpp | PSNR | MS-SSIM |",
        "|---|---|---|---|",
    ]
    for which, title in ((f"{name}.fp32", "FP32"), (name, f"`{name}.lichen`")):
        if which in points:
            p = points[which]
            text.append(
                f"| {title} | {p['bpp']:.4f} | {p['psnr-rgb']:.2f} dB | {p['ms-ssim-rgb']:.4f} |"
            )
    text += ["", *_quantization(name)]
    command = _command(name, meta) if slim is None else _slim_command(name, slim)
    text += ["## Command\n", "The last run (other networks' names are those of its day):\n"]
    text += ["```", command, "```\n"]
    if slim is None and _start(name, meta) in (
        f"{name}.before.safetensors",
        f"{name}.next.safetensors",
    ):
        text.append(f"`{_start(name, meta)}` is what the run before that one left.\n")
    text.append(DATA)
    return "\n".join(text)


def _slimming(slim: dict[str, Any]) -> list[str]:
    """Rows on what `lichen slim` has taken from a network."""
    last = slim["rounds"][-1]
    widths = ", ".join(f"{layer} {width}" for layer, width in last["widths"].items())
    return [
        f"| slimmed | from {slim['macs_before'] / 1e9:.2f} to {slim['macs_after'] / 1e9:.2f} G "
        f"MACs (a photograph of 768x512), {last['cost']:.1%}, in {len(slim['rounds'])} rounds with "
        f"{slim['steps']} steps of fine-tuning after each but the last, and "
        f"{slim['final_steps']} after that, {slim['optimizer']}, peak {slim['lr']:g} |",
        f"| channels | {widths} |",
    ]


def _slim_command(name: str, slim: dict[str, Any]) -> str:
    """The command that slimmed a network."""
    parent = slim["source"].removesuffix(".safetensors")
    return (
        f"lichen slim {parent}{models.PARENT_SUFFIX} -o {name}.safetensors --train TRAIN "
        f"--macs {slim['macs']:g} \\\n"
        f"    --rounds {len(slim['rounds'])} --steps {slim['steps']} "
        f"--final-steps {slim['final_steps']} --lr {slim['lr']:g} --lr-adam {slim['lr_adam']:g} "
        f"--batches {slim['batches']} \\\n    --seed {slim['seed']}"
        + (" --compile" if slim["compile"] else "")
    )


def measured(rd: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Figures by network name, from the report of benchmarks/rd.py."""
    points = {}
    for curve in rd["curves"]:
        for i, point in enumerate(curve["points"]):
            points[point["name"]] = {key: values[i] for key, values in curve["results"].items()}
    return points


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--rd", "rd_file", required=True, type=click.Path(path_type=Path, exists=True))
def main(names: tuple[str, ...], rd_file: Path) -> None:
    """Write the cards of shipped networks."""
    rd = json.loads(rd_file.read_text(encoding="utf-8"))
    points = measured(rd)
    figures = {
        name: {
            "set": rd["set"],
            "images": rd["images"],
            "bpp": round(point["bpp"], 8),
            "psnr": round(point["psnr-rgb"], 6),
            "ms_ssim": round(point["ms-ssim-rgb"], 8),
        }
        for name, point in sorted(points.items())
        if name.removesuffix(models.PARENT_SUFFIX) in models.names()
    }
    text = json.dumps(figures, indent=1) + "\n"
    write_atomically(models.folder() / "measured.json", text.encode())
    for name in names:
        try:
            text = card(name, load_checkpoint(f"{name}{models.PARENT_SUFFIX}"), points)
        except UserError as error:
            raise click.UsageError(str(error)) from None
        write_atomically(models.folder() / f"{name}.md", text.encode())


if __name__ == "__main__":
    main()
