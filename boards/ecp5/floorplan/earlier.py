"""Places of an earlier build, for a netlist that has the same multipliers and block RAMs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lichen.boards.build.earlier import PlacesDifferError
from lichen.boards.ecp5.floorplan import netlist as netlists
from lichen.boards.ecp5.floorplan.fabric import fabric
from lichen.boards.ecp5.floorplan.plan import Floorplan

MACROS = (*netlists.MULTIPLIERS, *netlists.MEMORIES)

TOLD = {"seed", "wire_length", "longest_ns", "tries"}
"""What is kept of how places were found, by the names of `Floorplan`'s fields."""

PIN = re.compile(r"(?<=_MULT18X18D)_[A-Z]+\d+$")
"""Yosys names a cell after the first wire at one of its pins; which one that is depends on the
logic around it."""


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Names that stay, by those of the netlist; where two meet, both stay as they are."""
    short = {name: PIN.sub("", name) for name in names}
    count = Counter(short.values())
    return {name: key if count[key] == 1 else name for name, key in short.items()}


def record(plan: Floorplan, device: str) -> dict[str, Any]:
    """What is kept of a floorplan."""
    keys = _keys(plan.places)
    places = {keys[name]: place for name, place in sorted(plan.places.items())}
    return {"device": device, "floorplan": plan.describe(), "places": places}


def apply(netlist: Path, device: str, kept: dict[str, Any]) -> Floorplan:
    """Write places that were kept into the netlist of a build.

    Parameters
    ----------
    netlist : Path
        Of yosys' ``write_json``; replaced.
    device : str
    kept : dict
        What `record` made.

    Returns
    -------
    Floorplan
        In which nothing but multipliers and block RAMs stands anywhere.

    Raises
    ------
    PlacesDifferError
        When they are of another device, or the netlist has other multipliers or block RAMs.
    NetlistError
        When the netlist is not what yosys used to write.
    """
    if kept.get("device") != device:
        raise PlacesDifferError(f"it is for {kept.get('device')}, not {device}")
    design = netlists.read(netlist)
    cells = design["modules"]["top"]["cells"]
    keys = _keys(name for name, cell in cells.items() if cell["type"] in MACROS)
    places = kept.get("places")
    if not isinstance(places, dict) or set(places) != set(keys.values()):
        raise PlacesDifferError("it has other multipliers or block RAMs")
    found = {name: str(places[key]) for name, key in keys.items()}
    told = kept.get("floorplan")
    if not isinstance(told, dict) or not told.keys() >= TOLD:
        raise PlacesDifferError("it does not tell how its places were found")
    at = _corners(device)
    if len(set(found.values())) < len(found) or not at.keys() >= set(found.values()):
        raise PlacesDifferError("its places are none of the device")
    for name, place in found.items():
        cells[name]["attributes"]["BEL"] = place
    netlist.write_text(json.dumps(design), encoding="utf-8")
    corners = np.array([at[place] for place in found.values()], dtype=float).reshape(-1, 2)
    return Floorplan(
        **{name: told[name] for name in TOLD},
        places=found,
        x=corners[:, 0],
        y=corners[:, 1],
        names=list(found),
    )


def _corners(device: str) -> dict[str, tuple[float, float]]:
    """Column and row of every place for a multiplier or block RAM, by its name."""
    where = fabric(device)
    return {
        name: (x, y)
        for places in (where.multipliers, where.memories)
        for name, x, y in zip(places.names, places.x.tolist(), places.y.tolist(), strict=True)
    }
