# amaranth: UnusedElaboratable=no
"""The ECPIX-5: pins, and the clock from its 100 MHz oscillator."""

from __future__ import annotations

from typing import Any

from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.ecpix5 import ECPIX545Platform, ECPIX585Platform

from lichen.boards.ecp5.pll import PLL
from lichen.boards.ecp5.serial import Lamp, SerialTop, WithVerilog

PLATFORMS = {platform.device: platform for platform in (ECPIX545Platform, ECPIX585Platform)}


def make(*, device: str, link: Any, pll: PLL) -> tuple[LatticeECP5Platform, SerialTop]:
    """The platform and the top level of an ECPIX-5 with that device.

    The serial line is that of the FT2232; the lamps are the greens of three lights.
    """
    platform = type("Platform", (WithVerilog, PLATFORMS[device]), {})
    lamps = [Lamp("rgb_led", i, "g") for i in range(3)]
    return platform(), SerialTop(link=link, pll=pll, lamps=lamps)
