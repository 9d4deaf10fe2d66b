"""The golden model: an integer network run exactly, from its description alone.

Sums of products are exact (`lichen.sim.convolve`). Everything else is
`lichen.network.arithmetic`, compiled. Strips of output rows are independent, and run on as many
threads as BLAS would have used. Large tensors go through a transform in bands of rows, each stage
keeping the few input rows that its next band reads again, so that memory is bounded by the width
of an image and not by its size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    IMAGE,
    LATENTS,
    Convolution,
    EntropyTables,
    Format,
    Latent,
    Network,
    Normalization,
    Requantizer,
    Stage,
    Transform,
)
from lichen.sim.blas import Blas, pool
from lichen.sim.convolve import Band, Product, Strip, convolve
from lichen.sim.images import pad_image
from lichen.sim.rooms import room

Tensor = npt.NDArray[np.integer]
Symbols = npt.NDArray[np.int32]
Rows = npt.NDArray[np.signedinteger]
"""Of a stage's output, int16 where that holds it and int32 otherwise."""

STRIP_BYTES = 1 << 21
"""Size of an im2col strip: one that stays in a cache, and is one of few, as BLAS packs weights."""

BAND_BYTES = 1 << 25
"""Size that a band of rows may reach in any stage; small images are one band."""


@functools.cache
def _blas() -> Blas:
    return Blas()


def _each(strips: Iterator[Strip], consume: Callable[..., None]) -> None:
    """``consume(where, sums)`` for every strip, on several threads."""
    blas = _blas()
    if blas.threads == 1:
        for where, sums in strips:
            consume(where, sums())
        return
    with blas.single_threaded():
        for _ in pool(blas.threads).map(lambda strip: consume(strip[0], strip[1]()), strips):
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


def _requantize(
    sums: npt.NDArray, conv: Convolution, requantizer: Requantizer
) -> npt.NDArray[np.int32]:
    """Activations, in a `room`."""
    r = requantizer
    m = r.multiplier.astype(np.int64)
    negative = m if r.negative_multiplier is None else r.negative_multiplier.astype(np.int64)
    out = room("x", sums.shape, np.int32)
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
        self.gamma = Product(norm.gamma.T.astype(np.int64), norm.u_max(source))

    def sums(self, x: npt.NDArray[np.int32]) -> npt.NDArray:
        """``sum gamma u``, without beta, in a `room`."""
        u = room("u", x.shape, self.gamma.dtype)
        compiled().norm_input(x, self.norm.kind.squares, self.norm.u_shift, u)
        return self.gamma(u, "norm")

    def __call__(self, x: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        norm = self.norm
        out = room("normalized", x.shape, np.int32)
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


def _run_rows(stage: Stage, source: Format, band: Band, begin: int, end: int) -> Rows:
    """Rows ``begin .. end - 1`` of a stage's output; the band holds what they read."""
    conv = stage.convolution
    width = conv.output_size(band.rows.shape[1])
    # not of zeros: those come in small pages, and strips fill all of it
    kind = np.int16 if stage.output.magnitude <= np.iinfo(np.int16).max else np.int32
    out: Rows = np.empty((end - begin, width, conv.out_channels), dtype=kind)
    norm = None
    if stage.normalization is not None:
        norm = _Normalizer(stage.normalization, stage.requantizer.output)

    def finish(where: tuple[slice, slice], sums: npt.NDArray) -> None:
        y = _requantize(sums, conv, stage.requantizer)
        if norm is not None:
            y = norm(y)
        block = out[where]
        block[...] = y.reshape(block.shape)

    _each(convolve(conv, source, band, begin, end, STRIP_BYTES), finish)
    return out


def _run_stage(
    stage: Stage, source: Format, height: int, bands: Iterable[Tensor]
) -> Iterator[Rows]:
    """A stage's output, top to bottom, as its input of so many rows comes in."""
    conv = stage.convolution
    out_height = conv.output_size(height)
    held, first, done = None, 0, 0
    for rows in bands:
        held = rows if held is None or not len(held) else np.concatenate([held, rows])
        band = Band(held, first, height)
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
    acc = np.zeros((height, width, conv.out_channels), dtype=np.int64)

    def keep(where: tuple[slice, slice], sums: npt.NDArray) -> None:
        block = acc[where]
        block[...] = sums.reshape(block.shape).astype(np.int64)

    _each(convolve(conv, source, Band(x, 0, len(x)), 0, height, STRIP_BYTES), keep)
    rows = acc.reshape(-1, conv.out_channels)
    y = _requantize(rows.astype(np.float64), conv, stage.requantizer)
    y = y.copy()
    norm, out = None, y
    if stage.normalization is not None:
        normalizer = _Normalizer(stage.normalization, stage.requantizer.output)
        norm = normalizer.sums(y).astype(np.int64) + stage.normalization.beta.astype(np.int64)
        norm, out = norm.reshape(acc.shape), normalizer(y).copy()
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
    out = np.zeros((*sizes[-1], transform.out_channels), dtype=np.int32)
    for first, rows in stream_transform(transform, x):
        out[first : first + len(rows)] = rows
    return out


def stream_transform(transform: Transform, x: Tensor) -> Iterator[tuple[int, Rows]]:
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
        outputs.append(x.astype(np.int32))
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
    network.transform(LATENTS[0].synthesis)
    return network.latent_shapes(height, width)


def channel_indices(shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """The indices of symbols whose channels have a table each."""
    return np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)


def entropy_parameters(
    network: Network, inner: Tensor, latent: Latent = LATENTS[0]
) -> EntropyParameters:
    """Tables and means of a latent's symbols.

    Parameters
    ----------
    network : Network
    inner : int array (height, width, channels)
        What the synthesis of its inner latent reads: symbols z for y.
    latent : Latent
        One that has an inner latent.
    """
    source = network.inner(latent)
    if source is None:
        raise ValueError(f"nothing in network {network.title} says how {latent.name} is coded")
    made = run_transform(network.transform(source.synthesis), inner)
    return choose_tables(network, latent, made)


def choose_tables(network: Network, latent: Latent, parameters: Tensor) -> EntropyParameters:
    """Tables and means of a latent's symbols, from what its inner latent's synthesis makes."""
    thresholds = network.thresholds(latent)
    scales, means = parameters, None
    if network.has_means(latent):
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
    y = run_transform(network.transform(LATENTS[0].analysis), pad_image(image, network.factor))
    return code_latent(network, y, *image.shape[:2])


def code_latent(network: Network, y: Tensor, height: int, width: int) -> Latents:
    """Everything the entropy coder codes of an image of this size, given what g_a makes of it.

    ``y`` (height', width', channels) may come from gateware.
    """
    segments = tuple(segment for segment, _ in code_values(network, latent_values(network, y)))
    return Latents(height, width, segments)


def latent_values(network: Network, y: Tensor) -> list[Tensor]:
    """The values of all latents, from y inwards."""
    values = [y]
    for latent in network.latents[1:]:
        transform = network.transform(latent.analysis)
        values.append(run_transform(transform, hyper_input(values[-1], transform.input)))
    return values


def code_values(
    network: Network, values: Sequence[Tensor]
) -> Iterator[tuple[Segment, EntropyParameters]]:
    """The latents of these values (`latent_values`) in coding order."""
    coded = iter(reversed(values))

    def read(latent: Latent, parameters: EntropyParameters) -> Symbols:
        means = 0 if parameters.means is None else parameters.means
        return latent_symbol(next(coded), means, network.fraction(latent))

    shapes = {
        latent.name: value.shape for latent, value in zip(network.latents, values, strict=True)
    }
    return _unfold(network, shapes, read)


def _unfold(
    network: Network,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[Latent, EntropyParameters], Symbols],
) -> Iterator[tuple[Segment, EntropyParameters]]:
    """All latents in coding order: each one's symbols tell how those of its source are coded.

    ``shapes`` by latents' names; ``read(latent, parameters)`` returns the symbols of a latent.
    """
    within: Tensor | None = None
    for latent in reversed(network.latents):
        if within is None:
            parameters = EntropyParameters(channel_indices(shapes[latent.name]), None)
        else:
            parameters = entropy_parameters(network, within, latent)
        symbols = read(latent, parameters)
        yield Segment(latent.name, symbols, parameters.indices), parameters
        if latent.source != IMAGE:
            source = network.transform(latent.synthesis).input
            within = synthesis_input(symbols, parameters.means, network.fraction(latent), source)


