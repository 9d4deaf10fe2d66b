"""Options and endings that `generate` and `build` share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.errors import UserError

if TYPE_CHECKING:
    from lichen.boards.board import Board
    from lichen.boards.design import Design

board = click.option("--board", "board_name", required=True, help="Board, for example ulx3s-85f.")
transform = click.option(
    "--transform", "transform_name", default="g_a", show_default=True, help="Which transform."
)
max_width = click.option(
    "--max-width", type=click.IntRange(1, 65535), default=768, show_default=True,
    help="Widest frame in pixels.",
)  # fmt: skip
folding = click.option(
    "--folding", "folding_file", metavar="FILE", type=click.Path(path_type=Path),
    help="Folding as JSON, or a report that holds one, instead of planning; it brings its own "
    "maximum width.",
)  # fmt: skip
json_file = click.option(
    "--json", "json_file", metavar="FILE", help="Write the result as JSON (- for stdout)."
)


multipliers = click.option(
    "--multipliers", type=click.IntRange(min=1), metavar="N",
    help="Plan with at most N multipliers [default: all of the board's].",
)  # fmt: skip


def design(
    net: str,
    transform_name: str,
    board: Board,
    max_width: int,
    multipliers: int | None,
    folding_file: Path | None,
) -> Design:
    """The network's transform, folded by the planner or as the file says."""
    from lichen.boards.design import Design, fold, read_folding
    from lichen.models import load_network

    network = load_network(net)
    if folding_file is not None:
        return Design.make(network, transform_name, read_folding(folding_file))
    planned = fold(network, transform_name, board, max_width=max_width, multipliers=multipliers)
    return Design.make(network, transform_name, planned)


def report(result: Any, json_file: str | None, summary: str) -> None:
    """Write the JSON where it is wanted, and the summary where the JSON is not."""
    text = json.dumps(result, indent=2) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
    elif json_file is not None:
        try:
            Path(json_file).write_text(text)
        except OSError as error:
            raise UserError(f"cannot write {json_file}: {error.strerror}.") from None
    click.echo(summary, err=json_file == "-")
