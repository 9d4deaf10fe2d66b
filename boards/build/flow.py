"""From a top level to a bitstream: Amaranth's build plan, run tool by tool, and its report.

The output folder appears complete or not at all: everything is made in ``DIR.part``, which
takes the name ``DIR`` at the end. After a failure ``DIR.part`` stays, for its logs; the next
build replaces it.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lichen.boards.build.floor import draw_places, give_places
from lichen.boards.build.folder import complete_folder
from lichen.boards.build.report import OutputError, Placed, read_placement, read_statistics
from lichen.boards.build.tools import ECPPACK, NEXTPNR_ECP5, YOSYS, Progress, ToolFailedError, run
from lichen.boards.design import FRAME, check_fits
from lichen.boards.record import Board, Clock
from lichen.boards.top import UARTTop
from lichen.errors import UserError
from lichen.files import write_json
from lichen.processes import concurrently

if TYPE_CHECKING:
    from lichen.boards.ecp5.floorplan.plan import Floorplan

REPORT = "report.json"
BITSTREAM = "top.bit"
KEPT = (BITSTREAM, "top.v", "top.lpf", "top.ys", REPORT, "logs")
"""What stays in the folder of a complete build."""

CLOCK_NET = "clk"
"""Net of the ``sync`` domain, which every board's top level defines."""

PLACEMENT = "logs/nextpnr.json"
"""nextpnr's report."""

PLACERS = {
    "heap": ("--placer-heap-timingweight", "30", "--placer-heap-critexp", "4"),
    "static": ("--placer", "static"),
}
"""nextpnr's options. The first knows more about timing, but crowds designs that fill a device into
its middle, where the router does not come to an end; the second spreads them."""

CROWDED = 0.5
"""Share of the lookup tables above which a design without a floorplan is spread."""

ROUTER = ("--router", "router2")
"""The default router does not come to an end with designs that fill a device."""

HIDE_NAMES = """hierarchy -top top
proc
flatten
select -set dollars w:*$*
rename -hide @dollars"""
"""Amaranth tells namesakes apart by "$1", "$2"; mapping with ABC adds such names itself, and where
two meet, Yosys 0.45 to 0.70 ends with an assertion about the names or sizes of wires."""

TIMING_MARGIN = 1.1
"""Place and route aims this much above the clock: that is what makes it meet the clock."""


