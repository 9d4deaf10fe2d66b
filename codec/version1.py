"""Version 1 of the ``.lic`` file: a header that lists the parts, then the parts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from lichen.codec.parts import MAGIC, SEGMENTS, ContainerError, Flags, Header, Kind, Part

PARTS_MAX = 1 << 16
"""Most parts of a file; images of `lichen.sim.images.PIXELS_MAX` have a few thousand."""

_FIXED = struct.Struct("<4sBBHII32sI")
_PART = struct.Struct("<III")
_CHECKSUM = struct.Struct("<I")


def pack(
    flags: Flags, size: tuple[int, int], digest: bytes, parts: Sequence[tuple[Kind, bytes]]
) -> bytes:
    """The file of parts.

    Parameters
    ----------
    flags : Flags
    size : (int, int)
        Height and width of the image.
    digest : bytes
        SHA-256 of the network.
    parts : list of (Kind, bytes)
        Segments in coding order, then the rest.
    """
    head = _FIXED.pack(MAGIC, 1, flags, 0, size[1], size[0], digest, len(parts))
    for kind, payload in parts:
        head += _PART.pack(kind, len(payload), zlib.crc32(payload))
    payloads = (payload for _, payload in parts)
    return b"".join([head, _CHECKSUM.pack(zlib.crc32(head)), *payloads])


def inspect(data: bytes, *, truncated: bool = False) -> Header:
    """The header of a file; see `lichen.codec.container.inspect`."""
    if len(data) < _FIXED.size:
        raise ContainerError("the file is damaged: it ends within its header.")
    _, version, flags, reserved, width, height, sha, count = _FIXED.unpack_from(data)
    if count > PARTS_MAX:
        raise ContainerError(f"the file is damaged: it claims to have {count} parts.")
    end = _FIXED.size + count * _PART.size
    if len(data) < end + _CHECKSUM.size:
        raise ContainerError("the file is damaged: it ends within its header.")
    if zlib.crc32(data[:end]) != _CHECKSUM.unpack_from(data, end)[0]:
        raise ContainerError("the file is damaged: its header fails its checksum.")
    kinds = (*SEGMENTS, Kind.ALPHA, Kind.ICC)
    if reserved or flags & ~int(Flags.GREY) or not width or not height:
        raise ContainerError("the file is damaged: its header makes no sense.")
    numbers = dict.fromkeys(kinds, 0)
    parts = []
    offset = end + _CHECKSUM.size
    for kind, length, checksum in _entries(data, count):
        if kind not in kinds:
            raise ContainerError(f"the file is damaged: there is no part of kind {kind}.")
        payload = data[offset : offset + length]
        intact = len(payload) == length and zlib.crc32(payload) == checksum
        parts.append(Part(kind, numbers[Kind(kind)], offset, length, intact, _PART.size))
        numbers[Kind(kind)] += 1
        offset += length
    if max(numbers[Kind.ALPHA], numbers[Kind.ICC]) > 1:
        raise ContainerError("the file is damaged: it has two alphas or profiles.")
    if offset != len(data) and not truncated:
        raise ContainerError(
            f"the file is damaged: it has {len(data)} bytes where {offset} belong."
        )
    return Header(
        version, Flags(flags), width, height, sha.hex(), tuple(parts), len(data),
        offset == len(data),
    )  # fmt: skip


def _entries(data: bytes, count: int) -> Iterator[tuple[int, int, int]]:
    end = _FIXED.size + count * _PART.size
    yield from _PART.iter_unpack(data[_FIXED.size : end])
