"""``lichen plan``: fold a network onto a board, without synthesis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError

if TYPE_CHECKING:
    from lichen.boards.board import Board
    from lichen.boards.build.achieved import Clock
    from lichen.boards.design import Design
    from lichen.hw.device.device import Resources
    from lichen.hw.plan.planner import Plan


@click.command(cls=Command)
@_options.net
@_options.board
@_options.link
@click.option(
    "--transform", "transform_name", metavar="NAME[,NAME...]",
    help="Which transform; of several, g_a,g_s, that they share the board [default: all there are, "
    "each with the board to itself; g_a with --folding or --plot].",
)  # fmt: skip
@_options.max_width
@_options.multipliers
@_options.folding
@_options.weights
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
    link_kind: str,
    transform_name: str | None,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    weights: str,
    clock: float | None,
    plot_file: Path | None,
    json_file: str | None,
) -> None:
    """Fold a network onto a board: cycles, resources, frames per second.

    NET is a network file or the name of a shipped network. Without --transform, encoder and decoder
    are planned side by side, each with the whole board to itself; transforms named together share
    it. Cycles are those of one 768x512 image, with all tiles and their halos where it is wider than
    --max-width. Multipliers and block RAMs are exact, LUTs an estimate. Without --clock the frame
    rate is that of a clock that place and route has reached on this device; a line says where.

    Exit status: 0 when the plan fits the board, 1 when it does not, 2 for unusable arguments.
    """
    from lichen.boards import board as boards
    from lichen.boards.build.achieved import Clock, clock_of_plans
    from lichen.boards.link.filler import loading_resources
    from lichen.hw.device.device import Resources
    from lichen.hw.plan.planner import evaluate
    from lichen.models import load_network
    from lichen.network.description import LATENTS
    from lichen.network.flow import ORDER

    board = boards.find(board_name).with_link(link_kind)
    if plot_file is not None:
        from lichen.hw.plan.occupancy import check_kind

        check_kind(plot_file)
    asked = None if clock is None else board.pll(clock)
    network = load_network(net)
    if plot_file is not None and transform_name is not None and "," in transform_name:
        raise UserError("--plot draws one transform; name only that.")
    # A folding and a drawing are of one transform.
    if transform_name is None and (folding_file is not None or plot_file is not None):
        transform_name = LATENTS[0].analysis
    if transform_name is None:
        groups = [[name] for name in ORDER if name in network.transforms]
    else:
        groups = [_options.names_of(transform_name)]
    loads = weights == "load"
    reports: dict[str, Any] = {}
    sentences = []
    together = None
    for names in groups:
        designs = _options.designs_of(
            network, names, board, max_width, multipliers, folding_file, loads=loads
        )
        plans = [evaluate(d.transform, d.folding, d.frame, device=board.family) for d in designs]
        shared = Resources.total(plan.resources for plan in plans)
        known = (
            clock_of_plans(board, plans)
            if asked is None
            else Clock(limit_mhz=asked.output_mhz, source="as asked for")
        )
        pll = board.pll_below(known.limit_mhz) if asked is None else asked
        for design, plan in zip(designs, plans, strict=True):
            report = _report(design, plan, board, pll.output_hz, known, shared)
            reports[design.transform_name] = report
            if json_file != "-":
                _print_table(report["stages"])
            if plot_file is not None:
                from lichen.hw.plan.occupancy import draw

                title = f"{design.name} {design.transform_name} on {board.title}"
                draw(plan, pll.output_hz, title, plot_file)
            sentence = _sentence(report, board, known)
            if loads:
                fixed = evaluate(
                    network.transform(design.transform_name),
                    design.folding,
                    design.frame,
                    device=board.family,
                ).resources
                link = loading_resources([len(design.transform.stages)], board.family)
                report["weights_load"] = _difference(plan.resources + link, fixed)
                sentence += f"\n{_load_sentence(report['weights_load'])}"
            sentences.append(sentence)
        if len(plans) > 1:
            together = _together(reports, shared)
            sentences.append(_together_sentence(together, board))
    if transform_name is not None and together is None:
        result = next(iter(reports.values()))
    else:
        result = {"transforms": reports} | ({"together": together} if together else {})
    _options.report(result, json_file, "\n\n".join(sentences))
    click.get_current_context().exit(0 if all(r["fits"] for r in reports.values()) else 1)


def _report(
    design: Design, plan: Plan, board: Board, clock_hz: float, clock: Clock, shared: Resources
) -> dict[str, Any]:
    """The plan of a transform as JSON-serialisable values.

    ``shared`` is what all take that are on the board with it.
    """
    from lichen.boards.design import binds

    overruns = board.pipeline_budget.overruns(shared)
    alone = shared == plan.resources
    described, fps_link = plan.describe(clock_hz), design.fps_link(board)
    return {
        "network": design.name,
        "transform": design.transform_name,
        "board": board.name,
        **described,
        "link": board.link.kind,
        "fps_link": fps_link,
        "binds": binds(described["fps"], fps_link),
        "clock_source": clock.source,
        "clock_interval_mhz": clock.interval_mhz,
        "fits": not overruns,
        "overruns": overruns,
        "bound_by": plan.bounds(board.roomy_budget) if alone else [],
        "folding": plan.folding.model_dump(mode="json"),
    }


def _difference(loaded: Resources, fixed: Resources) -> dict[str, int]:
    """What constants filled in at run time cost more than those in the gateware, folded alike."""
    return {name: getattr(loaded, name) - getattr(fixed, name) for name in ("dsp", "bram", "lut")}


def _load_sentence(more: dict[str, int]) -> str:
    return (
        f"weights filled in at run time, with this folding: {more['bram']:+d} block RAMs, "
        f"about {more['lut']:+d} LUTs, {more['dsp']:+d} multipliers, no cycles"
    )


def _together(reports: dict[str, Any], shared: Resources) -> dict[str, Any]:
    """What transforms take that share a board, and the frame rate of the slowest."""
    first = next(iter(reports.values()))
    return {
        "dsp": shared.dsp,
        "bram": shared.bram,
        "lut": shared.lut,
        "fps": min(report["fps"] for report in reports.values()),
        "fits": first["fits"],
        "overruns": first["overruns"],
    }


def _together_sentence(together: dict[str, Any], board: Board) -> str:
    have = board.budget
    verdict = "fits" if together["fits"] else f"does not fit: {', '.join(together['overruns'])}"
    return (
        f"together: {together['dsp']} of {have.dsp} multipliers, {together['bram']} of {have.bram} "
        f"block RAMs, about {together['lut']} of {have.lut} LUTs; {verdict}"
    )


def _sentence(report: dict[str, Any], board: Board, clock: Clock) -> str:
    """What a report says, for the user."""
    have, bounds = board.budget, report["bound_by"]
    verdict = "fits" if report["fits"] else f"does not fit: {', '.join(report['overruns'])}"
    return (
        f"{report['network']} {report['transform']} on {board.title}: "
        f"{report['cycles_per_frame']} cycles per "
        f"768x512 image, {report['fps']:.2f} frames/s at {report['clock_mhz']:g} MHz; "
        f"{report['dsp']} of {have.dsp} multipliers, {report['bram']} of {have.bram} "
        f"block RAMs, about {report['lut']} of {have.lut} LUTs; {verdict}\n"
        f"tiles: {_tiles(report)}\nlink: {_link(report, board)}\n"
        f"clock: {clock.source}{_interval(clock)}"
        + (f"\nheld back by: {'; '.join(bounds)}" if bounds else "")
        + _advice(report, board.pipeline_budget.bram)
    )


def _link(report: dict[str, Any], board: Board) -> str:
    """What the way to the host has time for."""
    rate = report["fps_link"]
    told = "too narrow a build" if rate is None else f"{rate:.2f} frames/s"
    slow = ", slower than the engine" if report["binds"] == "link" else ""
    return f"{told} over {board.link.title}{slow}"


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
    """What would help where weights fill most of the block RAM, or do not fit it."""
    weights = sum(row["bram_weights"] for row in report["stages"])
    if weights > blocks:
        return (
            f"\nthe weights alone take {weights} block RAMs, and there are {blocks} for them: "
            "narrower weights (lichen quantize --weight-bits), fewer channels (lichen slim) or a "
            "larger board would help"
        )
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
