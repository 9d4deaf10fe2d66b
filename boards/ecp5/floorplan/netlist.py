"""A netlist as yosys wrote it, in arrays: cells, the nets between them, and paths of a clock."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.files import reason

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MULTIPLIERS = ("MULT18X18D",)
MEMORIES = ("DP16KD", "PDPW16KD")
FLIP_FLOPS = ("TRELLIS_FF",)
PADS = ("TRELLIS_IO",)

LOGIC_AREA = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6}
"""Eighths of a tile's lookup tables. A memory of 16 words takes four tables and the write port of
a slice, whose two tables are lost; a multiplexer behind tables costs nothing of its own."""

CLOCK_PORTS = frozenset(
    {"CLK", "WCK", "CLKA", "CLKB", "CLKW", "CLKR", "CLK0", "CLK1", "CLK2", "CLK3", "CLKI", "CLKFB"}
)

# Delays in nanoseconds, speed grade 6, from nextpnr's timing reports. Through a cell that holds
# nothing, from any input:
THROUGH_NS = {
    "LUT4": 0.24,
    "PFUMX": 0.2,
    "L6MUX21": 0.2,
    "CCU2C": 0.45,
    "TRELLIS_DPR16X4": 0.24,
}
CARRY_NS = 0.07
"""From carry to carry."""

LAUNCH_NS = {"TRELLIS_FF": 0.52, "DP16KD": 1.0, "PDPW16KD": 1.0, "MULT18X18D": 1.0, "": 0.5}
"""From the clock to the outputs of a cell that holds something; the last is of all others."""

DEDICATED = {
    "CCU2C": frozenset({"CIN"}),
    "PFUMX": frozenset({"ALUT", "BLUT"}),
    "L6MUX21": frozenset({"D0", "D1"}),
}
"""Inputs that the neighbour in the same slice or chain drives without a routed wire."""


@dataclass(frozen=True, kw_only=True)
class Paths:
    """The netlist as a timing graph; an edge goes from a driver to one cell that it drives.

    Edges into cells that hold nothing come first, in an order in which every edge follows all
    those that lead to its source.

    Attributes
    ----------
    source, sink : int array (edges,)
        Cells.
    routed : bool array (edges,)
        Whether the wire is routed, so that its length counts.
    through_ns : float array (edges,)
        From this input to the sink's output; 0 where the path ends.
    ends : bool array (edges,)
        Whether the path ends in the sink.
    launch_ns : float array (cells,)
        From the clock to the output, 0 for cells that hold nothing.
    """

    source: Ints
    sink: Ints
    routed: npt.NDArray[np.bool_]
    through_ns: Floats
    ends: npt.NDArray[np.bool_]
    launch_ns: Floats


@dataclass(frozen=True, kw_only=True)
class Netlist:
    """Cells and nets of a flat top level.

    Attributes
    ----------
    names, types : list of str
        Of the cells; `index` is the order.
    pointer : int array (nets + 1,), members : int array
        Net ``n`` connects the cells ``members[pointer[n]:pointer[n + 1]]``, each named once. Nets
        of a clock are left out, they have wires of their own, and those of one cell.
    pads : dict
        By cell, the top level's port, as the constraints call it: ``led`` or ``led[1]``.
    paths : Paths
    """

    names: list[str]
    types: list[str]
    pointer: Ints
    members: Ints
    pads: dict[int, str]
    paths: Paths

    def of(self, types: Iterable[str]) -> Ints:
        """The cells of these types."""
        wanted = set(types)
        return np.array([i for i, kind in enumerate(self.types) if kind in wanted], np.int64)


class NetlistError(Exception):
    """A file that yosys did not write; the message says which, and what it lacks."""


def read(path: Path, top: str = "top") -> dict[str, Any]:
    """What yosys' ``write_json`` wrote, as it stands.

    Raises NetlistError when it holds no module ``top``.
    """
    try:
        design: dict[str, Any] = json.loads(path.read_bytes())
        module = design["modules"][top]
        for cell in module["cells"].values():
            if not {"type", "attributes", "port_directions", "connections"} <= cell.keys():
                raise KeyError("port_directions")
        module["ports"].values()
    except OSError as error:
        raise NetlistError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NetlistError(f"{path} is no netlist of yosys ({error})") from None
    return design


def parse(module: Mapping[str, Any]) -> Netlist:
    """The arrays of one flat module."""
    cells = {name: cell for name, cell in module["cells"].items() if cell["type"] != "$scopeinfo"}
    names = list(cells)
    types = [cell["type"] for cell in cells.values()]
    drivers: dict[int, int] = {}
    loads: dict[int, list[tuple[int, str]]] = {}
    clocks = set()
    for i, cell in enumerate(cells.values()):
        directions = cell["port_directions"]
        for port, bits in cell["connections"].items():
            driven = directions.get(port) == "output"
            for bit in bits:
                if not isinstance(bit, int):
                    continue  # a constant
                if driven:
                    drivers[bit] = i
                else:
                    loads.setdefault(bit, []).append((i, port))
                    if port in CLOCK_PORTS:
                        clocks.add(bit)
    nets = []
    for bit in drivers.keys() | loads.keys():
        ends = {i for i, _ in loads.get(bit, ())}
        if bit in drivers:
            ends.add(drivers[bit])
        if len(ends) > 1 and bit not in clocks:
            nets.append((bit, sorted(ends)))
    nets.sort()
    pointer = np.zeros(len(nets) + 1, np.int64)
    np.cumsum([len(ends) for _, ends in nets], out=pointer[1:])
    return Netlist(
        names=names,
        types=types,
        pointer=pointer,
        members=np.array([i for _, ends in nets for i in ends], np.int64),
        pads=_pads(module, cells),
        paths=_paths(types, drivers, loads, clocks),
    )


def _pads(module: Mapping[str, Any], cells: Mapping[str, Any]) -> dict[int, str]:
    ports = {}
    for name, port in module["ports"].items():
        for i, bit in enumerate(port["bits"]):
            ports[bit] = name if len(port["bits"]) == 1 else f"{name}[{i}]"
    return {
        i: ports[bit]
        for i, cell in enumerate(cells.values())
        if cell["type"] in PADS
        for bit in cell["connections"].get("B", ())
        if bit in ports
    }


def _paths(
    types: list[str],
    drivers: Mapping[int, int],
    loads: Mapping[int, list[tuple[int, str]]],
    clocks: set[int],
) -> Paths:
    rows: list[tuple[int, int, bool, float, bool]] = []
    for bit, sinks in loads.items():
        driver = drivers.get(bit)
        if driver is None or bit in clocks:
            continue
        for cell, port in sinks:
            kind = types[cell]
            if kind in PADS:
                continue
            # A memory of 16 words is read through, and written at the clock.
            last = kind not in THROUGH_NS or (kind == "TRELLIS_DPR16X4" and port != "RAD")
            delay = 0.0 if last else CARRY_NS if port == "CIN" else THROUGH_NS[kind]
            rows.append((driver, cell, port not in DEDICATED.get(kind, ()), delay, last))
    source = np.array([row[0] for row in rows], np.int64)
    sink = np.array([row[1] for row in rows], np.int64)
    ends = np.array([row[4] for row in rows], np.bool_)
    level = np.where(ends, np.iinfo(np.int64).max, _levels(len(types), source, sink, ends)[sink])
    order = np.argsort(level, kind="stable")
    launch = [0.0 if kind in THROUGH_NS else LAUNCH_NS.get(kind, LAUNCH_NS[""]) for kind in types]
    return Paths(
        source=source[order],
        sink=sink[order],
        routed=np.array([row[2] for row in rows], np.bool_)[order],
        through_ns=np.array([row[3] for row in rows], np.float64)[order],
        ends=ends[order],
        launch_ns=np.array(launch, np.float64),
    )


def _levels(cells: int, source: Ints, sink: Ints, ends: npt.NDArray[np.bool_]) -> Ints:
    """How many cells that hold nothing lie before each, at most; loops stay where they are."""
    out: dict[int, list[int]] = {}
    waits = [0] * cells
    through = {int(i) for i in sink[~ends]}
    for u, v in zip(source[~ends].tolist(), sink[~ends].tolist(), strict=True):
        if u in through:
            out.setdefault(u, []).append(v)
            waits[v] += 1
    level = [0] * cells
    ready = [i for i in through if not waits[i]]
    while ready:
        u = ready.pop()
        for v in out.get(u, ()):
            level[v] = max(level[v], level[u] + 1)
            waits[v] -= 1
            if not waits[v]:
                ready.append(v)
    return np.array(level, np.int64)


LOCATION = re.compile(r'^\s*LOCATE\s+COMP\s+"([^"]+)"\s+SITE\s+"([^"]+)"\s*;', re.MULTILINE)


def locations(constraints: str) -> dict[str, str]:
    """The ball of every port that an .lpf file locates."""
    return dict(LOCATION.findall(constraints))
