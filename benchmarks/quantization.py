"""What integers cost: each way to quantize against FP32 parents, by BD-rate.

    python benchmarks/quantization.py --images KODAK --calibrate PHOTOS --anchors DIR \\
        --json docs/notes/quantization.json --table docs/notes/quantization.md

measures, for the shipped families, the FP32 parents, the same after as many further steps of
training as fine-tuning took (DIR/NAME.longer.safetensors, by the command that the page prints; the
parent itself where integers were calibrated only), minmax and ptq made here on the calibration
photographs, and the shipped networks, all from bytes really coded: the streams, of integers those
with one table a channel (version 1 of the file), since FP32 networks make no files and have no
contexts. Rows of ``lichen ablate --json FILE`` join the page with --ablation FILE. The JSON file
grows point by point, and what has not changed since is not measured again.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from lichen import models
from lichen.codec import compared
from lichen.codec.evaluate import Codec, Evaluation, NetworkCodec, evaluate, family, to_json
from lichen.codec.rd import STREAMS, Curve, points_table
from lichen.commands.ablate import table as ablation_table
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.network.description import Network
from lichen.network.identity import static_digest
from lichen.quant.calibration.calibrate import CalibrationImages, load_calibration, usual_size
from lichen.quant.calibration.options import Options
from lichen.quant.calibration.quantize import choose_clip_factor, quantize
from lichen.quant.draq.draq import lambda_of
from lichen.quant.float.architectures import ARCHS, build_model
from lichen.quant.float.checkpoint import load_checkpoint
from lichen.quant.float.source import load_float_network
from lichen.quant.training.evaluate import FloatCodec, ms_ssim
from lichen.sim.images import list_images

COMMAND = (
    "python benchmarks/quantization.py --images kodak --calibrate CALIBRATE "
    "--anchors benchmarks/checkpoints --json docs/notes/quantization.json"
)
PARENT, ANCHOR = "FP32, as shipped", "FP32, with the fine-tuning's steps"
MINMAX, PTQ, SHIPPED = "minmax", "ptq", "as shipped"
CALIBRATION = 24
"""Photographs to calibrate on, at most."""
VERSION = 1
"""Of integers' files: one table a channel, as FP32 networks have."""

Row = tuple[str, str, Callable[[], Codec]]
"""A curve's title, what the figures of one of its points depend on, and the codec."""


def float_codec(checkpoint: str, name: str) -> FloatCodec:
    """The FP32 network of a checkpoint."""
    return FloatCodec(build_model(*load_checkpoint(checkpoint)[:4]), name)


def quantized(name: str, method: str, images: CalibrationImages) -> Network:
    """A shipped parent after calibration alone."""
    network = load_float_network(f"{name}{models.PARENT_SUFFIX}")
    options = Options(method=method)
    lmbda = lambda_of(network)
    if method == "ptq" and lmbda is not None:
        factor, _ = choose_clip_factor(network, images, options, lmbda)
        options = Options(method=method, clip_factor=factor)
    return quantize(network, images, options, name=f"{name} {method}").network


def rows_of(name: str, images: CalibrationImages, anchors: Path | None) -> list[Row]:
    """The points of one rate."""
    parent = models.shipped_parent(name)
    if parent is None or models.shipped_network(name) is None:
        raise UserError(f"no network {name} with an FP32 parent ships with Lichen.")
    digest = sha256(parent.read_bytes()).hexdigest()

    def made(method: str) -> Callable[[], Codec]:
        return lambda: NetworkCodec(quantized(name, method, images), VERSION)

    fp32 = f"{name}{models.PARENT_SUFFIX}"
    rows: list[Row] = [(PARENT, digest, lambda: float_codec(fp32, fp32))]
    if anchors is not None and fine_tuning_steps(name):
        file = anchor_file(anchors, name)
        anchor = sha256(file.read_bytes()).hexdigest()
        rows.append((ANCHOR, anchor, lambda: float_codec(str(file), f"{name} anchor")))
    for method in (MINMAX, PTQ):
        rows.append((method, f"{digest} {method} {images.digest}", made(method)))
    integer = models.load_network(name)
    rows.append((SHIPPED, static_digest(integer), lambda: NetworkCodec(integer, VERSION)))
    return rows


def fine_tuning_steps(name: str) -> int:
    """Steps that a shipped network was trained through its integers for."""
    return int(models.load_network(name).provenance["quantization"].get("steps_done", 0))


def anchor_file(anchors: Path, name: str) -> Path:
    """Where the FP32 network lies that was trained on for the fine-tuning's steps."""
    return anchors / f"{name}.longer.safetensors"


