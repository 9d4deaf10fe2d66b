"""The clocks that builds have achieved, which is where a plan takes its clock from.

The records are in ``achieved.json``, one per build, copied from the report of the build by
``benchmarks/record_build.py``; nobody writes a frequency there by hand.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from lichen.hw.device.device import Resources
from lichen.hw.stage.folding import Folding

if TYPE_CHECKING:
    from lichen.boards.board import Board
    from lichen.hw.plan.planner import Plan

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
        Of the slowest of the seeds that were tried: what another build of the design may count
        on.
    dsp, bram, lut : int
        Placed.
    folding : str
        `fingerprint` of what was folded how.
    link : str
        What led to the host: ``uart`` or ``usb``.
    seeds : int
        Of place and route, how many were tried.
    """

    design: str
    device: str
    fmax_mhz: float
    dsp: int
    bram: int
    lut: int
    folding: str
    link: str = "uart"
    seeds: int = 1

    @classmethod
    def of_report(cls, report: dict[str, Any], board: Board) -> Achieved:
        """The record of a build's ``report.json``."""
        network = report["network"]
        parts = report.get("transforms", {report["transform"]: report})
        seeds = report.get("seeds") or {"": report["fmax_mhz"]}
        names = " and ".join(f"{name}, {one['max_width']} columns" for name, one in parts.items())
        return cls(
            design=f"{network['name']} {names}",
            device=part(board),
            fmax_mhz=min(seeds.values()),
            seeds=len(seeds),
            folding=fingerprint(
                [Folding.model_validate(one["folding"]) for one in parts.values()],
                report["cycles_per_frame"],
                dsp=report["planned"]["dsp"],
                # a plan is of the pipelines alone; links of before took none
                bram=report["planned"]["bram"] - report.get("link", {"bram": 0})["bram"],
            ),
            link=report.get("link_kind", "uart"),
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
        A phrase that begins with ``built, this folding``, ``built, one at least as full`` or
        ``not built``; for a clock that was asked for, another.
    interval_mhz : (float, float) or None
        Between what this design may come out, going by all builds of the device; None where there
        is no doubt about the clock.
    """

    limit_mhz: float
    source: str
    interval_mhz: tuple[float, float] | None = None


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


def fingerprint(
    foldings: Sequence[Folding], cycles_per_frame: int | None, *, dsp: int, bram: int
) -> str:
    """Equal for designs that differ in little but the values of their weights."""
    folded = [folding.model_dump(mode="json") for folding in foldings]
    facts = [folded if len(folded) > 1 else folded[0], cycles_per_frame, dsp, bram]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def clock_of_plans(board: Board, plans: Sequence[Plan]) -> Clock:
    """What clock the pipelines of some plans may count on in one bitstream."""
    return expected_clock(
        board,
        Resources.total(plan.resources for plan in plans),
        foldings=[plan.folding for plan in plans],
        cycles_per_frame=max(plan.cycles_per_frame for plan in plans),
    )


def expected_clock(
    board: Board,
    resources: Any,
    *,
    foldings: Sequence[Folding] = (),
    cycles_per_frame: int | None = None,
) -> Clock:
    """What clock a design that needs ``resources`` may count on.

    That of the slowest build of the same design, by `fingerprint`, where there is one. Else that
    of the emptiest build of the device that was at least as full. Where none was as full, that of
    the fullest one, for lack of a better; where there is none at all, the board's default.
    Builds with another link than the board's count where there are none with it, and then nothing
    is called built.
    """
    every = [build for build in records() if build.device == part(board)]
    builds = [build for build in every if build.link == board.link.kind]
    if every and not builds:
        other = _expected(board, resources, every, foldings, cycles_per_frame)
        speeds = [build.fmax_mhz for build in every]
        return replace(
            other,
            source=f"not built over {board.link.title}; over another link {other.source}",
            interval_mhz=other.interval_mhz or (min(speeds), max(speeds)),
        )
    return _expected(board, resources, builds, foldings, cycles_per_frame)


def _expected(
    board: Board,
    resources: Any,
    builds: Sequence[Achieved],
    foldings: Sequence[Folding],
    cycles_per_frame: int | None,
) -> Clock:
    """`expected_clock`, going by these builds."""
    if not builds:
        return Clock(
            limit_mhz=board.clock_mhz,
            source=f"not built: the {board.title}'s default, nothing was built for it yet",
        )
    wanted = (
        fingerprint(foldings, cycles_per_frame, dsp=resources.dsp, bram=resources.bram)
        if foldings
        else ""
    )
    same = [build for build in builds if build.folding == wanted]
    if same:
        build = min(same, key=lambda b: b.fmax_mhz)
        return Clock(limit_mhz=build.fmax_mhz, source=f"built, this folding: {_told(build, board)}")
    need = fill(resources, board.budget)
    fuller = [build for build in builds if build.fill(board.budget) >= need]
    fastest = max(build.fmax_mhz for build in builds)
    if fuller:
        build = min(fuller, key=lambda b: (b.fill(board.budget), b.fmax_mhz))
        return Clock(
            limit_mhz=build.fmax_mhz,
            source=f"built, one at least as full: {_told(build, board)}",
            interval_mhz=(min(one.fmax_mhz for one in fuller), fastest),
        )
    build = max(builds, key=lambda b: (b.fill(board.budget), -b.fmax_mhz))
    slowest = min(one.fmax_mhz for one in builds)
    return Clock(
        limit_mhz=build.fmax_mhz,
        source=f"not built: the fullest so far is {_told(build, board)}, and this needs more",
        interval_mhz=(min(board.clock_mhz, slowest), fastest),
    )


def _told(build: Achieved, board: Board) -> str:
    several = f", the slowest of {build.seeds} seeds" if build.seeds > 1 else ""
    full = f"{build.fill(board.budget):.0%} full"
    return f"{build.design} ({build.fmax_mhz:g} MHz{several}, {full})"
