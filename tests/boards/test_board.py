# amaranth: UnusedElaboratable=no
"""Boards and their clocks."""

from __future__ import annotations

import pytest

from lichen.boards.board import BOARDS, ULX3S_85F, Budget, find
from lichen.boards.ecp5.pll import PFD_HZ, VCO_HZ, retune
from lichen.errors import UserError
from lichen.hw.device.unit import Resources

from . import fakes


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


@pytest.mark.parametrize(
    ("limit", "mhz"), [(50, 50), (93.74, 92.857143), (93.75, 93.75), (110.4, 110), (99.99, 96.875)]
)
def test_the_fastest_clock_below_a_limit(limit, mhz):
    pll = ULX3S_85F.pll_below(limit)
    assert pll.output_mhz == pytest.approx(mhz)
    assert VCO_HZ[0] <= pll.vco_hz <= VCO_HZ[1]
    assert pll.input_hz / pll.input_div >= PFD_HZ[0]


def test_a_limit_below_every_clock():
    with pytest.raises(UserError, match="no PLL setting stays below 3 MHz"):
        ULX3S_85F.pll_below(3)


def test_the_clock_of_a_routed_design_changes_in_its_pll_alone():
    before, after = ULX3S_85F.pll(), ULX3S_85F.pll(110)
    changed = retune(fakes.CONFIG, before, after)
    old, new = fakes.CONFIG.splitlines(), changed.splitlines()
    assert len(old) == len(new)
    assert [(a, b) for a, b in zip(old, new, strict=True) if a != b] == [
        ("word: CLKI_DIV 0000000", "word: CLKI_DIV 0000100"),
        ("word: CLKFB_DIV 0000001", "word: CLKFB_DIV 0010101"),
        ("word: CLKOP_DIV 0001011", "word: CLKOP_DIV 0000100"),
        ("word: CLKOP_CPHASE 0000110", "word: CLKOP_CPHASE 0000010"),
    ]
    assert retune(changed, after, before) == fakes.CONFIG
    with pytest.raises(ValueError, match="does not hold"):
        retune(changed, before, after)
    with pytest.raises(ValueError, match="holds 0 PLLs"):
        retune(fakes.CONFIG.replace("EHXPLLL", "NONE"), before, after)
