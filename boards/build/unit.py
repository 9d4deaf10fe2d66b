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
from lichen.boards.build.report import OutputError, read_placement
from lichen.boards.build.tools import NEXTPNR_ECP5, YOSYS, Progress, ToolFailedError, run
from lichen.boards.design import Design
from lichen.errors import UserError
from lichen.files import write_json, write_text
from lichen.hw.device import ecp5
from lichen.hw.verilog import emit

DEVICES = {"LFE5U-85F": "--85k", "LFE5U-45F": "--45k", "LFE5U-25F": "--25k", "LFE5U-12F": "--12k"}
"""nextpnr's options, by device."""

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
    names = list(pipeline.stage_resources(board.family))
    if unit not in names:
        raise UserError(f"there is no unit {unit!r}; this pipeline has {', '.join(names)}.")
    part = pipeline.units[names.index(unit)]
    planned = part.resources(board.family)
    programs = {tool.name: tool.find() for tool in (YOSYS, NEXTPNR_ECP5)}
    device = DEVICES[board.device]
    fold = next(
        array
        for stage, name in zip(design.folding.stages, design.transform.stages, strict=True)
        for array, kind in ((stage.convolution, ""), (stage.normalization, "_norm"))
        if array is not None and name.name + kind == unit
    )
    with complete_folder(
        folder, marker=REPORT, field="device", keep_after=(BuildFailedError,)
    ) as work:
        logs = work / "logs"
        logs.mkdir()
        with progress.step("elaborate"):
            write_text(work / "top.v", emit(part, "top", ecp5.Target()))
        script = "read_verilog top.v; synth_ecp5 -top top -json top.json"
        try:
            with progress.step(YOSYS.name):
                run(
                    [programs[YOSYS.name], "-q", "-p", script],
                    folder=work,
                    log=logs / "yosys.log",
                    progress=progress,
                )
            with progress.step(NEXTPNR_ECP5.name):
                run(
                    [
                        *(programs[NEXTPNR_ECP5.name], device, "--package", board.package),
                        *("--speed", board.speed, "--json", "top.json", "--out-of-context"),
                        *("--freq", f"{clock_mhz:g}", "--seed", str(seed)),
                        *("--report", "logs/nextpnr.json", "--timing-allow-fail"),
                    ],
                    folder=work,
                    log=logs / "nextpnr-ecp5.log",
                    progress=progress,
                )
            placed = read_placement(logs / "nextpnr.json", "clk")
        except ToolFailedError as error:
            raise BuildFailedError(str(error)) from None
        except OutputError as error:
            raise BuildFailedError(f"{error}; see {logs}.") from None
        if (placed.dsp, placed.bram) != (planned.dsp, planned.bram):
            raise BuildFailedError(
                f"synthesis made {placed.dsp} multipliers and {placed.bram} block RAMs of {unit} "
                f"where {planned.dsp} and {planned.bram} were planned; see {logs}."
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
            tool_versions=tool_versions(),
        )
        write_json(work / REPORT, report.to_json())
        (work / "top.json").unlink(missing_ok=True)
    return report
