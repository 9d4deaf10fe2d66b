"""What slimming and mixed precision save, and what that costs in rate.

    python benchmarks/optimized.py --images KODAK --json docs/notes/optimized.json \\
        --table docs/notes/optimized.md

measures the shipped `small-opt-q*` and, as the honest comparison, W8A8 networks of the same
family that got the same additional steps, data and schedule (benchmarks/checkpoints/*.w8a8.lichen),
from bytes really coded, and counts MACs and bit-operations of a 768x512 photograph. What has not
changed since the JSON file was written is not measured again.
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
from lichen.codec.evaluate import Evaluation, NetworkCodec, evaluate, to_json
from lichen.codec.rd import MS_SSIM, Curve, bd_rate, points_table
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.network.description import PHOTO
from lichen.network.file import load
from lichen.sim.images import list_images

COMMAND = "python benchmarks/optimized.py --images kodak --json docs/notes/optimized.json"
FAMILY, OPTIMIZED = "small", "small-opt"
PLAIN = "W8A8, the same steps"
FOLDER = Path(__file__).parent / "checkpoints"


def files() -> dict[str, list[Path]]:
    """The networks of both curves, in order of their quality."""
    optimized = [n for n in models.names() if n.startswith(f"{OPTIMIZED}-q")]
    found: dict[str, list[Path]] = {PLAIN: [], OPTIMIZED: []}
    for name in optimized:
        shipped = models.shipped_network(name)
        assert shipped is not None
        found[OPTIMIZED].append(shipped)
        found[PLAIN].append(FOLDER / f"{name.replace(OPTIMIZED, FAMILY)}.w8a8.lichen")
    return found


def measure(images: list[Path], before: dict[str, Any]) -> dict[str, Any]:
    """Points of both curves, as far as ``before`` does not have them."""
    known = {p["digest"]: p for p in before.get("points", []) if before["images"] == len(images)}
    report: dict[str, Any] = {"command": COMMAND, "images": len(images), "points": []}
    todo = [(title, path) for title, paths in files().items() for path in paths]
    digests = {path: sha256(path.read_bytes()).hexdigest() for _, path in todo}
    left = sum(digest not in known for digest in digests.values())
    with tqdm(total=len(images) * left, unit="image") as bar:
        for title, path in todo:
            point = known.get(digests[path])
            if point is None:
                bar.set_description(path.stem)
                network = load(path)
                found = evaluate(NetworkCodec(network), images, progress=lambda _: bar.update())
                point = {
                    "digest": digests[path],
                    "macs": network.macs(*PHOTO),
                    "bops": network.bops(*PHOTO),
                    "evaluation": found.to_json(),
                }
            report["points"].append(point | {"curve": title, "name": path.stem})
    return report


def curve(report: dict[str, Any], title: str) -> Curve:
    """One curve of the report."""
    points = [
        Evaluation.from_json(p["evaluation"]) for p in report["points"] if p["curve"] == title
    ]
    return Curve.of_json(to_json(points, title))


def page_of(report: dict[str, Any]) -> str:
    """The Markdown page."""
    optimized, plain = curve(report, OPTIMIZED), curve(report, PLAIN)
    overhead = bd_rate(optimized, plain).percent
    by_name = {point["name"]: point for point in report["points"]}
    text = [
        "# Fewer channels, fewer bits\n",
        f"`{OPTIMIZED}` against W8A8 networks of the same family that got as many steps of "
        f"training in FP32 and through their integers, on {report['images']} photographs of Kodak, "
        "from bytes really coded. MACs and bit-operations of a photograph of 768x512, both "
        "transforms, normalizations included. Made by `benchmarks/optimized.py`.\n",
        f"**BD-rate (PSNR): {overhead:+.2f} %**\n",
    ]
    if MS_SSIM in optimized.metrics and MS_SSIM in plain.metrics:
        text.append(f"BD-rate (MS-SSIM): {bd_rate(optimized, plain, MS_SSIM).percent:+.2f} %\n")
    text += ["| | MACs | | bit-operations | |", "|---|---|---|---|---|"]
    for name, point in by_name.items():
        if point["curve"] != OPTIMIZED:
            continue
        other = by_name[f"{name.replace(OPTIMIZED, FAMILY)}.w8a8"]
        cells = []
        for what in ("macs", "bops"):
            cells += [f"{point[what] / 1e9:.2f} G", f"{point[what] / other[what] - 1:+.1%}"]
        text.append(f"| {name} | {' | '.join(cells)} |")
    text += ["", "## Points\n", points_table([optimized, plain])]
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
