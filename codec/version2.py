"""Version 2 of the ``.lic`` file, byte by byte as docs/container.md says.

A header with a checksum, then parts that need no network, then the segments, each with its own
length and checksum in front: a writer never goes back. What follows the segments, old readers
skip.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lichen.codec.context import ContextCoder
from lichen.codec.entropy import EntropyError
from lichen.codec.layout import Layout, Window
from lichen.codec.parts import (
    MAGIC,
    PLAIN,
    SEGMENTS,
    ContainerError,
    Flags,
    Header,
    Kind,
    Part,
    flags_of,
)
from lichen.codec.reader import CHECKSUM_FAILS, Mask, PartReader, Symbols, parallel, symbol_limits
from lichen.network.description import Latent, Network
from lichen.sim import golden

VERSION = 2
DIGEST_BYTES = 16
END_OF_PARTS = 0
AFTERWARDS = 128
"""The least kind of parts that may follow the segments."""

MEASURE_MAX = (1 << 16) - 1
"""Greatest measure of a layout."""

SEGMENT_CHECK_BYTES = 3
SEGMENT_CHECK = (1 << 8 * SEGMENT_CHECK_BYTES) - 1
"""Of a segment's CRC-32 the lower three bytes are kept: there are many segments."""

SCAN_BYTES = 1 << 28
"""Most bytes that the search for an intact segment behind a damaged one looks at."""

_CHECKSUM = struct.Struct("<I")
_FIXED = struct.Struct("<4sBB")

Group = tuple[Window, ...]


class _EndsError(Exception):
    """The bytes are at an end too early."""


def varint(value: int) -> bytes:
    """An unsigned integer in groups of 7 bits, the lowest first, all but the last with bit 7."""
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at a place, below 2**35, and the place behind it.

    Raises _EndsError, and ContainerError for what `varint` does not write.
    """
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise _EndsError
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if byte == 0 and shift:
                break
            return value, at
    raise ContainerError("the file is damaged: it holds a number that makes no sense.")


def groups(network: Network, latent: Latent, layout: Layout, shape: Sequence[int]) -> list[Group]:
    """The segments of each group of a latent of this height and width, in the file's order."""
    ratio = network.rows(network.latents[0].name) // network.rows(latent.name)
    return list(layout.groups(shape[0], shape[1], ratio))


def segment_counts(network: Network, layout: Layout, height: int, width: int) -> dict[Kind, int]:
    """How many streams each latent of an image of this size makes."""
    outer = network.rows(network.latents[0].name)
    found = dict.fromkeys(SEGMENTS, 0)
    for name, shape in golden.latent_shapes(network, height, width).items():
        latent = next(one for one in network.latents if one.name == name)
        ratio = outer // network.rows(latent.name)
        found[Kind[name.upper()]] = layout.segments(*shape[:2], ratio)
    return found


# Writing ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """What a file says before its parts."""

    flags: Flags
    width: int
    height: int
    digest: bytes
    layout: Layout


def header_bytes(frame: Frame, counts: Sequence[int]) -> bytes:
    """The header, its checksum included."""
    layout = frame.layout
    numbers = (frame.width, frame.height, layout.columns, layout.rows, layout.places, *counts)
    head = _FIXED.pack(MAGIC, VERSION, frame.flags) + frame.digest
    head += b"".join(map(varint, numbers))
    return head + _CHECKSUM.pack(zlib.crc32(head))


def part_bytes(kind: int, payload: bytes) -> bytes:
    """A part that is no segment."""
    front = bytes([kind]) + varint(len(payload))
    return front + _CHECKSUM.pack(zlib.crc32(front + payload)) + payload


def segment_bytes(number: int, stream: bytes) -> bytes:
    """A segment; numbers count through all of a file's."""
    front = varint(len(stream))
    check = (zlib.crc32(front + stream) ^ number) & SEGMENT_CHECK
    return front + check.to_bytes(SEGMENT_CHECK_BYTES, "little") + stream


