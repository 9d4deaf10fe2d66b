"""``lichen boards``: what bitstreams can be made for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command

if TYPE_CHECKING:
    from lichen.boards.board import Board


@click.command(cls=Command)
@_options.json_file
def command(json_file: str | None) -> None:
    """List the boards that --board takes.

    The last column says which builds are on record for the board's device: plans take their clock
    from these. A board without any is one that nothing was built for yet, and plans count on its
    default clock.
    """
    from lichen.boards.board import BOARDS

    rows = [_describe(board) for board in BOARDS.values()]
    if json_file != "-":
        click.echo(
            f"{'name':15} {'device':15} {'DSP':>4} {'BRAM':>5} {'LUT':>6}  {'links':28} "
            "builds on record"
        )
        for row in rows:
            have = row["budget"]
            links = ", ".join(_told(link) for link in row["links"])
            click.echo(
                f"{row['name']:15} {row['device']:15} {have['dsp']:>4} {have['bram']:>5} "
                f"{have['lut']:>6}  {links:28} {'; '.join(row['builds']) or 'none'}"
            )
    _options.report(rows, json_file, f"{len(rows)} boards")


def _told(link: dict[str, Any]) -> str:
    if link["kind"] == "usb":
        return f"usb {link['speed']} speed"
    return f"{link['kind']} {link['baud'] / 1e6:g} Mbaud"


def _describe(board: Board) -> dict[str, Any]:
    from lichen.boards.build import achieved

    device = achieved.part(board)
    return {
        "name": board.name,
        "title": board.title,
        "device": device,
        "package": board.package,
        "budget": asdict(board.budget),
        "links": [
            {"kind": "uart", "baud": board.uart.baud},
            *([] if board.usb is None else [{"kind": "usb", "speed": board.usb.speed}]),
        ],
        "builds": [
            f"{build.design} ({build.fmax_mhz:g} MHz)"
            for build in achieved.records()
            if build.device == device
        ],
    }
