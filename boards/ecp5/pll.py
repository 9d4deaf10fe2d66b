# amaranth: UnusedElaboratable=no
"""The ECP5's PLL: dividers for a wanted frequency, and the clock made with them.

The oscillator is locked to the reference through an output of its own, CLKOS, and the design's
clock is another, CLKOP. So the oscillator runs at any multiple of the phase detector's frequency,
and the clock at any fraction of the oscillator's: a fast phase detector, which the data sheet
demands, costs no resolution. From 25 MHz, 92.857 is 25 * 26 / 7.
"""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from amaranth.hdl import ClockDomain, Const, Instance, Module, Signal
from amaranth.lib.cdc import FFSynchronizer

# Limits in Hz, of every device and speed grade: Lattice, "ECP5 and ECP5-5G Family Data Sheet"
# (FPGA-DS-02012), section "sysCLOCK PLL Timing". Tools allow slower phase detectors (ecppll:
# 3.125 MHz); outside of the table nothing says that LOCK ever comes, and LOCK ends the reset.
INPUT_HZ = (8_000_000, 400_000_000)
"""f_IN: CLKI."""
PFD_HZ = (10_000_000, 400_000_000)
"""f_PFD: CLKI behind its divider, where it meets the feedback."""
VCO_HZ = (400_000_000, 800_000_000)
"""f_VCO: the oscillator."""
OUTPUT_HZ = (3_125_000, 400_000_000)
"""f_OUT: CLKOP and CLKOS."""
VCO_PREFERRED_HZ = 600_000_000

DIVIDERS = range(1, 129)
"""What any of the dividers can divide by."""


@dataclass(frozen=True, kw_only=True)
class PLL:
    """Dividers of an EHXPLLL whose feedback comes from its output CLKOS.

    Attributes
    ----------
    input_hz : int
        Reference frequency.
    input_div, feedback_div, output_div : int
        Of CLKI, CLKOS and CLKOP, each one of `DIVIDERS`. The oscillator runs at
        ``input_hz * feedback_div / input_div``, the output at an ``output_div``-th of that.
    """

    input_hz: int
    input_div: int
    feedback_div: int
    output_div: int

    @property
    def pfd_hz(self) -> float:
        """Frequency of the phase detector in Hz, which is that of CLKOS too."""
        return self.input_hz / self.input_div

    @property
    def vco_hz(self) -> float:
        """Frequency of the oscillator in Hz."""
        return self.input_hz * self.feedback_div / self.input_div

    @property
    def output_hz(self) -> float:
        """Output frequency in Hz."""
        return self.vco_hz / self.output_div

    @property
    def output_mhz(self) -> float:
        """Output frequency in MHz, rounded to 1 Hz."""
        return round(self.output_hz / 1e6, 6)

    def parameters(self) -> dict[str, int]:
        """Parameters of the cell that depend on the dividers."""
        return {
            "CLKI_DIV": self.input_div,
            "CLKOP_DIV": self.output_div,
            "CLKOP_CPHASE": self.output_div // 2,
            "CLKOS_DIV": self.feedback_div,
            "CLKOS_CPHASE": self.feedback_div // 2,
        }

    def _words(self) -> list[str]:
        """The lines of a configuration that depend on the dividers, which it holds less one."""
        return [
            f"word: {name} {value - name.endswith('DIV'):0{WORD_BITS}b}"
            for name, value in self.parameters().items()
        ]

    @staticmethod
    def choose(*, input_hz: int, output_hz: int) -> PLL:
        """The dividers of the fastest clock that is no faster than ``output_hz``.

        Raises ValueError where the wanted frequency lies outside of `OUTPUT_HZ`, or the reference
        outside of `INPUT_HZ`.
        """
        low, high = OUTPUT_HZ
        if not low <= output_hz <= high:
            raise ValueError(
                f"the clock must be between {low / 1e6:g} and {high / 1e6:g} MHz, "
                f"not {output_hz / 1e6:g}"
            )
        return PLL.below(input_hz=input_hz, limit_hz=output_hz)

    @staticmethod
    def below(*, input_hz: int, limit_hz: float) -> PLL:
        """The dividers of the fastest clock that is no faster than ``limit_hz``.

        Frequencies are told in whole Hz, so half of one more is none too many.

        Raises ValueError where there is none, or where the reference lies outside of `INPUT_HZ`.
        """
        low, high = INPUT_HZ
        if not low <= input_hz <= high:
            raise ValueError(
                f"the PLL's reference must be between {low / 1e6:g} and {high / 1e6:g} MHz, "
                f"not {input_hz / 1e6:g}"
            )
        settings = _settings(input_hz)
        slower = bisect.bisect_right(settings, limit_hz + 0.5, key=lambda pll: pll.output_hz)
        if not slower:
            raise ValueError(f"no PLL setting stays below {limit_hz / 1e6:g} MHz")
        return settings[slower - 1]


