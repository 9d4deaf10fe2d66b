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
        Columns of the whole output it contributes.
    skip : int
        Columns of the tile's own output left of ``out_start``.
    """

    start: int
    stop: int
    out_start: int
    out_stop: int
    skip: int


def reach(transform: Transform) -> tuple[int, int]:
    """Input columns the first output column needs left of column 0, and the last one needs
    beyond its own ``downsampling`` columns (plain convolutions only)."""
    left = right = 0
    for stage in reversed(transform.stages):
        conv = stage.convolution
        left = left * conv.stride + conv.padding
        right = right * conv.stride + conv.kernel - 1 - conv.padding - (conv.stride - 1)
    return left, max(0, right)


def tiles(transform: Transform, width: int, max_width: int) -> list[Tile]:
    """Cut a width into tiles no wider than ``max_width``.

    Starts are multiples of the downsampling, halos cover the receptive field, so every output
    column equals that of the untiled image bit for bit.

    Raises ValueError when ``max_width`` leaves no column between the halos.
    """
    step = transform.downsampling
    out = transform.sizes(width, width)[-1][1]
    if width <= max_width:
        return [Tile(0, width, 0, out, 0)]
    left, right = (ceil_div(r, step) for r in reach(transform))
    room = max_width // step
    if room - left - right < 1:
        raise ValueError(
            f"a width of {max_width} is too narrow for tiles: the receptive field takes "
            f"{(left + right) * step} columns beside at least {step} of its own"
        )
    result = []
    position = 0
    while position < out:
        first = max(0, position - left)
        stop = min(width, (first + room) * step)
        last = out if stop == width else first + room - right
        result.append(Tile(first * step, stop, position, last, position - first))
        position = last
    return result
