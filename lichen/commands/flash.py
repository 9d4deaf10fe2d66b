"""``lichen flash``: program a board."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from lichen.commands._command import Command


@click.command(cls=Command)
@click.argument("source", metavar="DIR|BITSTREAM", type=click.Path(path_type=Path))
@click.option("--board", "board_name", required=True, help="Board, for example ulx3s-85f.")
@click.option("--dry-run", is_flag=True, help="Print the exact command and run nothing.")
def command(source: Path, board_name: str, dry_run: bool) -> None:
    """Load a bitstream into a board, until its power is cut.

    DIR is the folder that `lichen build` made; BITSTREAM a .bit file.
    """
    from lichen.boards import board as boards
    from lichen.boards import flash
    from lichen.boards.build.tools import Progress

    board = boards.find(board_name)
    bitstream = flash.find_bitstream(source, board)
    if dry_run:
        click.echo(shlex.join(flash.command(board, bitstream)))
        return
    flash.flash(board, bitstream, Progress(sys.stderr))
    click.echo(f"{bitstream} runs on the {board.title}.")