@cache
def _settings(input_hz: int) -> tuple[PLL, ...]:
    """What keeps to the limits: one setting for every clock, from the slowest to the fastest.

    Of those that make the same clock the one with the fastest phase detector, then with the
    oscillator nearest to the middle of its range.
    """
    made: dict[Fraction, PLL] = {}
    for input_div, feedback_div in itertools.product(DIVIDERS, DIVIDERS):
        if not _within(input_hz, input_div, PFD_HZ, OUTPUT_HZ):
            continue
        if not _within(input_hz * feedback_div, input_div, VCO_HZ):
            continue
        for output_div in DIVIDERS:
            if not _within(input_hz * feedback_div, input_div * output_div, OUTPUT_HZ):
                continue
            pll = PLL(
                input_hz=input_hz,
                input_div=input_div,
                feedback_div=feedback_div,
                output_div=output_div,
            )
            clock = Fraction(feedback_div, input_div * output_div)
            made[clock] = min(made.get(clock, pll), pll, key=_rank)
    return tuple(made[clock] for clock in sorted(made))


def _rank(pll: PLL) -> tuple[float, float]:
    return pll.input_div, abs(pll.vco_hz - VCO_PREFERRED_HZ)


def _within(hz: int, divider: int, *limits: tuple[int, int]) -> bool:
    """Whether ``hz / divider`` keeps to the limits, in integers."""
    return all(low * divider <= hz <= high * divider for low, high in limits)


WORD_BITS = 7
"""Bits of a divider in a configuration."""


def retune(config: str, before: PLL, after: PLL) -> str:
    """nextpnr's configuration with the PLL's dividers changed.

    They are configuration bits that no route depends on, so a design can be given the clock it
    turned out to be fast enough for without another place and route.

    Raises ValueError when the configuration does not hold exactly one PLL with the dividers of
    ``before``.
    """
    old, new = before._words(), after._words()
    found = 0
    sections = config.split("\n\n")
    for i, section in enumerate(sections):
        lines = section.splitlines()
        # That of USB has one output more, and keeps its clocks.
        if "enum: MODE EHXPLLL" not in lines or "enum: CLKOS2_ENABLE ENABLED" in lines:
            continue
        found += 1
        for line, changed in zip(old, new, strict=True):
            if lines.count(line) != 1:
                raise ValueError(f"the PLL's configuration does not hold {line!r}")
            lines[lines.index(line)] = changed
        sections[i] = "\n".join(lines)
    if found != 1:
        raise ValueError(f"the configuration holds {found} PLLs instead of one")
    return "\n\n".join(sections)


def drive_clock(m: Module, *, pll: PLL, clock_in: Signal, domain: ClockDomain) -> Signal:
    """Drive a clock domain of ``m`` with an EHXPLLL fed by ``clock_in``.

    The domain needs no reset of its own: a net that reaches every register in one cycle would
    limit the clock. Returned is a signal that is high until the PLL has locked, for those to use
    that hand a reset on register by register. The PLL stands in ``m`` itself: so the net keeps the
    name of the domain's clock through synthesis, which the timing constraint needs.
    """
    locked = Signal()
    m.submodules.pll = _cell(pll, clock_in=clock_in, clock=domain.clk, locked=locked)
    hold = Signal(init=1)
    m.submodules.locked = FFSynchronizer(~locked, hold, o_domain=domain.name, init=1)
    return hold