def symbols_in_order(
    network: Network,
    height: int,
    width: int,
    read: Callable[[str, npt.NDArray[np.int32]], Symbols],
) -> Iterator[tuple[Segment, EntropyParameters]]:
    """The symbols of an image of this size as they decode, with what says how they are coded.

    ``read(name, indices)`` as for `decode`.
    """
    shapes = latent_shapes(network, height, width)
    return _unfold(
        network, shapes, lambda latent, parameters: read(latent.name, parameters.indices)
    )


def picture_input(
    network: Network, symbols: Tensor, means: Tensor | None, height: int, width: int
) -> Tensor:
    """What g_s reads to make an image; arguments and errors as of `synthesis`."""
    outer = LATENTS[0]
    transform = network.transform(outer.synthesis)
    read = synthesis_input(symbols, means, network.fraction(outer), transform.input)
    made = transform.sizes(*read.shape[:2])[-1]
    if made[0] < height or made[1] < width:
        raise ValueError(
            f"{outer.synthesis} makes {made[0]} rows and {made[1]} columns of an image of {height} "
            f"and {width}"
        )
    return read


def synthesis(
    network: Network, symbols: Tensor, means: Tensor | None, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """The image (height, width, 3) of symbols of y and, where there are any, their means.

    Raises ValueError when g_s makes fewer rows or columns than the image has.
    """
    transform = network.transform(LATENTS[0].synthesis)
    read = picture_input(network, symbols, means, height, width)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for first, rows in stream_transform(transform, read):
        part = pixels[first : first + len(rows)]
        part[...] = rows[: len(part), :width]
    return pixels


Synthesis = Callable[[Network, Tensor, Tensor | None, int, int], npt.NDArray[np.uint8]]
"""`synthesis`, or what stands in for it."""


def decode(
    network: Network,
    height: int,
    width: int,
    read: Callable[[str, npt.NDArray[np.int32]], Symbols],
    synthesize: Synthesis = synthesis,
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
    synthesize : callable
        What makes the image in place of `synthesis`: gateware, perhaps.

    Raises ValueError when symbols do not suit the network.
    """
    for segment, parameters in symbols_in_order(network, height, width, read):
        last = segment.symbols, parameters.means
    return synthesize(network, *last, height, width)


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
            raise ValueError(f"network {network.title} has no entropy tables for {segment.name}")
        tables = network.entropy[segment.name]
        bits[segment.name] = symbol_bits(tables, segment.symbols, segment.indices)
    return bits
