"""From a top level to a bitstream: Amaranth's build plan, run tool by tool, and its report.

The output folder appears complete or not at all: everything is made in ``DIR.part``, which
takes the name ``DIR`` at the end. After a failure ``DIR.part`` stays, for its logs; the next
build replaces it.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lichen.boards.build.cluster import Cluster
from lichen.boards.build.earlier import (
    PLACES,
    Earlier,
    PlacesDifferError,
    digest_of,
    sha256_of,
)
from lichen.boards.build.folder import complete_folder
from lichen.boards.build.report import OutputError, Placed, Used
from lichen.boards.build.toolchain import CLOCK_NET, Aim, Places, Toolchain
from lichen.boards.build.tools import Progress, StuckError, ToolFailedError, run
from lichen.boards.design import FRAME, binds, check_fits
from lichen.boards.record import Board, Clock
from lichen.boards.top import Top
from lichen.errors import UserError
from lichen.files import write_json
from lichen.network.model import Field, Model, ValidationError
from lichen.processes import concurrently

REPORT = "report.json"
BITSTREAM = "top.bit"
PICTURE = "floorplan.png"
"""The floorplan, drawn; `lichen report` shows it."""

KEPT = (BITSTREAM, "top.v", REPORT, PLACES, PICTURE, "logs")
"""What stays in the folder of a complete build, beside what its toolchain keeps."""

MORE_SEEDS = 2
"""How many are tried after one with which routing does not come to an end."""

CROWDED = 0.5
"""Share of the lookup tables above which a design without a floorplan is spread."""

TIMING_MARGIN = 1.1
"""Place and route aims this much above the clock: that is what makes it meet the clock."""


class BuildFailedError(Exception):
    """The design could not be built; the message is one sentence, and the files are kept."""


class Report(Model):
    """A build in numbers; the fields are those of ``report.json``.

    Attributes
    ----------
    board, device : str
    target_mhz : float
        Frequency of the system clock that the plan promised.
    clock_mhz : float
        Frequency of the system clock: that of the caller, or where the build was free to choose the
        highest the PLL can make that is no higher than ``fmax_mhz``.
    fmax_mhz : float
        Highest frequency nextpnr vouches for.
    timing_met : bool
        ``fmax_mhz >= clock_mhz``, and no other clock is slow.
    slow_clocks : list of str
        Nets of other clocks, USB's or the oscillator's, that do not reach their frequency.
    cycles_per_frame : int or None
        Of a frame of the size ``frame``; None if unknown.
    frame : dict
        ``width`` and ``height`` in pixels.
    fps : float or None
        Frames per second at ``clock_mhz``, of the pipeline itself.
    fps_link : float or None
        Frames per second that the link has time for, from the caller.
    binds : str or None
        The slower of both: ``engine`` or ``link``.
    dsp, bram, lut, ff : int
        Placed: 18x18 multipliers, block RAMs, 4-input LUTs, flip-flops.
    planned : dict
        ``dsp``, ``bram`` and ``lut`` that the design itself had answered for; the first two
        are equal to the placed ones, ``lut`` is an estimate.
    link : dict
        ``bram`` and ``lut`` of these that are the host link's.
    link_kind : str
        ``uart`` or ``usb``.
    baud : int
        Bits a second of the link.
    seed : int
        nextpnr's, of the placement that was kept.
    seeds : dict
        The highest frequency of every seed that was tried, by seed.
    placer : str
        One of the toolchain's.
    floorplan : dict or None
        Seed, number of macros and estimates of the floorplan; None without one.
    units : dict
        ``dsp``, ``bram``, ``lut`` and ``ff`` after synthesis, by ``TRANSFORM.UNIT``; what belongs
        to none is ``link``.
    seconds : dict
        Per step.
    tool_versions : dict
    inputs : str
        SHA-256 of all that the bitstream depends on: the design, the options, the tools' versions.
    reused : str or None
        What is an earlier build's: ``build``, all of it, or ``places``, those of multipliers and
        block RAMs.
    bitstream : str
        File in the build's folder.
    bitstream_sha256 : str
    details : dict
        What the caller knows of the design: network, digest, folding, ...
    """

    board: str
    device: str
    target_mhz: float
    clock_mhz: float
    fmax_mhz: float
    timing_met: bool
    slow_clocks: list[str]
    cycles_per_frame: int | None
    frame: dict[str, int]
    fps: float | None
    fps_link: float | None
    binds: str | None
    dsp: int
    bram: int
    lut: int
    ff: int
    planned: dict[str, int]
    link: dict[str, int]
    link_kind: str
    baud: int
    seed: int
    seeds: dict[str, float]
    placer: str
    floorplan: dict[str, Any] | None
    units: dict[str, dict[str, int]]
    seconds: dict[str, float]
    tool_versions: dict[str, str]
    inputs: str
    reused: str | None
    bitstream_sha256: str
    bitstream: str = BITSTREAM
    details: dict[str, Any] = Field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-serialisable values, ``details`` merged in."""
        fields = self.model_dump()
        return fields.pop("details") | fields

    def shortfall(self) -> str | None:
        """By how much timing is missed, as a sentence; None if it is met."""
        if self.timing_met:
            return None
        if self.slow_clocks:
            return (
                f"timing is missed: {' and '.join(self.slow_clocks)} does not reach its "
                "frequency; the bitstream is there, but may not work."
            )
        percent = 100 * (1 - self.fmax_mhz / self.clock_mhz)
        return (
            f"timing is missed: {self.fmax_mhz:.1f} MHz of the {self.clock_mhz:g} MHz wanted, "
            f"{percent:.1f} % short; the bitstream is there, but may not work at this clock."
        )


