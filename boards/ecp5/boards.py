"""Boards with an ECP5."""

from __future__ import annotations

from lichen.boards.record import UART, Board, Programmer
from lichen.hw.device.device import Resources
from lichen.hw.device.ecp5 import ECP5

BUDGETS = {
    "12F": Resources(dsp=28, bram=32, lut=12_000),
    "25F": Resources(dsp=28, bram=56, lut=24_288),
    "45F": Resources(dsp=72, bram=108, lut=43_848),
    "85F": Resources(dsp=156, bram=208, lut=83_640),
}
"""By size: multipliers and 18-kbit block RAMs of Lattice's data sheet (FPGA-DS-02012, table 1.1),
which counts lookup tables in thousands; those of its slices. A 12F is promised no more than this,
whatever else is on its die."""


def _ulx3s(size: str) -> Board:
    return Board(
        name=f"ulx3s-{size.lower()}",
        title=f"ULX3S {size}",
        family=ECP5,
        device=f"LFE5U-{size}",
        package="CABGA381",
        speed="6",
        budget=BUDGETS[size],
        lut_share=0.65,
        oscillator_hz=25_000_000,
        clock_mhz=50.0,
        aim_mhz=100.0,
        uart=UART(baud=1_000_000),
        programmer=Programmer(board="ulx3s", usb="ULX3S (its US1 connector)"),
        entry="lichen.boards.ecp5.ulx3s:make",
    )


def _orangecrab(size: str) -> Board:
    return Board(
        name=f"orangecrab-{size.lower()}",
        title=f"OrangeCrab r0.2 {size}",
        family=ECP5,
        device=f"LFE5U-{size}",
        package="CSFBGA285",
        speed="8",
        budget=BUDGETS[size],
        lut_share=0.65,
        oscillator_hz=48_000_000,
        clock_mhz=48.0,
        aim_mhz=100.0,
        uart=UART(baud=1_000_000),
        programmer=Programmer(board="orangeCrab", usb="OrangeCrab, its button held (DFU mode),"),
        entry="lichen.boards.ecp5.orangecrab:make",
    )


def _ecpix5(size: str) -> Board:
    return Board(
        name=f"ecpix5-{size.lower()}",
        title=f"ECPIX-5 {size}",
        family=ECP5,
        device=f"LFE5UM5G-{size}",
        package="CABGA554",
        speed="8",
        budget=BUDGETS[size],
        lut_share=0.65,
        oscillator_hz=100_000_000,
        clock_mhz=50.0,
        aim_mhz=100.0,
        uart=UART(baud=1_000_000),
        programmer=Programmer(board="ecpix5", usb="ECPIX-5 (its micro USB connector)"),
        entry="lichen.boards.ecp5.ecpix5:make",
    )


BOARDS = (
    *(_ulx3s(size) for size in ("12F", "25F", "45F", "85F")),
    *(_orangecrab(size) for size in ("25F", "85F")),
    *(_ecpix5(size) for size in ("45F", "85F")),
)
