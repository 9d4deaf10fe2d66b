"""``lichen generate``: Verilog plus an interface description."""

from __future__ import annotations

from pathlib import Path

import click

from lichen.commands import _options
from lichen.commands._command import Command


@click.command(cls=Command)
@click.argument("net", metavar="NET")
@_options.board
@click.option(
    "-o", "--output", required=True, metavar="DIR", type=click.Path(path_type=Path),
    help="Folder to write; an earlier one of the same kind is replaced.",
)  # fmt: skip
@_options.transform
@_options.max_width
@_options.multipliers
@_options.folding
@_options.json_file
def command(
    net: str,
    board_name: str,
    output: Path,
    transform_name: str,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    json_file: str | None,
) -> None:
    """Write the gateware as Verilog with an interface description.

    NET is a network file or the name of a shipped network. DIR gets one Verilog file and
    interface.json: ports, stream protocol, lanes, widths, frame size limits and cycles.
    """
    from lichen.boards import board as boards
    from lichen.boards.generate import generate

    board = boards.find(board_name)
    design = _options.design(net, transform_name, board, max_width, multipliers, folding_file)
    description = generate(design, board, output)
    files = ", ".join(str(output / name) for name in description["files"])
    _options.report(
        description, json_file, f"wrote {files} (module {description['top']}) and interface.json"
    )
