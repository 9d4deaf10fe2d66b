"""What each unit of a design takes, counted in the netlist that synthesis wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lichen.boards.build.report import REST, Used
from lichen.boards.ecp5.floorplan.netlist import FLIP_FLOPS, LOGIC_AREA, MEMORIES, MULTIPLIERS

PIPELINE = "pipeline"
"""Under this name a transform's port holds its units: ``link.g_a.pipeline.conv1.core...``"""


def unit_of(cell: str) -> str:
    """The unit that a cell belongs to by its name: ``link.g_a.pipeline.conv2.core`` is g_a.conv2.

    Yosys names every cell after the module it came from, tables after a net that they touch.
    """
    parts = cell.split(".")
    if len(parts) < 5 or parts[2] != PIPELINE:
        return REST
    return f"{parts[1]}.{parts[3]}"


def count(module: Mapping[str, Any]) -> dict[str, Used]:
    """What each unit takes, in the order of the netlist, `REST` last; as nextpnr counts tables."""
    found: dict[str, dict[str, int]] = {}
    for name, cell in module["cells"].items():
        own = found.setdefault(unit_of(name), dict.fromkeys(("dsp", "bram", "lut", "ff"), 0))
        kind = cell["type"]
        own["dsp"] += kind in MULTIPLIERS
        own["bram"] += kind in MEMORIES
        own["ff"] += kind in FLIP_FLOPS
        own["lut"] += LOGIC_AREA.get(kind, 0)
    order = sorted(found, key=lambda unit: unit == REST)
    return {unit: Used(**found[unit]) for unit in order}
