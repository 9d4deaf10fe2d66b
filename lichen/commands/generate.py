"""``lichen generate``: Verilog plus an interface description."""

from __future__ import annotations

from pathlib import Path

import click

from lichen import completion
from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError


@click.command(cls=Command)
@_options.net
@click.option(
    "--board",
    "board_name",
    shell_complete=completion.boards,
    help="Board it is planned for, and has to fit; for example ulx3s-85f.",
)
@click.option(
    "--target", type=click.Choice(["ecp5", "portable"]),
    help="What it is made of: cells of the ECP5, or Verilog that every tool takes [default: the "
    "board's family]. Without a board, it is planned for the ULX3S 85F.",
)  # fmt: skip
@click.option(
    "--top", metavar="NAME",
    help="Name of the module; all others are called NAME_* [default: the network's and the "
    "transform's name].",
)  # fmt: skip
@click.option(
    "--bus", type=click.Choice(["stream", "axi"]), default="stream", show_default=True,
    help="Plain valid/ready streams, or AXI4-Stream with registers behind AXI4-Lite.",
)  # fmt: skip
@_options.weights
@click.option(
    "-o", "--output", required=True, metavar="DIR", type=click.Path(path_type=Path),
    help="Folder to write; an earlier one of the same kind is replaced.",
)  # fmt: skip
@_options.transforms
@_options.max_width
@_options.multipliers
@_options.folding
@_options.json_file
def command(
    net: str,
    board_name: str | None,
    target: str | None,
    top: str | None,
    bus: str,
    weights: str,
    output: Path,
    transform_name: str,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    json_file: str | None,
) -> None:
    """Write the gateware as a folder that stands alone.

    NET is a network file or the name of a shipped network. DIR gets the Verilog, a file for
    every module; interface.json, which says all there is to know of ports, streams, cycles and
    resources; README.md, a FuseSoC description and an Amaranth wrapper; and in DIR/test a cocotb
    test bench that needs nothing of Lichen. Equal designs give equal files.

    With --weights load the core computes with what it is filled with: `lichen weights` makes the
    file for a network that fits.

    Several transforms are planned to share the board, and each gets such a folder, DIR/g_a and
    DIR/g_s.
    """
    from lichen.boards import board as boards
    from lichen.boards.design import Bitstream, check_fits
    from lichen.boards.generate import generate
    from lichen.models import load_network

    if board_name is None and target is None:
        raise UserError("say what it is for: --board NAME, or --target ecp5 or portable.")
    board = None if board_name is None else boards.find(board_name)
    planned = boards.ULX3S_85F if board is None else board
    names = _options.names_of(transform_name)
    network = load_network(net)
    designs = _options.designs_of(
        network, names, planned, max_width, multipliers, folding_file, loads=weights == "load"
    )
    if board is not None:
        check_fits(Bitstream(designs=tuple(designs)).resources(board), board)
    several = len(designs) > 1
    if several:
        _options.made_folder(output)
    made, sentences = {}, []
    for design in designs:
        name = design.transform_name
        folder = output / name if several else output
        module = f"{top}_{name}" if several and top is not None else top
        made[name] = description = generate(
            design, board, folder, target=target, top=module, bus=bus
        )
        sentences.append(
            f"wrote {folder / description['files'][0]} (module {description['top']}), "
            f"{len(description['files']) - 1} modules below it, interface.json and a test bench"
        )
    result = {"transforms": made} if several else made[names[0]]
    _options.report(result, json_file, "\n".join(sentences))
