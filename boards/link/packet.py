"""Packets of `lichen.boards.link.protocol` as bytes on the line, the host's end.

A packet is stuffed (consistent overhead byte stuffing: Cheshire and Baker, SIGCOMM 1997) so that it
holds no zero, and a zero follows it. So whoever has lost its place finds it at the next zero.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from lichen.boards.link.protocol import (
    CRC_BYTES,
    DELIMITER,
    LINE_BYTES,
    OVERHEAD_BYTES,
    PACKET_BYTES,
    PAYLOAD_BYTES,
    Kind,
)

_ZERO = bytes([DELIMITER])
_KINDS = frozenset(Kind)
_SESSIONLESS = frozenset(kind for kind in Kind if kind.sessionless)


class Packet(NamedTuple):
    """A packet whose checksum was right."""

    kind: Kind
    number: int
    payload: bytes


class Damaged(NamedTuple):
    """What came between two zeros and is no packet of this session."""

    raw: bytes


def checksum(content: bytes, session: int) -> int:
    """CRC-32 of a packet's bytes, as if those with the session's had gone before."""
    return zlib.crc32(content, session if content[0] not in _SESSIONLESS else 0)


def stuff(content: bytes) -> bytes:
    """Bytes without a zero; ``content`` has at most `PACKET_BYTES`.

    Every zero becomes the distance to the next one, and that to the first stands in front.
    """
    if len(content) > PACKET_BYTES:
        raise ValueError(f"a packet has at most {PACKET_BYTES} bytes, not {len(content)}")
    return b"".join(bytes([len(run) + 1]) + run for run in content.split(_ZERO))


def unstuff(stuffed: bytes) -> bytes | None:
    """What `stuff` was given; None where these bytes cannot come of it."""
    content = bytearray(stuffed)
    at = 0
    while at < len(content):
        step = content[at]
        content[at] = 0
        at += step
        if step == 0:
            return None
    return bytes(content[1:]) if at == len(content) else None


def encode(kind: Kind, number: int, payload: bytes, session: int) -> bytes:
    """A packet's bytes on the line, the zero behind it among them.

    Raises ValueError for a payload of more than `PAYLOAD_BYTES`.
    """
    if len(payload) > PAYLOAD_BYTES:
        raise ValueError(f"a payload has at most {PAYLOAD_BYTES} bytes, not {len(payload)}")
    content = bytes([kind, number]) + payload
    crc = checksum(content, session)
    return stuff(content + crc.to_bytes(CRC_BYTES, "little")) + _ZERO


def decode(stuffed: bytes, session: int) -> Packet | None:
    """The packet of the bytes between two zeros; None where it is none of this session."""
    content = unstuff(stuffed)
    if content is None or not OVERHEAD_BYTES <= len(content) <= PACKET_BYTES:
        return None
    body, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
    if body[0] not in _KINDS or checksum(body, session) != int.from_bytes(crc, "little"):
        return None
    return Packet(Kind(body[0]), body[1], body[2:])


class Reader:
    """Cuts what comes over a line into packets; it holds no more than one of them.

    Attributes
    ----------
    session : int
        Whose packets are taken.
    """

    def __init__(self, session: int = 0):
        self.session = session
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Packet | Damaged]:
        """Yield what ``data`` completes, in order. Zeros in a row are nothing."""
        *whole, rest = (self._rest + data).split(_ZERO)
        self._rest = rest[-LINE_BYTES:]
        for stuffed in whole:
            if stuffed:
                packet = decode(stuffed, self.session)
                yield Damaged(stuffed) if packet is None else packet
