# amaranth: UnusedElaboratable=no
"""Boards and their clocks."""

from __future__ import annotations

import pytest

from lichen.boards.board import BOARDS, ULX3S_85F, Budget, find
from lichen.boards.pll import PFD_HZ, VCO_HZ
from lichen.errors import UserError
from lichen.hw.unit import Resources


def test_find_lists_what_there_is():
    assert find("ULX3S-85F") is ULX3S_85F
    with pytest.raises(UserError) as caught:
        find("icestick")
    assert str(caught.value) == f"there is no board 'icestick'; known boards: {', '.join(BOARDS)}."


def test_the_budget_is_the_device():
    assert ULX3S_85F.budget == Budget(dsp=156, bram=208, lut=83640)
    assert ULX3S_85F.budget.overruns(Resources(dsp=156, bram=208, lut=83640)) == []
    assert ULX3S_85F.budget.overruns(Resources(dsp=160, bram=209)) == [
        "4 multipliers too many (160 of 156)",
        "1 block RAMs too many (209 of 208)",
    ]


@pytest.mark.parametrize(
    ("mhz", "dividers"),
    # As Project Trellis' ecppll chooses them.
    [(50, (1, 2, 12)), (100, (1, 4, 6)), (110, (5, 22, 5)), (66.5, (3, 8, 9)), (25, (1, 1, 24))],
)
def test_pll_dividers(mhz, dividers):
    pll = ULX3S_85F.pll(mhz)
    assert (pll.input_div, pll.feedback_div, pll.output_div) == dividers


@pytest.mark.parametrize("mhz", [3.2, 12.288, 48, 74.25, 98.304, 133, 250, 400])
def test_pll_stays_in_its_limits(mhz):
    pll = ULX3S_85F.pll(mhz)
    assert abs(pll.output_mhz / mhz - 1) < 0.05
    assert VCO_HZ[0] <= pll.vco_hz <= VCO_HZ[1]
    assert pll.input_hz / pll.input_div >= PFD_HZ[0]


@pytest.mark.parametrize("mhz", [0, -5, 3, 401, 1e6])
def test_impossible_clocks(mhz):
    with pytest.raises(UserError, match=r"no such clock on the ULX3S 85F: .* not "):
        ULX3S_85F.pll(mhz)