def streams(
    network: Network,
    coders: Mapping[str, ContextCoder],
    latents: golden.Latents,
    layout: Layout,
    threads: int | None,
) -> list[bytes]:
    """The streams of all segments, in the file's order."""
    tasks = [
        (segment, window)
        for segment in latents.segments
        for group in groups(
            network, _named(network, segment.name), layout, segment.symbols.shape[:2]
        )
        for window in group
    ]

    def code(task: tuple[golden.Segment, Window]) -> bytes:
        segment, window = task
        return coders[segment.name].encode(segment.symbols, segment.indices, window)

    return parallel(code, tasks, threads)


def pack(
    frame: Frame, counts: Sequence[int], parts: Sequence[tuple[Kind, bytes]], coded: Sequence[bytes]
) -> bytes:
    """The file of parts and streams."""
    frame = replace(frame, flags=frame.flags | flags_of([kind for kind, _ in parts]))
    found = [header_bytes(frame, counts)]
    found += [part_bytes(kind, payload) for kind, payload in parts]
    found.append(bytes([END_OF_PARTS]))
    found += [segment_bytes(number, stream) for number, stream in enumerate(coded)]
    return b"".join(found)


def _named(network: Network, name: str) -> Latent:
    return next(latent for latent in network.latents if latent.name == name)


# Reading ----------------------------------------------------------------------------------------


def inspect(data: bytes, *, truncated: bool = False) -> Header:
    """The header of a file that is known to be of version 2; see `container.inspect`."""
    try:
        flags, digest, numbers, at = _fixed(data)
        parts, at = _parts_before(data, at, truncated)
        parts = _parts_told(Flags(flags), parts, at, truncated)
    except _EndsError:
        raise ContainerError("the file is damaged: it ends within its header.") from None
    width, height, columns, rows, places, *counts = numbers
    layout = Layout(columns, rows, places)
    if not width or not height or not all(0 < n <= MEASURE_MAX for n in (columns, rows, places)):
        raise ContainerError("the file is damaged: its header makes no sense.")
    if max(width, height) >= 1 << 32 or flags & ~sum(Flags):
        raise ContainerError("the file is damaged: its header makes no sense.")
    kinds = [kind for kind, count in zip(SEGMENTS, counts, strict=True) for _ in range(count)] if (
        sum(counts) <= len(data)
    ) else None  # fmt: skip
    if kinds is None:
        raise ContainerError(
            f"the file is damaged: its {len(data)} bytes cannot hold {sum(counts)} segments."
        )
    segments, at = _segments(data, at, kinds, truncated)
    after, at = _parts_after(data, at, truncated)
    return Header(
        VERSION, Flags(flags), width, height, digest.hex(), (*parts, *segments, *after),
        len(data), at == len(data), layout,
    )  # fmt: skip


def _fixed(data: bytes) -> tuple[int, bytes, list[int], int]:
    """Flags, digest, numbers and where they end."""
    at = _FIXED.size + DIGEST_BYTES
    if len(data) < at:
        raise _EndsError
    flags, digest = data[_FIXED.size - 1], data[_FIXED.size : at]
    numbers = []
    for _ in range(5 + len(SEGMENTS)):
        value, at = _read_varint(data, at)
        numbers.append(value)
    if len(data) < at + _CHECKSUM.size:
        raise _EndsError
    if zlib.crc32(data[:at]) != _CHECKSUM.unpack_from(data, at)[0]:
        raise ContainerError("the file is damaged: its header fails its checksum.")
    return flags, digest, numbers, at + _CHECKSUM.size


def _part(data: bytes, begin: int, numbers: dict[int, int]) -> Part:
    """The part at a place; _EndsError where it goes beyond the file."""
    if begin >= len(data):
        raise _EndsError
    length, at = _read_varint(data, begin + 1)
    offset = at + _CHECKSUM.size
    if len(data) < offset + length:
        raise _EndsError
    checksum = zlib.crc32(data[offset : offset + length], zlib.crc32(data[begin:at]))
    kind = data[begin]
    number = numbers.get(kind, 0)
    numbers[kind] = number + 1
    intact = checksum == _CHECKSUM.unpack_from(data, at)[0]
    return Part(kind, number, offset, length, intact, offset - begin)


