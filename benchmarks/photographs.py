"""Gateware of whole transforms on whole photographs, simulated and held against the golden model.

    python benchmarks/photographs.py tiny --transform g_s --multipliers 64 --images KODAK \\
        --json docs/notes/photographs.json

Every value of every stage is compared, and the cycles with those predicted, as `lichen simulate`
does. The report is written after each photograph and takes further networks and transforms in;
photographs that it has of the same network, transform and folding are not run again. The status is
1 if anything differs.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lichen import processes
from lichen.boards import board as boards
from lichen.boards.design import Design
from lichen.commands import _options
from lichen.files import write_atomically
from lichen.network.identity import static_digest
from lichen.sim.images import list_images, read_image
from lichen.sim.inputs import transform_input
from lichen.sim.transform import TransformSimulator


def read_report(file: Path | None) -> dict[str, Any]:
    """What is there already, or an empty report."""
    if file is not None and file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    return {"command": "", "digests": {}, "runs": []}


def note_command(report: dict[str, Any], images: Path) -> None:
    """Add this command to those that made the report; the folder goes by its name alone."""
    report["set"] = images.name
    words = [images.name if word == str(images) else word for word in sys.argv[1:]]
    command = " ".join(["python", "benchmarks/photographs.py", *words])
    known = report["command"].split(" && ") if report["command"] else []
    report["command"] = " && ".join(dict.fromkeys([*known, command]))


def what(design: Design) -> dict[str, Any]:
    """What is simulated, as it stands in the report."""
    return {
        "network": design.name,
        "transform": design.transform_name,
        "multipliers": sum(stage.multipliers for stage in design.folding.stages),
        "max_width": design.folding.max_width,
    }


def simulated(design: Design, built: TransformSimulator, image: Path) -> dict[str, Any]:
    """One photograph's row."""
    pixels = read_image(image)
    tensor = transform_input(design.network, design.transform_name, pixels)
    run = built.run(tensor)
    return {
        **what(design),
        "image": image.name,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "tiles": run.tiles,
        "compared": run.result.compared,
        "mismatches": run.mismatches,
        "cycles": run.cycles,
        "predicted_cycles": run.predicted_cycles,
        "faults": run.faults,
        "kcycles_per_second": round(run.result.kcycles_per_second, 1),
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A line for every network and transform, in the order in which they were first run."""
    lines = [
        "| network, transform | multipliers, tiles | photographs | values compared | different | "
        "cycles, landscape and portrait | as predicted |",
        "|---" * 7 + "|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        key = ("network", "transform", "multipliers", "max_width")
        groups[tuple(run[name] for name in key)].append(run)
    for (network, transform, multipliers, _), rows in groups.items():
        tiles = sorted({row["tiles"] for row in rows})
        shapes = {(row["width"], row["height"]): row["cycles"] for row in rows}
        cells = [
            f"`{network}` {transform}",
            f"{multipliers}, {' or '.join(map(str, tiles))}",
            len(rows),
            sum(row["compared"] for row in rows),
            sum(row["mismatches"] for row in rows),
            ", ".join(str(shapes[shape]) for shape in sorted(shapes, reverse=True)),
            f"{sum(row['cycles'] == row['predicted_cycles'] for row in rows)} of {len(rows)}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


@click.command()
@click.argument("networks", nargs=-1, required=True)
@click.option("--transform", "transform_name", default="g_s", show_default=True)
@click.option("--images", required=True, type=click.Path(path_type=Path), help="A folder of them.")
@click.option("--board", "board_name", default="ulx3s-85f", show_default=True)
@click.option("--max-width", type=int, help="As of `lichen simulate`.")
@click.option("--multipliers", type=int, help="As of `lichen simulate`.")
@click.option("--folding", "folding_file", type=click.Path(path_type=Path), help="Likewise.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="The report.")
def main(
    networks: Sequence[str],
    transform_name: str,
    images: Path,
    board_name: str,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    json_file: Path | None,
) -> None:
    """Simulate a transform of NETWORKS on every image of a folder."""
    report = read_report(json_file)
    note_command(report, images)
    for network in networks:
        design = _options.design(
            network, transform_name, boards.find(board_name), max_width, multipliers, folding_file
        )
        digest = static_digest(design.network)
        if report["digests"].get(design.name, digest) != digest:
            report["runs"] = [run for run in report["runs"] if run["network"] != design.name]
        report["digests"][design.name] = digest
        same = what(design).items()
        done = {run["image"] for run in report["runs"] if same <= run.items()}
        wanted = [image for image in list_images(images) if image.name not in done]
        if not wanted:
            continue
        built = TransformSimulator(design.transform, design.folding, progress=_options.note)
        for image in wanted:
            row = simulated(design, built, image)
            report["runs"].append(row)
            click.echo(
                f"{design.name} {transform_name} {image.name}: {row['mismatches']} of "
                f"{row['compared']} values differ, {row['cycles']} cycles "
                f"({row['predicted_cycles']} predicted), {row['kcycles_per_second']} kcycles/s"
            )
            if json_file is not None:
                write_atomically(json_file, (json.dumps(report, indent=1) + "\n").encode())
    click.echo(table(report["runs"]))
    sys.exit(any(run["faults"] or run["mismatches"] for run in report["runs"]))


if __name__ == "__main__":
    with processes.orderly_signals():  # a simulator must not outlive it
        main()
