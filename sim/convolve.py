"""Exact sums of products of integers, by BLAS.

They run in float32 where every partial sum is an integer below 2**24, and in float64 (below
2**53) otherwise; both are exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from lichen.network.arithmetic import ceil_div
from lichen.network.description import Convolution, Format
from lichen.sim.rooms import WINDOW_BYTES_MAX, room

FLOAT32_EXACT = 1 << 24
"""Integers below it are exact in float32."""

Strip = tuple[tuple[slice, slice], Callable[[], npt.NDArray]]
"""A block of the output, and what computes its sums: positions in rows, channels in columns. They
lie in a `room`, so the thread that has computed them uses them before it computes others."""


def _chunks(weights: npt.NDArray[np.int64], magnitude: int) -> list[slice]:
    """Cut a reduction (length, out) so that float32 sums of each part are exact.

    One slice when float32 holds the whole; when more than three would be needed, none: float64
    is faster then.
    """
    sizes = np.abs(weights)
    total = int(sizes.sum(axis=0).max()) * magnitude
    if total < FLOAT32_EXACT:
        return [slice(0, len(weights))]
    if total >= 3 * FLOAT32_EXACT or int(sizes.max()) * magnitude >= FLOAT32_EXACT:
        return []
    cuts, running = [0], np.zeros(weights.shape[1], dtype=np.int64)
    for i, row in enumerate(sizes * magnitude):
        running = running + row
        if running.max() >= FLOAT32_EXACT:
            cuts.append(i)
            running = row
    cuts.append(len(weights))
    return [slice(a, b) for a, b in pairwise(cuts)]


class Product:
    """Exact products of integer rows with an integer matrix (length, out)."""

    def __init__(self, weights: npt.NDArray[np.int64], magnitude: int):
        self.chunks = _chunks(weights, magnitude)
        self.dtype: type = np.float32 if self.chunks else np.float64
        self.weights = np.ascontiguousarray(weights, dtype=self.dtype)

    def __call__(self, rows: npt.NDArray, name: str = "sums") -> npt.NDArray:
        """The products, in the thread's `room` of that name."""
        shape = len(rows), self.weights.shape[1]
        if len(self.chunks) <= 1:
            return np.matmul(rows, self.weights, out=room(name, shape, self.dtype))
        total = room(name, shape, np.float64)
        total[...] = 0
        for part in self.chunks:
            some = room("part", shape, self.dtype)
            total += np.matmul(rows[:, part], self.weights[part], out=some)
        return total


