"""Boards: budgets, clocks, the host link, and the way from gateware to a bitstream.

`open` gives the board at a port, to encode and decode with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lichen.boards.host.engine import Engine
    from lichen.network.description import Network


def open(port: str = "auto", network: Network | None = None) -> Engine:
    """The board at a port; see `lichen.boards.host.find.open`."""
    # Gateware does not need what talks to it.
    from lichen.boards.host import find

    return find.open(port, network)
