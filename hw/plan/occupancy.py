"""Which array works when over a frame, as numbers and as a drawing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lichen import caches
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.hw.plan.planner import Plan
from lichen.hw.plan.tiling import tiles
from lichen.hw.stage import timing

KINDS = {".svg": {"Date": None}, ".png": {}, ".pdf": {"CreationDate": None}}
"""What can be drawn, with metadata that would make every file another one."""

SLICES = 400
"""Points in time of a frame."""


def check_kind(path: Path) -> None:
    """Raise UserError unless a plot can be drawn into such a file."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path} must end in one of {', '.join(KINDS)} to be drawn.")


def frame_occupancy(
    plan: Plan, slices: int = SLICES
) -> tuple[int, npt.NDArray[np.float64], list[int]]:
    """How busy every array is over a frame, all its tiles one after the other.

    Returns
    -------
    slice_cycles : int
        Cycles of a slice.
    busy : float array (units, slices)
        Shares from 0 to 1.
    starts : list of int
        The slices in which tiles start.
    """
    height, width = plan.frame
    pipeline = plan.pipeline
    slice_cycles = max(1, -(-plan.cycles_per_frame // slices))
    done: dict[int, npt.NDArray[np.float64]] = {}
    parts: list[npt.NDArray[np.float64]] = []
    starts: list[int] = []
    for tile in tiles(pipeline.transform, width, pipeline.folding.max_width):
        columns = tile.stop - tile.start
        if columns not in done:
            done[columns] = timing.occupancy(pipeline, height, columns, slice_cycles)
        starts.append(sum(part.shape[1] for part in parts))
        parts.append(done[columns])
    return slice_cycles, np.concatenate(parts, axis=1), starts


def draw(plan: Plan, clock_hz: float, title: str, path: Path) -> None:
    """Draw the occupancy over a frame, an array a row, into an .svg, .png or .pdf file.

    The same plan makes the same bytes with one version of matplotlib. Raises UserError when the
    file cannot be written.
    """
    check_kind(path)
    caches.prepare()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    slice_cycles, busy, starts = frame_occupancy(plan)
    rows = plan.stages()
    milliseconds = np.arange(busy.shape[1] + 1) * slice_cycles / clock_hz * 1e3
    with matplotlib.rc_context({"svg.hashsalt": "lichen", "font.size": 9}):
        figure, axes = plt.subplots(
            len(rows), 1, sharex=True, figsize=(8, 0.55 * len(rows) + 1.1), squeeze=False
        )
        for i, (row, share) in enumerate(zip(rows, busy, strict=True)):
            ax = axes[i, 0]
            ax.stairs(share, milliseconds, fill=True, color="#5b8c5a")
            ax.set_ylim(0, 1.05)
            ax.set_yticks([])
            ax.set_ylabel(row["name"], rotation=0, ha="right", va="center")
            ax.spines[["top", "right"]].set_visible(False)
            whole = share.sum() * slice_cycles / plan.cycles_per_frame
            ax.text(1.01, 0.5, f"{whole:.0%}", transform=ax.transAxes, va="center")
            for start in starts[1:]:
                ax.axvline(milliseconds[start], color="0.4", linewidth=0.8, linestyle=":")
        axes[-1, 0].set_xlim(0, milliseconds[-1])
        height, width = plan.frame
        axes[-1, 0].set_xlabel(f"ms of a {width}x{height} frame at {clock_hz / 1e6:g} MHz")
        figure.suptitle(title, fontsize=10)
        figure.tight_layout(h_pad=0.2)
        buffer = io.BytesIO()
        kind = path.suffix.lower()
        figure.savefig(buffer, format=kind[1:], dpi=150, metadata=KINDS[kind])
        plt.close(figure)
    write_atomically(path, buffer.getvalue())
