"""Decoding part of an image: which symbols its pixels depend on, and only those transforms' work.

From the image inwards: the rows and columns of each latent that a synthesis transform reads for
what is wanted, widened to what contexts need, which is whole groups of whole strips down to the
last row wanted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lichen.codec.layout import Layout
from lichen.codec.reader import PartReader
from lichen.errors import UserError
from lichen.network.description import Network
from lichen.sim import golden
from lichen.sim.window import Span, needed, run_window


@dataclass(frozen=True)
class Region:
    """Rows and columns of an image, each from the first to the one behind the last.

    ``columns`` None takes all.
    """

    rows: Span
    columns: Span | None = None

    @staticmethod
    def of_rows(text: str) -> Region:
        """Of ``A:B``; UserError for anything else."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
        if match is None:
            raise UserError(f"{text} names no rows; use A:B, of which B is the first one left out.")
        return Region((int(match[1]), int(match[2])))

    @staticmethod
    def of_crop(text: str) -> Region:
        """Of ``WxH+X+Y``; UserError for anything else."""
        match = re.fullmatch(r"(\d{1,9})x(\d{1,9})\+(\d{1,9})\+(\d{1,9})", text)
        if match is None:
            raise UserError(f"{text} names no part of an image; use WxH+X+Y, as 320x200+64+0.")
        width, height, left, top = map(int, match.groups())
        return Region((top, top + height), (left, left + width))

    def check(self, height: int, width: int) -> None:
        """Raise UserError unless it lies within an image and has pixels."""
        for name, span, size in (("rows", self.rows, height), ("columns", self.columns, width)):
            if span is not None and not 0 <= span[0] < span[1] <= size:
                raise UserError(
                    f"the {name} {span[0]}:{span[1]} are not within the image, which has {size}."
                )

    def across(self, width: int) -> Span:
        return (0, width) if self.columns is None else self.columns

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(*self.rows), slice(None) if self.columns is None else slice(*self.columns)


@dataclass(frozen=True)
class Spans:
    """Of one latent, rows and columns each: what is read of it, what its segments are chosen for,
    and what these reach, which is further where a segment has several rows of a narrow strip."""

    read: tuple[Span, Span]
    decoded: tuple[Span, Span]
    reached: tuple[Span, Span]


def spans(
    network: Network, size: tuple[int, int], region: Region, layout: Layout
) -> dict[str, Spans]:
    """What a region of an image of this height and width takes of each latent."""
    shapes = golden.latent_shapes(network, *size)
    wanted = (region.rows, region.across(size[1]))
    outer = network.rows(network.latents[0].name)
    found = {}
    for latent in network.latents:
        shape = shapes[latent.name]
        transform = network.transform(latent.synthesis)
        rows, columns = (
            needed(transform, span, length) for span, length in zip(wanted, shape[:2], strict=True)
        )
        ratio = outer // network.rows(latent.name)
        strip = layout.strip(ratio)
        decoded = (
            (rows[0] - rows[0] % layout.rows, rows[1]),
            (columns[0] - columns[0] % strip, min(-(-columns[1] // strip) * strip, shape[1])),
        )
        ends = (
            window.end_row
            for group in layout.groups(*shape[:2], ratio)
            for window in group
            if window.is_wanted(*decoded)
        )
        reached = ((decoded[0][0], max(ends)), decoded[1])
        found[latent.name] = Spans((rows, columns), decoded, reached)
        wanted = reached
    return found


def decode_region(
    network: Network,
    size: tuple[int, int],
    region: Region,
    layout: Layout | None,
    reader: PartReader,
) -> npt.NDArray[np.uint8]:
    """The pixels of a region of an image of this height and width, from a reader of its symbols."""
    assert layout is not None
    shapes, chosen = golden.latent_shapes(network, *size), spans(network, size, region, layout)
    within: golden.Tensor | None = None
    for latent in reversed(network.latents):
        shape, own = shapes[latent.name], chosen[latent.name]
        part = tuple(slice(*span) for span in own.reached)
        means: golden.Tensor | None = None
        indices = golden.channel_indices(shape)
        inner = network.inner(latent)
        if inner is not None and within is not None:
            made = run_window(network.transform(inner.synthesis), within, *own.reached)
            parameters = golden.choose_tables(network, latent, made)
            indices = np.zeros(shape, np.int32)
            indices[part] = parameters.indices
            if parameters.means is not None:
                means = np.zeros(shape, np.int32)
                means[part] = parameters.means
        symbols = reader.read(latent.name, indices)
        source = network.transform(latent.synthesis).input
        within = golden.synthesis_input(symbols, means, network.fraction(latent), source)
    outer = network.transform(network.latents[0].synthesis)
    assert within is not None
    return run_window(outer, within, region.rows, region.across(size[1])).astype(np.uint8)