def _correlate(
    padded: npt.NDArray,
    weight: npt.NDArray[np.int64],
    product: Product,
    stride: int,
    height: int,
    width: int,
    strip_bytes: int,
) -> Iterator[tuple[int, int, Callable[[], npt.NDArray]]]:
    """Correlate (rows, columns, in) with (out, in, ky, kx), a strip of output rows at a time.

    Yields ``(first, last, sums)``: output rows ``first .. last - 1``, and what computes them.
    """
    _, channels, ky, kx = weight.shape
    length = ky * kx * channels
    rows = max(1, strip_bytes // (width * length * padded.itemsize))
    row_stride, column_stride, channel_stride = padded.strides
    for first in range(0, height, rows):
        last = min(height, first + rows)
        window = as_strided(
            padded[first * stride :],
            (last - first, width, ky, kx, channels),
            (
                row_stride * stride,
                column_stride * stride,
                row_stride,
                column_stride,
                channel_stride,
            ),
            writeable=False,
        )
        yield first, last, functools.partial(_multiply, product, window, length)


def _multiply(product: Product, window: npt.NDArray, length: int) -> npt.NDArray:
    rows = room("operands", window.shape, window.dtype)
    np.copyto(rows, window)
    return product(rows.reshape(-1, length))


def _matrix(weight: npt.NDArray) -> npt.NDArray[np.int64]:
    """(out, in, ky, kx) as a matrix (ky kx in, out)."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]).astype(np.int64)


@dataclass(frozen=True)
class Band:
    """Some rows of a tensor.

    Attributes
    ----------
    rows : int array (rows, width, channels)
    first : int
        Which row of the tensor the first one is.
    height : int
        Of the tensor.
    """

    rows: npt.NDArray[np.integer]
    first: int
    height: int

    @property
    def end(self) -> int:
        return self.first + len(self.rows)

    def window(self, top: int, left: int, height: int, width: int, dtype: type) -> npt.NDArray:
        """The part of the tensor that begins at (top, left), zeros where that lies outside of it.

        Rows of the tensor that the band lacks are zeros, too. It lies in a `room`, one for each
        dtype.
        """
        shape = height, width, self.rows.shape[2]
        window = room(f"window {np.dtype(dtype)}", shape, dtype, WINDOW_BYTES_MAX)
        y0, y1 = max(top, self.first), min(top + height, self.end)
        x0, x1 = max(left, 0), min(left + width, self.rows.shape[1])
        if y1 <= y0 or x1 <= x0:
            window[...] = 0
            return window
        rows, columns = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        window[rows, columns] = self.rows[y0 - self.first : y1 - self.first, x0:x1]
        window[: rows.start] = window[rows.stop :] = 0
        window[rows, : columns.start] = window[rows, columns.stop :] = 0
        return window


def convolve(
    conv: Convolution, source: Format, band: Band, begin: int, end: int, strip_bytes: int
) -> Iterator[Strip]:
    """All sums of products, without bias, of output rows ``begin .. end - 1``.

    The band holds what they read. Strips count their rows from ``begin``, and take about
    ``strip_bytes`` of operands each.
    """
    width = band.rows.shape[1]
    out_width = conv.output_size(width)
    s, p = conv.stride, conv.padding
    if not conv.transposed:
        product = Product(_matrix(conv.weight), source.magnitude)
        rows = (end - begin - 1) * s + conv.kernel
        padded = band.window(begin * s - p, -p, rows, width + 2 * p, product.dtype)
        for first, last, sums in _correlate(
            padded, conv.weight, product, s, end - begin, out_width, strip_bytes
        ):
            yield (slice(first, last), slice(0, out_width)), sums
        return
    if 2 * conv.out_channels <= conv.in_channels:
        yield from _scatter(conv, source, band, begin, end, strip_bytes)
        return
    yield from _phases(conv, source, band, begin, end, strip_bytes)


def _phases(
    conv: Convolution, source: Format, band: Band, begin: int, end: int, strip_bytes: int
) -> Iterator[Strip]:
    """`convolve` for a transposed convolution: one plain correlation per phase, taps reversed."""
    s = conv.stride
    all_rows = _PhaseReach.all(conv, begin, end)
    all_columns = _PhaseReach.all(conv, 0, conv.output_size(band.rows.shape[1]))
    # every phase reads a part of one window
    top, bottom = _PhaseReach.span(all_rows)
    left, right = _PhaseReach.span(all_columns)

    @functools.cache
    def window(dtype: type) -> npt.NDArray:
        return band.window(top, left, bottom - top, right - left, dtype)

    for rows in all_rows:
        for columns in all_columns:
            where = rows.outputs, columns.outputs
            if not rows.taps or not columns.taps:
                shape = (rows.count * columns.count, conv.out_channels)
                yield where, functools.partial(np.zeros, shape, np.float32)
                continue
            taps = conv.weight[:, :, rows.taps][:, :, :, columns.taps]
            product = Product(_matrix(taps), source.magnitude)
            part = window(product.dtype)[
                rows.first - top : rows.last - top, columns.first - left : columns.last - left
            ]
            for first, last, sums in _correlate(
                part, taps, product, 1, rows.count, columns.count, strip_bytes
            ):
                start = rows.outputs.start
                yield (slice(start + first * s, start + last * s, s), columns.outputs), sums


@dataclass(frozen=True)
class _PhaseReach:
    """Those of a range of outputs, along one axis, that one phase makes, and what they read.

    Attributes
    ----------
    outputs : slice
        Of the range.
    count : int
        How many, at least one.
    taps : tuple of int
        In the order of the inputs.
    first, last : int
        The inputs that they read, the last left out.
    """

    outputs: slice
    count: int
    taps: tuple[int, ...]
    first: int
    last: int

    @classmethod
    def all(cls, conv: Convolution, begin: int, end: int) -> list[_PhaseReach]:
        """All phases that outputs ``begin .. end - 1`` have."""
        found = []
        for phase in conv.geometry.phases():
            m = ceil_div(begin - phase.first, conv.stride)
            outputs = slice(m * conv.stride + phase.first - begin, end - begin, conv.stride)
            count = len(range(end - begin)[outputs])
            first = last = m
            if phase.taps:
                first, last = m + phase.offsets[-1], m + count + phase.offsets[0]
            if count:
                found.append(cls(outputs, count, phase.taps[::-1], first, last))
        return found

    @staticmethod
    def span(phases: Iterable[_PhaseReach]) -> tuple[int, int]:
        """The inputs that any of them reads."""
        touched = [phase for phase in phases if phase.taps]
        first = min((phase.first for phase in touched), default=0)
        return first, max((phase.last for phase in touched), default=first)


def _scatter(
    conv: Convolution, source: Format, band: Band, begin: int, end: int, strip_bytes: int
) -> Iterator[Strip]:
    """`convolve` for a transposed convolution with few outputs.

    Here gathering would copy each input for every tap, so every input is multiplied by all taps
    first, and the few products are added where they belong: output o with o + p = q s + r gets,
    for each j, input q - j times tap r + j s.
    """
    _, width, channels = band.rows.shape
    out_width = conv.output_size(width)
    s, p, kernel, outputs = conv.stride, conv.padding, conv.kernel, conv.out_channels
    weight = conv.weight.astype(np.int64)
    bound = int((np.abs(weight).sum(axis=(1, 2, 3)) * source.magnitude).max())
    dtype = np.float32 if bound < FLOAT32_EXACT else np.float64
    # (ky, kx, out) planes of positions
    taps = weight.transpose(2, 3, 0, 1).reshape(-1, channels).astype(dtype)
    before = ceil_div(kernel, s) - 1
    q_begin, q_end = (begin + p) // s, (end - 1 + p) // s + 1
    q_columns = (out_width - 1 + p) // s + 1
    columns = before + q_columns

    def sums(q0: int, q1: int, o0: int, o1: int) -> npt.NDArray:
        window = band.window(q0 - before, -before, before + q1 - q0, columns, dtype)
        rows = window.reshape(-1, channels)
        planes = np.matmul(taps, rows.T, out=room("planes", (len(taps), len(rows)), dtype))
        planes = planes.reshape(kernel, kernel, outputs, q1 - q0 + before, columns)
        total = room("sums", (outputs, (q1 - q0) * s, q_columns * s), dtype)
        total[...] = 0
        for ky in range(kernel):
            for kx in range(kernel):
                y, z = before - ky // s, before - kx // s
                total[:, ky % s :: s, kx % s :: s] += planes[
                    ky, kx, :, y : y + q1 - q0, z : z + q_columns
                ]
        first = o0 + p - q0 * s
        part = total[:, first : first + o1 - o0, p : p + out_width]
        return np.ascontiguousarray(part.transpose(1, 2, 0)).reshape(-1, outputs)

    step = max(1, strip_bytes // (columns * len(taps) * taps.itemsize))
    for q0 in range(q_begin, q_end, step):
        q1 = min(q_end, q0 + step)
        o0, o1 = max(begin, q0 * s - p), min(end, q1 * s - p)
        if o1 > o0:
            where = (slice(o0 - begin, o1 - begin), slice(0, out_width))
            yield where, functools.partial(sums, q0, q1, o0, o1)
