"""Reading the parts of a file: what is damaged, what that costs, and what it can reach."""

from __future__ import annotations

import math
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lichen.codec.parts import ContainerError, Header, Kind, Part
from lichen.network.arithmetic import clamp
from lichen.network.description import Convolution, Latent, Network, Transform

SALVAGE_PIXELS = 1 << 24
SALVAGE_PIXELS_PER_BYTE = 1 << 12
"""What is salvaged of a file, however little is intact, or by what is: a header alone may claim
any size, and even images of one colour have at most 210 pixels a byte with the shipped networks."""

CHECKSUM_FAILS = "fails its checksum"

_T = TypeVar("_T")
_U = TypeVar("_U")
Symbols = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def parallel(work: Callable[[_T], _U], items: Sequence[_T], threads: int | None) -> list[_U]:
    """Map in order; the compiled loops of the entropy coders leave Python's lock alone."""
    workers = min(len(items), os.cpu_count() or 1 if threads is None else threads)
    if workers <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


class PartReader(ABC):
    """Reads the parts of one file, and keeps account of what is lost.

    Parameters
    ----------
    network : Network
    header : Header
    data : bytes
        Of the file.
    salvage : bool
        Tell of what is damaged rather than refuse it.
    """

    def __init__(self, network: Network, header: Header, data: bytes, salvage: bool):
        self.network, self.header, self.data, self.salvage = network, header, data, salvage
        self.lost: list[str] = []
        self.masks: dict[str, Mask] = {}
        # all of them before anything is decoded, so that damage is refused at once
        if not salvage:
            for part in header.parts:
                if not part.intact:
                    self.lose(part, CHECKSUM_FAILS)
            return
        there = sum(part.length for part in header.parts if part.intact)
        most = max(SALVAGE_PIXELS, SALVAGE_PIXELS_PER_BYTE * there)
        if math.prod(network.padded(header.height, header.width)) > most:
            raise ContainerError(
                f"the file claims {header.width} x {header.height} pixels, and {there} bytes of it "
                f"are intact: too few to salvage more than {most} pixels."
            )

    @abstractmethod
    def read(self, name: str, indices: Symbols) -> Symbols:
        """All symbols of a latent, neutral ones for those lost (see `golden.decode`)."""

    def lose(self, part: Part, reason: str) -> None:
        """Take note of a lost part; ContainerError unless salvaging."""
        if not self.salvage:
            raise ContainerError(f"the file is damaged: {part.name} {reason}.")
        self.lost.append(f"{part.name} {reason}")

    def payload(self, part: Part) -> bytes:
        return self.data[part.offset : part.offset + part.length]

    def plain(self, kind: Kind, unpack: Callable[[bytes], _T]) -> _T | None:
        """What a part that no network is needed for holds; None without one."""
        for part in self.header.of_kind(kind):
            if not part.intact:
                self.lose(part, CHECKSUM_FAILS if part.overhead else "is missing")
                continue
            try:
                return unpack(self.payload(part))
            except (zlib.error, ValueError):
                self.lose(part, "cannot be unpacked")
        return None

    def latent(self, name: str) -> Latent:
        return next(latent for latent in self.network.latents if latent.name == name)

    def neutral(self, name: str) -> int:
        """What stands for symbols that are lost."""
        limits = symbol_limits(self.network, self.latent(name))
        return 0 if limits is None else int(clamp(0, *limits))

    def unsure(self, name: str) -> Mask | None:
        """Places (h, w) whose tables or means depend on what is lost; None if there are none."""
        inner = self.network.inner(self.latent(name))
        return None if inner is None else self._reached(inner)

    def needed(self, name: str) -> str:
        """Why symbols of such places are lost, too."""
        inner = self.network.inner(self.latent(name))
        return f"cannot be decoded without a {inner.name if inner else name} segment that is lost"

    def _reached(self, latent: Latent) -> Mask | None:
        """What the synthesis of a latent makes of lost symbols; None if none is lost.

        Symbols whose tables or means depend on lost ones count as lost themselves.
        """
        lost = self.masks[latent.name]
        return influence(self.network.transform(latent.synthesis), lost) if lost.any() else None

    def damaged(self) -> Mask | None:
        """Pixels that depend on lost symbols, None if none is lost."""
        pixels = self._reached(self.network.latents[0])
        return None if pixels is None else pixels[: self.header.height, : self.header.width]


def symbol_limits(network: Network, latent: Latent) -> tuple[int, int] | None:
    """Least and greatest symbol that the decoder takes, None if it takes any."""
    if network.has_means(latent):
        return None
    source = network.transform(latent.synthesis).input
    return source.lo, source.hi


def influence(transform: Transform, mask: Mask) -> Mask:
    """Which outputs of a transform depend on the marked positions (height, width) of its input."""
    for stage in transform.stages:
        for axis in (0, 1):
            mask = _spread(mask, stage.convolution, axis)
    return mask


def _spread(mask: Mask, conv: Convolution, axis: int) -> Mask:
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
