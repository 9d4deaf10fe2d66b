"""How a memory's words are cut into blocks of a device, for least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from amaranth.utils import ceil_log2

from lichen.hw.device.device import Device, Resources
from lichen.network.arithmetic import ceil_div

DISTRIBUTED_DEPTH_MAX = 256
"""No more words than this are kept in lookup tables."""


@dataclass(frozen=True)
class Piece:
    """Consecutive words of a memory that are stored alike.

    Attributes
    ----------
    start, words : int
        First word and how many.
    depth : int
        Addresses of one block, a power of two that divides ``start``.
    width : int
        Bits of one block; 0 where the words are in lookup tables.
    """

    start: int
    words: int
    depth: int
    width: int

    @property
    def block(self) -> bool:
        """Whether the words are in block RAM."""
        return self.width > 0

    def resources(self, device: Device, width: int, *, writable: bool) -> Resources:
        """What it takes to store words of ``width`` bits here."""
        if self.block:
            return Resources(bram=ceil_div(width, self.width))
        sixteenths = ceil_div(self.words, 16)
        if not writable:
            return Resources(lut=sixteenths * width)
        # A multiplexer chooses among several.
        mux = ceil_div(sixteenths, 2) * width if sixteenths > 1 else 0
        return Resources(lut=device.small_ram_luts(self.words, width) + mux + sixteenths)


_Best = tuple[int, int, Piece | None, tuple[int, int]]
"""Cost and number of pieces, the first of them, and the key of the others."""


@lru_cache(maxsize=4096)
def pieces(device: Device, depth: int, width: int, writable: bool) -> tuple[Piece, ...]:
    """How ``depth`` words of ``width`` bits are stored for least, deepest blocks first.

    Blocks are filled one depth after the other, for few depths fit one block shape: 1600 words
    are 1024 of 18-bit slices, 512 of 36-bit ones and 64 in lookup tables, which saves a quarter
    against one shape for all.
    """

    def cost(piece: Piece) -> int:
        own = piece.resources(device, width, writable=writable)
        return device.block.luts * own.bram + own.lut

    # The best way to store the words from a start in blocks at most so deep, by those two. Found
    # from the end, for there may be thousands of blocks.
    nothing: _Best = (0, 0, None, (0, 0))
    best: dict[tuple[int, int], _Best] = {}
    whole = {d: cost(Piece(0, d, d, w)) for d, w in device.block.shapes}
    least = min(whole)
    for start in range((depth - 1) // least * least, -1, -least):
        left = depth - start
        options: list[_Best] = []
        if left <= DISTRIBUTED_DEPTH_MAX:
            rest = Piece(start, left, 1 << ceil_log2(left), 0)
            options.append((cost(rest), 1, rest, (depth, 0)))
        for block_depth, block_width in device.block.shapes:
            if start % block_depth:
                break
            piece = Piece(start, min(left, block_depth), block_depth, block_width)
            others = (start + block_depth, block_depth)
            price, count, _, _ = best.get(others, nothing)
            # What follows needs a multiplexer behind it.
            price += width if count else 0
            price += whole[block_depth] if left >= block_depth else cost(piece)
            options.append((price, count + 1, piece, others))
            best[start, block_depth] = min(options, key=lambda o: o[:2])
    found: list[Piece] = []
    state = 0, device.block.shapes[-1][0]
    while (entry := best.get(state, nothing))[2] is not None:
        found.append(entry[2])
        state = entry[3]
    return tuple(found)
