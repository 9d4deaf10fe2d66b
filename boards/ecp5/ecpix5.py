# amaranth: UnusedElaboratable=no
"""The ECPIX-5: pins, and the clock from its 100 MHz oscillator."""

from __future__ import annotations

from typing import Any

from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.ecpix5 import ECPIX545Platform, ECPIX585Platform

from lichen.boards.ecp5.pll import PLL
from lichen.boards.ecp5.top import BoardTop, Lamp, WithVerilog
from lichen.boards.record import HostLink

PLATFORMS = {platform.device: platform for platform in (ECPIX545Platform, ECPIX585Platform)}


def make(
    *, device: str, link: Any, host: HostLink, pll: PLL
) -> tuple[LatticeECP5Platform, BoardTop]:
    """The platform and the top level of an ECPIX-5 with that device.

    A serial line is that of the FT2232, USB that of the transceiver; the lamps
    are the greens of three lights.
    """
    platform = type("Platform", (WithVerilog, PLATFORMS[device]), {})
    lamps = [Lamp("rgb_led", i, "g") for i in range(3)]
    return platform(), BoardTop(link=link, host=host, pll=pll, lamps=lamps)
