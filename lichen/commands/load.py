"""``lichen load``: a network into a board that takes it over its link."""

from __future__ import annotations

import time

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError


@click.command(cls=Command)
@_options.net
@click.option(
    "--engine", default="auto", show_default=True, metavar="PORT",
    help="The board's port, as /dev/ttyUSB0; auto: whichever board there is.",
)  # fmt: skip
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(net: str, engine: str, json_file: str | None, quiet: bool) -> None:
    """Load a network into a board.

    NET is a network file or the name of a shipped network. The board's bitstream is one of `lichen
    build --weights load`, and NET has its shape: its stages, kernels, bits and formats, and no more
    channels. All transforms of the board are filled that hold another network; a checksum that the
    board makes itself is compared, and the board keeps the network until it loses its power or its
    clock. `lichen encode` and `lichen decode` do the same when they have to.
    """
    from lichen import boards
    from lichen.models import load_network
    from lichen.network.identity import static_digest

    _options.check_engine(engine)
    if engine in _options.ENGINES:
        raise UserError(f"{engine} is no board; name its port, as /dev/ttyUSB0, or auto.")
    network = load_network(net)
    begin = time.monotonic()
    with boards.open(engine, network) as board:
        with _options.link_progress(network.title, quiet=quiet) as progress:
            board.load(network, progress=progress)
        names = [name for name in board.transforms if board.holds(name)]
        port = board.connection.line.name
    seconds = time.monotonic() - begin
    result = {
        "network": network.title,
        "digest": static_digest(network),
        "board": port,
        "transforms": names,
        "seconds": round(seconds, 3),
    }
    _options.report(
        result,
        json_file,
        f"the board on {port} holds {' and '.join(names)} of {network.title}, {seconds:.2f} s",
    )
