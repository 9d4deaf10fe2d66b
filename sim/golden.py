"""The golden model: an integer network run exactly, from its description alone.

Sums of products run through BLAS in float32 where every partial sum is an integer below 2**24,
and in float64 (below 2**53) otherwise; both are exact. Everything else is
`lichen.network.arithmetic`, compiled. Strips of output rows are independent, and run on as many
threads as BLAS would have used. Large tensors go through a transform in bands of rows, each stage
keeping the few input rows that its next band reads again, so that memory is bounded by the width
of an image and not by its size.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided
from threadpoolctl import ThreadpoolController

from lichen.network.arithmetic import (
    ROOT_TABLES,
    ceil_div,
    clamp,
    compiled,
    latent_symbol,
    latent_value,
    scale_index,
)
from lichen.network.description import (
    Convolution,
    EntropyTables,
    Format,
    Network,
    Normalization,
    Requantizer,
    Stage,
    Transform,
)
from lichen.sim.images import pad_image

Tensor = npt.NDArray[np.integer]

FLOAT32_EXACT = 1 << 24
STRIP_BYTES = 1 << 20
"""Size of an im2col strip: it should stay in the cache until it has been multiplied."""

BAND_BYTES = 1 << 25
"""Size that a band of rows may reach in any stage; small images are one band."""


class _Blas:
    """BLAS, one thread per call while strips run: the strips share the cores between them."""

    def __init__(self) -> None:
        self.libraries = ThreadpoolController().select(user_api="blas")
        self.threads = max((lib.num_threads for lib in self.libraries.lib_controllers), default=1)
        self.users = 0
        self.limit = self.libraries.limit(limits=self.threads)
        self.lock = threading.Lock()

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """The limit holds for the process: the first user sets it, the last one lifts it."""
        with self.lock:
            if not self.users:
                self.limit = self.libraries.limit(limits=1)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.limit.restore_original_limits()


@functools.cache
def _blas() -> _Blas:
    return _Blas()


Strip = tuple[tuple[slice, slice], Callable[[], npt.NDArray]]
"""A block of the output, and what computes its sums: positions in rows, channels in columns."""


def _each(strips: Iterator[Strip], consume: Callable[..., None]) -> None:
    """``consume(where, sums)`` for every strip, on several threads."""
    blas = _blas()
    if blas.threads == 1:
        for where, sums in strips:
            consume(where, sums())
        return
    with blas.single_threaded(), ThreadPoolExecutor(blas.threads) as pool:
        for _ in pool.map(lambda strip: consume(strip[0], strip[1]()), strips):
            pass


@dataclass(frozen=True)
class StageTrace:
    """What happens inside a stage, (height, width, channels) each.

    Attributes
    ----------
    accumulator : int64 array
        Sum of products plus bias.
    x : int32 array
        After the requantizer.
    norm : int64 array or None
        ``n``, where there is a normalization.
    output : int32 array
    """

    accumulator: npt.NDArray[np.int64]
    x: npt.NDArray[np.int32]
    norm: npt.NDArray[np.int64] | None
    output: npt.NDArray[np.int32]


def _chunks(weights: npt.NDArray[np.int64], magnitude: int) -> list[slice]:
    """Cut a reduction (length, out) so that float32 sums of each part are exact.

    One slice when float32 holds the whole; when more than three would be needed, none: float64
    is faster then.
    """
    bounds = np.abs(weights).max(axis=1) * magnitude
    total = int((np.abs(weights) * magnitude).sum(axis=0).max())
    if total < FLOAT32_EXACT:
        return [slice(0, len(weights))]
    if total >= 3 * FLOAT32_EXACT or int(bounds.max()) >= FLOAT32_EXACT:
        return []
    cuts, running = [0], np.zeros(weights.shape[1], dtype=np.int64)
    for i, row in enumerate(np.abs(weights) * magnitude):
        running = running + row
        if running.max() >= FLOAT32_EXACT:
            cuts.append(i)
            running = row
    cuts.append(len(weights))
    return [slice(a, b) for a, b in pairwise(cuts)]


class _Product:
    """Exact products of integer rows with an integer matrix (length, out)."""

    def __init__(self, weights: npt.NDArray[np.int64], magnitude: int):
        self.chunks = _chunks(weights, magnitude)
        self.dtype: type = np.float32 if self.chunks else np.float64
        self.weights = np.ascontiguousarray(weights, dtype=self.dtype)

    def __call__(self, rows: npt.NDArray) -> npt.NDArray:
        if len(self.chunks) <= 1:
            return rows @ self.weights
        total = np.zeros((len(rows), self.weights.shape[1]), dtype=np.float64)
        for part in self.chunks:
            total += rows[:, part] @ self.weights[part]
        return total


def _correlate(
    padded: npt.NDArray,
    weight: npt.NDArray[np.int64],
    product: _Product,
    stride: int,
    height: int,
    width: int,
) -> Iterator[tuple[int, int, Callable[[], npt.NDArray]]]:
    """Correlate (rows, columns, in) with (out, in, ky, kx), a strip of output rows at a time.

    Yields ``(first, last, sums)``: output rows ``first .. last - 1``, and what computes them.
    """
    _, channels, ky, kx = weight.shape
    length = ky * kx * channels
    rows = max(1, STRIP_BYTES // (width * length * padded.itemsize))
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


def _multiply(product: _Product, window: npt.NDArray, length: int) -> npt.NDArray:
    return product(window.reshape(-1, length))


def _matrix(weight: npt.NDArray) -> npt.NDArray[np.int64]:
    """(out, in, ky, kx) as a matrix (ky kx in, out)."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]).astype(np.int64)


