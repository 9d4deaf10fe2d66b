"""The boards there are, by name."""

from __future__ import annotations

from lichen.boards.ecp5.boards import BOARDS as ECP5_BOARDS
from lichen.boards.record import UART, Board, Programmer
from lichen.errors import UserError

__all__ = ["BOARDS", "UART", "ULX3S_85F", "Board", "Programmer", "find"]

BOARDS = {board.name: board for board in ECP5_BOARDS}
"""All boards, by name."""

ULX3S_85F = BOARDS["ulx3s-85f"]


def find(name: str) -> Board:
    """The board of that name; a UserError lists those there are."""
    try:
        return BOARDS[name.lower()]
    except KeyError:
        known = ", ".join(BOARDS)
        raise UserError(f"there is no board {name!r}; known boards: {known}.") from None
