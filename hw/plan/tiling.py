"""Images wider than the gateware: overlapping tiles whose results join without a seam."""

from __future__ import annotations

from dataclasses import dataclass

from lichen.network.arithmetic import ceil_div
from lichen.network.description import Transform


@dataclass(frozen=True)
class Tile:
    """One tile's columns.

    Attributes
    ----------
    start, stop : int
        Input columns the tile is computed from.
    out_start, out_stop : int
        Columns of the whole output that it contributes.
    skip : int
        Columns of the tile's own output left of ``out_start``.
    """

    start: int
    stop: int
    out_start: int
    out_stop: int
    skip: int


def reach(transform: Transform) -> tuple[int, int]:
    """Input columns beside its own ``downsampling`` that a block of the output needs, left and
    right.

    A block is the ``upsampling`` columns of output that follow ``downsampling`` of input. What
    lies between the stages must be there as well, and not only what it is made of: transposed
    convolutions crop their output on both sides, or make less than a block of the last column.
    """
    first, last = 0, transform.upsampling - 1
    for stage in reversed(transform.stages):
        convolution = stage.convolution
        begins, ends = first, last
        first, last = convolution.reach(first)[0], convolution.reach(last)[1]
        if convolution.transposed:
            first = min(first, begins // convolution.stride)
        while convolution.output_size(last + 1) <= ends:
            last += 1
    return max(0, -first), max(0, last - transform.downsampling + 1)


def tiles(transform: Transform, width: int, max_width: int) -> list[Tile]:
    """Cut a width into tiles no wider than ``max_width``.

    Starts are multiples of the downsampling, halos cover the receptive field, so every output
    column equals that of the untiled image bit for bit.

    Raises ValueError when ``max_width`` leaves no column between the halos.
    """
    block, grown = transform.downsampling, transform.upsampling
    out = transform.sizes(width, width)[-1][1]
    if width <= max_width:
        return [Tile(0, width, 0, out, 0)]
    # From here on in blocks: `block` columns of the input, `grown` of the output.
    left, right = (ceil_div(r, block) for r in reach(transform))
    room = max_width // block
    if room - left - right < 1:
        raise ValueError(
            f"a width of {max_width} is too narrow for tiles: the receptive field takes "
            f"{(left + right) * block} columns beside at least {block} of its own"
        )
    result = []
    position, blocks = 0, ceil_div(out, grown)
    while position < blocks:
        first = max(0, position - left)
        stop = min(width, (first + room) * block)
        last = blocks if stop == width else first + room - right
        result.append(
            Tile(
                start=first * block,
                stop=stop,
                out_start=position * grown,
                out_stop=min(out, last * grown),
                skip=(position - first) * grown,
            )
        )
        position = last
    return result
