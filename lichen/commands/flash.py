"""``lichen flash``: program a board."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from lichen.commands import _options
from lichen.commands._command import Command


@click.command(cls=Command)
@click.argument("source", metavar="DIR|BITSTREAM", type=click.Path(path_type=Path))
@_options.board
@click.option("--dry-run", is_flag=True, help="Print the exact command and run nothing.")
@click.option(
    "--persistent", is_flag=True,
    help="Write the SPI flash, which the board reads when it gets power. A board that is flashed "
    "by its bootloader (OrangeCrab) keeps the bitstream in any case.",
)  # fmt: skip
def command(source: Path, board_name: str, dry_run: bool, persistent: bool) -> None:
    """Load a bitstream into a board, until its power is cut.

    DIR is the folder that `lichen build` made; BITSTREAM a .bit file. Where the board has JTAG, its
    FPGA is asked first whether it is the one that the bitstream is for.
    """
    from lichen.boards import board as boards
    from lichen.boards import flash
    from lichen.boards.build.tools import Progress

    board = boards.find(board_name)
    bitstream = flash.find_bitstream(source, board)
    if dry_run:
        click.echo(shlex.join(flash.command(board, bitstream, persistent=persistent)))
        if board.programmer.dfu is not None:
            click.echo("lichen: the .dfu file is the bitstream with a suffix for bootloaders, "
                       "which flash makes and removes.", err=True)  # fmt: skip
        return
    flash.flash(board, bitstream, Progress(sys.stderr), persistent=persistent)
    click.echo(f"{bitstream} runs on the {board.title}.")
