# amaranth: UnusedElaboratable=no
"""The ECP5's PLL: dividers for a wanted frequency, and the clock made with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from amaranth.hdl import ClockDomain, Const, Instance, Module, Signal
from amaranth.lib.cdc import FFSynchronizer

# Limits of EHXPLLL in Hz: phase detector, oscillator, and the output pin.
PFD_HZ = (3_125_000, 400_000_000)
VCO_HZ = (400_000_000, 800_000_000)
OUTPUT_HZ = (3_125_000, 400_000_000)
VCO_PREFERRED_HZ = 600_000_000


@dataclass(frozen=True, kw_only=True)
class PLL:
    """Dividers of an EHXPLLL whose feedback comes from its primary output.

    Attributes
    ----------
    input_hz : int
        Reference frequency.
    input_div, feedback_div, output_div : int
        1 .. 128. The output runs at ``input_hz * feedback_div / input_div``, the oscillator
        ``output_div`` times as fast.
    """

    input_hz: int
    input_div: int
    feedback_div: int
    output_div: int

    @property
    def output_hz(self) -> float:
        """Output frequency in Hz."""
        return self.input_hz * self.feedback_div / self.input_div

    @property
    def output_mhz(self) -> float:
        """Output frequency in MHz, rounded to 1 Hz."""
        return round(self.output_hz / 1e6, 6)

    @property
    def vco_hz(self) -> float:
        """Frequency of the oscillator in Hz."""
        return self.output_hz * self.output_div

    @property
    def phase(self) -> int:
        """CPHASE of the output."""
        return self.output_div // 2

    def _words(self) -> list[str]:
        """The lines of a configuration that depend on the dividers."""
        values = {
            "CLKI_DIV": self.input_div - 1,
            "CLKFB_DIV": self.feedback_div - 1,
            "CLKOP_DIV": self.output_div - 1,
            "CLKOP_CPHASE": self.phase,
        }
        return [f"word: {name} {value:0{WORD_BITS}b}" for name, value in values.items()]

    @classmethod
    def choose(cls, *, input_hz: int, output_hz: int) -> Self:
        """The dividers that come nearest to ``output_hz``.

        Of equally near ones those with the fastest phase detector, then with the oscillator
        nearest to the middle of its range. Raises ValueError where no setting comes within
        5 % of the wanted frequency.
        """
        low, high = OUTPUT_HZ
        if not low <= output_hz <= high:
            raise ValueError(
                f"the clock must be between {low / 1e6:g} and {high / 1e6:g} MHz, "
                f"not {output_hz / 1e6:g}"
            )
        near = min(
            cls._settings(input_hz), key=lambda pll: pll._rank(abs(pll.output_hz - output_hz))
        )
        if abs(near.output_hz - output_hz) > output_hz / 20:
            raise ValueError(f"no PLL setting makes {output_hz / 1e6:g} MHz")
        return near

    @classmethod
    def below(cls, *, input_hz: int, limit_hz: float) -> Self:
        """The dividers of the fastest clock that is no faster than ``limit_hz``.

        Raises ValueError where there is none.
        """
        slower = [pll for pll in cls._settings(input_hz) if pll.output_hz <= limit_hz]
        if not slower:
            raise ValueError(f"no PLL setting stays below {limit_hz / 1e6:g} MHz")
        return min(slower, key=lambda pll: pll._rank(limit_hz - pll.output_hz))

    def _rank(self, distance: float) -> tuple[float, ...]:
        """What to be sorted by: least is best."""
        return round(distance), self.input_div, abs(self.vco_hz - VCO_PREFERRED_HZ)

    @classmethod
    def _settings(cls, input_hz: int) -> Iterator[Self]:
        """All that keep to the limits."""
        for input_div in range(1, 129):
            pfd = input_hz / input_div
            if not PFD_HZ[0] <= pfd <= PFD_HZ[1]:
                continue
            for feedback_div in range(1, 129):
                out = pfd * feedback_div
                if not OUTPUT_HZ[0] <= out <= OUTPUT_HZ[1]:
                    continue
                for output_div in range(
                    max(1, math.ceil(VCO_HZ[0] / out)), min(128, int(VCO_HZ[1] / out)) + 1
                ):
                    yield cls(
                        input_hz=input_hz,
                        input_div=input_div,
                        feedback_div=feedback_div,
                        output_div=output_div,
                    )


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
        if "enum: MODE EHXPLLL" not in lines:
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
    m.submodules.pll = Instance(
        "EHXPLLL",
        a_FREQUENCY_PIN_CLKI=f"{pll.input_hz / 1e6:g}",
        a_FREQUENCY_PIN_CLKOP=f"{pll.output_hz / 1e6:g}",
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
        p_CLKI_DIV=pll.input_div,
        p_CLKFB_DIV=pll.feedback_div,
        p_CLKOP_ENABLE="ENABLED",
        p_CLKOP_DIV=pll.output_div,
        p_CLKOP_CPHASE=pll.phase,
        p_CLKOP_FPHASE=0,
        p_FEEDBK_PATH="CLKOP",
        i_CLKI=clock_in,
        i_CLKFB=domain.clk,
        i_RST=Const(0, 1),
        i_STDBY=Const(0, 1),
        i_PHASESEL0=Const(0, 1),
        i_PHASESEL1=Const(0, 1),
        i_PHASEDIR=Const(1, 1),
        i_PHASESTEP=Const(1, 1),
        i_PHASELOADREG=Const(1, 1),
        i_PLLWAKESYNC=Const(0, 1),
        i_ENCLKOP=Const(0, 1),
        o_CLKOP=domain.clk,
        o_LOCK=locked,
    )
    hold = Signal(init=1)
    m.submodules.locked = FFSynchronizer(~locked, hold, o_domain=domain.name, init=1)
    return hold