@dataclass(frozen=True)
class _Band:
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

        Rows of the tensor that the band lacks are zeros, too.
        """
        window: npt.NDArray = np.zeros((height, width, self.rows.shape[2]), dtype=dtype)
        y0, y1 = max(top, self.first), min(top + height, self.end)
        x0, x1 = max(left, 0), min(left + width, self.rows.shape[1])
        if y1 > y0 and x1 > x0:
            window[y0 - top : y1 - top, x0 - left : x1 - left] = self.rows[
                y0 - self.first : y1 - self.first, x0:x1
            ]
        return window


def _convolve(
    conv: Convolution, source: Format, band: _Band, begin: int, end: int
) -> Iterator[Strip]:
    """All sums of products, without bias, of output rows ``begin .. end - 1``.

    The band holds what they read. Strips count their rows from ``begin``.
    """
    width = band.rows.shape[1]
    out_width = conv.output_size(width)
    s, p = conv.stride, conv.padding
    if not conv.transposed:
        product = _Product(_matrix(conv.weight), source.magnitude)
        rows = (end - begin - 1) * s + conv.kernel
        padded = band.window(begin * s - p, -p, rows, width + 2 * p, product.dtype)
        for first, last, sums in _correlate(
            padded, conv.weight, product, s, end - begin, out_width
        ):
            yield (slice(first, last), slice(0, out_width)), sums
        return
    if 2 * conv.out_channels <= conv.in_channels:
        yield from _scatter(conv, source, band, begin, end)
        return
    # Output o with o + p = q s + r sums x[q - j] w[r + j s] over j: one plain correlation with
    # every s-th tap, reversed, for each phase r; no inserted zero is ever multiplied.
    for ry in range(s):
        for rx in range(s):
            taps = conv.weight[:, :, ry::s, rx::s][:, :, ::-1, ::-1]
            qy, qx = ceil_div(begin + p - ry, s), ceil_div(p - rx, s)
            ys = slice(qy * s + ry - p - begin, end - begin, s)
            xs = slice(qx * s + rx - p, out_width, s)
            rows_here, columns_here = len(range(end - begin)[ys]), len(range(out_width)[xs])
            if not rows_here or not columns_here:
                continue
            _, _, ky, kx = taps.shape
            if ky == 0 or kx == 0:
                shape = (rows_here * columns_here, conv.out_channels)
                yield (ys, xs), functools.partial(np.zeros, shape, np.float32)
                continue
            product = _Product(_matrix(taps), source.magnitude)
            # the first sums read rows qy - ky + 1 .. qy
            padded = band.window(
                qy - ky + 1, qx - kx + 1, rows_here + ky - 1, columns_here + kx - 1, product.dtype
            )
            for first, last, sums in _correlate(padded, taps, product, 1, rows_here, columns_here):
                yield (slice(ys.start + first * s, ys.start + last * s, s), xs), sums


def _scatter(
    conv: Convolution, source: Format, band: _Band, begin: int, end: int
) -> Iterator[Strip]:
    """`_convolve` for a transposed convolution with few outputs.

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
    # its first row is row q_begin - before of the input
    padded = band.window(q_begin - before, -before, before + q_end - q_begin, columns, dtype)

    def sums(q0: int, q1: int, o0: int, o1: int) -> npt.NDArray:
        rows = padded[q0 - q_begin : q1 - q_begin + before].reshape(-1, channels)
        planes = (taps @ rows.T).reshape(kernel, kernel, outputs, q1 - q0 + before, columns)
        total: npt.NDArray[Any] = np.zeros((outputs, (q1 - q0) * s, q_columns * s), dtype=dtype)
        for ky in range(kernel):
            for kx in range(kernel):
                y, z = before - ky // s, before - kx // s
                total[:, ky % s :: s, kx % s :: s] += planes[
                    ky, kx, :, y : y + q1 - q0, z : z + q_columns
                ]
        first = o0 + p - q0 * s
        part = total[:, first : first + o1 - o0, p : p + out_width]
        return np.ascontiguousarray(part.transpose(1, 2, 0)).reshape(-1, outputs)

    step = max(1, STRIP_BYTES // (columns * len(taps) * padded.itemsize))
    for q0 in range(q_begin, q_end, step):
        q1 = min(q_end, q0 + step)
        o0, o1 = max(begin, q0 * s - p), min(end, q1 * s - p)
        if o1 > o0:
            where = (slice(o0 - begin, o1 - begin), slice(0, out_width))
            yield where, functools.partial(sums, q0, q1, o0, o1)


def _requantize(
    sums: npt.NDArray, conv: Convolution, requantizer: Requantizer
) -> npt.NDArray[np.int32]:
    r = requantizer
    m = r.multiplier.astype(np.int64)
    negative = m if r.negative_multiplier is None else r.negative_multiplier.astype(np.int64)
    out = np.empty(sums.shape, dtype=np.int32)
    compiled().requantize(
        sums,
        conv.bias.astype(np.int64),
        r.pre_shift.astype(np.int64),
        m,
        negative,
        r.shift,
        r.output.lo,
        r.output.hi,
        out,
    )
    return out


class _Normalizer:
    """A normalization on rows of ``x``."""

    def __init__(self, norm: Normalization, source: Format):
        self.norm = norm
        self.gamma = _Product(norm.gamma.T.astype(np.int64), norm.u_max(source))

    def sums(self, x: npt.NDArray[np.int32]) -> npt.NDArray:
        """``sum gamma u``, without beta."""
        u: npt.NDArray = np.empty(x.shape, dtype=self.gamma.dtype)
        compiled().norm_input(x, self.norm.kind.squares, self.norm.u_shift, u)
        return self.gamma(u)

    def __call__(self, x: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        norm = self.norm
        out = np.empty(x.shape, dtype=np.int32)
        compiled().normalize(
            x,
            self.sums(x),
            norm.beta.astype(np.int64),
            ROOT_TABLES[norm.kind],
            norm.kind.squares,
            norm.kind.inverse,
            norm.product_shift,
            norm.multiplier.astype(np.int64),
            norm.shift,
            norm.output.lo,
            norm.output.hi,
            out,
        )
        return out


def _check_input(x: Tensor, source: Format, channels: int) -> None:
    if x.ndim != 3 or x.shape[2] != channels:
        raise ValueError(f"the input must have shape (height, width, {channels}), not {x.shape}")
    if not np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"the input must hold integers, not {x.dtype}")
    if x.size and (x.min() < source.lo or x.max() > source.hi):
        raise ValueError(
            f"the input must lie in {source.lo} .. {source.hi}, but spans {x.min()} .. {x.max()}"
        )


def _run_rows(
    stage: Stage, source: Format, band: _Band, begin: int, end: int
) -> npt.NDArray[np.int32]:
    """Rows ``begin .. end - 1`` of a stage's output; the band holds what they read."""
    conv = stage.convolution
    width = conv.output_size(band.rows.shape[1])
    out = np.empty((end - begin, width, conv.out_channels), dtype=np.int32)
    norm = None
    if stage.normalization is not None:
        norm = _Normalizer(stage.normalization, stage.requantizer.output)

    def finish(where: tuple[slice, slice], sums: npt.NDArray) -> None:
        y = _requantize(sums, conv, stage.requantizer)
        if norm is not None:
            y = norm(y)
        block = out[where]
        block[...] = y.reshape(block.shape)

    _each(_convolve(conv, source, band, begin, end), finish)
    return out


def _run_stage(
    stage: Stage, source: Format, height: int, bands: Iterable[Tensor]
) -> Iterator[npt.NDArray[np.int32]]:
    """A stage's output, top to bottom, as its input of so many rows comes in."""
    conv = stage.convolution
    out_height = conv.output_size(height)
    held, first, done = None, 0, 0
    for rows in bands:
        held = rows if held is None or not len(held) else np.concatenate([held, rows])
        band = _Band(held, first, height)
        ready = out_height
        if band.end < height:
            ready = min(out_height, conv.complete(band.end))
        if ready > done:
            yield _run_rows(stage, source, band, done, ready)
            done = ready
        # what no further row reads goes
        keep = min(max(conv.reach(done)[0], first), band.end)
        held, first = held[keep - first :], keep


def trace_stage(stage: Stage, source: Format, x: Tensor) -> StageTrace:
    """Run one stage and keep everything inside it, for looking into a difference.

    Parameters
    ----------
    stage : Stage
    source : Format
        Of the input.
    x : int array (height, width, in)
    """
    _check_input(x, source, stage.convolution.in_channels)
    conv = stage.convolution
    height, width = conv.output_size(x.shape[0]), conv.output_size(x.shape[1])
    acc = np.empty((height, width, conv.out_channels), dtype=np.int64)

    def keep(where: tuple[slice, slice], sums: npt.NDArray) -> None:
        block = acc[where]
        block[...] = sums.reshape(block.shape).astype(np.int64)

    _each(_convolve(conv, source, _Band(x, 0, len(x)), 0, height), keep)
    rows = acc.reshape(-1, conv.out_channels)
    y = _requantize(rows.astype(np.float64), conv, stage.requantizer)
    norm, out = None, y
    if stage.normalization is not None:
        normalizer = _Normalizer(stage.normalization, stage.requantizer.output)
        norm = normalizer.sums(y).astype(np.int64) + stage.normalization.beta.astype(np.int64)
        norm, out = norm.reshape(acc.shape), normalizer(y)
    return StageTrace(
        acc + conv.bias.astype(np.int64), y.reshape(acc.shape), norm, out.reshape(acc.shape)
    )


def run_transform(transform: Transform, x: Tensor) -> npt.NDArray[np.int32]:
    """Run a transform exactly.

    Parameters
    ----------
    transform : Transform
    x : int array (height, width, in)
        Within ``transform.input``.

    Returns
    -------
    int32 array (height', width', out), within ``transform.output``

    Raises ValueError when the input does not suit the transform.
    """
    sizes = transform.sizes(*x.shape[:2])
    out = np.empty((*sizes[-1], transform.out_channels), dtype=np.int32)
    for first, rows in stream_transform(transform, x):
        out[first : first + len(rows)] = rows
    return out


def stream_transform(
    transform: Transform, x: Tensor
) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
    """`run_transform` a band at a time: the number of its first row, and its rows.

    The bands follow each other from top to bottom. Nothing larger than they are is held.
    """
    _check_input(x, transform.input, transform.in_channels)
    sizes = transform.sizes(*x.shape[:2])
    step = _band_rows(transform, sizes)
    bands: Iterator[npt.NDArray] = (x[i : i + step] for i in range(0, len(x), step))
    for stage, source, (height, _) in zip(
        transform.stages, transform.sources, sizes[:-1], strict=True
    ):
        bands = _run_stage(stage, source, height, bands)
    first = 0
    for rows in bands:
        yield first, rows
        first += len(rows)


def _band_rows(transform: Transform, sizes: list[tuple[int, int]]) -> int:
    """How many rows of input to take at a time, ``sizes`` being those of all tensors."""
    height = sizes[0][0]
    channels = [transform.in_channels] + [s.convolution.out_channels for s in transform.stages]
    largest = max(4 * h * w * c for (h, w), c in zip(sizes, channels, strict=True))
    count = ceil_div(largest, BAND_BYTES)
    return ceil_div(height, min(count, height))


def run_stages(transform: Transform, x: Tensor) -> list[npt.NDArray[np.int32]]:
    """The outputs of all stages, in order; see `run_transform`."""
    _check_input(x, transform.input, transform.in_channels)
    transform.sizes(*x.shape[:2])
    outputs = []
    for stage, source in zip(transform.stages, transform.sources, strict=True):
        (x,) = _run_stage(stage, source, len(x), [x])
        outputs.append(x)
    return outputs


@dataclass(frozen=True)
class Segment:
    """Symbols that are coded with one set of tables.

    Attributes
    ----------
    name : str
        ``z`` or ``y``: the tables are ``network.entropy[name]``.
    symbols : int32 array (height, width, channels)
    indices : int32 array (height, width, channels)
        The row of the tables that codes each symbol.
    """

    name: str
    symbols: npt.NDArray[np.int32]
    indices: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Latents:
    """All that is coded of an image.

    Attributes
    ----------
    height, width : int
        Of the image, before padding.
    segments : tuple of Segment
        In coding order: ``z`` (hyperprior models), then ``y``, whose indices the decoder
        computes from z.
    """

    height: int
    width: int
    segments: tuple[Segment, ...]

    def __getitem__(self, name: str) -> Segment:
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(name)


@dataclass(frozen=True)
class EntropyParameters:
    """What z tells about y, (height, width, channels) each.

    Attributes
    ----------
    indices : int32 array
        Which of the tables ``network.entropy["y"]`` codes each symbol.
    means : int32 array or None
        With the network's ``latent_fraction``.
    """

    indices: npt.NDArray[np.int32]
    means: npt.NDArray[np.int32] | None


def latent_shapes(network: Network, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """Shapes of the symbols of an image of this size, in coding order."""
    g_s = network.transform("g_s")
    rows, columns = ceil_div(height, network.factor), ceil_div(width, network.factor)
    ratio = network.hyper_factor
    shapes = {}
    if network.hyper:
        shapes["z"] = (rows, columns, network.transform("h_s").in_channels)
    shapes["y"] = (rows * ratio, columns * ratio, g_s.in_channels)
    return shapes


def channel_indices(shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """The indices of symbols whose channels have a table each."""
    return np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)


def entropy_parameters(network: Network, z: Tensor) -> EntropyParameters:
    """Run h_s on symbols z (height, width, channels): the tables and means of y."""
    parameters = run_transform(network.transform("h_s"), z)
    thresholds = network.scale_thresholds
    scales, means = parameters, None
    if network.means:
        scales, means = np.split(parameters, 2, axis=2)
    if thresholds is None:
        indices = np.zeros(scales.shape, dtype=np.int32)
    else:
        indices = scale_index(scales, thresholds).astype(np.int32)
    return EntropyParameters(indices, means)


def hyper_input(y: Tensor, source: Format) -> Tensor:
    """What an h_a that takes ``source`` reads of y: its magnitude where that is unsigned."""
    return clamp(y if source.signed else np.abs(y), source.lo, source.hi)


def synthesis_input(symbols: Tensor, means: Tensor | None, fraction: int, source: Format) -> Tensor:
    """What a g_s that takes ``source`` reads: the symbols, or beside means the latents."""
    if means is None:
        return symbols
    return latent_value(symbols.astype(np.int64), means, fraction, source.lo, source.hi)


def analysis(network: Network, image: npt.NDArray[np.uint8]) -> Latents:
    """Everything the entropy coder codes of an image (height, width, 3), padded as needed."""
    y = run_transform(network.transform("g_a"), pad_image(image, network.factor))
    return code_latent(network, y, *image.shape[:2])


def code_latent(network: Network, y: Tensor, height: int, width: int) -> Latents:
    """Everything the entropy coder codes of an image of this size, given what g_a makes of it.

    ``y`` (height', width', channels) may come from gateware.
    """
    if not network.hyper:
        symbols = latent_symbol(y, 0, network.latent_fraction)
        return Latents(height, width, (Segment("y", symbols, channel_indices(y.shape)),))
    h_a = network.transform("h_a")
    z = run_transform(h_a, hyper_input(y, h_a.input))
    parameters = entropy_parameters(network, z)
    means = 0 if parameters.means is None else parameters.means
    symbols = latent_symbol(y, means, network.latent_fraction)
    return Latents(
        height,
        width,
        (
            Segment("z", z, channel_indices(z.shape)),
            Segment("y", symbols, parameters.indices),
        ),
    )


def synthesis(
    network: Network, symbols: Tensor, means: Tensor | None, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """The image (height, width, 3) of symbols of y and, where there are any, their means."""
    g_s = network.transform("g_s")
    read = synthesis_input(symbols, means, network.latent_fraction, g_s.input)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for first, rows in stream_transform(g_s, read):
        part = pixels[first : first + len(rows)]
        part[...] = rows[: len(part), :width]
    return pixels


def decode(
    network: Network,
    height: int,
    width: int,
    read: Callable[[str, npt.NDArray[np.int32]], Tensor],
) -> npt.NDArray[np.uint8]:
    """Decode an image (height, width, 3).

    Parameters
    ----------
    network : Network
    height, width : int
        Of the image.
    read : callable
        ``read(name, indices)`` returns the symbols of a segment, in the shape of the indices
        into ``network.entropy[name]``. Called for ``z`` (hyperprior models), then for ``y``.

    Raises ValueError when symbols do not suit the network.
    """
    shapes = latent_shapes(network, height, width)
    if not network.hyper:
        return synthesis(network, read("y", channel_indices(shapes["y"])), None, height, width)
    parameters = entropy_parameters(network, read("z", channel_indices(shapes["z"])))
    symbols = read("y", parameters.indices)
    return synthesis(network, symbols, parameters.means, height, width)


def reconstruct(network: Network, latents: Latents) -> npt.NDArray[np.uint8]:
    """Decode latents that have never been coded: the image (height, width, 3)."""
    return decode(
        network, latents.height, latents.width, lambda name, indices: latents[name].symbols
    )


def symbol_bits(tables: EntropyTables, symbols: Tensor, indices: Tensor) -> float:
    """Bits an ideal entropy coder needs for symbols, ``indices`` being their rows of the tables.

    A symbol outside its table costs the escape interval plus 2 floor(log2 v) + 1 bits for its
    distance v from the table (Elias gamma) and a sign. An estimate: nothing is coded.
    """
    rows = np.asarray(indices).reshape(-1)
    values = np.asarray(symbols).reshape(-1).astype(np.int64) - tables.offsets[rows]
    top = tables.lengths.astype(np.int64)[rows] - 3  # the last interval is the escape
    inside = (values >= 0) & (values <= top)
    interval = np.where(inside, values, top + 1)
    cdf = tables.cdf.astype(np.int64)
    width = cdf[rows, interval + 1] - cdf[rows, interval]
    bits = float((tables.precision - np.log2(width)).sum())
    distance = np.where(values < 0, -values, values - top)[~inside]
    return bits + float((2 * np.floor(np.log2(distance)) + 2).sum())


def estimate_bits(network: Network, latents: Latents) -> dict[str, float]:
    """Bits an ideal entropy coder needs for each segment (`symbol_bits`).

    Raises ValueError when the network lacks tables for a segment.
    """
    bits = {}
    for segment in latents.segments:
        if segment.name not in network.entropy:
            raise ValueError(
                f"network {network.name or network.architecture} has no entropy tables "
                f"for {segment.name}"
            )
        tables = network.entropy[segment.name]
        bits[segment.name] = symbol_bits(tables, segment.symbols, segment.indices)
    return bits


def psnr(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit images; infinite when they are equal."""
    if a.shape != b.shape:
        raise ValueError(f"the images must have the same shape, not {a.shape} and {b.shape}")
    total = 0
    for one, two in zip(a, b, strict=True):
        difference = one.astype(np.int64) - two
        total += int(np.square(difference).sum())
    error = total / a.size
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
