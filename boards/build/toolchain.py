"""What turns a family's designs into bitstreams: the interface that builds know.

``lichen.boards.FAMILY.family`` holds one as ``toolchain``. Builds (`lichen.boards.build.flow` and
`lichen.boards.build.unit`) know folders, logs, seeds and reports; which programs there are, and
what they are told, is the family's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lichen.boards.build.tools import OPENFPGALOADER, Progress, Tool

if TYPE_CHECKING:
    from amaranth.build import Platform
    from amaranth.build.run import BuildPlan

    from lichen.boards.build.report import Counts, Placed, Used
    from lichen.boards.record import Board

CLOCK_NET = "clk"
"""Net of the ``sync`` domain, which every board's top level defines."""


class Places(Protocol):
    """Places of large cells, chosen before the rest is placed."""

    def describe(self) -> dict[str, Any]:
        """Seed, number of cells and estimates, for a report."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a build is to reach.

    Attributes
    ----------
    seed : int
        Of place and route.
    placer : str
        One of `Toolchain.placers`.
    clock_hz : float
        What place and route aims at.
    """

    seed: int
    placer: str
    clock_hz: float


class Toolchain(Protocol):
    """A family's programs.

    Attributes
    ----------
    tools : tuple of Tool
        All that shape a bitstream, in the order in which they run.
    synthesis, place_and_route : Tool
        Those of them whose results a build looks at.
    placers : tuple of str
        Names of ways to place: the usual one, and one for crowded devices.
    kept : tuple of str
        Files of a complete build that are kept, beside the bitstream, the Verilog and the logs.
    statistics, placement : str
        Where in a build's folder synthesis, and place and route, leave their reports.
    """

    tools: tuple[Tool, ...]
    synthesis: Tool
    place_and_route: Tool
    placers: tuple[str, str]
    kept: tuple[str, ...]
    statistics: str
    placement: str

    def prepare(self, platform: Platform, top: object, aim: Aim) -> BuildPlan:
        """Amaranth's plan of a board's top level; ``build_top.json`` in it has the commands."""

    def seeded(self, command: Sequence[str], seed: int, suffix: str) -> list[str]:
        """The command of place and route with another seed, its results under ``NAME{suffix}``."""

    def inputs(self, command: Sequence[str]) -> tuple[str, ...]:
        """Files in a build's folder that the command of place and route reads."""

    def results(self, command: Sequence[str]) -> tuple[str, ...]:
        """Files that the command of place and route writes for others; the routed design first."""

    def note(self, log: str) -> str:
        """What place and route is at, in a word, from the end of its log."""

    def read_statistics(self, path: Path) -> Counts:
        """What synthesis says; OutputError when it says something else than it used to."""

    def count_units(self, folder: Path) -> dict[str, Used]:
        """What each unit takes in the netlist in a build's folder, by ``TRANSFORM.UNIT``.

        What belongs to none comes last, as `lichen.boards.build.report.REST`. Raises OutputError
        when the netlist is not what synthesis used to write.
        """

    def read_placement(self, path: Path, clock: str) -> Placed:
        """What place and route says of the clock on the net ``clock``; OutputError likewise."""

    def give_places(
        self, folder: Path, board: Board, aim_hz: float, seed: int, progress: Progress
    ) -> Places | None:
        """Choose places between synthesis and placement; None where there is nothing to choose.

        Raises ToolFailedError when there are no places to give, OutputError when the netlist is
        not what synthesis used to write.
        """

    def keep_places(self, places: Any, board: Board) -> dict[str, Any]:
        """What a later build needs to know of places."""

    def take_places(self, folder: Path, board: Board, kept: dict[str, Any]) -> Places:
        """Take those that an earlier build kept, between synthesis and placement.

        Raises PlacesDifferError when they are of another design, OutputError as `give_places`.
        """

    def draw_places(self, places: Any, board: Board, report: Path, path: Path) -> None:
        """Draw them, with the worst path of a report of place and route."""

    def target(self) -> object:
        """What a component is elaborated for that no board is around."""

    def unit_commands(self, board: Board, aim: Aim) -> list[tuple[Tool, list[str]]]:
        """Synthesis, and place and route, of ``top.v`` alone, its ports connected to nothing.

        The latter leaves its report where `placement` says.
        """


def all_tools() -> dict[str, Tool]:
    """Every external program that a board may need, by name."""
    from lichen.boards.board import BOARDS

    families = {board.family.name: board.makers for board in BOARDS.values()}
    tools = [tool for makers in families.values() for tool in makers.toolchain.tools]
    return {tool.name: tool for tool in (*tools, OPENFPGALOADER)}
