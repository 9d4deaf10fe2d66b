"""The clocks that builds have achieved, which is where a plan takes its clock from.

The records are in ``achieved.json``, one per build, copied from the report of the build by
``benchmarks/record_build.py``; nobody writes a frequency there by hand.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lichen.boards.board import Board
    from lichen.hw.device.device import Resources

FILE = "achieved.json"

METRICS = ("dsp", "bram", "lut")


@dataclass(frozen=True, kw_only=True)
class Achieved:
    """A build that has been placed and routed.

    Attributes
    ----------
    design : str
        What was built, for people.
    device : str
        With the speed grade: ``LFE5U-85F-6``.
    fmax_mhz : float
    dsp, bram, lut : int
        Placed.
    """

    design: str
    device: str
    fmax_mhz: float
    dsp: int
    bram: int
    lut: int

    @classmethod
    def of_report(cls, report: dict[str, Any], board: Board) -> Achieved:
        """The record of a build's ``report.json``."""
        network = report["network"]
        return cls(
            design=f"{network['name']} {report['transform']}, {report['max_width']} columns",
            device=part(board),
            fmax_mhz=report["fmax_mhz"],
            **{metric: report[metric] for metric in METRICS},
        )

    def fill(self, budget: Resources) -> float:
        """How full the device was: the share of what was used most."""
        return fill(self, budget)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A frequency, and how one knows.

    Attributes
    ----------
    limit_mhz : float
        No design of this size has been shown to run faster.
    source : str
        A phrase.
    """

    limit_mhz: float
    source: str


def part(board: Board) -> str:
    """Device and speed grade of a board."""
    return f"{board.device}-{board.speed}"


def fill(used: Any, budget: Resources) -> float:
    """The largest share of anything that is used."""
    return max(getattr(used, metric) / getattr(budget, metric) for metric in METRICS)


@cache
def records() -> tuple[Achieved, ...]:
    """All builds on record."""
    text = (
        importlib.resources.files("lichen.boards.build").joinpath(FILE).read_text(encoding="utf-8")
    )
    return tuple(Achieved(**entry) for entry in json.loads(text))


def expected_clock(board: Board, resources: Any) -> Clock:
    """What clock a design that needs ``resources`` may count on.

    That of the emptiest build of the device that was at least as full. Where none was as full,
    that of the fullest one, for lack of a better; where there is none at all, the board's default.
    """
    builds = [build for build in records() if build.device == part(board)]
    if not builds:
        return Clock(
            limit_mhz=board.clock_mhz, source=f"the {board.title}'s default, nothing was built yet"
        )
    need = fill(resources, board.budget)
    fuller = [build for build in builds if build.fill(board.budget) >= need]
    if fuller:
        build = min(fuller, key=lambda b: (b.fill(board.budget), b.fmax_mhz))
        remark = ""
    else:
        build = max(builds, key=lambda b: (b.fill(board.budget), -b.fmax_mhz))
        remark = ", the fullest so far though this needs more"
    return Clock(
        limit_mhz=build.fmax_mhz,
        source=f"achieved by a build of {build.design} ({build.fmax_mhz:g} MHz, "
        f"{build.fill(board.budget):.0%} full{remark})",
    )
