"""The step between synthesis and placement: places for macros, and what each unit takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lichen import caches
from lichen.boards.build.report import OutputError, Used
from lichen.boards.build.tools import Progress, ToolFailedError

if TYPE_CHECKING:
    from lichen.boards.board import Board
    from lichen.boards.ecp5.floorplan.plan import Floorplan

NETLIST, CONSTRAINTS = "top.json", "top.lpf"
"""What synthesis left in a build's folder."""


def count_units(folder: Path) -> dict[str, Used]:
    """See `lichen.boards.build.toolchain.Toolchain.count_units`."""
    # Compiled loops: imported only where something is built.
    caches.prepare()
    from lichen.boards.ecp5 import units
    from lichen.boards.ecp5.floorplan.netlist import NetlistError, read

    try:
        return units.count(read(folder / NETLIST)["modules"]["top"])
    except NetlistError as error:
        raise OutputError(str(error)) from None


def give_places(
    folder: Path, board: Board, aim_hz: float, seed: int, progress: Progress
) -> Floorplan | None:
    """Write places into the netlist in ``folder``; None where it has nothing to place.

    Raises ToolFailedError when there are no places to give, OutputError when the netlist is not
    what yosys used to write.
    """
    # Compiled loops: imported only where something is built.
    caches.prepare()
    from lichen.boards.ecp5.floorplan.netlist import NetlistError
    from lichen.boards.ecp5.floorplan.plan import FloorplanError, apply

    try:
        return apply(
            folder / NETLIST,
            folder / CONSTRAINTS,
            device=board.device,
            package=board.package,
            aim_hz=aim_hz,
            seed=seed,
            tick=progress.tick,
        )
    except FloorplanError as error:
        raise ToolFailedError(f"no floorplan: {error}; --no-floorplan builds without.") from None
    except NetlistError as error:
        raise OutputError(str(error)) from None


def keep_places(plan: Floorplan, board: Board) -> dict[str, Any]:
    """See `lichen.boards.build.toolchain.Toolchain.keep_places`."""
    from lichen.boards.ecp5.floorplan import earlier

    return earlier.record(plan, board.device)


def take_places(folder: Path, board: Board, kept: dict[str, Any]) -> Floorplan:
    """See `lichen.boards.build.toolchain.Toolchain.take_places`."""
    caches.prepare()
    from lichen.boards.ecp5.floorplan import earlier
    from lichen.boards.ecp5.floorplan.netlist import NetlistError

    try:
        return earlier.apply(folder / NETLIST, board.device, kept)
    except NetlistError as error:
        raise OutputError(str(error)) from None


def draw_places(plan: Floorplan, board: Board, report: Path, clock: str, path: Path) -> None:
    """Draw a floorplan, with the worst path of ``clock`` in nextpnr's ``report``."""
    from lichen.boards.ecp5.floorplan.picture import critical_path, draw

    worst = critical_path(json.loads(report.read_bytes()), clock)
    draw(plan, board.device, f"{board.title}: {plan.wire_length} tiles of wire", path, worst)
