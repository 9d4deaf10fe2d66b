"""Boards with an ECP5."""

from __future__ import annotations

from typing import Any

from lichen.boards.record import UART, USB, Board, Programmer
from lichen.hw.device.device import Resources
from lichen.hw.device.ecp5 import ECP5

FULL_SPEED = USB(speed="full", slots=16, lut=5200, bram=4)
HIGH_SPEED = USB(speed="high", slots=64, lut=5000, bram=19)

BUDGETS = {
    "12F": Resources(dsp=28, bram=32, lut=12_000),
    "25F": Resources(dsp=28, bram=56, lut=24_288),
    "45F": Resources(dsp=72, bram=108, lut=43_848),
    "85F": Resources(dsp=156, bram=208, lut=83_640),
}
"""By size: multipliers and 18-kbit block RAMs of Lattice's data sheet (FPGA-DS-02012, table 1.1),
which counts lookup tables in thousands; those of its slices. A 12F is promised no more than this,
whatever else is on its die."""


def _boards(
    *sizes: str, name: str, title: str, part: str, baud: int, **fields: Any
) -> tuple[Board, ...]:
    """A board in several sizes; ``part`` is its FPGA without the size, ``fields`` are `Board`'s."""
    return tuple(
        Board(
            name=f"{name}-{size.lower()}",
            title=f"{title} {size}",
            family=ECP5,
            device=f"{part}-{size}",
            budget=BUDGETS[size],
            lut_share=0.65,
            uart=UART(baud=baud),
            **fields,
        )
        for size in sizes
    )


BOARDS = (
    *_boards(
        *("12F", "25F", "45F", "85F"),
        name="ulx3s",
        title="ULX3S",
        part="LFE5U",
        package="CABGA381",
        speed="6",
        aim_mhz=110.0,
        baud=3_000_000,  # the most that an FT231X makes
        usb=FULL_SPEED,
        oscillator_hz=25_000_000,
        clock_mhz=50.0,
        programmer=Programmer(board="ulx3s", usb="ULX3S (its US1 connector)"),
        entry="lichen.boards.ecp5.ulx3s:make",
    ),
    *_boards(
        *("25F", "85F"),
        name="orangecrab",
        title="OrangeCrab r0.2",
        part="LFE5U",
        package="CSFBGA285",
        speed="8",
        aim_mhz=130.0,
        baud=1_000_000,  # whatever adapter there is
        usb=FULL_SPEED,
        oscillator_hz=48_000_000,
        clock_mhz=48.0,
        programmer=Programmer(
            board="orangeCrab",
            usb="OrangeCrab, its button held (DFU mode),",
            dfu=(0x1209, 0x5AF0),
        ),
        entry="lichen.boards.ecp5.orangecrab:make",
    ),
    *_boards(
        *("45F", "85F"),
        name="ecpix5",
        title="ECPIX-5",
        part="LFE5UM5G",
        package="CABGA554",
        speed="8",
        aim_mhz=130.0,
        baud=3_000_000,  # a quarter of what an FT2232H makes, and as much as every system allows
        usb=HIGH_SPEED,
        oscillator_hz=100_000_000,
        clock_mhz=50.0,
        programmer=Programmer(board="ecpix5", usb="ECPIX-5 (its micro USB connector)"),
        entry="lichen.boards.ecp5.ecpix5:make",
    ),
)
