# amaranth: UnusedElaboratable=no
"""The ULX3S: pins, and the clock from its 25 MHz oscillator."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module
from amaranth.lib import io
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.ulx3s import (
    ULX3S_12F_Platform,
    ULX3S_25F_Platform,
    ULX3S_45F_Platform,
    ULX3S_85F_Platform,
)

from lichen.boards.ecp5.pll import PLL
from lichen.boards.ecp5.top import BoardTop, Lamp, WithVerilog, request
from lichen.boards.record import HostLink

PLATFORMS = {
    platform.device: platform
    for platform in (
        ULX3S_12F_Platform,
        ULX3S_25F_Platform,
        ULX3S_45F_Platform,
        ULX3S_85F_Platform,
    )
}


class ULX3STop(BoardTop):
    """The serial line of the FT231X; LEDs 0 to 2 are the lamps."""

    def elaborate(self, platform: LatticeECP5Platform) -> Module:
        m = super().elaborate(platform)
        # Low on this pin makes the ESP32 take the board over.
        m.submodules.esp32_pin = keep = io.Buffer("o", request(platform, "esp32").gpio0)
        m.d.comb += keep.o.eq(1)
        return m


def make(
    *, device: str, link: Any, host: HostLink, pll: PLL
) -> tuple[LatticeECP5Platform, ULX3STop]:
    """The platform and the top level of a ULX3S with that device."""
    platform = type("Platform", (WithVerilog, PLATFORMS[device]), {})
    lamps = [Lamp("led", i) for i in range(3)]
    return platform(), ULX3STop(link=link, host=host, pll=pll, lamps=lamps)
