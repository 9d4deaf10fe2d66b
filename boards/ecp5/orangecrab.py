# amaranth: UnusedElaboratable=no
"""The OrangeCrab r0.2: pins, and the clock from its 48 MHz oscillator."""

from __future__ import annotations

from typing import Any

from amaranth.build import Attrs
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.orangecrab_r0_2 import (
    OrangeCrabR0_2_25FPlatform,
    OrangeCrabR0_2_85FPlatform,
)
from amaranth_boards.resources import UARTResource

from lichen.boards.ecp5.pll import PLL
from lichen.boards.ecp5.top import BoardTop, Lamp, WithVerilog
from lichen.boards.record import HostLink

PLATFORMS = {
    platform.device: platform
    for platform in (OrangeCrabR0_2_25FPlatform, OrangeCrabR0_2_85FPlatform)
}

# There is no bridge on the board: an adapter's line goes to the Feather's pins RX and TX.
LINE = UARTResource(
    0, rx="0", tx="1", conn=("io", 0), role="dte", attrs=Attrs(IO_TYPE="LVCMOS33", PULLMODE="UP")
)


class _Plain:
    """Makes a bitstream and nothing around it: what DFU wants is the programmer's business."""

    @property
    def required_tools(self) -> list[str]:
        return LatticeECP5Platform.required_tools.fget(self)

    @property
    def command_templates(self) -> list[str]:
        return LatticeECP5Platform.command_templates.fget(self)


def make(
    *, device: str, link: Any, host: HostLink, pll: PLL
) -> tuple[LatticeECP5Platform, BoardTop]:
    """The platform and the top level of an OrangeCrab with that device.

    Of its light green, red and blue are the lamps.
    """
    platform = type("Platform", (WithVerilog, _Plain, PLATFORMS[device]), {})()
    platform.add_resources([LINE])
    lamps = [Lamp("rgb_led", 0, part) for part in "grb"]
    return platform, BoardTop(link=link, host=host, pll=pll, lamps=lamps)
