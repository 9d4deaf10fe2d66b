# amaranth: UnusedElaboratable=no
"""Names in netlists: what real synthesis makes of Amaranth's, and that none is an accident."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import signed

from lichen.boards.board import find
from lichen.boards.ecp5.toolchain import HIDE_NAMES, YOSYS
from lichen.boards.port.packer import Packer

from .simulation import make_top


def synthesize(folder: Path, hide: str) -> int:
    """What yosys ends with, for a component whose output is an array of values."""
    packer = Packer(channels=4, lanes=2, shape=signed(8))
    (folder / "top.il").write_text(rtlil.convert(packer, name="top", emit_src=False))
    (folder / "top.ys").write_text(f"read_rtlil top.il\n{hide}\nsynth_ecp5 -top top\n")
    return subprocess.run([YOSYS.find(), "-q", "top.ys"], cwd=folder, check=False).returncode


def test_parts_of_arrays_are_hidden_from_mapping(tmp_path: Path) -> None:
    assert synthesize(tmp_path, HIDE_NAMES) == 0


def test_hiding_them_is_still_needed(tmp_path: Path) -> None:
    """A Yosys that maps such names would make `HIDE_NAMES` shorter."""
    assert synthesize(tmp_path, "hierarchy -top top\nproc\nflatten") != 0


def test_every_signal_of_a_board_has_the_name_it_has_in_the_source() -> None:
    board = find("ulx3s-25f")
    platform, elaboratable = board.platform(make_top(board), board.pll())
    text = platform.prepare(elaboratable, "top", emit_src=False).files["top.il"]
    text = text if isinstance(text, str) else text.decode()
    assert re.findall(r"^ *wire .*\\\$(?:signal|signature)\S*$", text, re.M) == []


@pytest.mark.parametrize("name", ["ulx3s-25f", "ecpix5-45f"])
def test_no_name_over_usb_is_an_address_in_memory(name: str) -> None:
    """Equal designs are equal texts."""
    board = find(name).with_link("usb")
    platform, elaboratable = board.platform(make_top(board), board.pll())
    text = platform.prepare(elaboratable, "top", emit_src=False).files["top.il"]
    assert not re.search(rb"_\d{9,}\b", text if isinstance(text, bytes) else text.encode())
