"""One unit of a pipeline, synthesized and placed on its own: seconds instead of an hour.

The unit stands alone on the device, its ports connected to nothing: paths from and to them do
not count, and what it reaches is an upper bound of what it will reach among others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lichen.boards.board import Board
from lichen.boards.build.flow import REPORT, BuildFailedError, tool_versions
from lichen.boards.build.folder import complete_folder
from lichen.boards.build.report import OutputError, Placed
from lichen.boards.build.toolchain import CLOCK_NET, Aim, Toolchain
from lichen.boards.build.tools import Progress, Tool, ToolFailedError, run
from lichen.boards.design import Design
from lichen.errors import UserError
from lichen.files import write_json, write_text
from lichen.hw.verilog import emit

TOLERANCES = {"dsp": 0.0, "bram": 0.0, "lut": 0.05, "ff": 0.05, "fmax_mhz": 0.1}
"""By how much a metric may be worse than its baseline, as a share of it."""


@dataclass(frozen=True, kw_only=True)
class UnitReport:
    """A unit in numbers.

    Attributes
    ----------
    unit, device : str
    fmax_mhz : float
    dsp, bram, lut, ff : int
        Placed.
    planned : dict
        ``dsp``, ``bram`` and ``lut`` the unit had answered for.
    seed : int
        nextpnr's.
    array : dict
        How the unit's array is folded.
    seconds : dict
        Per step.
    tool_versions : dict
    """

    unit: str
    device: str
    fmax_mhz: float
    dsp: int
    bram: int
    lut: int
    ff: int
    planned: dict[str, int]
    seed: int
    array: dict[str, Any]
    seconds: dict[str, float]
    tool_versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-serialisable values."""
        return asdict(self)

    def regressions(self, baseline: dict[str, Any]) -> list[str]:
        """What is worse than in an earlier report, one phrase per metric."""
        found = []
        for metric, tolerance in TOLERANCES.items():
            now, before = getattr(self, metric), baseline[metric]
            sign = -1 if metric == "fmax_mhz" else 1
            if sign * (now - before) > tolerance * before:
                found.append(f"{metric} {now:g} instead of {before:g}")
        return found


def build_unit(
    *,
    design: Design,
    unit: str,
    board: Board,
    clock_mhz: float,
    folder: Path,
    seed: int = 1,
    progress: Progress | None = None,
) -> UnitReport:
    """Synthesize, place and route one unit of a design's pipeline.

    Parameters
    ----------
    design : Design
    unit : str
        ``conv1``, ``conv1_norm``, ... as the plan calls them.
    board : Board
    clock_mhz : float
        What place and route aims at.
    folder : Path
        Appears when all is done; an earlier build there is replaced.
    seed : int
        nextpnr's.
    progress : Progress or None

    Raises
    ------
    UserError
        When there is no such unit, a tool is missing, or the folder cannot be used.
    BuildFailedError
        When a tool fails, or synthesis makes another number of multipliers or block RAMs than
        planned.
    """
    progress = progress or Progress()
    pipeline = design.pipeline()
    if unit not in pipeline.names:
        raise UserError(
            f"there is no unit {unit!r}; this pipeline has {', '.join(pipeline.names)}."
        )
    number = pipeline.names.index(unit)
    part, fold = pipeline.units[number], pipeline.arrays[number]
    planned = part.resources(board.family)
    toolchain = board.makers.toolchain
    aim = Aim(seed=seed, placer=toolchain.placers[0], clock_hz=clock_mhz * 1e6)
    commands = [
        (tool, [tool.find(), *arguments]) for tool, arguments in toolchain.unit_commands(board, aim)
    ]
    with complete_folder(
        folder, marker=REPORT, field="device", keep_after=(BuildFailedError,)
    ) as work:
        (work / "logs").mkdir()
        with progress.step("elaborate"):
            write_text(work / "top.v", emit(part, "top", toolchain.target()))
        placed = _place(toolchain, commands, work, progress)
        if (placed.dsp, placed.bram) != (planned.dsp, planned.bram):
            raise BuildFailedError(
                f"synthesis made {placed.dsp} multipliers and {placed.bram} block RAMs of {unit} "
                f"where {planned.dsp} and {planned.bram} were planned; see {work / 'logs'}."
            )
        report = UnitReport(
            unit=unit,
            device=f"{board.device}-{board.speed}",
            fmax_mhz=placed.fmax_mhz,
            dsp=placed.dsp,
            bram=placed.bram,
            lut=placed.lut,
            ff=placed.ff,
            planned=asdict(planned),
            seed=seed,
            array=fold.model_dump(mode="json"),
            seconds=dict(progress.seconds),
            tool_versions=tool_versions(toolchain),
        )
        write_json(work / REPORT, report.to_json())
        for name in ("top.json", "top.rpt"):
            (work / name).unlink(missing_ok=True)
    return report


def _place(
    toolchain: Toolchain, commands: list[tuple[Tool, list[str]]], work: Path, progress: Progress
) -> Placed:
    """Run the programs in their folder; what place and route says."""
    logs = work / "logs"
    try:
        for tool, command in commands:
            with progress.step(tool.name):
                run(command, folder=work, log=logs / f"{tool.name}.log", progress=progress)
        return toolchain.read_placement(work / toolchain.placement, CLOCK_NET)
    except ToolFailedError as error:
        raise BuildFailedError(str(error)) from None
    except OutputError as error:
        raise BuildFailedError(f"{error}; see {logs}.") from None
