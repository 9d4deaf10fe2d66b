"""A floorplan as a drawing: the device, its macros by unit, the logic between, the worst path."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lichen import caches
from lichen.boards.ecp5.floorplan.fabric import Places, fabric
from lichen.boards.ecp5.floorplan.plan import Floorplan
from lichen.boards.ecp5.units import unit_of
from lichen.files import write_atomically
from lichen.hw.plan.occupancy import KINDS, check_kind


def critical_path(report: dict[str, Any], clock: str) -> list[tuple[int, int]]:
    """The tiles that the worst path of a clock goes through, from nextpnr's report."""
    for path in report.get("critical_paths", ()):
        names = [path[end].split(" ")[-1].removeprefix("$glbnet$") for end in ("from", "to")]
        if names == [clock, clock]:
            steps = [step for step in path["path"] if step["type"] == "routing"]
            ends = [step[end]["loc"] for step in steps for end in ("from", "to")]
            return [(int(x), int(y)) for x, y in ends]
    return []


def draw(
    plan: Floorplan,
    device: str,
    title: str,
    path: Path,
    worst: Sequence[tuple[int, int]] = (),
) -> None:
    """Draw a floorplan into an .svg, .png or .pdf file.

    Macros stand where they were put, logic where the floorplan had it settle; ``worst`` is the
    worst path after routing, by tile. Raises UserError when the file cannot be written.
    """
    check_kind(path)
    caches.prepare()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    where = fabric(device)
    units = sorted({unit_of(name) for name in plan.names})
    colours = {unit: f"C{number}" for number, unit in enumerate(units)}
    with matplotlib.rc_context({"svg.hashsalt": "lichen", "font.size": 8}):
        figure, ax = plt.subplots(figsize=(9, 9 * where.height / where.width))
        owner = np.array([unit_of(name) for name in plan.names])
        macro = np.array([name in plan.places for name in plan.names])
        for unit in units:
            some = (owner == unit) & ~macro
            ax.scatter(
                *(plan.x[some], plan.y[some]),
                s=0.6, color=colours[unit], alpha=0.35, linewidths=0, rasterized=True,
            )  # fmt: skip
        taken = {place: unit_of(cell) for cell, place in plan.places.items()}
        for places, width in ((where.memories, 2.0), (where.multipliers, 1.0)):
            for left, top, name in _corners(places):
                colour = colours[taken[name]] if name in taken else "none"
                ax.add_patch(
                    Rectangle((left, top), width, 1, facecolor=colour, edgecolor="0.4", lw=0.3)
                )
        if worst:
            ax.plot(*(np.array(worst).T + 0.5), color="black", lw=0.8, marker=".", ms=3)
        for unit in units:
            ax.scatter([], [], color=colours[unit], label=unit, s=12)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        ax.set(xlim=(0, where.width), ylim=(where.height, 0), aspect="equal", title=title)
        ax.set_xlabel("column of tiles")
        ax.set_ylabel("row")
        figure.tight_layout()
        buffer = io.BytesIO()
        kind = path.suffix.lower()
        figure.savefig(buffer, format=kind[1:], dpi=200, metadata=KINDS[kind])
        plt.close(figure)
    write_atomically(path, buffer.getvalue())


def _corners(places: Places) -> Iterable[tuple[int, int, str]]:
    return zip(places.x.tolist(), places.y.tolist(), places.names, strict=True)
