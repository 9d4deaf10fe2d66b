"""``lichen build``: bitstream and report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError

if TYPE_CHECKING:
    from lichen.boards.board import Board
    from lichen.boards.build.earlier import Earlier
    from lichen.boards.build.flow import Report
    from lichen.boards.design import Design


@click.command(cls=Command)
@_options.net
@_options.board
@click.option(
    "-o", "--output", required=True, metavar="DIR", type=click.Path(path_type=Path),
    help="Folder to write; an earlier build there is replaced.",
)  # fmt: skip
@_options.link
@_options.transforms
@_options.max_width
@_options.multipliers
@_options.folding
@_options.weights
@click.option(
    "--clock", type=float, metavar="MHZ",
    help="System clock [default: the highest that place and route turns out to allow].",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), default=1, show_default=True,
    help="Seed of place and route; the two that follow are tried where the router does not come "
    "to an end.",
)  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Place and route with N seeds, beginning with --seed, as many at once as there are "
    "processors, and keep the fastest.",
)  # fmt: skip
@click.option(
    "--scheduler", metavar="ADDRESS",
    help="Place and route on the workers of a Dask cluster, a seed each [default: here].",
)  # fmt: skip
@click.option(
    "--placer", type=click.Choice(["heap", "static"]),
    help="Of nextpnr: heap minds timing, static spreads designs that the router cannot finish "
    "otherwise [default: heap; without a floorplan static where more than half of the LUTs are "
    "planned].",
)  # fmt: skip
@click.option(
    "--floorplan-seed", type=click.IntRange(min=0), default=1, show_default=True, metavar="SEED",
    help="Seed of the floorplan, which gives multipliers and block RAMs their places.",
)  # fmt: skip
@click.option(
    "--no-floorplan", is_flag=True,
    help="Leave multipliers and block RAMs to nextpnr's placer.",
)  # fmt: skip
@click.option(
    "--placement-from", "earlier_folder", metavar="DIR", type=click.Path(path_type=Path),
    help="An earlier build: taken over if it was made of the same, else its places of multipliers "
    "and block RAMs are, if this design has the same ones.",
)  # fmt: skip
@click.option(
    "--plot", "plot_file", metavar="FILE", type=click.Path(path_type=Path),
    help="Draw the floorplan, and the worst path after routing, here as well as in "
    "DIR/floorplan.png (.svg, .png or .pdf).",
)  # fmt: skip
@click.option(
    "--unit",
    metavar="NAME",
    help="Only this unit of the pipeline (conv1, conv1_norm, ...), alone on the device: no "
    "bitstream.",
)
@click.option(
    "--baseline", metavar="FILE", type=click.Path(path_type=Path),
    help="With --unit: an earlier report; the exit status is 1 if a number is worse by more than "
    "its tolerance.",
)  # fmt: skip
@click.option(
    "--allow-timing-failure", is_flag=True, help="Exit with status 0 even if timing is missed."
)
@_options.json_file
def command(
    net: str,
    board_name: str,
    output: Path,
    link_kind: str,
    transform_name: str,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    weights: str,
    clock: float | None,
    seed: int,
    seeds: int,
    scheduler: str | None,
    placer: str | None,
    floorplan_seed: int,
    no_floorplan: bool,
    earlier_folder: Path | None,
    plot_file: Path | None,
    unit: str | None,
    baseline: Path | None,
    allow_timing_failure: bool,
    json_file: str | None,
) -> None:
    """Synthesize, place and route for a board.

    NET is a network file or the name of a shipped network. DIR gets the bitstream, report.json,
    the Verilog it was made of, the logs of the tools and a picture of the floorplan, and appears
    only when all is there; after a failure the files are in DIR.part.

    Several transforms share the board: each has its own pipeline, the host says which a frame is
    for, and frames per second are those of the slowest.

    With --weights load the bitstream holds no network: encode and decode load the one that they are
    to use, and so does lichen load. Another network of the same shape needs no other bitstream.

    Without --clock the PLL is set, after routing, to the fastest clock it can make that is no
    faster than the design.

    Exit status: 0 only when the bitstream meets timing; 1 when it does not meet --clock (the
    bitstream is written all the same), when a tool fails, or when synthesis makes another number of
    multipliers or block RAMs than planned; 2 for unusable arguments.
    """
    from lichen.boards import board as boards
    from lichen.boards.build.achieved import expected_clock
    from lichen.boards.build.flow import BuildFailedError
    from lichen.boards.build.tools import Progress
    from lichen.boards.design import Bitstream
    from lichen.models import load_network

    board = boards.find(board_name).with_link(link_kind)
    if plot_file is not None:
        _check_plot(plot_file, without=no_floorplan or unit is not None)
    asked = None if clock is None else board.pll(clock)
    names = _options.names_of(transform_name)
    if unit is not None and len(names) > 1:
        raise UserError("--unit builds a unit of one transform; name only that.")
    if unit is not None and scheduler is not None:
        raise UserError("--unit is built here; leave out --scheduler.")
    earlier = _earlier(earlier_folder, without=no_floorplan or unit is not None)
    network = load_network(net)
    loads = weights == "load"
    found = _options.designs_of(
        network, names, board, max_width, multipliers, folding_file, loads=loads
    )
    design = Bitstream(designs=tuple(found))
    promised = asked or board.pll_below(
        expected_clock(
            board,
            design.resources(board),
            foldings=design.foldings,
            cycles_per_frame=design.cycles_per_frame,
        ).limit_mhz
    )
    if unit is not None:
        _build_unit(found[0], unit, board, promised.output_mhz, output, seed, baseline, json_file)
        return
    if baseline is not None:
        raise UserError("--baseline compares the report of a --unit.")
    # Not the promised clock: what is built would hang on what others built before.
    pll = asked or board.pll_below(board.aim_mhz)
    top = design.top(board, pll)
    if clock is not None and abs(pll.output_mhz - clock) > 1e-3:
        click.echo(f"clock: {pll.output_mhz:g} MHz is the nearest below {clock:g}", err=True)
    try:
        report = _build(
            scheduler,
            top=top,
            board=board,
            pll=pll,
            folder=output,
            seed=seed,
            seeds=seeds,
            placer=placer,
            floorplan=None if no_floorplan else floorplan_seed,
            any_clock=asked is None,
            promised_mhz=promised.output_mhz,
            cycles_per_frame=design.cycles_per_frame,
            fps_link=design.fps_link(board),
            details=design.describe(),
            plot=plot_file,
            earlier=earlier,
            progress=Progress(sys.stderr),
        )
    except BuildFailedError as error:
        click.echo(f"lichen: {error}", err=True)
        sys.exit(1)
    have = board.budget
    speed = f", {report.fps:g} frames/s of 768x512" if report.fps is not None else ""
    if report.fps_link is not None:
        speed += f" ({report.fps_link:g} over its link)"
    _options.report(
        report.to_json(),
        json_file,
        f"{output / report.bitstream}: {report.fmax_mhz:g} MHz for a clock of "
        f"{report.clock_mhz:g}{speed}; {report.dsp} of {have.dsp} multipliers, {report.bram} of "
        f"{have.bram} block RAMs, {report.lut} of {have.lut} LUTs "
        f"({report.planned['lut']} planned)",
    )
    _remark_luts(report.lut, report.planned)
    if asked is None and report.clock_mhz < report.target_mhz:
        short = 100 * (1 - report.clock_mhz / report.target_mhz)
        click.echo(
            f"lichen: the clock is {short:.1f} % below the {report.target_mhz:g} MHz of the plan.",
            err=True,
        )
    shortfall = report.shortfall()
    if shortfall is not None:
        click.echo(f"lichen: {shortfall}", err=True)
        if not allow_timing_failure:
            sys.exit(1)


def _build(scheduler: str | None, **arguments: Any) -> Report:
    """`lichen.boards.build.flow.build`, on a cluster if there is one."""
    from lichen.boards.build.cluster import connected
    from lichen.boards.build.flow import build

    if scheduler is None:
        return build(**arguments)
    with connected(scheduler) as cluster:
        return build(cluster=cluster, **arguments)


def _earlier(folder: Path | None, *, without: bool) -> Earlier | None:
    """The build that --placement-from names; UserError where it is none, or of no use."""
    from lichen.boards.build import earlier
    from lichen.boards.build.flow import REPORT

    if folder is None:
        return None
    if without:
        raise UserError("--placement-from needs a floorplan, and this build makes none.")
    return earlier.find(folder, REPORT)


def _check_plot(path: Path, *, without: bool) -> None:
    """UserError, before anything begins, where no floorplan could be drawn into ``path``."""
    from lichen.hw.plan.occupancy import check_kind

    if without:
        raise UserError("--plot draws a floorplan, and this build makes none.")
    check_kind(path)


def _remark_luts(placed: int, planned: dict[str, int]) -> None:
    """Say so where the plan's estimate was off; a bitstream is none the worse for it."""
    from lichen.boards.build.report import lut_remark

    remark = lut_remark(placed, planned["lut"])
    if remark is not None:
        click.echo(f"lichen: {remark}", err=True)