USB_HZ = 48_000_000
"""Four samples a bit at full speed."""

USB_TOLERANCE = 2500e-6
"""USB 2.0, 7.1.11: of a device's rate at full speed, its oscillator's error among it."""


def drive_usb_clocks(
    m: Module, *, clock_in: Signal, clock_in_hz: int, fast: ClockDomain, slow: ClockDomain
) -> Signal:
    """Drive USB's clocks at full speed: ``fast`` of `USB_HZ`, or nearly so, and a quarter of it.

    Returned is a signal that is high while they are there, of no clock domain.
    """
    pll = PLL.choose(input_hz=clock_in_hz, output_hz=USB_HZ)
    locked = Signal()
    m.submodules.usb_pll = _cell(
        pll, clock_in=clock_in, clock=fast.clk, locked=locked, quarter=slow.clk
    )
    return locked


def _cell(
    pll: PLL, *, clock_in: Signal, clock: Signal, locked: Signal, quarter: Signal | None = None
) -> Instance:
    """The EHXPLLL; ``quarter`` is a clock of a fourth of the frequency, in phase."""
    feedback = Signal()
    # nextpnr takes outputs that nobody speaks of for enabled.
    more: dict[str, Any] = {f"p_{output}_ENABLE": "DISABLED" for output in ("CLKOS2", "CLKOS3")}
    if quarter is not None:
        more |= {
            "a_FREQUENCY_PIN_CLKOS2": f"{pll.output_hz / 4e6:g}",
            "p_CLKOS2_ENABLE": "ENABLED",
            "p_CLKOS2_DIV": 4 * pll.output_div,
            "p_CLKOS2_CPHASE": pll.parameters()["CLKOP_CPHASE"],
            "p_CLKOS2_FPHASE": 0,
            "o_CLKOS2": quarter,
        }
    return Instance(
        "EHXPLLL",
        a_FREQUENCY_PIN_CLKI=f"{pll.input_hz / 1e6:g}",
        a_FREQUENCY_PIN_CLKOP=f"{pll.output_hz / 1e6:g}",
        a_FREQUENCY_PIN_CLKOS=f"{pll.pfd_hz / 1e6:g}",
        # Loop filter for this range of dividers, as Project Trellis' ecppll sets it.
        a_ICP_CURRENT="12",
        a_LPF_RESISTOR="8",
        a_MFG_ENABLE_FILTEROPAMP="1",
        a_MFG_GMCREF_SEL="2",
        p_PLLRST_ENA="DISABLED",
        p_INTFB_WAKE="DISABLED",
        p_STDBY_ENABLE="DISABLED",
        p_DPHASE_SOURCE="DISABLED",
        p_OUTDIVIDER_MUXA="DIVA",
        p_OUTDIVIDER_MUXB="DIVB",
        p_OUTDIVIDER_MUXC="DIVC",
        p_OUTDIVIDER_MUXD="DIVD",
        p_CLKFB_DIV=1,
        p_CLKOP_ENABLE="ENABLED",
        p_CLKOP_FPHASE=0,
        p_CLKOS_ENABLE="ENABLED",
        p_CLKOS_FPHASE=0,
        p_FEEDBK_PATH="CLKOS",
        **{f"p_{name}": value for name, value in pll.parameters().items()},
        i_CLKI=clock_in,
        i_CLKFB=feedback,
        i_RST=Const(0, 1),
        i_STDBY=Const(0, 1),
        i_PHASESEL0=Const(0, 1),
        i_PHASESEL1=Const(0, 1),
        i_PHASEDIR=Const(1, 1),
        i_PHASESTEP=Const(1, 1),
        i_PHASELOADREG=Const(1, 1),
        i_PLLWAKESYNC=Const(0, 1),
        i_ENCLKOP=Const(0, 1),
        o_CLKOP=clock,
        o_CLKOS=feedback,
        o_LOCK=locked,
        **more,
    )
