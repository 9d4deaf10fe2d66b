"""The ``.lic`` file: an image coded by an integer network, byte by byte as docs/container.md says.

A header with a checksum names the network by its digest; entropy-coded segments, alpha, colour
profile and metadata have a checksum each. So a damaged file is never decoded to something else in
silence, damage stays in its segment (version 1) or the group of segments that its contexts reach
(version 2), and segments or groups are coded in parallel. No float takes part in decoding, nor
does anything that depends on the machine.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from lichen.codec import version1, version2
from lichen.codec.context import ContextCoder
from lichen.codec.entropy import EntropyCoder, EntropyError
from lichen.codec.layout import Layout
from lichen.codec.metadata import is_srgb, srgb_profile
from lichen.codec.parts import MAGIC, SEGMENTS, ContainerError, Flags, Header, Kind, Part
from lichen.codec.picture import Picture
from lichen.codec.reader import (
    CHECKSUM_FAILS,
    PartReader,
    influence,
    parallel,
    symbol_limits,
)
from lichen.codec.region import Region, decode_region, spans
from lichen.errors import UserError
from lichen.network.arithmetic import ceil_div
from lichen.network.description import LATENTS, Network
from lichen.network.identity import decoder_digest, static_digest
from lichen.sim import golden
from lichen.sim.images import PIXELS_MAX

__all__ = [
    "Container",
    "ContainerError",
    "Decoded",
    "Flags",
    "Header",
    "Kind",
    "Part",
    "Region",
    "check_network",
    "decode",
    "encode",
    "influence",
    "inspect",
]

VERSIONS = (1, 2)
"""Of the file; the newest one that a network can write is the default."""

SEGMENT_SYMBOLS = 1 << 16
"""Most symbols of a segment of version 1."""

PROFILE_BYTES_MAX = 1 << 24
"""Largest ICC profile, EXIF or XMP: what inflates to more is taken for an attack."""

MARK = np.array([255, 0, 255], np.uint8)
"""Colour of what is lost."""

_S = TypeVar("_S", bound=np.generic)


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


def check_network(network: Network, *, encoding: bool = True) -> None:
    """Raise UserError for a network that cannot code and decode, or only decode, images."""
    name = network.title
    for latent in network.latents or LATENTS[:1]:
        for transform in (latent.analysis, latent.synthesis) if encoding else (latent.synthesis,):
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
    version : int or None
        Of the files that it writes; it reads all. None takes 2 where the network has contexts.
    layout : Layout
        How files of version 2 are cut.

    Raises UserError for a network that decodes no images, or has no version to write.
    """

    def __init__(
        self,
        network: Network,
        threads: int | None = None,
        *,
        version: int | None = None,
        layout: Layout | None = None,
    ):
        check_network(network, encoding=False)
        if version not in (None, *VERSIONS):
            raise UserError(f"there is no version {version} of the file; use 1 or 2.")
        if version == 2 and network.contexts is None:
            raise UserError(
                f"{network.title} has no context models, which version 2 of the file needs; make "
                "them with `lichen fit-tables`, or write version 1."
            )
        self.network = network
        self.threads = threads
        self.version = version or (1 if network.contexts is None else 2)
        self.layout = Layout() if layout is None else layout
        self._latents = {latent.name: latent for latent in network.latents}
        self._coders = {name: EntropyCoder(tables) for name, tables in network.entropy.items()}
        contexts = network.contexts
        self._context_coders = (
            {}
            if contexts is None
            else {name: ContextCoder(contexts, name) for name in contexts.latents}
        )
        self._digests: dict[int, str] = {}

    @property
    def digest(self) -> str:
        """What the files that it writes name the network by, hexadecimal."""
        return self.digest_of(self.version)

    def digest_of(self, version: int) -> str:
        """What files of a version name the network by, hexadecimal."""
        if version not in self._digests:
            self._digests[version] = (
                static_digest(self.network) if version == 1 else decoder_digest(self.network).hex()
            )
        return self._digests[version]

    def encode(self, image: Picture | Image.Image | npt.NDArray[np.uint8]) -> bytes:
        """The file of an image; see `Picture.of` for what that may be.

        Raises UserError for a network that only decodes.
        """
        check_network(self.network)
        picture = Picture.of(image)
        return self.pack(golden.analysis(self.network, picture.pixels), picture)

    def pack(self, latents: golden.Latents, picture: Picture | None = None) -> bytes:
        """The file of latents, with the alpha, profile, metadata and greyness of a picture.

        The latents may come from gateware; their indices must be those of this network.

        Raises UserError for a profile or metadata that no decoder takes.
        """
        flags = Flags.GREY if picture is not None and picture.grey else Flags(0)
        if self.version == 1:
            return self._pack_1(latents, flags, _plain_parts(picture))
        if picture is not None and is_srgb(picture.icc):
            flags |= Flags.SRGB
            picture = replace(picture, icc=None)
        frame = version2.Frame(
            flags, latents.width, latents.height, bytes.fromhex(self.digest_of(2)), self.layout
        )
        counts = version2.segment_counts(self.network, self.layout, latents.height, latents.width)
        coded = version2.streams(
            self.network, self._context_coders, latents, self.layout, self.threads
        )
        return version2.pack(
            frame, list(counts.values()), _plain_parts(picture, metadata=True), coded
        )

    def _pack_1(
        self, latents: golden.Latents, flags: Flags, others: list[tuple[Kind, bytes]]
    ) -> bytes:
        """A file of version 1."""
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

        payloads = parallel(code, tasks, self.threads)
        parts = [
            (Kind[task[0].name.upper()], payload)
            for task, payload in zip(tasks, payloads, strict=True)
        ]
        parts += others
        size = latents.height, latents.width
        return version1.pack(flags, size, bytes.fromhex(self.digest_of(1)), parts)

    def decode(
        self,
        data: bytes,
        *,
        salvage: bool = False,
        max_pixels: int = PIXELS_MAX,
        region: Region | None = None,
        synthesize: golden.Synthesis = golden.synthesis,
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
        region : Region or None
            Which rows and columns; only what they depend on is decoded (of version 1, all).
        synthesize : callable
            What makes the pixels of a whole image; see `golden.decode`.

        Raises ContainerError for damaged files, with the part that is, and for other networks;
        UserError for a region beyond the image.
        """
        header = self._header(data, max_pixels, salvage)
        height, width = header.height, header.width
        if region is not None:
            region.check(height, width)
        reader = self._reader(header, data, salvage, region)
        if region is None or header.version == 1:
            pixels = golden.decode(self.network, height, width, reader.read, synthesize)
        else:
            pixels = decode_region(self.network, (height, width), region, header.layout, reader)
        damaged = reader.damaged()
        alpha = reader.plain(Kind.ALPHA, lambda raw: _unpack_alpha(raw, header))
        if region is not None:
            part = region.slices
            pixels = pixels[part] if header.version == 1 else pixels
            alpha = None if alpha is None else alpha[part]
            damaged = None if damaged is None or not damaged[part].any() else damaged[part]
        srgb = Flags.SRGB in header.flags
        icc = srgb_profile() if srgb else reader.plain(Kind.ICC, _unpack_profile)
        exif, xmp = (reader.plain(kind, _unpack_profile) for kind in (Kind.EXIF, Kind.XMP))
        picture = Picture(pixels, alpha, Flags.GREY in header.flags, icc, exif=exif, xmp=xmp)
        return Decoded(picture, tuple(reader.lost), damaged)

    def latents(self, data: bytes, *, max_pixels: int = PIXELS_MAX) -> golden.Latents:
        """The symbols of a file, for looking at; errors as of `decode`."""
        header = self._header(data, max_pixels, False)
        reader = self._reader(header, data, False, None)
        decoded = golden.symbols_in_order(self.network, header.height, header.width, reader.read)
        segments = tuple(segment for segment, _ in decoded)
        return golden.Latents(header.height, header.width, segments)

    def _reader(
        self, header: Header, data: bytes, salvage: bool, region: Region | None
    ) -> PartReader:
        """What reads the symbols of a file of its version."""
        if header.version == 1:
            return _Reader(self, header, data, salvage)
        wanted = None
        if region is not None and header.layout is not None:
            size = header.height, header.width
            wanted = {
                name: one.decoded
                for name, one in spans(self.network, size, region, header.layout).items()
            }
        return version2.Reader(
            self.network, header, data, salvage=salvage, coders=self._context_coders,
            threads=self.threads, wanted=wanted,
        )  # fmt: skip

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
            lo, hi = symbol_limits(self.network, self._latents[name]) or (
                np.iinfo(np.int32).min,
                np.iinfo(np.int32).max,
            )
            if found.min() < lo or found.max() > hi:
                raise UserError(
                    f"the symbols {name} must lie in {lo} .. {hi}, but span "
                    f"{found.min()} .. {found.max()}."
                )
            return found.astype(np.int32)

        decoded = golden.symbols_in_order(self.network, height, width, read)
        return golden.Latents(height, width, tuple(segment for segment, _ in decoded))

    def _header(self, data: bytes, max_pixels: int, salvage: bool) -> Header:
        """The header, found to suit the network."""
        header = inspect(data, truncated=salvage)
        if header.version == 2 and self.network.contexts is None:
            raise ContainerError(
                f"the file was made with another network: it needs {header.digest[:16]}…, "
                f"but {self.network.title} has no context models."
            )
        own = self.digest_of(header.version)
        if header.digest != own:
            raise ContainerError(
                f"the file was made with another network: it needs {header.digest[:16]}…, "
                f"but {self.network.title} is {own[:16]}…."
            )
        rows, columns = self.network.padded(header.height, header.width)
        if rows * columns > max_pixels:
            raise ContainerError(
                f"the file claims {header.width} x {header.height} pixels, which takes decoding "
                f"{columns} x {rows}, more than {max_pixels}."
            )
        for kind, expected in self._segment_counts(header).items():
            found = len(header.of_kind(kind))
            if found != expected:
                raise ContainerError(
                    f"the file is damaged: it has {found} {kind.name.lower()} segments where "
                    f"{expected} belong."
                )
        return header

    def _segment_counts(self, header: Header) -> dict[Kind, int]:
        """How many segments of each kind belong into a file."""
        if header.layout is not None:
            return version2.segment_counts(self.network, header.layout, header.height, header.width)
        shapes = golden.latent_shapes(self.network, header.height, header.width)
        return {
            kind: len(segment_bounds(math.prod(shapes.get(kind.name.lower(), (0,)))))
            for kind in SEGMENTS
        }


class _Reader(PartReader):
    """Reads the segments of a file of version 1."""

    def __init__(self, container: Container, header: Header, data: bytes, salvage: bool):
        super().__init__(container.network, header, data, salvage)
        self.container = container

    def read(self, name: str, indices: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        parts = self.header.of_kind(Kind[name.upper()])
        bounds = segment_bounds(indices.size)
        coder = self.container._coders[name]
        limits = symbol_limits(self.network, self.latent(name))
        places = self.unsure(name)
        unsure = None if places is None else np.broadcast_to(places[:, :, None], indices.shape)

        def decode(task: tuple[Part, tuple[int, int]]) -> npt.NDArray[np.int32] | str:
            part, (first, last) = task
            if not part.intact:
                return CHECKSUM_FAILS
            if unsure is not None and _stretch(unsure, first, last).any():
                return self.needed(name)
            try:
                symbols = coder.decode(self.payload(part), _stretch(indices, first, last))
            except EntropyError:
                return "does not decode"
            if limits and (symbols.min() < limits[0] or symbols.max() > limits[1]):
                return "holds symbols that the network cannot make"
            return symbols

        found = parallel(decode, list(zip(parts, bounds, strict=True)), self.container.threads)
        symbols = np.full(indices.size, self.neutral(name), np.int32)
        mask = np.zeros(indices.size, bool)
        for part, (first, last), result in zip(parts, bounds, found, strict=True):
            if isinstance(result, str):
                self.lose(part, result)
                mask[first:last] = True
            else:
                symbols[first:last] = result
        self.masks[name] = mask.reshape(indices.shape).any(axis=2)
        return symbols.reshape(indices.shape)


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
    if len(data) < 6:
        raise ContainerError("the file is damaged: it ends within its header.")
    version = data[4]
    if version not in VERSIONS:
        raise ContainerError(
            f"the file is of version {version}, which this Lichen does not know "
            f"(it reads versions {' and '.join(map(str, VERSIONS))}), or it is damaged."
        )
    if version == 2:
        return version2.inspect(data, truncated=truncated)
    return version1.inspect(data, truncated=truncated)


def _plain_parts(picture: Picture | None, metadata: bool = False) -> list[tuple[Kind, bytes]]:
    """The parts of a picture that no network is needed for.

    Raises UserError where one is larger than a decoder takes.
    """
    if picture is None:
        return []
    found = []
    if picture.alpha is not None:
        found.append((Kind.ALPHA, _pack_alpha(picture.alpha)))
    texts = {Kind.ICC: ("ICC profile", picture.icc)}
    if metadata:
        texts |= {Kind.EXIF: ("EXIF", picture.exif), Kind.XMP: ("XMP", picture.xmp)}
    for kind, (title, payload) in texts.items():
        if payload is None:
            continue
        if len(payload) > PROFILE_BYTES_MAX:
            raise UserError(f"the {title} has more than {PROFILE_BYTES_MAX} bytes.")
        found.append((kind, zlib.compress(payload, 9)))
    return found


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
    version: int | None = None,
) -> bytes:
    """Code an image into the bytes of a ``.lic`` file.

    Parameters
    ----------
    image : PIL image of any mode, uint8 array or Picture
        Arrays: (height, width) or (height, width, 1 to 4), see `Picture.of`.
    network : Network
    threads : int or None
        None takes one per processor; the bytes don't depend on it.
    version : int or None
        Of the file; None takes 2 where the network has contexts, else 1.

    Raises UserError for networks that code no images, and for images with floating-point samples
    or a monstrous profile; ValueError for what is no image.
    """
    return Container(network, threads, version=version).encode(image)


def decode(data: bytes, network: Network, *, threads: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode the bytes of a ``.lic`` file to an array, as `encode` takes it.

    `Container.decode` gives a PIL image and the colour profile, too, salvages damaged files, and
    limits the size of what it decodes.

    Raises ContainerError for damaged files and other networks' files.
    """
    return Container(network, threads).decode(data).picture.array()
