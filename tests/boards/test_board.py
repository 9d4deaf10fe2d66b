# amaranth: UnusedElaboratable=no
"""Boards and their clocks."""

from __future__ import annotations

import bisect
import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Elaboratable, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.board import BOARDS, ULX3S_85F, find
from lichen.boards.ecp5.pll import PLL, drive_clock, retune
from lichen.errors import UserError
from lichen.hw.device.device import Resources

from . import fakes

BUILDS = Path(__file__).parents[2] / "benchmarks" / "builds"


def test_find_lists_what_there_is():
    assert find("ULX3S-85F") is ULX3S_85F
    with pytest.raises(UserError) as caught:
        find("icestick")
    assert str(caught.value) == f"there is no board 'icestick'; known boards: {', '.join(BOARDS)}."


def test_the_budget_is_the_device():
    assert ULX3S_85F.budget == Resources(dsp=156, bram=208, lut=83640)
    assert ULX3S_85F.budget.overruns(Resources(dsp=156, bram=208, lut=83640)) == []
    assert ULX3S_85F.budget.overruns(Resources(dsp=160, bram=209)) == [
        "4 multipliers too many (160 of 156)",
        "1 block RAMs too many (209 of 208)",
    ]


# Again from Lattice's data sheet (FPGA-DS-02012, table 1.1): multipliers, block RAMs, thousands of
# lookup tables.
SIZES = {"12F": (28, 32, 12), "25F": (28, 56, 24), "45F": (72, 108, 44), "85F": (156, 208, 84)}


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_every_budget_is_its_devices(board):
    dsp, bram, thousands = SIZES[board.device[-3:]]
    assert (board.budget.dsp, board.budget.bram) == (dsp, bram)
    assert round(board.budget.lut / 1000) == thousands
    assert board.pipeline_budget.lut < board.lut_share * board.budget.lut
    assert board.makers.TITLE == "ECP5"


class Blink(wiring.Component):
    """A link that does next to nothing."""

    def __init__(self) -> None:
        ports = {"rx": In(1), "tx": Out(1), "hold": In(1), "lamps": Out(3)}
        super().__init__(wiring.Signature(ports))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.lamps.eq(Mux(self.hold, 0, self.lamps + self.rx))
        m.d.comb += self.tx.eq(self.rx)
        return m


@pytest.mark.parametrize(
    ("name", "pins"),
    [
        ("ulx3s-12f", {"G2", "M1", "L4", "B2", "C2", "C1", "L2"}),
        ("orangecrab-25f", {"A9", "N17", "M18", "M3", "K4", "J3"}),
        ("ecpix5-85f", {"K23", "R26", "R24", "R21", "W21", "K24"}),
    ],
)
def test_the_link_is_on_the_boards_pins(name, pins):
    """Clock, line, lamps, and what else the board wants."""
    board = find(name)
    platform, top = board.platform(Blink(), board.pll())
    files = platform.prepare(top, "top", emit_src=False).files
    text = {
        key: value if isinstance(value, str) else value.decode() for key, value in files.items()
    }
    assert set(re.findall(r'^LOCATE COMP "\S+" SITE "(\w+)";', text["top.lpf"], re.M)) == pins
    assert (
        f'FREQUENCY PORT "{platform.default_clk}_0__io" {board.oscillator_hz}.0 HZ'
        in (text["top.lpf"])
    )
    assert "EHXPLLL #(" in text["top.v"]
    assert {call[0] for call in json.loads(text["build_top.json"])["commands"]} == {
        *("yosys", "nextpnr-ecp5", "ecppack")
    }


# Written down again from Lattice's data sheet (FPGA-DS-02012, "sysCLOCK PLL Timing"), in MHz, apart
# from the code's own.
REFERENCE, PHASE_DETECTOR, OSCILLATOR, OUTPUT = (8, 400), (10, 400), (400, 800), (3.125, 400)


def within(mhz: Fraction, limits: tuple[float, float]) -> bool:
    return Fraction(limits[0]) <= mhz <= Fraction(limits[1])


def reachable(reference: Fraction) -> list[Fraction]:
    """Every clock in MHz that a PLL within the data sheet makes, fed back by a second output."""
    clocks = set()
    for divider in range(1, 129):
        detector = reference / divider
        if not within(detector, PHASE_DETECTOR) or not within(detector, OUTPUT):
            continue
        for multiple in range(1, 129):
            if within(detector * multiple, OSCILLATOR):
                clocks |= {detector * multiple / output for output in range(1, 129)}
    return sorted(clock for clock in clocks if within(clock, OUTPUT))


def cell(pll: PLL) -> dict[str, int | str]:
    """What the vendor's cell is told, read from the Verilog."""

    class Clocked(Elaboratable):
        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.domains.sync = domain = ClockDomain(reset_less=True)
            hold = drive_clock(m, pll=pll, clock_in=clock, domain=domain)
            m.d.comb += locking.eq(hold)
            return m

    clock, locking = Signal(name="clock"), Signal(name="locking")
    text = verilog.convert(Clocked(), ports=[clock, locking], emit_src=False)
    (instance,) = re.findall(r"EHXPLLL #\((.*?)\) pll", text, re.DOTALL)
    found = re.findall(r"\.(\w+)\((?:32'd(\d+)|\"(\w+)\")\)", instance)
    return {name: int(number) if number else string for name, number, string in found}


