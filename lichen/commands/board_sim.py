"""``lichen board-sim``: a board that needs no desk."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError


@click.command(cls=Command)
@_options.net
@_options.board
@_options.link
@_options.transforms
@_options.max_width
@_options.multipliers
@_options.folding
@_options.weights
@click.option(
    "--speed", type=int, metavar="BAUD",
    help="Rate of the simulated serial line, at most a quarter of the board's oscillator "
    "[default: the board's own].",
)  # fmt: skip
def command(
    net: str,
    board_name: str,
    link_kind: str,
    transform_name: str,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    weights: str,
    speed: int | None,
) -> None:
    """Simulate a whole board, until it is interrupted.

    NET is a network file or the name of a shipped network. The board is complete: what a bitstream
    holds, in Verilator, with models in the place of its pads and its PLL, whose clock is the
    oscillator's. Its serial line is a pseudo-terminal, whose name is printed when it is ready;
    encode and decode take it for --engine. With --link usb there is a host controller behind the
    terminal, and what it drives are the pins of USB. Few multipliers (--multipliers) make for a
    program that is built sooner. With --weights load the board holds nothing at first: --engine
    loads the network that it is asked for.

    A thousand times slower than a board, it goes faster with a faster line (--speed). SIGUSR1 takes
    the PLL's lock away for a moment.
    """
    from lichen.boards import board as boards
    from lichen.boards.design import Bitstream
    from lichen.boards.simulated import board as simulated
    from lichen.models import load_network

    if speed is not None and link_kind != "uart":
        raise UserError("--speed is that of a serial line; USB has but its own.")
    board = simulated.with_baud(boards.find(board_name), speed).with_link(link_kind)
    names = _options.names_of(transform_name)
    network, loads = load_network(net), weights == "load"
    designs = _options.designs_of(
        network, names, board, max_width, multipliers, folding_file, loads=loads
    )
    pll = board.pll(board.oscillator_hz / 1e6)
    click.echo("building the simulation", err=True)
    program = simulated.build(board, Bitstream(designs=tuple(designs)).top(board, pll))
    with simulated.running(program, board) as running:
        click.echo(running.port)
        sys.stdout.flush()
        status = running.process.wait()
    sys.exit(status)
