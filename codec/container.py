"""The ``.lic`` file: an image coded by an integer network, byte by byte as docs/container.md says.

A header with a checksum names the network by its digest and lists the parts: entropy-coded
segments of a bounded number of symbols, alpha, colour profile, each with a checksum of its own.
So a damaged file is never decoded to something else in silence, damage stays in its segment, and
segments are coded in parallel. No float takes part in decoding, nor does anything that depends
on the machine.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from lichen.codec.entropy import EntropyCoder, EntropyError
from lichen.codec.picture import Picture
from lichen.errors import UserError
from lichen.network.arithmetic import ceil_div, clamp
from lichen.network.description import LATENTS, Convolution, Latent, Network, Transform
from lichen.network.file import digest
from lichen.sim import golden
from lichen.sim.images import PIXELS_MAX

MAGIC = b"\x8bLIC"
VERSION = 1
SEGMENT_SYMBOLS = 1 << 16
"""Most symbols of a segment."""

PARTS_MAX = 1 << 16
"""Most parts of a file; images of `PIXELS_MAX` have a few thousand."""

PROFILE_BYTES_MAX = 1 << 24
"""Largest ICC profile: what inflates to more is taken for an attack."""

SALVAGE_PIXELS = 1 << 24
SALVAGE_PIXELS_PER_BYTE = 1 << 12
"""What is salvaged of a file, however little is intact, or by what is: a header alone may claim
any size, and even images of one colour have at most 210 pixels a byte with the shipped networks."""

MARK = np.array([255, 0, 255], np.uint8)
"""Colour of what is lost."""

_FIXED = struct.Struct("<4sBBHII32sI")
_PART = struct.Struct("<III")
_CHECKSUM = struct.Struct("<I")

_CHECKSUM_FAILS = "fails its checksum"

_S = TypeVar("_S", bound=np.generic)
_T = TypeVar("_T")
_U = TypeVar("_U")


class Kind(IntEnum):
    """What a part holds."""

    Z = 1
    Y = 2
    ALPHA = 3
    ICC = 4


SEGMENTS = tuple(Kind[latent.name.upper()] for latent in reversed(LATENTS))
"""The kinds that hold symbols, in coding order."""


class Flags(IntFlag):
    """Of the header; all other bits are 0."""

    GREY = 1


class ContainerError(UserError):
    """A file that is not, or no longer, a ``.lic`` file, or for another network."""


@dataclass(frozen=True)
class Part:
    """One entry of the header's table.

    Attributes
    ----------
    kind : Kind
    number : int
        Among those of its kind.
    offset, length : int
        In bytes, from the start of the file.
    checksum : int
        CRC-32 of the bytes.
    """

    kind: Kind
    number: int
    offset: int
    length: int
    checksum: int

    @property
    def name(self) -> str:
        """For messages: ``y segment 3``, ``alpha``."""
        if self.kind in SEGMENTS:
            return f"{self.kind.name.lower()} segment {self.number}"
        return "ICC profile" if self.kind is Kind.ICC else "alpha"


@dataclass(frozen=True)
class Header:
    """All that can be known of a file without its network.

    Attributes
    ----------
    version : int
    flags : Flags
    width, height : int
        In pixels.
    digest : str
        SHA-256 of the network file, hexadecimal.
    parts : tuple of Part
    size : int
        Of the file in bytes.
    whole : bool
        The file ends where its last part does.
    """

    version: int
    flags: Flags
    width: int
    height: int
    digest: str
    parts: tuple[Part, ...]
    size: int
    whole: bool = True

    def of_kind(self, kind: Kind) -> list[Part]:
        return [part for part in self.parts if part.kind is kind]

    def json(self) -> dict[str, Any]:
        """For `lichen info`."""
        return {
            "version": self.version,
            "width": self.width,
            "height": self.height,
            "grey": Flags.GREY in self.flags,
            "alpha": bool(self.of_kind(Kind.ALPHA)),
            "icc_bytes": sum(part.length for part in self.of_kind(Kind.ICC)),
            "network_sha256": self.digest,
            "bytes": self.size,
            "bpp": 8 * self.size / (self.width * self.height),
            "parts": [
                {"name": part.name, "offset": part.offset, "bytes": part.length}
                for part in self.parts
            ],
        }


@dataclass(frozen=True)
class Decoded:
    """What a file decodes to.

    Attributes
    ----------
    picture : Picture
    lost : tuple of str
        With salvage: what was wrong with the file, one sentence part each; empty if nothing.
    damaged : bool array (height, width) or None
        With salvage: pixels that depend on something lost. None if nothing is.
    """

    picture: Picture
    lost: tuple[str, ...] = ()
    damaged: npt.NDArray[np.bool_] | None = None

    def marked(self) -> Picture:
        """The picture with what is damaged in opaque magenta, for which greys become colours."""
        if self.damaged is None:
            return self.picture
        picture = self.picture
        if picture.grey:
            pixels = np.dstack([picture.opaque()] * 3)
            picture = replace(picture, pixels=pixels, grey=False, icc=None)
        marks, alpha = self.damaged[:, :, None], picture.alpha
        return replace(
            picture,
            pixels=np.where(marks, MARK, picture.pixels),
            alpha=None if alpha is None else np.where(self.damaged, np.uint8(255), alpha),
        )


def segment_bounds(symbols: int) -> list[tuple[int, int]]:
    """The ranges of symbols, in raster order, that are segments: as few and equal as can be."""
    count = ceil_div(symbols, SEGMENT_SYMBOLS)
    cuts = [symbols * i // max(count, 1) for i in range(count + 1)]
    return list(pairwise(cuts))


def _parallel(work: Callable[[_T], _U], items: Sequence[_T], threads: int | None) -> list[_U]:
    """Map in order; the compiled loops of the entropy coder leave Python's lock alone."""
    workers = min(len(items), os.cpu_count() or 1 if threads is None else threads)
    if workers <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