def _build_unit(
    design: Design,
    unit: str,
    board: Board,
    clock_mhz: float,
    output: Path,
    seed: int,
    baseline: Path | None,
    json_file: str | None,
) -> None:
    from lichen.boards.build.flow import TIMING_MARGIN, BuildFailedError
    from lichen.boards.build.tools import Progress
    from lichen.boards.build.unit import TOLERANCES, build_unit

    before = None
    if baseline is not None:
        try:
            before = json.loads(baseline.read_text(encoding="utf-8"))
            usable = all(isinstance(before[metric], (int, float)) for metric in TOLERANCES)
        except OSError as error:
            raise UserError(f"cannot read {baseline}: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError):
            usable = False
        if not usable:
            raise UserError(f"{baseline} is no report of a unit.")
    try:
        report = build_unit(
            design=design,
            unit=unit,
            board=board,
            clock_mhz=clock_mhz * TIMING_MARGIN,
            folder=output,
            seed=seed,
            progress=Progress(sys.stderr),
        )
    except BuildFailedError as error:
        click.echo(f"lichen: {error}", err=True)
        sys.exit(1)
    _options.report(
        report.to_json(),
        json_file,
        f"{unit} alone: {report.fmax_mhz:g} MHz; {report.dsp} multipliers, {report.bram} block "
        f"RAMs, {report.lut} LUTs ({report.planned['lut']} planned), {report.ff} flip-flops",
    )
    _remark_luts(report.lut, report.planned)
    regressions = [] if before is None else report.regressions(before)
    if regressions:
        click.echo(f"lichen: worse than {baseline}: {', '.join(regressions)}.", err=True)
        sys.exit(1)
