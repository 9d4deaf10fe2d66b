"""What boards ask of the ECP5: clocks, programs, and for which device a bitstream is."""

from __future__ import annotations

import re

from lichen.boards.ecp5.pll import PLL, retune
from lichen.boards.ecp5.toolchain import ECP5Toolchain

__all__ = ["TITLE", "clock", "clock_below", "device_in", "idcodes", "retune", "toolchain"]

TITLE = "ECP5"

toolchain = ECP5Toolchain()


def clock(*, input_hz: int, output_hz: int) -> PLL:
    """See `lichen.boards.ecp5.pll.PLL.choose`."""
    return PLL.choose(input_hz=input_hz, output_hz=output_hz)


def clock_below(*, input_hz: int, limit_hz: float) -> PLL:
    """See `lichen.boards.ecp5.pll.PLL.below`."""
    return PLL.below(input_hz=input_hz, limit_hz=limit_hz)


def device_in(header: bytes) -> str | None:
    """The device that ecppack names in a bitstream's comment; None if there is none."""
    part = re.search(rb"Part: ([A-Z0-9-]+)", header)
    return None if part is None else part.group(1).decode()


_IDCODES = {
    0x21111043: "LFE5U-12F",
    0x41111043: "LFE5U-25F",
    0x41112043: "LFE5U-45F",
    0x41113043: "LFE5U-85F",
    0x81111043: "LFE5UM5G-25F",
    0x81112043: "LFE5UM5G-45F",
    0x81113043: "LFE5UM5G-85F",
}
"""Lattice, "ECP5 and ECP5-5G sysCONFIG Usage Guide" (FPGA-TN-02039), table of device IDs."""


def idcodes() -> dict[int, str]:
    """Devices by what they say they are over JTAG."""
    return dict(_IDCODES)
