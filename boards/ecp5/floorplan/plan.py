"""A floorplan: a place for every multiplier and block RAM of a netlist, ahead of nextpnr.

The step stands between yosys and nextpnr: it reads what the one wrote and gives the places to the
other, as the attribute ``BEL`` of the cells in the same file. nextpnr's own placer does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.boards.ecp5.floorplan import netlist as netlists
from lichen.boards.ecp5.floorplan.fabric import Fabric, fabric, pins
from lichen.boards.ecp5.floorplan.netlist import Netlist
from lichen.boards.ecp5.floorplan.place import Effort, Placement, lateness

TRIES = 3
"""Starts of which the best is kept."""

DETOUR = 0.88
"""Share of a period that paths may take by estimate, which takes every wire for a straight one."""

CONTROLS = ("CLK", "CE", "RST")
CONTROLS_OF_A_BLOCK = 4
"""Different nets of each of `CONTROLS` that the multipliers of one block may have together."""


class FloorplanError(Exception):
    """No places can be given; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Floorplan:
    """Places, and how good they look.

    Attributes
    ----------
    seed : int
        What was asked for.
    places : dict
        nextpnr's name of the place, by cell.
    wire_length : int
        Half perimeters of all nets, in tiles, with the logic where it settled.
    longest_ns : float
        The longest path, by estimated delays of speed grade 6.
    tries : list of int
        Wire length of every start.
    x, y : float array (cells,)
        Where everything stood, in tiles.
    names : list of str
        Of the cells.
    """

    seed: int
    places: dict[str, str]
    wire_length: int
    longest_ns: float
    tries: list[int]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    names: list[str]

    def describe(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "seed": self.seed,
            "macros": len(self.places),
            "wire_length": self.wire_length,
            "longest_ns": self.longest_ns,
            "tries": self.tries,
        }


def make(
    module: dict[str, Any],
    *,
    device: str,
    pads: dict[str, tuple[int, int]],
    aim_hz: float,
    seed: int = 1,
    tries: int | None = None,
    effort: Effort | None = None,
    tick: Callable[[str], None] = lambda note: None,
) -> Floorplan | None:
    """Places for the multipliers and block RAMs of a flat module.

    Parameters
    ----------
    module : dict
        As yosys' ``write_json`` writes it; not changed.
    device : str
        In the vendor's terms: ``LFE5U-85F``.
    pads : dict
        Column and row of the pads that are known, by the port's name.
    aim_hz : float
        The clock that place and route will aim at.
    seed : int
        The same one gives the same places on every machine.
    tries : int
        Starts, `TRIES` by default; the one whose paths are late the least is kept.
    effort : Effort
    tick : callable
        Called with a word on what is going on, now and then.

    Returns
    -------
    Floorplan or None
        None where there is nothing to place.

    Raises
    ------
    FloorplanError
        When the device has fewer places than the module needs, or a block of multipliers more
        control signals than it has wires.
    """
    netlist = netlists.parse(module)
    where = fabric(device)
    _check_room(netlist, where)
    known = {cell: pads[port] for cell, port in netlist.pads.items() if port in pads}
    period_ns = DETOUR * 1e9 / aim_hz
    found: list[tuple[float, int, Placement]] = []
    tries = TRIES if tries is None else tries
    for attempt in range(tries):
        tick(f"start {attempt + 1} of {tries}")
        placement = Placement(
            netlist,
            where,
            pads=known,
            period_ns=period_ns,
            seed=seed * TRIES + attempt,
            effort=effort,
        )
        if not any(len(cells) for cells, _ in placement.macros):
            return None
        placement.run()
        found.append((lateness(placement), attempt, placement))
    best = min(found, key=lambda one: one[:2])[2]
    return Floorplan(
        seed=seed,
        places=_places(module, best),
        wire_length=round(best.wire_length()),
        longest_ns=round(float(best.path_lengths().max(initial=0.0)), 2),
        tries=[round(placement.wire_length()) for _, _, placement in found],
        x=best.x[: len(netlist.names)],
        y=best.y[: len(netlist.names)],
        names=netlist.names,
    )


def _check_room(netlist: Netlist, where: Fabric) -> None:
    for kind, types, places in (
        ("multipliers", netlists.MULTIPLIERS, where.multipliers),
        ("block RAMs", netlists.MEMORIES, where.memories),
    ):
        need = len(netlist.of(types))
        if need > len(places):
            raise FloorplanError(f"{need} {kind} have no room: {where.device} has {len(places)}")


def _places(module: dict[str, Any], placement: Placement) -> dict[str, str]:
    """The names of the places by cell, after a last look at what nextpnr would refuse."""
    names = placement.netlist.names
    found: dict[str, str] = {}
    controls: dict[tuple[int, int, str], set[Any]] = {}
    for index, (cells, places) in enumerate(placement.macros):
        for cell, place in zip(cells, placement.chosen[index], strict=True):
            name = names[cell]
            found[name] = places.names[place]
            if module["cells"][name]["type"] in netlists.MULTIPLIERS:
                for port, bits in module["cells"][name]["connections"].items():
                    kind = port.rstrip("0123456789")
                    if kind in CONTROLS and any(isinstance(bit, int) for bit in bits):
                        controls.setdefault((index, int(places.blocks[place]), kind), set()).update(
                            bits
                        )
    for (_, _, kind), nets in controls.items():
        if len(nets) > CONTROLS_OF_A_BLOCK:
            raise FloorplanError(
                f"multipliers of one block have {len(nets)} different {kind} signals, and it has "
                f"wires for {CONTROLS_OF_A_BLOCK}"
            )
    assert len(set(found.values())) == len(found)
    return found


def apply(
    netlist: Path,
    constraints: Path,
    *,
    device: str,
    package: str,
    **options: Any,
) -> Floorplan | None:
    """Write places into the netlist of a build, a file of yosys' ``write_json``.

    Parameters
    ----------
    netlist : Path
        Replaced, unless there is nothing to place.
    constraints : Path
        The .lpf file, which says where the pads are.
    package : str
        Whose balls the constraints name.
    device, options
        As `make` takes them.

    Returns
    -------
    Floorplan or None
        As `make` does, and raises.
    """
    design = netlists.read(netlist)
    balls = pins(device, package)
    pads = {
        port: balls[ball]
        for port, ball in netlists.locations(constraints.read_text(encoding="utf-8")).items()
        if ball in balls
    }
    module = design["modules"]["top"]
    plan = make(module, device=device, pads=pads, **options)
    if plan is not None:
        for cell, place in plan.places.items():
            module["cells"][cell]["attributes"]["BEL"] = place
        netlist.write_text(json.dumps(design), encoding="utf-8")
    return plan
