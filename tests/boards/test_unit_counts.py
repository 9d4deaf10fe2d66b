# amaranth: UnusedElaboratable=no
"""What each unit of a design takes, by the names of a netlist's cells."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest
from amaranth.back import rtlil

from lichen.boards.ecp5.units import count, unit_of
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.stage.pipeline import Pipeline

from . import simulation


@pytest.mark.parametrize(
    ("cell", "unit"),
    [
        ("link.g_a.pipeline.conv2_norm.core.array.x", "g_a.conv2_norm"),
        ("link.g_s.pipeline.conv1.skid", "g_s.conv1"),
        ("link.g_a.pipeline.starting", "link"),
        ("link.g_a.packer.o__valid", "link"),
        ("link.link.received.x", "link"),
        ("led1_pin", "link"),
    ],
)
def test_units_of_cells(cell, unit):
    assert unit_of(cell) == unit


def test_the_names_are_those_of_a_board():
    """Cells of every unit of every transform, wherever in a unit they are, are counted as its."""
    top = simulation.make_top()
    modules = re.findall(r"^module \\top\.(\S+)", rtlil.convert(top, name="top"), re.MULTILINE)
    # A board's platform holds the top as ``link``.
    found = {unit_of(f"link.{module}.cell") for module in modules}
    wanted = {
        f"{name}.{unit}"
        for name, transform, folding in simulation.TRANSFORMS
        for unit in Pipeline(transform, folding).stage_resources(ECP5)
    }
    assert found >= wanted > set()


def test_counts():
    cells = {
        "link.g_a.pipeline.conv1.mul.cell": "MULT18X18D",
        "link.line.x_LUT4_Z": "LUT4",
        "link.g_a.pipeline.conv1.core.rom.piece": "DP16KD",
        "link.g_a.pipeline.conv1.core.x_CCU2C_S0": "CCU2C",
        "link.g_a.pipeline.conv1.core.x_PFUMX_Z": "PFUMX",
        "link.g_a.pipeline.conv1.core.drain.piece": "TRELLIS_DPR16X4",
        "link.g_a.pipeline.conv1.core.x_TRELLIS_FF_Q": "TRELLIS_FF",
        "link.g_a": "$scopeinfo",
    }
    found = count({"cells": {name: {"type": kind} for name, kind in cells.items()}})
    assert {unit: asdict(used) for unit, used in found.items()} == {
        "g_a.conv1": {"dsp": 1, "bram": 1, "lut": 2 + 6, "ff": 1},
        "link": {"dsp": 0, "bram": 0, "lut": 1, "ff": 0},
    }
    assert list(found) == ["g_a.conv1", "link"]