def anchored_names(names: list[str], anchors: Path) -> set[str]:
    """The networks of the families whose anchors are all there; UserError if there are none."""
    missing = {
        name
        for name in names
        if fine_tuning_steps(name) and not anchor_file(anchors, name).exists()
    }
    incomplete = {family(name) for name in missing}
    found = {name for name in names if family(name) not in incomplete}
    if not found:
        first = min(missing)
        raise UserError(
            f"{anchor_file(anchors, first)} does not exist; without anchors, leave out --anchors."
        )
    return found


def anchor_of(name: str, anchors: Path) -> dict[str, Any]:
    """What the anchor's file says of its last run, and what fine-tuning took."""
    meta = load_checkpoint(str(anchor_file(anchors, name))).metadata
    keys = ("lmbda", "steps", "batch", "patch", "lr", "warmup", "round_from", "optimizer", "seed")
    settings = {key: meta[key] for key in keys}
    return settings | {"fine_tuning_steps": fine_tuning_steps(name)}


def measure(
    names: list[str],
    files: list[Path],
    calibrate: str,
    anchors: Path | None,
    before: dict[str, Any],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """All curves, as far as ``before`` does not have them; ``save`` gets every step."""
    known = {
        point["digest"]: Evaluation.from_json(point["evaluation"])
        for point in before.get("points", [])
        if before["images"] == len(files)
    }
    report: dict[str, Any] = {
        "command": COMMAND, "images": len(files), "points": [], "anchors": {},
    }  # fmt: skip
    todo: list[tuple[str, Row]] = []
    anchored = anchored_names(names, anchors) if anchors is not None else set()
    for name in names:
        arch = ARCHS[models.load_network(name).architecture]
        size = usual_size(arch.hyperprior)
        images = load_calibration(calibrate, arch.factor, size=size, limit=CALIBRATION)
        own = anchors if name in anchored else None
        todo += [(name, row) for row in rows_of(name, images, own)]
        if own is not None and fine_tuning_steps(name):
            report["anchors"][name] = anchor_of(name, own)
    with tqdm(total=len(files) * sum(row[1] not in known for _, row in todo), unit="image") as bar:
        for name, (title, digest, make) in todo:
            found = known.get(digest)
            if found is None:
                bar.set_description(f"{name} {title}")
                found = evaluate(make(), files, ms_ssim=ms_ssim, progress=lambda _: bar.update())
            point = {"name": name, "row": title, "digest": digest, "evaluation": found.to_json()}
            report["points"].append(point)
            done = {point["digest"] for point in report["points"]}
            rest = [point for point in before.get("points", []) if point["digest"] not in done]
            save(report | {"points": report["points"] + rest})
    report["compared"] = comparisons(report)
    return report


def points_of(report: dict[str, Any]) -> dict[str, dict[str, list[Evaluation]]]:
    """Points by family and row, in the order of the rows."""
    found: dict[str, dict[str, list[Evaluation]]] = {}
    for point in report["points"]:
        rows = found.setdefault(family(point["name"]), {})
        rows.setdefault(point["row"], []).append(Evaluation.from_json(point["evaluation"]))
    return found


def comparisons(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row beside the FP32 rows of its family."""
    found = []
    for stem, rows in points_of(report).items():
        for anchor in (PARENT, ANCHOR):
            for title in rows:
                if anchor in rows and title != anchor:
                    one = compared.compare(rows[title], rows[anchor], STREAMS, (title, anchor))
                    found.append({"family": stem, "test": title, "anchor": anchor} | (one or {}))
    return found


def comparison(
    report: dict[str, Any], stem: str, test: str, anchor: str | None = None
) -> dict[str, Any] | None:
    """One of `comparisons`; None where the two can't be compared.

    Without ``anchor``, with FP32 of equally many steps: what was not fine-tuned has its parent's.
    """
    if anchor is None:
        anchor = ANCHOR if ANCHOR in points_of(report)[stem] else PARENT
    for one in report["compared"]:
        if (one["family"], one["test"], one["anchor"]) == (stem, test, anchor):
            return one if "bd_rate" in one else None
    return None


def page_of(report: dict[str, Any], ablations: list[dict[str, Any]]) -> str:
    """The Markdown page."""
    text = [
        "# What integers cost\n",
        f"PSNR BD-rate over {report['images']} photographs of Kodak, from streams really coded ("
        "integers with one table a channel, as FP32 has). `minmax` and `ptq` are calibration alone "
        "with 8 bits for everything; what ships has the bits that its card states. Integers' "
        "tables are fitted to calibration photographs, those of a hyperprior's y too, which FP32 "
        "codes with Gaussians ([what that wins](draq.md#bits-where-the-loss-is)). Less is better. "
        "Made by `benchmarks/quantization.py`.\n",
    ]
    if report["anchors"]:
        text.append(
            "Fine-tuning is judged most honestly against FP32 parents that went on training for as "
            "many steps, on the same crops. What was calibrated only is compared with its parent.\n"
        )
    text.append(f"{compared.EXPLAINED}\n")
    everything = points_of(report)
    for stem, rows in everything.items():
        for anchor in [title for title in (PARENT, ANCHOR) if title in rows]:
            text.append(f"## `{stem}` against {anchor}\n")
            text.append(f"| | {' | '.join(compared.HEADS)} | BD-rate (MS-SSIM) |")
            text.append("|---" * (len(compared.HEADS) + 2) + "|")
            for title in rows:
                if title == anchor:
                    continue
                found = comparison(report, stem, title, anchor)
                ssim = (found or {}).get("bd_rate_msssim")
                cells = [*compared.cells(found, 2), "–" if ssim is None else f"{ssim:+.2f} %"]
                text.append(f"| {title} | {' | '.join(cells)} |")
            text.append("")
    if report["anchors"]:
        text.append("The steps of fine-tuning, and the run of the FP32 parent that matches it:\n")
        text.append("```sh")
        for name, run in report["anchors"].items():
            text.append(
                f"lichen train --images TRAIN -o {name}.longer.safetensors --init {name}.fp32 "
                f"--lmbda {run['lmbda']:g} --steps {run['steps']} "
                f"--batch {run['batch']} --patch {run['patch']} "
                f"--lr {run['lr']:g} --warmup {run['warmup']} --round-from {run['round_from']:g} "
                f"--seed {run['seed']}  # fine-tuning: {run['fine_tuning_steps']}"
            )
        text.append("```\n")
    for ablation in ablations:
        old = f", the parent of `{ablation['parent_of']}`" if "parent_of" in ablation else ""
        text.append(f"## Step by step: `{ablation['checkpoint']}`{old}\n")
        text.append(
            f"Whole photographs of Kodak, bits from the entropy tables, clip factor "
            f"{ablation['clip_factor']:g}; {ablation['regularize_steps']} steps of regularization; "
            f"{ablation['steps']} of fine-tuning ({ablation['optimizer']}, {ablation['lr']:g}, "
            f"scales {ablation['lr_scales']:g}), lambda {ablation['lmbda']:g} (`lichen ablate`).\n"
        )
        text.append(ablation_table(ablation["rows"]) + "\n")
    text.append("## Points\n")
    for rows in everything.values():
        curves = [Curve.of_json(to_json(points, title), STREAMS) for title, points in rows.items()]
        text.append(points_table(curves))
    return "\n".join(text)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--images", metavar="DIR", required=True, help="Folder of images to measure on.")
@click.option("--calibrate", metavar="DIR", required=True, help="Photographs to calibrate on.")
@click.option("--anchors", metavar="DIR", type=click.Path(path_type=Path, exists=True),
              help="Folder of FP32 checkpoints with the fine-tuning's steps.")  # fmt: skip
@click.option("--ablation", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
              help="What lichen ablate has written.")  # fmt: skip
@click.option("--table", metavar="FILE", help="Markdown to write.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Measurements to write or add to.")  # fmt: skip
def command(
    names: tuple[str, ...],
    images: str,
    calibrate: str,
    anchors: Path | None,
    ablation: tuple[Path, ...],
    table: str | None,
    json_file: Path | None,
) -> None:
    """Measure the shipped families (or the networks named) and tabulate what integers cost."""
    families = ("small", "small-hyper")
    chosen = list(names) or [n for n in models.names() if family(n) in families]
    before: dict[str, Any] = {}
    if json_file is not None and json_file.exists():
        before = json.loads(json_file.read_text(encoding="utf-8"))

    ablations = [json.loads(file.read_text(encoding="utf-8")) for file in ablation] or before.get(
        "ablations", []
    )

    def save(report: dict[str, Any]) -> None:
        if json_file is not None:
            whole = report | {"ablations": ablations}
            write_atomically(json_file, (json.dumps(whole, indent=1) + "\n").encode())

    try:
        report = measure(chosen, list_images(images), calibrate, anchors, before, save)
    except UserError as error:
        raise click.UsageError(str(error)) from None
    save(report)
    page = page_of(report, ablations)
    if table is not None:
        write_atomically(table, page.encode())
    click.echo(page)


if __name__ == "__main__":
    command()