def check_network(network: Network) -> None:
    """Raise UserError for a network that cannot code and decode images."""
    name = network.title
    for latent in network.latents or LATENTS[:1]:
        for transform in (latent.analysis, latent.synthesis):
            if transform not in network.transforms:
                raise UserError(f"{name} has no {transform}, so it codes no images.")
        if latent.name not in network.entropy:
            raise UserError(
                f"{name} has no entropy tables for {latent.name}, so it codes no images."
            )


class Container:
    """Codes pictures with one network; cheap to keep, safe to share between threads.

    Parameters
    ----------
    network : Network
    threads : int or None
        That code segments; None takes one per processor. Files don't depend on it.

    Raises UserError for a network that codes no images.
    """

    def __init__(self, network: Network, threads: int | None = None):
        check_network(network)
        self.network = network
        self.digest = digest(network)
        self.threads = threads
        self._latents = {latent.name: latent for latent in network.latents}
        self._coders = {name: EntropyCoder(tables) for name, tables in network.entropy.items()}

    def encode(self, image: Picture | Image.Image | npt.NDArray[np.uint8]) -> bytes:
        """The file of an image; see `Picture.of` for what that may be."""
        picture = Picture.of(image)
        return self.pack(golden.analysis(self.network, picture.pixels), picture)

    def pack(self, latents: golden.Latents, picture: Picture | None = None) -> bytes:
        """The file of latents, with the alpha, profile and greyness of a picture.

        The latents may come from gateware; their indices must be those of this network.

        Raises UserError for a profile that no decoder takes.
        """
        if picture is not None and len(picture.icc or b"") > PROFILE_BYTES_MAX:
            raise UserError(f"the ICC profile has more than {PROFILE_BYTES_MAX} bytes.")
        tasks = [
            (segment, *bounds)
            for segment in latents.segments
            for bounds in segment_bounds(segment.symbols.size)
        ]

        def code(task: tuple[golden.Segment, int, int]) -> bytes:
            segment, first, last = task
            coder = self._coders[segment.name]
            symbols = segment.symbols.reshape(-1)[first:last]
            return coder.encode(symbols, segment.indices.reshape(-1)[first:last])

        payloads = _parallel(code, tasks, self.threads)
        kinds = [Kind[task[0].name.upper()] for task in tasks]
        flags = Flags(0)
        if picture is not None:
            flags = Flags.GREY if picture.grey else flags
            if picture.alpha is not None:
                kinds.append(Kind.ALPHA)
                payloads.append(_pack_alpha(picture.alpha))
            if picture.icc is not None:
                kinds.append(Kind.ICC)
                payloads.append(zlib.compress(picture.icc, 9))
        head = _FIXED.pack(
            MAGIC, VERSION, flags, 0, latents.width, latents.height,
            bytes.fromhex(self.digest), len(payloads),
        )  # fmt: skip
        for kind, payload in zip(kinds, payloads, strict=True):
            head += _PART.pack(kind, len(payload), zlib.crc32(payload))
        return b"".join([head, _CHECKSUM.pack(zlib.crc32(head)), *payloads])

    def decode(
        self, data: bytes, *, salvage: bool = False, max_pixels: int = PIXELS_MAX
    ) -> Decoded:
        """The picture of a file.

        Parameters
        ----------
        data : bytes
        salvage : bool
            Decode what is undamaged, and tell of the rest, rather than refuse.
        max_pixels : int
            Larger images are refused. What counts is the padded image, which is what decoding
            takes time and memory for.

        Raises ContainerError for damaged files, with the part that is, and for other networks.
        """
        header = self._header(data, max_pixels, salvage)
        reader = _Reader(self, header, data, salvage)
        pixels = golden.decode(self.network, header.height, header.width, reader.read)
        alpha = reader.plain(Kind.ALPHA, lambda raw: _unpack_alpha(raw, header))
        icc = reader.plain(Kind.ICC, _unpack_profile)
        picture = Picture(pixels, alpha, Flags.GREY in header.flags, icc)
        return Decoded(picture, tuple(reader.lost), reader.damaged())

    def latents(self, data: bytes, *, max_pixels: int = PIXELS_MAX) -> golden.Latents:
        """The symbols of a file, for looking at; errors as of `decode`."""
        header = self._header(data, max_pixels, False)
        reader = _Reader(self, header, data, False)
        decoded = golden.symbols_in_order(self.network, header.height, header.width, reader.read)
        segments = tuple(segment for segment, _ in decoded)
        return golden.Latents(header.height, header.width, segments)

    def from_symbols(
        self, symbols: Mapping[str, npt.NDArray[np.integer]], height: int, width: int
    ) -> golden.Latents:
        """Latents, ready to `pack`, of symbols from elsewhere and the size of their image.

        Parameters
        ----------
        symbols : dict of str to int array (h, w, channels)
            ``y``, and for hyperprior models ``z``; within what the network's decoder reads.
        height, width : int

        Raises UserError for symbols that do not suit the network and the size.
        """
        shapes = golden.latent_shapes(self.network, height, width)

        def read(name: str, indices: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
            if name not in symbols:
                raise UserError(f"there are no symbols {name}, which this network needs.")
            found, shape = np.asarray(symbols[name]), shapes[name]
            if found.shape != shape or not np.issubdtype(found.dtype, np.integer):
                raise UserError(
                    f"the symbols {name} must be integers of shape {shape} for {width} x {height} "
                    f"pixels, not {found.dtype} {found.shape}."
                )
            lo, hi = self._limits(name) or (np.iinfo(np.int32).min, np.iinfo(np.int32).max)
            if found.min() < lo or found.max() > hi:
                raise UserError(
                    f"the symbols {name} must lie in {lo} .. {hi}, but span "
                    f"{found.min()} .. {found.max()}."
                )
            return found.astype(np.int32)

        decoded = golden.symbols_in_order(self.network, height, width, read)
        return golden.Latents(height, width, tuple(segment for segment, _ in decoded))

    def _limits(self, name: str) -> tuple[int, int] | None:
        """Least and greatest symbol that the decoder takes, None if it takes any."""
        latent = self._latents[name]
        if self.network.has_means(latent):
            return None
        source = self.network.transform(latent.synthesis).input
        return source.lo, source.hi

    def _header(self, data: bytes, max_pixels: int, salvage: bool) -> Header:
        """The header, found to suit the network."""
        header = inspect(data, truncated=salvage)
        if header.digest != self.digest:
            raise ContainerError(
                f"the file was made with another network: it needs {header.digest[:16]}…, "
                f"but {self.network.title} is {self.digest[:16]}…."
            )
        rows, columns = self.network.padded(header.height, header.width)
        if rows * columns > max_pixels:
            raise ContainerError(
                f"the file claims {header.width} x {header.height} pixels, which takes decoding "
                f"{columns} x {rows}, more than {max_pixels}."
            )
        shapes = golden.latent_shapes(self.network, header.height, header.width)
        for kind in SEGMENTS:
            symbols = math.prod(shapes.get(kind.name.lower(), (0,)))
            expected, found = len(segment_bounds(symbols)), len(header.of_kind(kind))
            if found != expected:
                raise ContainerError(
                    f"the file is damaged: it has {found} {kind.name.lower()} segments where "
                    f"{expected} belong."
                )
        return header


class _Reader:
    """Reads the parts of one file, and keeps account of what is lost."""

    def __init__(self, container: Container, header: Header, data: bytes, salvage: bool):
        self.container, self.header, self.data, self.salvage = container, header, data, salvage
        self.network = container.network
        self.lost: list[str] = []
        self._masks: dict[str, npt.NDArray[np.bool_]] = {}
        # all of them before anything is decoded, so that damage is refused at once
        self._intact = {part: self._is_intact(part) for part in header.parts}
        if not salvage:
            for part, intact in self._intact.items():
                if not intact:
                    self._lose(part, _CHECKSUM_FAILS)
            return
        there = sum(part.length for part, intact in self._intact.items() if intact)
        most = max(SALVAGE_PIXELS, SALVAGE_PIXELS_PER_BYTE * there)
        if math.prod(self.network.padded(header.height, header.width)) > most:
            raise ContainerError(
                f"the file claims {header.width} x {header.height} pixels, and {there} bytes of it "
                f"are intact: too few to salvage more than {most} pixels."
            )

    def _lose(self, part: Part, reason: str) -> None:
        if not self.salvage:
            raise ContainerError(f"the file is damaged: {part.name} {reason}.")
        self.lost.append(f"{part.name} {reason}")

    def _is_intact(self, part: Part) -> bool:
        payload = self._payload(part)
        return len(payload) == part.length and zlib.crc32(payload) == part.checksum

    def _payload(self, part: Part) -> bytes:
        return self.data[part.offset : part.offset + part.length]

    def plain(self, kind: Kind, unpack: Callable[[bytes], _T]) -> _T | None:
        """What a part that no network is needed for holds; None without one."""
        for part in self.header.of_kind(kind):
            if not self._intact[part]:
                self._lose(part, _CHECKSUM_FAILS)
                continue
            try:
                return unpack(self._payload(part))
            except (zlib.error, ValueError):
                self._lose(part, "cannot be unpacked")
        return None

    def read(self, name: str, indices: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """All symbols of z or y, 0 for those lost (see `golden.decode`)."""
        parts = self.header.of_kind(Kind[name.upper()])
        bounds = segment_bounds(indices.size)
        coder = self.container._coders[name]
        limits = self.container._limits(name)
        unsure = self._unsure(name, indices.shape)

        def decode(task: tuple[Part, tuple[int, int]]) -> npt.NDArray[np.int32] | str:
            part, (first, last) = task
            if not self._intact[part]:
                return _CHECKSUM_FAILS
            if unsure is not None and _stretch(unsure, first, last).any():
                return "cannot be decoded without a z segment that is lost"
            try:
                symbols = coder.decode(self._payload(part), _stretch(indices, first, last))
            except EntropyError:
                return "does not decode"
            if limits and (symbols.min() < limits[0] or symbols.max() > limits[1]):
                return "holds symbols that the network cannot make"
            return symbols

        found = _parallel(decode, list(zip(parts, bounds, strict=True)), self.container.threads)
        neutral = 0 if limits is None else int(clamp(0, *limits))
        symbols = np.full(indices.size, neutral, np.int32)
        mask = np.zeros(indices.size, bool)
        for part, (first, last), result in zip(parts, bounds, found, strict=True):
            if isinstance(result, str):
                self._lose(part, result)
                mask[first:last] = True
            else:
                symbols[first:last] = result
        self._masks[name] = mask.reshape(indices.shape).any(axis=2)
        return symbols.reshape(indices.shape)

    def _unsure(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
        """Symbols whose tables or means depend on what is lost; None if there are none."""
        inner = self.network.inner(self.container._latents[name])
        if inner is None:
            return None
        reached = self._reached(inner)
        return None if reached is None else np.broadcast_to(reached[:, :, None], shape)

    def _reached(self, latent: Latent) -> npt.NDArray[np.bool_] | None:
        """What the synthesis of a latent makes of lost symbols; None if none is lost.

        Symbols whose tables or means depend on lost ones count as lost themselves.
        """
        lost = self._masks[latent.name]
        return influence(self.network.transform(latent.synthesis), lost) if lost.any() else None

    def damaged(self) -> npt.NDArray[np.bool_] | None:
        """Pixels that depend on lost symbols, None if none is lost."""
        pixels = self._reached(self.network.latents[0])
        return None if pixels is None else pixels[: self.header.height, : self.header.width]


def influence(transform: Transform, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which outputs of a transform depend on the marked positions (height, width) of its input."""
    for stage in transform.stages:
        for axis in (0, 1):
            mask = _spread(mask, stage.convolution, axis)
    return mask


def _spread(mask: npt.NDArray[np.bool_], conv: Convolution, axis: int) -> npt.NDArray[np.bool_]:
    """Where a convolution along one axis reads something marked; takes memory for two masks."""
    size = mask.shape[axis]
    first, last = conv.reach(np.arange(conv.output_size(size)))
    shape = [1, 1]
    shape[axis] = len(first)
    found = np.zeros(np.where(np.arange(2) == axis, len(first), mask.shape), bool)
    for tap in range(int((last - first).max()) + 1):
        read = first + tap
        inside = (read >= 0) & (read <= np.minimum(last, size - 1))
        found |= mask.take(np.clip(read, 0, size - 1), axis) & inside.reshape(shape)
    return found


def _stretch(array: npt.NDArray[_S], first: int, last: int) -> npt.NDArray[_S]:
    """Entries ``first .. last - 1`` of a tensor (height, width, channels) in raster order.

    No more of it is copied, though it may be a broadcast one.
    """
    row = array.shape[1] * array.shape[2]
    top = first // row
    rows = array[top : ceil_div(last, row)].reshape(-1)
    return rows[first - top * row : last - top * row]


def inspect(data: bytes, *, truncated: bool = False) -> Header:
    """The header of a file.

    Parameters
    ----------
    data : bytes
        The file; with ``truncated`` it may end early or have more after its end.

    Raises ContainerError for what is not a ``.lic`` file, or is one whose header is damaged.
    """
    if data[:4] != MAGIC:
        raise ContainerError("this is not a .lic file.")
    if len(data) < _FIXED.size:
        raise ContainerError("the file is damaged: it ends within its header.")
    _, version, flags, reserved, width, height, sha, count = _FIXED.unpack_from(data)
    if version != VERSION:
        raise ContainerError(
            f"the file is of version {version}, which this Lichen does not know "
            f"(it reads version {VERSION}), or it is damaged."
        )
    if count > PARTS_MAX:
        raise ContainerError(f"the file is damaged: it claims to have {count} parts.")
    end = _FIXED.size + count * _PART.size
    if len(data) < end + _CHECKSUM.size:
        raise ContainerError("the file is damaged: it ends within its header.")
    if zlib.crc32(data[:end]) != _CHECKSUM.unpack_from(data, end)[0]:
        raise ContainerError("the file is damaged: its header fails its checksum.")
    kinds = set(Kind)
    if reserved or flags & ~int(Flags.GREY) or not width or not height:
        raise ContainerError("the file is damaged: its header makes no sense.")
    numbers = dict.fromkeys(kinds, 0)
    parts = []
    offset = end + _CHECKSUM.size
    for kind, length, checksum in _entries(data, count):
        if kind not in kinds:
            raise ContainerError(f"the file is damaged: there is no part of kind {kind}.")
        parts.append(Part(Kind(kind), numbers[Kind(kind)], offset, length, checksum))
        numbers[Kind(kind)] += 1
        offset += length
    if max(numbers[Kind.ALPHA], numbers[Kind.ICC]) > 1:
        raise ContainerError("the file is damaged: it has two alphas or profiles.")
    if offset != len(data) and not truncated:
        raise ContainerError(
            f"the file is damaged: it has {len(data)} bytes where {offset} belong."
        )
    return Header(
        version,
        Flags(flags),
        width,
        height,
        sha.hex(),
        tuple(parts),
        len(data),
        offset == len(data),
    )


def _entries(data: bytes, count: int) -> Iterator[tuple[int, int, int]]:
    end = _FIXED.size + count * _PART.size
    yield from _PART.iter_unpack(data[_FIXED.size : end])


def _pack_alpha(alpha: npt.NDArray[np.uint8]) -> bytes:
    """Differences from the row above (modulo 256), deflated."""
    rows = np.diff(alpha, axis=0, prepend=np.zeros((1, alpha.shape[1]), np.uint8))
    return zlib.compress(rows.tobytes(), 9)


def _inflate(payload: bytes, most: int) -> bytes:
    """Inflate to at most so many bytes; ValueError for more or for what follows."""
    inflater = zlib.decompressobj()
    found = inflater.decompress(payload, most + 1)
    if len(found) > most or not inflater.eof or inflater.unused_data:
        raise ValueError("not what was deflated")
    return found


def _unpack_alpha(payload: bytes, header: Header) -> npt.NDArray[np.uint8]:
    shape = (header.height, header.width)
    rows = np.frombuffer(_inflate(payload, shape[0] * shape[1]), np.uint8).reshape(shape)
    return rows.cumsum(axis=0, dtype=np.uint8)


def _unpack_profile(payload: bytes) -> bytes:
    return _inflate(payload, PROFILE_BYTES_MAX)


def encode(
    image: Picture | Image.Image | npt.NDArray[np.uint8],
    network: Network,
    *,
    threads: int | None = None,
) -> bytes:
    """Code an image into the bytes of a ``.lic`` file.

    Parameters
    ----------
    image : PIL image of any mode, uint8 array or Picture
        Arrays: (height, width) or (height, width, 1 to 4), see `Picture.of`.
    network : Network
    threads : int or None
        None takes one per processor; the bytes don't depend on it.

    Raises UserError for networks that code no images, and for images with floating-point samples
    or a monstrous profile; ValueError for what is no image.
    """
    return Container(network, threads).encode(image)


def decode(data: bytes, network: Network, *, threads: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode the bytes of a ``.lic`` file to an array, as `encode` takes it.

    `Container.decode` gives a PIL image and the colour profile, too, salvages damaged files, and
    limits the size of what it decodes.

    Raises ContainerError for damaged files and other networks' files.
    """
    return Container(network, threads).decode(data).picture.array()
