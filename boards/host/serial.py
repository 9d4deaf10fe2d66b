"""Serial ports as lines, and the ports there are."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lichen.boards.host.connection import READ_S, LineError
from lichen.errors import UserError
from lichen.files import reason

if TYPE_CHECKING:
    import serial

WRITE_S = 5.0
"""A device that takes no byte for so long is gone, or none of ours."""


class SerialLine:
    """A serial port that nobody else may open meanwhile.

    Parameters
    ----------
    name : str
        Of the port: ``/dev/ttyUSB0``, ...
    baud : int
        Symbols per second.

    Raises UserError where it cannot be opened.
    """

    def __init__(self, name: str, baud: int):
        import serial

        self.name = name
        try:
            self._port: serial.Serial = serial.Serial(
                name, baud, timeout=READ_S, write_timeout=WRITE_S, exclusive=True
            )
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise UserError(_refused(name, error)) from None
        # A bridge of FTDI's gathers bytes for 16 ms otherwise; where it is none, that is well.
        with suppress(Exception):
            self._port.set_low_latency_mode(True)

    def write(self, data: bytes) -> None:
        """Send bytes; LineError when they find no way out."""
        import serial

        try:
            self._port.write(data)
        except serial.SerialTimeoutException:
            raise LineError("it takes no bytes") from None
        except OSError as error:
            raise LineError(_gone(error)) from None

    def read(self, seconds: float) -> bytes:
        """What has come; waits at most so long for the first byte."""
        try:
            if self._port.timeout != seconds:
                self._port.timeout = seconds
            first = self._port.read(1)
            return bytes(first + self._port.read(self._port.in_waiting)) if first else b""
        except (OSError, TypeError) as error:  # pyserial reads None of a port that was closed
            raise LineError(_gone(error)) from None

    def close(self) -> None:
        """Let go of the port."""
        with suppress(OSError):
            self._port.close()


def _gone(error: Exception) -> str:
    known = isinstance(error, OSError) and error.errno is not None
    return reason(error) if known and isinstance(error, OSError) else "unplugged?"


def _refused(name: str, error: Exception) -> str:
    """Why a port cannot be opened, and what to do."""
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return (
            f"{name} does not exist; plug the board in, or name its port (`--engine auto` looks)."
        )
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"{name} may not be opened; give yourself access to it (on Debian: "
            "`sudo adduser $USER dialout`, then log in again)."
        )
    if number in (errno.EBUSY, errno.EAGAIN) or "exclusively lock" in str(error):
        return f"{name} is in use by another program; close it and try again."
    if number in (errno.ENOTTY, errno.EINVAL, errno.EISDIR) or "configure port" in str(error):
        return f"{name} is no serial port."
    return f"{name} cannot be opened: {_gone(error)}."


def ports() -> list[Any]:
    """The serial ports of this machine that lead to USB devices, by name."""
    from serial.tools import list_ports

    found = [port for port in list_ports.comports() if port.vid is not None]
    return sorted(found, key=lambda port: str(port.device))