def _parts_before(data: bytes, at: int, truncated: bool) -> tuple[list[Part], int]:
    """The parts in front of the segments.

    A damaged one may have a wrong length. With ``truncated`` what follows it is tried all the
    same.
    """
    parts, numbers = [], dict[int, int]()
    while True:
        if at >= len(data):
            raise _EndsError
        if data[at] == END_OF_PARTS:
            break
        part = _part(data, at, numbers)
        if not part.intact and not truncated:
            raise ContainerError(f"the file is damaged: {part.name} {CHECKSUM_FAILS}.")
        if part.kind in SEGMENTS or (part.kind in set(Kind) and part.number):
            raise ContainerError(f"the file is damaged: {part.name} is out of place.")
        parts.append(part)
        at = part.offset + part.length
    return parts, at + 1


def _parts_told(flags: Flags, parts: list[Part], at: int, truncated: bool) -> list[Part]:
    """The parts, if they are those that the header tells; with ``truncated`` one that is missing
    is marked as damaged, and one that does not belong is left out.

    A header that tells none may have any: Lichen 0.2.0 did not tell them.
    """
    told = [kind for kind in PLAIN if Flags[kind.name] in flags]
    found = [part.kind for part in parts if part.kind in PLAIN]
    if not told or set(told) == set(found):
        return parts
    missing = [Part(kind, 0, at, 0, False, 0) for kind in told if kind not in found]
    strange = [part for part in parts if part.kind in PLAIN and part.kind not in told]
    if not truncated:
        what = f"{missing[0].name} is missing" if missing else f"{strange[0].name} is out of place"
        raise ContainerError(f"the file is damaged: {what}.")
    return [part for part in parts if part not in strange] + missing


def _parts_after(data: bytes, at: int, truncated: bool) -> tuple[list[Part], int]:
    """What follows the segments; with ``truncated`` as far as it makes sense."""
    parts, numbers = [], dict[int, int]()
    while at < len(data):
        try:
            part = _part(data, at, numbers)
        except (_EndsError, ContainerError):
            part = None
        if part is None or part.kind < AFTERWARDS or not part.intact:
            if truncated:
                break
            raise ContainerError(
                f"the file is damaged: it has {len(data)} bytes where {at} belong."
            )
        parts.append(part)
        at = part.offset + part.length
    return parts, at


def _segment(data: bytes, begin: int, number: int) -> tuple[int, int, bool]:
    """Offset and length of the stream at a place, and whether it is that of the number.

    Raises _EndsError and ContainerError where there cannot be one.
    """
    length, at = _read_varint(data, begin)
    offset = at + SEGMENT_CHECK_BYTES
    if len(data) < offset + length:
        raise _EndsError
    return offset, length, _number(data, begin, at, length) == number


def _number(data: bytes, begin: int, at: int, length: int) -> int:
    """Which segment the checksum at a place is right for; a senseless one if for none."""
    offset = at + SEGMENT_CHECK_BYTES
    checksum = zlib.crc32(data[offset : offset + length], zlib.crc32(data[begin:at]))
    return (checksum & SEGMENT_CHECK) ^ int.from_bytes(data[at:offset], "little")


def _segments(
    data: bytes, at: int, kinds: Sequence[int], truncated: bool
) -> tuple[list[Part], int]:
    """All segments; with ``truncated`` those that are damaged or missing are marked so."""
    parts: list[Part] = []
    numbers = dict.fromkeys(kinds, 0)

    def add(offset: int, length: int, intact: bool, overhead: int) -> None:
        kind = kinds[len(parts)]
        parts.append(Part(kind, numbers[kind], offset, length, intact, overhead))
        numbers[kind] += 1
        if not intact and not truncated:
            raise ContainerError(f"the file is damaged: {parts[-1].name} {CHECKSUM_FAILS}.")

    left = SCAN_BYTES
    while len(parts) < len(kinds):
        number, offset, length, intact = len(parts), at, 0, False
        with contextlib.suppress(_EndsError, ContainerError):
            offset, length, intact = _segment(data, at, number)
        if intact:
            add(offset, length, True, offset - at)
            at = offset + length
            continue
        add(offset, length, False, offset - at)
        if len(parts) == len(kinds):
            at = min(offset + length, len(data))
            break
        found, left = _resume(data, at, offset + length, range(number + 1, len(kinds)), left)
        if found is None:
            at = len(data)
            while len(parts) < len(kinds):
                add(at, 0, False, 0)
            break
        begin, which = found
        while len(parts) < which:
            add(begin, 0, False, 0)
        at = begin
    return parts, at


