"""``lichen plan``: fold a network onto a board, without synthesis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command

if TYPE_CHECKING:
    from lichen.boards.build.achieved import Clock


@click.command(cls=Command)
@click.argument("net", metavar="NET")
@_options.board
@_options.transform
@_options.max_width
@_options.multipliers
@_options.folding
@click.option(
    "--clock", type=float, metavar="MHZ",
    help="System clock [default: what a build of this device, as full as this plan, has achieved].",
)  # fmt: skip
@click.option(
    "--plot", "plot_file", metavar="FILE", type=click.Path(path_type=Path),
    help="Draw which array works when over a frame (.svg, .png or .pdf).",
)  # fmt: skip
@_options.json_file
def command(
    net: str,
    board_name: str,
    transform_name: str,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    clock: float | None,
    plot_file: Path | None,
    json_file: str | None,
) -> None:
    """Fold a network onto a board: cycles, resources, frames per second.

    NET is a network file or the name of a shipped network. Cycles are those of one 768x512 image,
    with all tiles and their halos where it is wider than --max-width. Multipliers and block RAMs
    are exact, LUTs an estimate. Without --clock the frame rate is that of a clock that place and
    route has reached on this device; the last line says where.

    Exit status: 0 when the plan fits the board, 1 when it does not, 2 for unusable arguments.
    """
    from lichen.boards import board as boards
    from lichen.boards.build.achieved import Clock, expected_clock
    from lichen.hw.plan.planner import evaluate

    board = boards.find(board_name)
    if plot_file is not None:
        from lichen.hw.plan.occupancy import check_kind

        check_kind(plot_file)
    asked = None if clock is None else board.pll(clock)
    design = _options.design(net, transform_name, board, max_width, multipliers, folding_file)
    plan = evaluate(design.transform, design.folding, design.frame, device=board.family)
    overruns = board.pipeline_budget.overruns(plan.resources)
    bounds = plan.bounds(board.pipeline_budget)
    if asked is None:
        known = expected_clock(
            board,
            plan.resources,
            folding=plan.folding,
            cycles_per_frame=plan.cycles_per_frame,
        )
        pll = board.pll_below(known.limit_mhz)
    else:
        pll, known = asked, Clock(limit_mhz=asked.output_mhz, source="as asked for")
    report = {
        "network": design.name,
        "transform": transform_name,
        "board": board.name,
        **plan.describe(pll.output_hz),
        "clock_source": known.source,
        "clock_interval_mhz": known.interval_mhz,
        "fits": not overruns,
        "overruns": overruns,
        "bound_by": bounds,
        "folding": plan.folding.model_dump(mode="json"),
    }
    if json_file != "-":
        _print_table(report["stages"])
    if plot_file is not None:
        from lichen.hw.plan.occupancy import draw

        draw(plan, pll.output_hz, f"{design.name} {transform_name} on {board.title}", plot_file)
    verdict = "fits" if not overruns else f"does not fit: {', '.join(overruns)}"
    have = board.budget
    _options.report(
        report,
        json_file,
        f"{design.name} {transform_name} on {board.title}: {plan.cycles_per_frame} cycles per "
        f"768x512 image, {report['fps']:.2f} frames/s at {report['clock_mhz']:g} MHz; "
        f"{plan.resources.dsp} of {have.dsp} multipliers, {plan.resources.bram} of {have.bram} "
        f"block RAMs, about {plan.resources.lut} of {have.lut} LUTs; {verdict}\n"
        f"tiles: {_tiles(report)}\nclock: {known.source}{_interval(known)}"
        + (f"\nheld back by: {'; '.join(bounds)}" if bounds else "")
        + _advice(report, have.bram),
    )
    click.get_current_context().exit(1 if overruns else 0)


def _interval(clock: Clock) -> str:
    """Between what a build may come out, where that is not known."""
    if clock.interval_mhz is None:
        return ""
    low, high = clock.interval_mhz
    return f"; a build may come out between {low:g} and {high:g} MHz"


def _tiles(report: dict[str, Any]) -> str:
    """How a wide image goes through, and what that costs."""
    if report["tiles"] == 1:
        return f"none, the image goes through as a whole ({report['tile_width']} columns)"
    return (
        f"{report['tiles']} of {report['tile_width']} columns; "
        f"{100 * report['halo_share']:.0f} % of the work is their overlap"
    )


def _advice(report: dict[str, Any], blocks: int) -> str:
    """What would help where weights fill most of the block RAM."""
    weights = sum(row["bram_weights"] for row in report["stages"])
    bounds = report["bound_by"]
    if not bounds or any(not phrase.startswith("block RAMs") for phrase in bounds):
        return ""
    if weights < blocks * WEIGHTS_SHARE:
        return ""
    return (
        f"\nweights take {weights} of {blocks} block RAMs and leave little for rows of pixels: "
        "narrower weights (lichen quantize --weight-bits) make for wider tiles and more speed"
    )


WEIGHTS_SHARE = 0.6
"""Of the block RAMs: where weights take more, rows of pixels suffer."""


def _print_table(stages: list[dict[str, Any]]) -> None:
    """The arrays, one line each."""
    click.echo(
        f"{'unit':14} {'P x Q x S':>12} {'back-end':>8} {'busy':>6} {'dsp':>4} {'bram':>5} "
        f"{'lut':>6}"
    )
    for row in stages:
        array = f"{row['pixels']} x {row['channels']} x {row['lanes']}"
        click.echo(
            f"{row['name']:14} {array:>12} {row['backend']:>8} {row['busy']:>6.1%} "
            f"{row['dsp']:>4} {row['bram']:>5} {row['lut']:>6}"
        )