class BuildFailedError(Exception):
    """The design could not be built; the message is one sentence, and the files are kept."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A build in numbers; the fields are those of ``report.json``.

    Attributes
    ----------
    board, device : str
    target_mhz : float
        Frequency of the system clock that the design was planned for.
    clock_mhz : float
        Frequency of the system clock: the target, or where the build was free to choose the
        highest the PLL can make that is no higher than ``fmax_mhz``.
    fmax_mhz : float
        Highest frequency nextpnr vouches for.
    timing_met : bool
        ``fmax_mhz >= clock_mhz``.
    cycles_per_frame : int or None
        Of a frame of the size ``frame``; None if unknown.
    frame : dict
        ``width`` and ``height`` in pixels.
    fps : float or None
        Frames per second at ``clock_mhz``, of the pipeline itself: the serial line may be
        slower.
    dsp, bram, lut, ff : int
        Placed: 18x18 multipliers, block RAMs, 4-input LUTs, flip-flops.
    planned : dict
        ``dsp``, ``bram`` and ``lut`` that the design itself had answered for; the first two
        are equal to the placed ones, ``lut`` is an estimate.
    baud : int
        Of the serial line at ``clock_mhz``.
    seed : int
        nextpnr's, of the placement that was kept.
    seeds : dict
        The highest frequency of every seed that was tried, by seed.
    placer : str
        Key of `PLACERS`.
    floorplan : dict or None
        Seed, number of macros and estimates of the floorplan; None without one.
    seconds : dict
        Per step.
    tool_versions : dict
    bitstream : str
        File in the build's folder.
    details : dict
        What the caller knows of the design: network, digest, folding, ...
    """

    board: str
    device: str
    target_mhz: float
    clock_mhz: float
    fmax_mhz: float
    timing_met: bool
    cycles_per_frame: int | None
    frame: dict[str, int]
    fps: float | None
    dsp: int
    bram: int
    lut: int
    ff: int
    planned: dict[str, int]
    baud: int
    seed: int
    seeds: dict[str, float]
    placer: str
    floorplan: dict[str, Any] | None
    seconds: dict[str, float]
    tool_versions: dict[str, str]
    bitstream: str = BITSTREAM
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-serialisable values, ``details`` merged in."""
        fields = asdict(self)
        return fields.pop("details") | fields

    def shortfall(self) -> str | None:
        """By how much timing is missed, as a sentence; None if it is met."""
        if self.timing_met:
            return None
        percent = 100 * (1 - self.fmax_mhz / self.clock_mhz)
        return (
            f"timing is missed: {self.fmax_mhz:.1f} MHz of the {self.clock_mhz:g} MHz wanted, "
            f"{percent:.1f} % short; the bitstream is there, but may not work at this clock."
        )


def build(
    *,
    top: UARTTop,
    board: Board,
    pll: Clock,
    folder: Path,
    seed: int = 1,
    seeds: int = 1,
    placer: str | None = None,
    floorplan: int | None = 1,
    any_clock: bool = False,
    cycles_per_frame: int | None = None,
    frame: tuple[int, int] = FRAME,
    details: dict[str, Any] | None = None,
    plot: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Synthesize, place, route and pack.

    Parameters
    ----------
    top : UARTTop
        Not elaborated before.
    board : Board
    pll : Clock
        Makes the clock that ``top`` was built for.
    folder : Path
        Appears when the build is complete; an earlier build there is replaced.
    seed : int
        nextpnr's.
    seeds : int
        How many seeds to try, ``seed`` the first of them; the fastest result is kept. As many
        run at once as there are processors.
    placer : str or None
        Key of `PLACERS`; None spreads what is `CROWDED` and has no floorplan.
    floorplan : int or None
        Seed of the floorplan of multipliers and block RAMs; None leaves them to nextpnr.
    any_clock : bool
        Place and route aim at the clock of ``pll``, or the board's ``aim_mhz`` if that is more, and
        the bitstream gets the highest clock that turns out to be safe, be it higher or lower. The
        serial line's rate changes with it.
    cycles_per_frame : int or None
        Of a frame of the given size, for the report.
    frame : (int, int)
        Width and height in pixels.
    details : dict
        More fields for the report.
    plot : Path or None
        Where to draw the floorplan, with the worst path of the placement that was kept.
    progress : Progress or None

    Returns
    -------
    Report
        Also in ``report.json``. Timing may be missed: see `Report.shortfall`.

    Raises
    ------
    UserError
        When the design does not fit by its own plan, a tool is missing, or the folder cannot
        be used; nothing was begun.
    BuildFailedError
        When a tool fails, or synthesis makes another number of multipliers or block RAMs than
        planned; the files are kept beside ``folder``.
    """
    progress = progress or Progress()
    check_fits(top.resources(board.family), board)
    programs = {tool.name: tool.find() for tool in (YOSYS, NEXTPNR_ECP5, ECPPACK)}
    with complete_folder(
        folder, marker=REPORT, field="device", keep_after=(BuildFailedError,)
    ) as part:
        try:
            report, places = _build(
                top,
                board,
                pll,
                part,
                list(range(seed, seed + seeds)),
                placer,
                floorplan,
                any_clock,
                cycles_per_frame,
                frame,
                programs,
                details,
                progress,
            )
        except ToolFailedError as error:
            raise BuildFailedError(str(error)) from None
        except OutputError as error:
            raise BuildFailedError(f"{error}; see {part / 'logs'}.") from None
        for path in part.iterdir():
            if path.name not in KEPT:
                path.unlink()
    # Last of all: a picture that cannot be written costs no bitstream.
    if plot is not None and places is not None:
        draw_places(places, board, folder / PLACEMENT, CLOCK_NET, plot)
    return report


def _build(
    top: UARTTop,
    board: Board,
    pll: Clock,
    part: Path,
    seeds: list[int],
    placer: str | None,
    floorplan: int | None,
    any_clock: bool,
    cycles_per_frame: int | None,
    frame: tuple[int, int],
    programs: dict[str, str],
    details: dict[str, Any] | None,
    progress: Progress,
) -> tuple[Report, Floorplan | None]:
    planned = top.resources(board.family)
    if placer is None:
        crowded = floorplan is None and planned.lut > CROWDED * board.budget.lut
        placer = "static" if crowded else "heap"
    aim_hz = TIMING_MARGIN * max(pll.output_hz, board.aim_mhz * 1e6 if any_clock else 0)
    logs = part / "logs"
    logs.mkdir()
    with progress.step("elaborate"):
        platform, elaboratable = board.platform(top, pll)
        plan = platform.prepare(
            elaboratable,
            "top",
            emit_src=False,
            verbose=True,
            script_after_read=HIDE_NAMES,
            script_after_synth="tee -q -o logs/yosys.json stat -json",
            # Missing timing is for the report to judge, not a reason to make no bitstream.
            nextpnr_opts=[
                *("--seed", str(seeds[0]), "--report", PLACEMENT),
                "--timing-allow-fail",
                *PLACERS[placer],
                *ROUTER,
            ],
            add_preferences=f'FREQUENCY NET "{CLOCK_NET}" {aim_hz:.0f} HZ;',
            ecppack_opts="--compress",
        )
        plan.extract(part)
    achieved: dict[int, float] = {}
    placed: Placed | None = None
    places: Floorplan | None = None
    target = pll
    for tool, *arguments in json.loads((part / "build_top.json").read_bytes())["commands"]:
        command = [programs[tool], *arguments]
        with progress.step(tool):
            if tool == NEXTPNR_ECP5.name:
                achieved = _place_and_route(command, seeds, part, progress)
                placed = read_placement(part / PLACEMENT, CLOCK_NET)
                if any_clock:
                    pll = _fastest_clock(board, pll, placed.fmax_mhz, part, command)
            else:
                run(command, folder=part, log=logs / f"{tool}.log", progress=progress)
        if tool == "yosys":
            made = read_statistics(logs / "yosys.json")
            if (made.dsp, made.bram) != (planned.dsp, planned.bram):
                raise BuildFailedError(
                    f"synthesis made {made.dsp} multipliers and {made.bram} block RAMs where "
                    f"{planned.dsp} and {planned.bram} were planned; see {logs / 'yosys.log'}."
                )
            if floorplan is not None:
                with progress.step("floorplan"):
                    places = give_places(part, board, aim_hz, floorplan, progress)
    assert placed is not None
    clock_mhz = pll.output_mhz
    report = Report(
        board=board.name,
        device=board.device,
        target_mhz=target.output_mhz,
        clock_mhz=clock_mhz,
        fmax_mhz=placed.fmax_mhz,
        timing_met=placed.fmax_mhz >= clock_mhz,
        cycles_per_frame=cycles_per_frame,
        frame={"width": frame[0], "height": frame[1]},
        fps=round(clock_mhz * 1e6 / cycles_per_frame, 3) if cycles_per_frame else None,
        dsp=placed.dsp,
        bram=placed.bram,
        lut=placed.lut,
        ff=placed.ff,
        planned={"dsp": planned.dsp, "bram": planned.bram, "lut": planned.lut},
        baud=round(board.uart.baud * pll.output_hz / target.output_hz),
        seed=max(achieved, key=lambda seed: achieved[seed]),
        seeds={str(seed): fmax for seed, fmax in achieved.items()},
        placer=placer,
        floorplan=None if places is None else places.describe(),
        seconds=dict(progress.seconds),
        tool_versions=tool_versions(),
        details=details or {},
    )
    write_json(part / REPORT, report.to_json())
    return report, places


