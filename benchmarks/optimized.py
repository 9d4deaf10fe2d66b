"""What slimming and mixed precision save, and what that costs in rate.

    python benchmarks/optimized.py --images KODAK --json docs/notes/optimized.json \\
        --table docs/notes/optimized.md

measures the shipped `small-opt-q*` and, as the honest comparison, W8A8 networks of the same
family that got the same additional steps, data and schedule (benchmarks/checkpoints/*.w8a8.lichen)
and the FP32 networks with all channels that those come from (*.longer.safetensors), from streams
really coded with one table a channel (version 1 of the file). MACs and bit-operations are those of
a 768x512 photograph. What has not changed since the JSON file was written is not measured again.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from lichen import models
from lichen.codec import compared
from lichen.codec.evaluate import Codec, Evaluation, NetworkCodec, evaluate, to_json
from lichen.codec.rd import STREAMS, Curve, points_table
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.network.description import PHOTO
from lichen.network.file import load
from lichen.network.identity import static_digest
from lichen.sim.images import list_images

COMMAND = "python benchmarks/optimized.py --images kodak --json docs/notes/optimized.json"
FAMILY, OPTIMIZED = "small", "small-opt"
PLAIN, UNPRUNED = "W8A8, the same steps", "FP32 with all channels"
VERSION = 1
"""Of integers' files: one table a channel, as FP32 networks have."""
FOLDER = Path(__file__).parent / "checkpoints"


def files() -> dict[str, list[Path]]:
    """The networks of the curves, in order of their quality."""
    optimized = [n for n in models.names() if n.startswith(f"{OPTIMIZED}-q")]
    found: dict[str, list[Path]] = {PLAIN: [], OPTIMIZED: [], UNPRUNED: []}
    for name in optimized:
        shipped = models.shipped_network(name)
        assert shipped is not None
        plain = name.replace(OPTIMIZED, FAMILY)
        found[OPTIMIZED].append(shipped)
        found[PLAIN].append(FOLDER / f"{plain}.w8a8.lichen")
        found[UNPRUNED].append(FOLDER / f"{plain}.longer.safetensors")
    return found


def open_point(path: Path) -> tuple[Codec, str, dict[str, int]]:
    """A network's codec, what its figures depend on, and what it computes."""
    if path.suffix == ".safetensors":
        from lichen.quant.float.architectures import build_model
        from lichen.quant.float.checkpoint import load_checkpoint
        from lichen.quant.training.evaluate import FloatCodec

        codec = FloatCodec(build_model(*load_checkpoint(str(path))[:4]), path.stem)
        return codec, sha256(path.read_bytes()).hexdigest(), {}
    network = load(path)
    normalized = [s for t in network.transforms.values() for s in t.stages if s.normalization]
    work = {
        "macs": network.macs(*PHOTO),
        "bops": network.bops(*PHOTO),
        "x_bits": max(stage.requantizer.output.bits for stage in normalized),
    }
    return NetworkCodec(network, VERSION), static_digest(network), work


def measure(images: list[Path], before: dict[str, Any]) -> dict[str, Any]:
    """Points of the curves, as far as ``before`` does not have them, and their comparisons."""
    from lichen.quant.training.evaluate import ms_ssim

    known = {
        p["digest"]: p["evaluation"]
        for p in before.get("points", [])
        if before["images"] == len(images)
    }
    report: dict[str, Any] = {"command": COMMAND, "images": len(images), "points": []}
    todo = [(title, path, *open_point(path)) for title, paths in files().items() for path in paths]
    left = sum(digest not in known for _, _, _, digest, _ in todo)
    with tqdm(total=len(images) * left, unit="image") as bar:
        for title, path, codec, digest, work in todo:
            found = known.get(digest)
            if found is None:
                bar.set_description(path.stem)
                found = evaluate(
                    codec, images, ms_ssim=ms_ssim, progress=lambda _: bar.update()
                ).to_json()
            point = {"digest": digest, **work, "evaluation": found}
            report["points"].append(point | {"curve": title, "name": path.stem})
    report["compared"] = [
        compared.compare(
            points_of(report, OPTIMIZED), points_of(report, title), STREAMS, (OPTIMIZED, title)
        )
        for title in (PLAIN, UNPRUNED)
    ]
    return report


def points_of(report: dict[str, Any], title: str) -> list[Evaluation]:
    """The points of one curve."""
    return [Evaluation.from_json(p["evaluation"]) for p in report["points"] if p["curve"] == title]


def page_of(report: dict[str, Any]) -> str:
    """The Markdown page."""
    by_name = {point["name"]: point for point in report["points"]}
    text = [
        "# Fewer channels, fewer bits\n",
        f"`{OPTIMIZED}` against W8A8 networks of the same family that got as many steps of "
        f"training in FP32 and through their integers, and against the FP32 networks with all "
        f"channels that those were made from, on {report['images']} photographs of Kodak, "
        "from streams really coded (one table a channel). MACs and bit-operations of a photograph "
        "of 768x512, both transforms, normalizations included. Made by "
        "`benchmarks/optimized.py`.\n",
        f"| `{OPTIMIZED}` against | {' | '.join(compared.HEADS)} | BD-rate (MS-SSIM) |",
        "|---" * (len(compared.HEADS) + 2) + "|",
    ]
    for found in report["compared"]:
        ssim = f"{found['bd_rate_msssim']:+.2f} %"
        text.append(f"| {found['anchor']} | {' | '.join(compared.cells(found, 2))} | {ssim} |")
    text.append(f"\n{compared.EXPLAINED}\n")
    text += [
        "The inputs x of normalizations, which no multiplier array reads, count in no "
        "bit-operation; the last column has their greatest width, the baseline's behind it.\n",
        "| | MACs | | bit-operations | | bits of x |",
        "|---|---|---|---|---|---|",
    ]
    for name, point in by_name.items():
        if point["curve"] != OPTIMIZED:
            continue
        other = by_name[f"{name.replace(OPTIMIZED, FAMILY)}.w8a8"]
        cells = []
        for what in ("macs", "bops"):
            cells += [f"{point[what] / 1e9:.2f} G", f"{point[what] / other[what] - 1:+.1%}"]
        cells.append(f"{point['x_bits']}, {other['x_bits']}")
        text.append(f"| {name} | {' | '.join(cells)} |")
    curves = [
        Curve.of_json(to_json(points_of(report, title), title), STREAMS)
        for title in (OPTIMIZED, PLAIN, UNPRUNED)
    ]
    text += ["", "## Points\n", points_table(curves)]
    return "\n".join(text)


@click.command()
@click.option("--images", metavar="DIR", required=True, help="Folder of images to measure on.")
@click.option("--table", metavar="FILE", help="Markdown to write.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Measurements to write or add to.")  # fmt: skip
def command(images: str, table: str | None, json_file: Path | None) -> None:
    """Measure what the optimized family saves and costs."""
    before: dict[str, Any] = {}
    if json_file is not None and json_file.exists():
        before = json.loads(json_file.read_text(encoding="utf-8"))
    try:
        report = measure(list_images(images), before)
        page = page_of(report)
    except UserError as error:
        raise click.UsageError(str(error)) from None
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=1) + "\n").encode())
    if table is not None:
        write_atomically(table, page.encode())
    click.echo(page)


if __name__ == "__main__":
    command()
