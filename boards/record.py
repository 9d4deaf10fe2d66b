"""What a board offers: one frozen record per board."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

from lichen.errors import UserError
from lichen.hw.device.device import Device, Resources

if TYPE_CHECKING:
    from amaranth.build import Platform
    from amaranth.lib import wiring

    from lichen.boards.build.toolchain import Toolchain


class Clock(Protocol):
    """A setting of whatever makes the system clock."""

    @property
    def output_hz(self) -> float:
        """Frequency in Hz."""

    @property
    def output_mhz(self) -> float:
        """Frequency in MHz, rounded to 1 Hz."""


class Family(Protocol):
    """What a module ``lichen.boards.FAMILY.family`` holds."""

    TITLE: str
    toolchain: Toolchain

    def clock(self, *, input_hz: int, output_hz: int) -> Clock:
        """The fastest clock no faster than ``output_hz``; ValueError outside of the limits."""

    def clock_below(self, *, input_hz: int, limit_hz: float) -> Clock:
        """The fastest clock no faster than ``limit_hz``; ValueError where all are faster."""

    def retune(self, config: str, before: Clock, after: Clock) -> str:
        """A routed design with another clock; ValueError where it does not hold the one before."""

    def device_in(self, header: bytes) -> str | None:
        """The device that a bitstream is for, from its beginning; None if it is none."""

    def idcodes(self) -> dict[int, str]:
        """Devices by what they say they are over JTAG."""


@dataclass(frozen=True, kw_only=True)
class UART:
    """The serial link to the host.

    Attributes
    ----------
    baud : int
        Symbols per second, 8 data bits, no parity, one stop bit.
    lut : int
        Lookup tables set aside for it. It takes no multiplier.
    bram : int
        Block RAMs that it takes, for packets on their way.
    """

    baud: int
    lut: int = 2000
    bram: int = 2


@dataclass(frozen=True, kw_only=True)
class Programmer:
    """How openFPGALoader is told to reach the board.

    Attributes
    ----------
    board : str
        openFPGALoader's ``--board``.
    usb : str
        What to look for on the desk, in the sentence that says no board was found.
    dfu : (int, int) or None
        USB's vendor and product of a bootloader that takes the bitstream, and keeps it; None
        where there is JTAG.
    """

    board: str
    usb: str
    dfu: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board that bitstreams are built for.

    Attributes
    ----------
    name : str
        What ``--board`` takes.
    title : str
        What people call it.
    family : Device
        What costs are asked of. ``lichen.boards.NAME.family``, by its name, makes clocks and knows
        bitstreams.
    device, package, speed : str
        The FPGA, in the vendor's terms.
    budget : Resources
        All of the device.
    lut_share : float
        How much of the lookup tables a design may plan with: beyond it, routes get long and
        placement fails.
    bram_share : float
        How much of the block RAMs a design plans with where that suffices: where all are taken,
        none can lie near what it serves.
    oscillator_hz : int
        Frequency of the clock that feeds the PLL.
    clock_mhz : float
        Default frequency of the system clock.
    aim_mhz : float
        What place and route aims at, at least, where a build takes whatever clock comes out.
    uart : UART
    programmer : Programmer
    entry : str
        ``module:function`` that makes the Amaranth platform of a device and the top level
        around a host link; imported only when a bitstream is built.
    """

    name: str
    title: str
    family: Device
    device: str
    package: str
    speed: str
    budget: Resources
    lut_share: float
    oscillator_hz: int
    clock_mhz: float
    aim_mhz: float
    uart: UART
    programmer: Programmer
    entry: str
    bram_share: float = 0.97

    @property
    def roomy_budget(self) -> Resources:
        """`pipeline_budget` with some block RAMs to spare."""
        have = self.pipeline_budget
        return replace(have, bram=int(have.bram * self.bram_share))

    @property
    def pipeline_budget(self) -> Resources:
        """What a design may plan with, less what the host link takes at most."""
        have = self.budget
        lut = int(have.lut * self.lut_share) - self.uart.lut
        return replace(have, lut=lut, bram=have.bram - self.uart.bram)

    @property
    def makers(self) -> Family:
        """What the FPGA's family brings."""
        return cast(Family, importlib.import_module(f"lichen.boards.{self.family.name}.family"))

    def pll(self, clock_mhz: float | None = None) -> Clock:
        """The setting of the fastest clock that is no faster than ``clock_mhz``.

        None takes the board's default. Raises UserError when there is no such clock.
        """
        wanted = self.clock_mhz if clock_mhz is None else clock_mhz
        try:
            return self.makers.clock(input_hz=self.oscillator_hz, output_hz=round(wanted * 1e6))
        except ValueError as error:
            raise UserError(f"no such clock on the {self.title}: {error}.") from None

    def pll_below(self, limit_mhz: float) -> Clock:
        """The setting of the fastest clock that is no faster than ``limit_mhz``.

        Unlike `pll` it takes any limit that is fast enough. Raises UserError when even the slowest
        clock is too fast.
        """
        try:
            return self.makers.clock_below(input_hz=self.oscillator_hz, limit_hz=limit_mhz * 1e6)
        except ValueError as error:
            raise UserError(f"no such clock on the {self.title}: {error}.") from None

    def platform(self, link: wiring.Component, pll: Clock) -> tuple[Platform, object]:
        """The Amaranth platform, and the elaboratable that puts ``link`` on its pins."""
        module, _, function = self.entry.partition(":")
        make: Callable[..., tuple[Platform, object]]
        make = getattr(importlib.import_module(module), function)
        return make(device=self.device, link=link, pll=pll)