def _fastest_clock(
    board: Board, pll: Clock, fmax_mhz: float, part: Path, command: list[str]
) -> Clock:
    """Give the routed design the highest clock below ``fmax_mhz``; returns its PLL setting."""
    try:
        chosen = board.pll_below(fmax_mhz)
        config = part / (_option(command, "--textcfg") or "")
        text = config.read_text(encoding="utf-8")
        config.write_text(board.makers.retune(text, pll, chosen), encoding="utf-8")
    except (UserError, ValueError, OSError) as error:
        raise BuildFailedError(f"the clock cannot be set: {str(error).rstrip('.')}.") from None
    return chosen


def _place_and_route(
    command: list[str], seeds: list[int], part: Path, progress: Progress
) -> dict[int, float]:
    """Run nextpnr with every seed, several at once, and keep what the fastest one wrote.

    Returns the highest frequency of every seed.
    """
    logs = part / "logs"
    placed, config = PLACEMENT, _option(command, "--textcfg")

    def attempt(seed: int) -> float:
        own = list(command)
        _replace(own, "--seed", str(seed))
        if len(seeds) > 1:
            _replace(own, "--report", f"{placed}.{seed}")
            _replace(own, "--textcfg", f"{config}.{seed}")
            _replace(own, "--log", f"top.tim.{seed}")
        name = f"{NEXTPNR_ECP5.name}.log"
        log = logs / (name if len(seeds) == 1 else f"{name}.{seed}")
        run(own, folder=part, log=log, progress=progress, note=_nextpnr_note)
        report = part / (placed if len(seeds) == 1 else f"{placed}.{seed}")
        return read_placement(report, CLOCK_NET).fmax_mhz

    achieved = dict(zip(seeds, concurrently(attempt, seeds), strict=True))
    if len(seeds) > 1:
        best = max(seeds, key=lambda seed: achieved[seed])
        shutil.copyfile(part / f"{placed}.{best}", part / placed)
        if config is not None:
            (part / f"{config}.{best}").replace(part / config)
    return achieved


def _option(command: list[str], name: str) -> str | None:
    """The value of an option of a command line, if it is there."""
    return command[command.index(name) + 1] if name in command else None


def _replace(command: list[str], name: str, value: str) -> None:
    if name in command:
        command[command.index(name) + 1] = value


def tool_versions() -> dict[str, str]:
    """Versions of everything that shapes a bitstream."""
    versions = {name: importlib.metadata.version(name) for name in ("lichen", "amaranth")}
    for tool in (YOSYS, NEXTPNR_ECP5, ECPPACK):
        versions[tool.name] = tool.version()
    return versions


_STEPS = (
    (r"Promoting|Packing|Info: Annotating", "packing"),
    (r"Placed \d+ cells|at iteration #|simulated annealing|Legaliz", "placing"),
    (r"Routing|iter=\d+|Router", "routing"),
    (r"Critical path|Max frequency", "timing"),
)


def _nextpnr_note(text: str) -> str:
    """What nextpnr is at, from the end of its log."""
    for line in reversed(text.splitlines()):
        for pattern, note in _STEPS:
            if re.search(pattern, line):
                return note
    return ""
