# amaranth: UnusedElaboratable=no
"""The ECP5's PLL: dividers for a wanted frequency, and the clock made with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from amaranth.hdl import ClockDomain, Const, Instance, Module, Signal
from amaranth.lib.cdc import ResetSynchronizer

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
        settings = []
        for input_div in range(1, 129):
            pfd = input_hz / input_div
            if not PFD_HZ[0] <= pfd <= PFD_HZ[1]:
                continue
            feedback_div = round(output_hz / pfd)
            out = pfd * feedback_div
            if not 1 <= feedback_div <= 128 or not low <= out <= high:
                continue
            for output_div in range(1, 129):
                if VCO_HZ[0] <= out * output_div <= VCO_HZ[1]:
                    rank = (
                        round(abs(out - output_hz)),
                        input_div,
                        abs(out * output_div - VCO_PREFERRED_HZ),
                    )
                    settings.append((rank, (input_div, feedback_div, output_div)))
        if not settings or min(settings)[0][0] > output_hz / 20:
            raise ValueError(f"no PLL setting makes {output_hz / 1e6:g} MHz")
        _, (input_div, feedback_div, output_div) = min(settings)
        return cls(
            input_hz=input_hz,
            input_div=input_div,
            feedback_div=feedback_div,
            output_div=output_div,
        )


def drive_clock(m: Module, *, pll: PLL, clock_in: Signal, domain: ClockDomain) -> None:
    """Drive a clock domain of ``m`` with an EHXPLLL fed by ``clock_in``.

    The domain's reset holds until the PLL has locked and is released synchronously. The PLL
    stands in ``m`` itself: so the net keeps the name of the domain's clock through synthesis,
    which the timing constraint needs.
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
        p_CLKOP_CPHASE=pll.output_div // 2,
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
    m.submodules.reset = ResetSynchronizer(~locked, domain=domain.name)
