"""The serial protocol between a host and the pipeline, for both ends.

Numbers are little-endian. The line carries 8N1 bytes at the board's baud rate.

**Host to device.** Every command is a header of 12 bytes:

====== ===== ==========================================================
offset bytes
====== ===== ==========================================================
0      2     magic, ``4C 69`` ("Li")
2      1     protocol version, 1
3      1     command: ``46`` + k frame for transform k of the bitstream (``46``
             is "F"), ``53`` ("S") ask for status
4      2     width of the frame in pixels, 1 .. the generated maximum
6      2     height of the frame in pixels, 1 .. 65535
8      4     how many bytes of latents the host expects, 1 or more
====== ===== ==========================================================

A frame's header is followed by its values in raster order, the channels of a position together,
each value in the least number of whole bytes: pixels for g_a, latents for g_s. The table's words
are those of g_a. For the status command the last three fields do not matter.

A *break* (the line held low for at least 16 symbols) opens a session and ends every failure:
the device abandons what it was doing, resets the pipeline, answers with a status packet that
still shows the error flags, and clears them. A host that has just opened the line sends a
break, waits until the device is silent, and takes the last 18 bytes as that packet.

**Device to host.** Packets: a kind, the length of the payload, the payload.

====== ====== =================================================================
kind   length payload
====== ====== =================================================================
``L``  1-64   latents, in raster order, the channels of a position together, each
              value in the least number of whole bytes, two's complement
``C``  0      a credit: 64 more pixel bytes of this frame were consumed
``S``  16     status, see `Status`; sent when asked, after a break, when a frame is
              complete (all its latents sent) and when an error stops the device
====== ====== =================================================================

Serial lines like the ULX3S's have no flow control, so a host that may be faster than the
pipeline counts: at most 256 pixel bytes of a frame may be under way without a credit. A host
that ignores credits risks an overrun, which is reported.

After an error the device drops everything it receives until a break.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag

MAGIC = b"Li"
VERSION = 1
FRAME = ord("F")
TRANSFORMS = 4
"""Most transforms of a bitstream."""
STATUS = ord("S")
HEADER_BYTES = 12

KIND_LATENTS = ord("L")
KIND_CREDIT = ord("C")
KIND_STATUS = ord("S")
STATUS_BYTES = 16

CREDIT_BYTES = 64
"""Pixel bytes that one credit stands for."""

WINDOW_BYTES = 256
"""Pixel bytes the device can hold."""

LATENT_PACKET_BYTES = 64
"""Longest payload of a latent packet."""


class Error(IntFlag):
    """What went wrong since the last break."""

    OVERRUN = 1
    """A byte came while there was no room for it; the host ran ahead of the credits."""
    MAGIC = 2
    """A header did not begin with the magic, or its version or command is unknown."""
    SIZE = 4
    """The frame is wider than the bitstream was generated for, or something in it is 0."""
    WATCHDOG = 8
    """Nothing moved for too long while a frame was in flight; see `Stuck`."""
    FRAMING = 16
    """A byte arrived without its stop bit: noise, or the wrong baud rate."""
    SURPLUS = 32
    """The pipeline made more latents than the host had said it expects."""


class Stuck(IntFlag):
    """Which streams stood still when the watchdog expired."""

    HOST = 1
    """The host sends no pixels, though some of the frame are missing."""
    PIXELS = 2
    """The pipeline does not take the pixel it is offered."""
    LATENTS = 4
    """The pipeline offers no latents, though it has taken all pixels."""


class State(IntEnum):
    """What the device is doing."""

    IDLE = 0
    BUSY = 1
    HALTED = 2


class ProtocolError(Exception):
    """The device sent something that is no packet."""


_STATUS = struct.Struct("<BBBBHHHBB4s")


@dataclass(frozen=True, kw_only=True)
class Status:
    """Payload of a status packet, in the order of its bytes.

    Attributes
    ----------
    version : int
        1 byte, protocol version.
    state : State
        1 byte.
    errors : Error
        1 byte.
    stuck : Stuck
        1 byte.
    max_width : int
        2 bytes, positions; this and the next fields are of the bitstream's first transform.
    in_channels, out_channels : int
        2 bytes each.
    latent_bytes : int
        1 byte: bytes per latent value.
    credit_bytes : int
        1 byte, `CREDIT_BYTES`.
    digest : bytes
        4 bytes: the first of the network file's SHA-256.
    """

    version: int = VERSION
    state: State = State.IDLE
    errors: Error = Error(0)  # noqa: RUF009
    stuck: Stuck = Stuck(0)  # noqa: RUF009
    max_width: int
    in_channels: int
    out_channels: int
    latent_bytes: int
    credit_bytes: int = CREDIT_BYTES
    digest: bytes

    def pack(self) -> bytes:
        """The 16 bytes."""
        return _STATUS.pack(
            self.version,
            self.state,
            self.errors,
            self.stuck,
            self.max_width,
            self.in_channels,
            self.out_channels,
            self.latent_bytes,
            self.credit_bytes,
            self.digest,
        )

    @classmethod
    def unpack(cls, payload: bytes) -> Status:
        """Read the 16 bytes; raises ProtocolError on any other length or an unknown state."""
        try:
            version, state, errors, stuck, *rest = _STATUS.unpack(payload)
            max_width, in_channels, out_channels, latent_bytes, credit_bytes, digest = rest
            return cls(
                version=version,
                state=State(state),
                errors=Error(errors),
                stuck=Stuck(stuck),
                max_width=max_width,
                in_channels=in_channels,
                out_channels=out_channels,
                latent_bytes=latent_bytes,
                credit_bytes=credit_bytes,
                digest=digest,
            )
        except (struct.error, ValueError) as error:
            raise ProtocolError(f"not a status packet: {error}") from None


def header(command: int, *, width: int = 0, height: int = 0, expected: int = 0) -> bytes:
    """The 12 bytes of a command.

    Raises ValueError when a field does not fit.
    """
    for name, value, bits in (("width", width, 16), ("height", height, 16)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} must be between 0 and {(1 << bits) - 1}, not {value!r}")
    if not 0 <= expected < 1 << 32:
        raise ValueError(f"expected must be between 0 and {(1 << 32) - 1}, not {expected!r}")
    return MAGIC + struct.pack("<BBHHI", VERSION, command, width, height, expected)


class PacketReader:
    """Cuts the bytes of the device into packets.

    Feed it bytes as they come; it yields ``(kind, payload)`` for each packet that is complete.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the packets that ``data`` completes; raises ProtocolError on an unknown kind."""
        self._buffer += data
        while len(self._buffer) >= 2:
            kind, length = self._buffer[0], self._buffer[1]
            if kind not in (KIND_LATENTS, KIND_CREDIT, KIND_STATUS):
                raise ProtocolError(f"unknown packet kind {kind:#04x}")
            if len(self._buffer) < 2 + length:
                return
            payload = bytes(self._buffer[2 : 2 + length])
            del self._buffer[: 2 + length]
            yield kind, payload
