# amaranth: UnusedElaboratable=no
"""What a board offers: one frozen record per board."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

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


class HostLink(Protocol):
    """A way between a board and its host."""

    kind: ClassVar[str]
    """What ``--link`` takes."""
    wires: ClassVar[tuple[str, ...]]
    """Members of `line` that lead to pins."""
    heartbeat_s: ClassVar[float | None]
    """See `lichen.boards.link.device.Link`."""

    @property
    def slots(self) -> int:
        """Packets in sequence that there is room for, each way."""

    @property
    def lut(self) -> int:
        """Lookup tables set aside for it. It takes no multiplier."""

    @property
    def bram(self) -> int:
        """Block RAMs that it takes."""

    @property
    def line_hz(self) -> int:
        """Bits a second."""

    @property
    def title(self) -> str:
        """What people call it."""

    def seconds(self, frames: Iterable[tuple[int, int]]) -> float:
        """How long it takes for frames of so many bytes of input and output."""

    def line(self, oscillator_hz: int) -> Any:
        """Its gateware: streams ``i`` and ``o`` of bytes, ``bad``, ``ratio``, ``hold``."""


@dataclass(frozen=True, kw_only=True)
class UART:
    """The serial link to the host: a `HostLink`.

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
    lut: int = 3000
    bram: int = 2

    kind: ClassVar[str] = "uart"
    wires: ClassVar[tuple[str, ...]] = ("rx", "tx")
    heartbeat_s: ClassVar[float | None] = None

    @property
    def slots(self) -> int:
        return 8

    @property
    def line_hz(self) -> int:
        return self.baud

    @property
    def title(self) -> str:
        return f"the serial line at {self.baud / 1e6:g} Mbaud"

    def seconds(self, frames: Iterable[tuple[int, int]]) -> float:
        from lichen.boards.link.rate import frame_seconds

        return frame_seconds(frames, self.baud)

    def line(self, oscillator_hz: int) -> Any:
        from lichen.boards.link.line import SerialLine

        return SerialLine(oscillator_hz=oscillator_hz, baud=self.baud)


@dataclass(frozen=True, kw_only=True)
class USB:
    """A USB device of the FPGA's own: a `HostLink` through LUNA.

    Attributes
    ----------
    speed : str
        ``full``, on the FPGA's own pins; ``high``, through a transceiver with ULPI.
    slots : int
        Packets in sequence that there is room for, each way: as many as are on their way while a
        host takes its turn.
    lut, bram : int
        As of `UART`.
    """

    speed: str
    slots: int
    lut: int
    bram: int

    kind: ClassVar[str] = "usb"
    wires: ClassVar[tuple[str, ...]] = ("pads",)
    # A few of a host's turns, each of a frame of 1 ms or so: what is on its way is not lost.
    heartbeat_s: ClassVar[float | None] = 4e-3

    @property
    def line_hz(self) -> int:
        return {"full": 12_000_000, "high": 480_000_000}[self.speed]

    @property
    def title(self) -> str:
        return f"{self.speed}-speed USB"

    def seconds(self, frames: Iterable[tuple[int, int]]) -> float:
        from lichen.boards.link.rate import FULL_SPEED, HIGH_SPEED

        return {"full": FULL_SPEED, "high": HIGH_SPEED}[self.speed].seconds(frames)

    def line(self, oscillator_hz: int) -> Any:
        from lichen.boards.link.usb import USBLine

        return USBLine(speed=self.speed)


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
        What a build is made for that takes whatever clock comes out: out of reach, and not by much.
    uart : UART
    programmer : Programmer
    entry : str
        ``module:function`` that makes the Amaranth platform of a device and the top level
        around a host link; imported only when a bitstream is built.
    usb : USB or None
        USB of the FPGA's own, if there is.
    link_kind : str
        Of the link that designs are made for: one of `links`.
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
    usb: USB | None = None
    link_kind: str = "uart"

    @property
    def links(self) -> dict[str, HostLink]:
        """By kind."""
        found: tuple[HostLink | None, ...] = (self.uart, self.usb)
        return {link.kind: link for link in found if link is not None}

    @property
    def link(self) -> HostLink:
        """The one that designs are made for."""
        return self.links[self.link_kind]

    def with_link(self, kind: str) -> Board:
        """The board with another link; UserError where it has no such link."""
        if kind not in self.links:
            known = ", ".join(self.links)
            raise UserError(f"the {self.title} has no link {kind!r}; it has {known}.")
        return replace(self, link_kind=kind)

    @property
    def roomy_budget(self) -> Resources:
        """`pipeline_budget` with some block RAMs to spare."""
        have = self.pipeline_budget
        return replace(have, bram=int(have.bram * self.bram_share))

    @property
    def pipeline_budget(self) -> Resources:
        """What a design may plan with, less what the host link takes at most."""
        have = self.budget
        lut = int(have.lut * self.lut_share) - self.link.lut
        return replace(have, lut=lut, bram=have.bram - self.link.bram)

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
        return make(device=self.device, link=link, host=self.link, pll=pll)