def _resume(
    data: bytes, at: int, expected: int, numbers: range, left: int
) -> tuple[tuple[int, int] | None, int]:
    """Where the next intact segment begins and its number, and how much may still be looked at.

    The place where the damaged one says that it ends is tried first.
    """
    for begin in (expected, *range(at + 1, len(data))):
        if left <= 0:
            break
        left -= 16
        try:
            length, place = _read_varint(data, begin)
        except (_EndsError, ContainerError):
            continue
        if place + SEGMENT_CHECK_BYTES + length > len(data):
            continue
        left -= length
        which = _number(data, begin, place, length)
        if which in numbers:
            return (begin, which), left
    return None, left


class Reader(PartReader):
    """Reads the segments of a file; a latent may be read in part.

    Parameters
    ----------
    network, header, data, salvage
        See `PartReader`.
    coders : dict of str to ContextCoder
    threads : int or None
    wanted : dict of str to (rows, columns) or None
        Of each latent, first and behind the last; None reads all.
    """

    def __init__(
        self,
        network: Network,
        header: Header,
        data: bytes,
        *,
        salvage: bool,
        coders: Mapping[str, ContextCoder],
        threads: int | None,
        wanted: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] | None = None,
    ):
        super().__init__(network, header, data, salvage)
        self.coders, self.threads, self.wanted = coders, threads, wanted

    def read(self, name: str, indices: Symbols) -> Symbols:
        """The symbols of a latent (h, w, channels), neutral ones for those lost or not wanted."""
        latent, layout = self.latent(name), self.header.layout
        assert layout is not None
        parts = iter(self.header.of_kind(Kind[name.upper()]))
        tasks = []
        for group in groups(self.network, latent, layout, indices.shape[:2]):
            members = [(window, next(parts)) for window in group]
            tasks.append([task for task in members if self._is_wanted(name, task[0])])
        neutral = self.neutral(name)
        shape = indices.shape
        symbols = np.full(shape, neutral, np.int32) if neutral else np.zeros(shape, np.int32)
        lost = np.zeros(shape[:2], bool)
        unsure, limits = self.unsure(name), symbol_limits(self.network, latent)
        coder = self.coders[name]

        def decode(members: list[tuple[Window, Part]]) -> list[tuple[Part, Window, str]]:
            """Fills one group as far as it goes; what is lost, and why."""
            for i, (window, part) in enumerate(members):
                reason = CHECKSUM_FAILS
                if part.intact and unsure is not None and _any(unsure, window):
                    reason = self.needed(name)
                elif part.intact:
                    try:
                        coder.decode(self.payload(part), symbols, indices, window, limits)
                        continue
                    except EntropyError as error:
                        reason = str(error)
                rest = [(p, w, f"cannot be decoded without {part.name}") for w, p in members[i:]]
                return [(part, window, reason), *rest[1:]]
            return []

        for losses in parallel(decode, [task for task in tasks if task], self.threads):
            for part, window, reason in losses:
                self.lose(part, reason)
                for block in window.blocks():
                    lost[block] = True
                    symbols[block] = neutral
        self.masks[name] = lost
        return symbols

    def _is_wanted(self, name: str, window: Window) -> bool:
        return self.wanted is None or window.is_wanted(*self.wanted[name])


def _any(mask: Mask, window: Window) -> bool:
    """Whether any of a window's places is marked."""
    return any(bool(mask[block].any()) for block in window.blocks())
