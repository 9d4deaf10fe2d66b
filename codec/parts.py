"""What a ``.lic`` file says of itself, in either version: its header and its parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from lichen.codec.layout import Layout
from lichen.errors import UserError
from lichen.network.description import LATENTS

MAGIC = b"\x8bLIC"


class Kind(IntEnum):
    """What a part holds."""

    Z = 1
    Y = 2
    ALPHA = 3
    ICC = 4
    EXIF = 5
    XMP = 6


SEGMENTS = tuple(Kind[latent.name.upper()] for latent in reversed(LATENTS))
"""The kinds that hold symbols, in coding order."""

_TITLES = {Kind.ALPHA: "alpha", Kind.ICC: "ICC profile", Kind.EXIF: "EXIF", Kind.XMP: "XMP"}


class Flags(IntFlag):
    """Of the header; all other bits are 0, and in version 1 all but the first.

    Those after `SRGB` tell which parts there are of the kinds of their names, so that one that was
    cut out as a whole is missed.
    """

    GREY = 1
    SRGB = 2
    ALPHA = 4
    ICC = 8
    EXIF = 16
    XMP = 32


PLAIN = tuple(_TITLES)
"""Kinds of parts that are no segments."""


def flags_of(kinds: Iterable[int]) -> Flags:
    """What tells parts of these kinds; nothing of those without a flag."""
    found = Flags(0)
    for kind in set(PLAIN).intersection(kinds):
        found |= Flags[kind.name]
    return found


class ContainerError(UserError):
    """A file that is not, or no longer, a ``.lic`` file, or for another network."""


@dataclass(frozen=True)
class Part:
    """A stretch of a file with a checksum of its own.

    Attributes
    ----------
    kind : int
        A `Kind`, or that of a part that a later Lichen wrote.
    number : int
        Among those of its kind.
    offset, length : int
        In bytes, from the start of the file.
    intact : bool
        It is all there, and its checksum is right.
    overhead : int
        Bytes elsewhere that the file has for it alone.
    """

    kind: int
    number: int
    offset: int
    length: int
    intact: bool
    overhead: int

    @property
    def name(self) -> str:
        """For messages: ``y segment 3``, ``alpha``."""
        if self.kind in SEGMENTS:
            return f"{Kind(self.kind).name.lower()} segment {self.number}"
        known = self.kind in set(Kind)
        return _TITLES[Kind(self.kind)] if known else f"part of kind {self.kind}"


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
        Of the network, hexadecimal: 64 digits in version 1, 32 in version 2.
    parts : tuple of Part
    size : int
        Of the file in bytes.
    whole : bool
        The file ends where its last part does.
    layout : Layout or None
        How latents are cut, in version 2.
    """

    version: int
    flags: Flags
    width: int
    height: int
    digest: str
    parts: tuple[Part, ...]
    size: int
    whole: bool = True
    layout: Layout | None = None

    def of_kind(self, kind: Kind) -> list[Part]:
        return [part for part in self.parts if part.kind == kind]

    @property
    def image_bytes(self) -> int:
        """Of the file less alpha, profile and metadata, which other codecs' figures lack, too."""
        others = (part for part in self.parts if part.kind not in SEGMENTS)
        return self.size - sum(part.length + part.overhead for part in others)

    @property
    def stream_bytes(self) -> int:
        """Of the streams alone."""
        return sum(part.length for part in self.parts if part.kind in SEGMENTS)

    def json(self) -> dict[str, Any]:
        """For `lichen info`."""
        pixels = self.width * self.height
        report = {
            "version": self.version,
            "width": self.width,
            "height": self.height,
            "grey": Flags.GREY in self.flags,
            "srgb": Flags.SRGB in self.flags,
            "alpha": bool(self.of_kind(Kind.ALPHA)),
            "icc_bytes": sum(part.length for part in self.of_kind(Kind.ICC)),
            "exif_bytes": sum(part.length for part in self.of_kind(Kind.EXIF)),
            "xmp_bytes": sum(part.length for part in self.of_kind(Kind.XMP)),
            "network_sha256": self.digest,
            "bytes": self.size,
            "bpp": 8 * self.image_bytes / pixels,
            "bpp_streams": 8 * self.stream_bytes / pixels,
        }
        if self.layout is not None:
            report["layout"] = {
                "strip_columns": self.layout.columns,
                "group_rows": self.layout.rows,
                "segment_places": self.layout.places,
            }
        parts = [
            {
                "name": part.name,
                "offset": part.offset,
                "bytes": part.length,
                "intact": part.intact,
            }
            for part in self.parts
        ]
        return report | {"parts": parts}
