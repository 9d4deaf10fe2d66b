"""What a board offers: one frozen record per board, and the list of boards."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lichen.errors import UserError
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.ecp5 import ECP5

if TYPE_CHECKING:
    from amaranth.build import Platform
    from amaranth.lib import wiring

    from lichen.boards.ecp5.pll import PLL


LINK_LUTS = 2000
"""Set aside for the host link, which takes no multiplier and no block RAM."""


@dataclass(frozen=True, kw_only=True)
class UART:
    """The serial link to the host.

    Attributes
    ----------
    baud : int
        Symbols per second, 8 data bits, no parity, one stop bit.
    """

    baud: int


@dataclass(frozen=True, kw_only=True)
class Programmer:
    """How openFPGALoader is told to reach the board.

    Attributes
    ----------
    board : str
        openFPGALoader's ``--board``.
    usb : str
        What to look for on the desk, in the sentence that says no board was found.
    """

    board: str
    usb: str


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board that bitstreams are built for.

    Attributes
    ----------
    name : str
        What ``--board`` takes.
    title : str
        What people call it.
    device, package, speed : str
        The FPGA, in the vendor's terms.
    family : Device
        What costs are asked of.
    budget : Resources
        All of the device.
    lut_share : float
        How much of the lookup tables a design may plan with: beyond it, routes get long and
        placement fails.
    oscillator_hz : int
        Frequency of the clock that feeds the PLL.
    clock_mhz : float
        Default frequency of the system clock.
    aim_mhz : float
        What place and route aims at, at least, where a build takes whatever clock comes out.
    uart : UART
    programmer : Programmer
    entry : str
        ``module:function`` that makes the Amaranth platform and the top level around a host
        link; imported only when a bitstream is built.
    """

    name: str
    title: str
    device: str
    package: str
    speed: str
    family: Device
    budget: Resources
    lut_share: float
    oscillator_hz: int
    clock_mhz: float
    aim_mhz: float
    uart: UART
    programmer: Programmer
    entry: str

    @property
    def pipeline_budget(self) -> Resources:
        """What a design may plan with, less what the host link takes at most."""
        have = self.budget
        lut = int(have.lut * self.lut_share) - LINK_LUTS
        return replace(have, lut=lut)

    def pll(self, clock_mhz: float | None = None) -> PLL:
        """The PLL setting of the fastest clock that is no faster than ``clock_mhz``.

        None takes the board's default. Raises UserError when the PLL makes no such clock.
        """
        from lichen.boards.ecp5.pll import PLL

        wanted = self.clock_mhz if clock_mhz is None else clock_mhz
        try:
            return PLL.choose(input_hz=self.oscillator_hz, output_hz=round(wanted * 1e6))
        except ValueError as error:
            raise UserError(f"no such clock on the {self.title}: {error}.") from None

    def pll_below(self, limit_mhz: float) -> PLL:
        """The PLL setting of the fastest clock that is no faster than ``limit_mhz``.

        Raises UserError when even the slowest clock is too fast.
        """
        from lichen.boards.ecp5.pll import PLL

        try:
            return PLL.below(input_hz=self.oscillator_hz, limit_hz=limit_mhz * 1e6)
        except ValueError as error:
            raise UserError(f"no such clock on the {self.title}: {error}.") from None

    def platform(self, link: wiring.Component, pll: PLL) -> tuple[Platform, object]:
        """The Amaranth platform, and the elaboratable that puts ``link`` on its pins."""
        module, _, function = self.entry.partition(":")
        make: Callable[..., tuple[Platform, object]]
        make = getattr(importlib.import_module(module), function)
        return make(link=link, pll=pll)


ULX3S_85F = Board(
    name="ulx3s-85f",
    title="ULX3S 85F",
    device="LFE5U-85F",
    package="CABGA381",
    speed="6",
    family=ECP5,
    budget=Resources(dsp=156, bram=208, lut=83640),
    lut_share=0.65,
    oscillator_hz=25_000_000,
    clock_mhz=50.0,
    aim_mhz=100.0,
    uart=UART(baud=1_000_000),
    programmer=Programmer(board="ulx3s", usb="ULX3S (its US1 connector)"),
    entry="lichen.boards.ecp5.ulx3s:make",
)

BOARDS = {board.name: board for board in (ULX3S_85F,)}
"""All boards, by name."""


def find(name: str) -> Board:
    """The board of that name; a UserError lists those there are."""
    try:
        return BOARDS[name.lower()]
    except KeyError:
        known = ", ".join(BOARDS)
        raise UserError(f"there is no board {name!r}; known boards: {known}.") from None