def check_limits(pll: PLL, reference: Fraction) -> Fraction:
    """The clock in MHz that the cell makes, all limits asserted."""
    told = pll.parameters()
    detector = reference / told["CLKI_DIV"]
    oscillator = detector * told["CLKOS_DIV"]
    clock = oscillator / told["CLKOP_DIV"]
    for name, value in told.items():
        assert name.endswith("DIV") <= value <= 127 + name.endswith("DIV")
    assert within(reference, REFERENCE)
    assert within(detector, PHASE_DETECTOR)
    assert within(oscillator, OSCILLATOR)
    assert within(detector, OUTPUT) and within(clock, OUTPUT)
    assert pll.output_hz == pytest.approx(float(clock * 10**6))
    return clock


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_every_clock_keeps_to_the_data_sheet(board):
    """From the slowest clock to the fastest: within all limits, and the fastest one below."""
    reference = Fraction(board.oscillator_hz, 10**6)
    clocks = reachable(reference)
    steps = [Fraction(k, 8) for k in range(25, 401)]  # 3.125 .. 50
    steps += [Fraction(k, 4) for k in range(200, 801)] + [Fraction(k) for k in range(200, 401)]
    for wanted in steps:
        best = clocks[bisect.bisect_right(clocks, wanted) - 1]
        for pll in (board.pll(float(wanted)), board.pll_below(float(wanted))):
            assert check_limits(pll, reference) == best
        assert best > 0.95 * wanted


def test_the_cell_is_told_the_dividers():
    pll = ULX3S_85F.pll_below(93)
    told = cell(pll)
    assert told.items() >= pll.parameters().items()
    assert (told["FEEDBK_PATH"], told["CLKFB_DIV"]) == ("CLKOS", 1)
    assert told["CLKOS_ENABLE"] == told["CLKOP_ENABLE"] == "ENABLED"


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_a_clock_that_was_told_comes_back(board):
    """Reports round to 1 Hz; what they say can be asked for again."""
    for mhz in np.random.default_rng(0).uniform(10, 200, 50):
        pll = board.pll_below(mhz)
        assert board.pll(pll.output_mhz) == pll


def test_the_clocks_of_the_builds_on_record_are_within_reach():
    for path in BUILDS.glob("*.json"):
        report = json.loads(path.read_text())
        board = find(report["board"])
        pll = board.pll_below(report["fmax_mhz"])
        check_limits(pll, Fraction(board.oscillator_hz, 10**6))
        assert pll.output_mhz == report["clock_mhz"]


@pytest.mark.parametrize("hz", [7_999_999, 400_000_001])
def test_a_reference_outside_of_the_data_sheet(hz):
    with pytest.raises(ValueError, match="the PLL's reference must be between 8 and 400 MHz"):
        PLL.below(input_hz=hz, limit_hz=50e6)


@pytest.mark.parametrize("mhz", [0, -5, 3, 401, 1e6])
def test_impossible_clocks(mhz):
    with pytest.raises(UserError, match=r"no such clock on the ULX3S 85F: .* not "):
        ULX3S_85F.pll(mhz)


@pytest.mark.parametrize(
    ("limit", "mhz"),
    [(50, 50), (93.74, 92.857143), (93.75, 93.75), (110.4, 110), (99.99, 98.4375), (999, 400)],
)
def test_the_fastest_clock_below_a_limit(limit, mhz):
    assert ULX3S_85F.pll_below(limit).output_mhz == mhz


def test_a_limit_below_every_clock():
    with pytest.raises(UserError, match="no PLL setting stays below 3 MHz"):
        ULX3S_85F.pll_below(3)


def test_the_clock_of_a_routed_design_changes_in_its_pll_alone():
    before, after = ULX3S_85F.pll(), ULX3S_85F.pll(110)
    changed = retune(fakes.CONFIG, before, after)
    old, new = fakes.CONFIG.splitlines(), changed.splitlines()
    assert len(old) == len(new)
    assert [(a, b) for a, b in zip(old, new, strict=True) if a != b] == [
        ("word: CLKOP_DIV 0001011", "word: CLKOP_DIV 0000100"),
        ("word: CLKOP_CPHASE 0000110", "word: CLKOP_CPHASE 0000010"),
        ("word: CLKOS_DIV 0010111", "word: CLKOS_DIV 0010101"),
        ("word: CLKOS_CPHASE 0001100", "word: CLKOS_CPHASE 0001011"),
    ]
    assert retune(changed, after, before) == fakes.CONFIG
    with pytest.raises(ValueError, match="does not hold"):
        retune(changed, before, after)
    with pytest.raises(ValueError, match="holds 0 PLLs"):
        retune(fakes.CONFIG.replace("EHXPLLL", "NONE"), before, after)
