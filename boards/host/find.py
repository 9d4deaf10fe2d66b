"""From what a user calls a board to the board."""

from __future__ import annotations

import time

from lichen.boards.board import BOARDS
from lichen.boards.host.connection import ANSWER_S, Connection, SilentError
from lichen.boards.host.engine import Engine
from lichen.boards.host.serial import SerialLine, ports
from lichen.errors import UserError
from lichen.network.description import Network

AUTO = "auto"
"""The name that means whichever board there is."""

TRY_S = 1.5
"""How long one rate of several is tried at a time; a board answers within milliseconds."""

PSEUDO = "/dev/pts/"
"""What names of pseudo-terminals begin with; they have no rate, but perhaps a slow simulation."""


def rates() -> list[int]:
    """The rates of the boards there are, fastest first."""
    return sorted({board.uart.baud for board in BOARDS.values()}, reverse=True)


def open(port: str = AUTO, network: Network | None = None) -> Engine:
    """The board at a port, ready to encode and decode.

    Parameters
    ----------
    port : str
        A serial port (``/dev/ttyUSB0``), the terminal that ``lichen board-sim`` prints, or
        ``auto``, which looks at every serial port that leads to a USB device.
    network : Network or None
        Whose transforms are wanted; None takes the shipped one that the board holds.

    Raises UserError, one sentence, where no board answers, where it may not be opened or is in use,
    and where it holds another network.
    """
    connection = _look() if port == AUTO else connect(port)
    try:
        return Engine(connection, network)
    except UserError:
        connection.close()
        raise


def connect(port: str, *, patience_s: float | None = None) -> Connection:
    """What answers at a port, at any rate that boards have; UserError where nothing does."""
    patience_s = ANSWER_S if patience_s is None else patience_s
    known = rates()
    if port.startswith(PSEUDO) or len(known) == 1:
        return _at(port, known[0], patience_s)
    begin, last = time.monotonic(), None
    while last is None or time.monotonic() - begin < patience_s:
        for rate in known:
            try:
                return _at(port, rate, TRY_S)
            except SilentError as error:
                last = error
    raise last


def _at(port: str, rate: int, patience_s: float) -> Connection:
    line = SerialLine(port, rate)
    try:
        return Connection(line, patience_s=patience_s)
    except BaseException:
        line.close()
        raise


def _look() -> Connection:
    """The first board that answers."""
    found = [str(port.device) for port in ports()]
    reasons = []
    for port in found:
        try:
            return connect(port, patience_s=0)
        except UserError as error:
            reasons.append(str(error))
    if not found:
        raise UserError(
            "no serial port leads to a USB device; plug the board in, or name its port "
            "(`--engine /dev/ttyUSB0`)."
        )
    raise UserError(f"no board was found: {' '.join(reasons)}")