def build(
    *,
    top: Top,
    board: Board,
    pll: Clock,
    folder: Path,
    seed: int = 1,
    seeds: int = 1,
    cluster: Cluster | None = None,
    placer: str | None = None,
    floorplan: int | None = 1,
    any_clock: bool = False,
    promised_mhz: float | None = None,
    cycles_per_frame: int | None = None,
    fps_link: float | None = None,
    frame: tuple[int, int] = FRAME,
    details: dict[str, Any] | None = None,
    plot: Path | None = None,
    earlier: Earlier | None = None,
    progress: Progress | None = None,
) -> Report:
    """Synthesize, place, route and pack.

    Parameters
    ----------
    top : Top
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
    cluster : Cluster or None
        Place and route there instead.
    placer : str or None
        One of the toolchain's; None spreads what is `CROWDED` and has no floorplan.
    floorplan : int or None
        Seed of the floorplan of multipliers and block RAMs; None leaves them to nextpnr.
    any_clock : bool
        The bitstream gets the highest clock that turns out to be safe, be it higher or lower than
        that of ``pll``, at which place and route aim.
    promised_mhz : float or None
        What the plan said, for the report; None where it said that of ``pll``.
    cycles_per_frame : int or None
        Of a frame of the given size, for the report.
    fps_link : float or None
        Frames per second that the link has time for, for the report.
    frame : (int, int)
        Width and height in pixels.
    details : dict
        More fields for the report.
    plot : Path or None
        Where else to draw the floorplan, with the worst path of the placement that was kept.
    earlier : Earlier or None
        A build that is taken over if its inputs are the same; if not, its places of multipliers
        and block RAMs are if this design has the same. ``progress`` tells which, or why neither.
        May be the one in ``folder``.
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
    toolchain = board.makers.toolchain
    programs = {tool.name: tool.find() for tool in toolchain.tools}
    with complete_folder(
        folder, marker=REPORT, field="device", keep_after=(BuildFailedError,)
    ) as part:
        run = _Run(
            top=top,
            board=board,
            target=pll,
            folder=part,
            seeds=tuple(range(seed, seed + seeds)),
            cluster=cluster,
            placer=placer,
            floorplan=floorplan,
            any_clock=any_clock,
            promised_mhz=pll.output_mhz if promised_mhz is None else promised_mhz,
            programs=programs,
            progress=progress,
            fps_link=fps_link,
            earlier=earlier,
        )
        try:
            report = run(cycles_per_frame, frame, details or {})
        except ToolFailedError as error:
            raise BuildFailedError(str(error)) from None
        except OutputError as error:
            raise BuildFailedError(f"{error}; see {part / 'logs'}.") from None
        for path in part.iterdir():
            if path.name not in (*KEPT, *toolchain.kept):
                path.unlink()
    # Last of all: a picture that cannot be written costs no bitstream.
    if run.places is not None:
        own = [] if report.reused == "build" else [folder / PICTURE]
        for path in (*own, *([] if plot is None else [plot])):
            toolchain.draw_places(run.places, board, folder / toolchain.placement, path)
    return report


@dataclass(kw_only=True)
class _Run:
    """A build on its way; fields are `build`'s, ``target`` its ``pll``."""

    top: Top
    board: Board
    target: Clock
    folder: Path
    seeds: tuple[int, ...]
    cluster: Cluster | None
    placer: str | None
    floorplan: int | None
    any_clock: bool
    promised_mhz: float
    programs: dict[str, str]
    progress: Progress
    fps_link: float | None
    earlier: Earlier | None = None
    versions: dict[str, str] = field(default_factory=dict)
    inputs: str = ""
    reused: str | None = None
    places: Places | None = None
    units: dict[str, Used] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.toolchain = self.board.makers.toolchain
        self.planned = self.top.resources(self.board.family)
        self.logs = self.folder / "logs"
        usual, spread = self.toolchain.placers
        crowded = self.planned.lut > CROWDED * self.board.budget.lut
        fallback = spread if crowded and self.floorplan is None else usual
        self.aim = Aim(
            seed=self.seeds[0],
            placer=fallback if self.placer is None else self.placer,
            clock_hz=TIMING_MARGIN * self.target.output_hz,
        )

    def __call__(
        self, cycles_per_frame: int | None, frame: tuple[int, int], details: dict[str, Any]
    ) -> Report:
        """Everything, up to the report."""
        self.logs.mkdir()
        with self.progress.step("elaborate"):
            platform, elaboratable = self.board.platform(self.top, self.target)
            self.toolchain.prepare(platform, elaboratable, self.aim).extract(self.folder)
        self.versions = tool_versions(self.toolchain)
        self.inputs = self._inputs()
        if self.earlier is not None and self.earlier.report.get("inputs") == self.inputs:
            taken = self._take_over(self.earlier, cycles_per_frame, frame, details)
            if taken is not None:
                return taken
        pll, achieved, placed = self.target, dict[int, float](), None
        plan = json.loads((self.folder / "build_top.json").read_bytes())
        for tool, *arguments in plan["commands"]:
            command = [self.programs[tool], *arguments]
            with self.progress.step(tool):
                if tool == self.toolchain.place_and_route.name:
                    achieved = self._place_and_route(command)
                    placed = self._placed(self.toolchain.placement)
                    if self.any_clock:
                        pll = self._fastest_clock(placed.fmax_mhz, command)
                else:
                    log = self.logs / f"{tool}.log"
                    run(command, folder=self.folder, log=log, progress=self.progress)
            if tool == self.toolchain.synthesis.name:
                self._synthesized()
        assert placed is not None
        report = self._report(pll, achieved, placed, cycles_per_frame, frame, details)
        write_json(self.folder / REPORT, report.to_json())
        return report

    def _inputs(self) -> str:
        """See `Report.inputs`; before anything but the design is in the folder."""
        versions = {tool.name: self.versions[tool.name] for tool in self.toolchain.tools}
        settings = [self.board.name, self.board.device, self.seeds, self.floorplan, self.any_clock]
        files = (path for path in self.folder.iterdir() if path.is_file())
        return digest_of(files, [versions, *settings])

    def _take_over(
        self,
        earlier: Earlier,
        cycles_per_frame: int | None,
        frame: tuple[int, int],
        details: dict[str, Any],
    ) -> Report | None:
        """Copy a build of the same inputs; returns its report, or None if it is not whole."""
        told = earlier.report
        try:
            former = Report(**{name: told[name] for name in Report.model_fields if name in told})
        except ValidationError:
            former = None
        if former is None or not earlier.whole:
            self.progress.say(f"{earlier.folder} was made of the same, but its files are damaged")
            return None
        self.progress.say(f"{earlier.folder} was made of the same: its bitstream is taken over")
        earlier.copy(self.folder, (*KEPT, *self.toolchain.kept))
        report = former.model_copy(
            update={
                **self._speed(former.clock_mhz, cycles_per_frame, frame),
                "target_mhz": self.promised_mhz,
                "seconds": dict(self.progress.seconds),
                "reused": "build",
                "details": details,
            }
        )
        write_json(self.folder / REPORT, report.to_json())
        return report

    def _earlier_places(self, earlier: Earlier) -> Places | None:
        """Places of an earlier build, if this design has the same multipliers and block RAMs."""
        try:
            found = self.toolchain.take_places(self.folder, self.board, earlier.places())
        except PlacesDifferError as error:
            self.progress.say(f"nothing of {earlier.folder} is taken over: {error}")
            return None
        self.progress.say(
            f"{earlier.folder} was made of other logic: the places of its multipliers and block "
            "RAMs are taken over, the rest is placed anew"
        )
        self.reused = "places"
        return found

    def _synthesized(self) -> None:
        """Hold what synthesis made to the plan; choose places."""
        made = self.toolchain.read_statistics(self.folder / self.toolchain.statistics)
        if (made.dsp, made.bram) != (self.planned.dsp, self.planned.bram):
            raise BuildFailedError(
                f"synthesis made {made.dsp} multipliers and {made.bram} block RAMs where "
                f"{self.planned.dsp} and {self.planned.bram} were planned; see "
                f"{self.logs / self.toolchain.synthesis.name}.log."
            )
        self.units = self.toolchain.count_units(self.folder)
        if self.floorplan is not None:
            with self.progress.step("floorplan"):
                if self.earlier is not None:
                    self.places = self._earlier_places(self.earlier)
                self.places = self.places or self.toolchain.give_places(
                    self.folder, self.board, self.aim.clock_hz, self.floorplan, self.progress
                )
        if self.places is not None:
            write_json(self.folder / PLACES, self.toolchain.keep_places(self.places, self.board))

    def _place_and_route(self, command: list[str]) -> dict[int, float]:
        """Place and route; with the seeds that follow, where one alone does not come to an end.

        Returns the highest frequency of every seed.
        """
        for _ in range(MORE_SEEDS if len(self.seeds) == 1 else 0):
            try:
                return self._seeds(command)
            except StuckError as error:
                (seed,) = self.seeds
                self.seeds = (seed + 1,)
                log = self.logs / f"{self.toolchain.place_and_route.name}.log"
                kept = log.replace(log.with_name(f"{log.name}.{seed}"))
                said = str(error).rstrip(".").replace(str(log), str(kept))
                self.progress.say(f"seed {seed}: {said}; trying seed {seed + 1}")
        return self._seeds(command)

    def _seeds(self, command: list[str]) -> dict[int, float]:
        """Place and route with every seed, several at once, and keep what the fastest one wrote.

        Returns the highest frequency of every seed that came to an end.
        """
        toolchain, several = self.toolchain, len(self.seeds) > 1
        stuck: dict[int, StuckError] = {}
        suffixes = {seed: f".{seed}" if several else "" for seed in self.seeds}
        logs = {
            seed: self.logs / f"{toolchain.place_and_route.name}.log{suffix}"
            for seed, suffix in suffixes.items()
        }

        def attempt(seed: int) -> None:
            try:
                run(
                    toolchain.seeded(command, seed, suffixes[seed]),
                    folder=self.folder,
                    log=logs[seed],
                    progress=self.progress,
                    note=toolchain.note,
                    stuck=toolchain.place_and_route.stuck,
                )
            except StuckError as error:
                stuck[seed] = error

        if self.cluster is None:
            concurrently(attempt, self.seeds)
        else:
            written = (toolchain.placement, *toolchain.results(command))
            self.cluster.run(
                tool=toolchain.place_and_route,
                arguments=[toolchain.seeded(command, *own)[1:] for own in suffixes.items()],
                results=[[f"{name}{own}" for name in written] for own in suffixes.values()],
                logs=list(logs.values()),
                inputs=toolchain.inputs(command),
                folder=self.folder,
                progress=self.progress,
            )
        if len(stuck) == len(self.seeds):
            raise stuck[self.seeds[0]]
        achieved = {
            seed: self._placed(f"{toolchain.placement}{suffix}").fmax_mhz
            for seed, suffix in suffixes.items()
            if seed not in stuck
        }
        if several:
            best = max(achieved, key=lambda seed: achieved[seed])
            placed = self.folder / toolchain.placement
            shutil.copyfile(f"{placed}.{best}", placed)
            for name in toolchain.results(command):
                (self.folder / f"{name}.{best}").replace(self.folder / name)
        return achieved

    def _placed(self, report: str) -> Placed:
        return self.toolchain.read_placement(self.folder / report, CLOCK_NET)

    def _fastest_clock(self, fmax_mhz: float, command: list[str]) -> Clock:
        """Give the routed design the highest clock below ``fmax_mhz``; returns that."""
        try:
            chosen = self.board.pll_below(fmax_mhz)
            routed = self.folder / self.toolchain.results(command)[0]
            text = routed.read_text(encoding="utf-8")
            changed = self.board.makers.retune(text, self.target, chosen)
            routed.write_text(changed, encoding="utf-8")
        except (UserError, ValueError, OSError) as error:
            raise BuildFailedError(f"the clock cannot be set: {str(error).rstrip('.')}.") from None
        return chosen

    def _report(
        self,
        pll: Clock,
        achieved: dict[int, float],
        placed: Placed,
        cycles_per_frame: int | None,
        frame: tuple[int, int],
        details: dict[str, Any],
    ) -> Report:
        board, planned, clock_mhz = self.board, self.planned, pll.output_mhz
        link = self.top.link_resources(board.family)
        return Report(
            board=board.name,
            device=board.device,
            target_mhz=self.promised_mhz,
            clock_mhz=clock_mhz,
            fmax_mhz=placed.fmax_mhz,
            timing_met=placed.fmax_mhz >= clock_mhz and not placed.slow,
            slow_clocks=list(placed.slow),
            **self._speed(clock_mhz, cycles_per_frame, frame),
            dsp=placed.dsp,
            bram=placed.bram,
            lut=placed.lut,
            ff=placed.ff,
            planned={"dsp": planned.dsp, "bram": planned.bram, "lut": planned.lut},
            link={"bram": link.bram, "lut": link.lut},
            link_kind=board.link.kind,
            baud=board.link.line_hz,
            seed=max(achieved, key=lambda seed: achieved[seed]),
            seeds={str(seed): fmax for seed, fmax in achieved.items()},
            placer=self.aim.placer,
            floorplan=None if self.places is None else self.places.describe(),
            units={name: asdict(used) for name, used in self.units.items()},
            seconds=dict(self.progress.seconds),
            tool_versions=self.versions,
            inputs=self.inputs,
            reused=self.reused,
            bitstream_sha256=sha256_of(self.folder / BITSTREAM),
            details=details,
        )

    def _speed(
        self, clock_mhz: float, cycles_per_frame: int | None, frame: tuple[int, int]
    ) -> dict[str, Any]:
        """The report's fields of how fast frames are."""
        fps = round(clock_mhz * 1e6 / cycles_per_frame, 3) if cycles_per_frame else None
        return {
            "cycles_per_frame": cycles_per_frame,
            "frame": {"width": frame[0], "height": frame[1]},
            "fps": fps,
            "fps_link": None if self.fps_link is None else round(self.fps_link, 3),
            "binds": binds(fps, self.fps_link),
        }


def tool_versions(toolchain: Toolchain) -> dict[str, str]:
    """Versions of everything that shapes a bitstream."""
    versions = {name: importlib.metadata.version(name) for name in ("lichen", "amaranth")}
    for tool in toolchain.tools:
        versions[tool.name] = tool.version()
    return versions
