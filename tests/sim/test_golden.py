"""The golden model against the arithmetic contract written a second time, in PyTorch.

Everything here is int64 tensors; nothing of `lichen.network.arithmetic` takes part but the values
of its root tables, which are data.
"""

from __future__ import annotations

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen.network.arithmetic import ROOT_TABLES
from lichen.network.description import Activation, Format, Network, Stage, Transform
from lichen.network.random import StageShape, random_factorized, random_transform, symmetric
from lichen.sim import golden
from lichen.sim.quality import psnr

torch = pytest.importorskip("torch")

SPAN18 = (-(1 << 17), (1 << 17) - 1)


# The contract, anew -------------------------------------------------------------------------


def round_shift(v, s):
    """Nearest integer to ``v / 2**s``, halves up, written as floor(v / 2**s + 1/2)."""
    s = torch.as_tensor(s)
    step = torch.ones_like(s) << s
    # floor((2 v + 2**s) / 2**(s + 1)) by floor division: no shift of a negative number
    return torch.div(2 * v + step, 2 * step, rounding_mode="floor")


def plain_convolution(conv, x):
    """(H, W, in) by windows: pad with zeros, unfold, multiply, sum."""
    p, k, s = conv.padding, conv.kernel, conv.stride
    height, width, channels = x.shape
    padded = torch.zeros((height + 2 * p, width + 2 * p, channels), dtype=torch.int64)
    padded[p : p + height, p : p + width] = x
    windows = padded.unfold(0, k, s).unfold(1, k, s)  # (H', W', in, ky, kx)
    weight = torch.from_numpy(conv.weight.astype(np.int64))
    rows = windows.reshape(*windows.shape[:2], -1)
    return rows @ weight.reshape(len(weight), -1).T


def transposed_convolution(conv, x):
    """Every sample adds its weighted kernel to the output: the definition, tap by tap."""
    p, k, s = conv.padding, conv.kernel, conv.stride
    height, width, _ = x.shape
    weight = torch.from_numpy(conv.weight.astype(np.int64))
    full = torch.zeros(
        (
            (height - 1) * s + k + conv.output_padding,
            (width - 1) * s + k + conv.output_padding,
            len(weight),
        ),
        dtype=torch.int64,
    )
    for ky in range(k):
        for kx in range(k):
            rows = slice(ky, ky + (height - 1) * s + 1, s)
            columns = slice(kx, kx + (width - 1) * s + 1, s)
            full[rows, columns] += x @ weight[:, :, ky, kx].T
    rows, columns = full.shape[0] - 2 * p, full.shape[1] - 2 * p
    return full[p : p + rows, p : p + columns]


def tensor(values):
    return torch.from_numpy(np.asarray(values).astype(np.int64))


def requantized(r, acc):
    a = round_shift(acc, tensor(r.pre_shift)).clamp(*SPAN18)
    m = tensor(r.multiplier).expand_as(a)
    if r.negative_multiplier is not None:
        m = torch.where(a < 0, tensor(r.negative_multiplier), m)
    return round_shift(a * m, r.shift).clamp(r.output.lo, r.output.hi)


def root(norm, n):
    """Mantissa and exponent of the function of the norm, by table and interpolation."""
    exponent = torch.zeros_like(n)
    for k in range(1, 32):
        exponent += n >= 1 << k  # floor(log2 n)
    z = 31 - exponent
    if norm.kind.squares:
        z = z - z % 2
        exponent = torch.div(31 - z, 2, rounding_mode="floor")
    top = n << z
    index = top >> 24
    fraction = (top - (index << 24)) >> 8
    table = tensor(ROOT_TABLES[norm.kind])
    rise = table[index, 1] * fraction
    return table[index, 0] + round_shift(rise, 16), exponent


def normalized(norm, x):
    u = (x * x if norm.kind.squares else x.abs()) >> norm.u_shift
    n = tensor(norm.beta) + u @ tensor(norm.gamma).T
    assert int(n.min()) >= 1 and int(n.max()) < 1 << 32
    r, e = root(norm, n)
    p = round_shift(x * r, norm.product_shift).clamp(*SPAN18)
    shift = norm.shift - e if norm.kind.inverse else norm.shift + e
    y = round_shift(p * tensor(norm.multiplier), shift)
    return y.clamp(norm.output.lo, norm.output.hi)


def evaluate_stage(stage: Stage, x):
    conv = stage.convolution
    sums = transposed_convolution(conv, x) if conv.transposed else plain_convolution(conv, x)
    y = requantized(stage.requantizer, sums + tensor(conv.bias))
    return y if stage.normalization is None else normalized(stage.normalization, y)


def check_transform(transform: Transform, x: np.ndarray) -> None:
    """Every stage's output, not only the last."""
    expected = tensor(x)
    for stage, output in zip(transform.stages, golden.run_stages(transform, x), strict=True):
        expected = evaluate_stage(stage, expected)
        np.testing.assert_array_equal(output, expected.numpy(), err_msg=stage.name)


# Networks -----------------------------------------------------------------------------------


def inputs(rng: np.random.Generator, source: Format, shape: tuple[int, int, int]) -> np.ndarray:
    return rng.integers(source.lo, source.hi + 1, shape)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    weight_bits=st.integers(2, 12),
    x_bits=st.integers(3, 12),
    output_bits=st.integers(3, 12),
    gamma_bits=st.integers(2, 12),
    u_bits=st.integers(2, 14),
)
def test_random_codecs(seed, n, m, height, width, **widths) -> None:
    """Encoder and decoder: GDN, IGDN, strided and transposed convolutions."""
    network = random_factorized(seed, n=n, m=m, **widths)
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    g_a, g_s = network.transforms["g_a"], network.transforms["g_s"]
    check_transform(g_a, image)
    latents = golden.analysis(network, image)["y"].symbols
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    np.testing.assert_array_equal(latents, golden.run_transform(g_a, padded))
    check_transform(g_s, latents)
    check_transform(g_s, inputs(rng, g_s.input, (2, 3, m)))


@st.composite
def stages(draw) -> StageShape:
    kernel, stride = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    transposed = draw(st.booleans())
    return StageShape(
        out_channels=draw(st.integers(1, 6)),
        kernel=kernel,
        stride=stride,
        padding=draw(st.integers(0, kernel - 1)),
        transposed=transposed,
        output_padding=draw(st.integers(0, stride - 1)) if transposed else 0,
        activation=draw(st.sampled_from(list(Activation))),
        weight_bits=draw(st.integers(2, 12)),
        x_bits=draw(st.integers(2, 16)),
        output_bits=draw(st.integers(2, 16)),
        gamma_bits=draw(st.integers(2, 12)),
        u_bits=draw(st.integers(2, 16)),
    )


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    shape=stages(),
    in_channels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    source_bits=st.integers(2, 12),
)
def test_random_stages(seed, shape, in_channels, size, source_bits) -> None:
    """Any kernel, stride, padding, activation and width, on any size that leaves an output."""
    rng = np.random.default_rng(seed)
    transform = random_transform(
        rng, [shape], in_channels=in_channels, source=symmetric(source_bits)
    )
    x = inputs(rng, transform.input, (*size, in_channels))
    try:
        transform.sizes(*size)
    except ValueError:
        with pytest.raises(ValueError, match="leaves nothing for stage conv1"):
            golden.run_transform(transform, x)
        return
    check_transform(transform, x)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    shapes=st.lists(stages(), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 12)),
    band=st.sampled_from([1, 500, 5000]),
)
def test_bands_make_no_difference(seed, shapes, size, band) -> None:
    """Rows that come in a few at a time give what all of them give at once."""
    rng = np.random.default_rng(seed)
    transform = random_transform(rng, shapes, in_channels=2, source=symmetric(8))
    x = inputs(rng, transform.input, (*size, 2))
    try:
        whole = golden.run_stages(transform, x)[-1]
    except ValueError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "BAND_BYTES", band)
        bands = list(golden.stream_transform(transform, x))
        np.testing.assert_array_equal(golden.run_transform(transform, x), whole)
    assert [first for first, _ in bands] == [0, *np.cumsum([len(rows) for _, rows in bands])[:-1]]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in bands]), whole)


def test_memory_does_not_grow_with_height(monkeypatch) -> None:
    """Beside what goes in and comes out, which the caller holds."""
    monkeypatch.setattr(golden, "BAND_BYTES", 1 << 17)
    monkeypatch.setattr(golden, "STRIP_BYTES", 1 << 14)
    network = random_factorized(3, n=16, m=8)
    image = np.random.default_rng(3).integers(0, 256, (4096, 64, 3), dtype=np.uint8)

    def peak(image: np.ndarray) -> int:
        golden.analysis(network, image[:64])  # compiled, loaded
        tracemalloc.start()
        latents = golden.analysis(network, image)
        pixels = golden.reconstruct(network, latents)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most - pixels.nbytes - 2 * latents["y"].symbols.nbytes - 2 * image.nbytes

    # a whole first layer of the tall image is 16 times a band
    assert peak(image) < 1.5 * peak(image[:512])


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("transposed", [False, True])
def test_every_activation(activation: Activation, transposed: bool) -> None:
    """Wider than hypothesis likes to draw, several strips and float64 sums among them."""
    shape = StageShape(
        out_channels=33, activation=activation, transposed=transposed, weight_bits=10, x_bits=10
    )
    rng = np.random.default_rng(7)
    transform = random_transform(rng, [shape], in_channels=40, source=symmetric(9))
    check_transform(transform, inputs(rng, transform.input, (31, 27, 40)))


def test_reductions_beyond_float32() -> None:
    """Sums past 2**24 in one, a few and many float32 chunks: exact whichever way they go."""
    rng = np.random.default_rng(3)
    for weight_bits, source_bits, channels in ((4, 6, 8), (8, 8, 30), (9, 8, 60), (12, 16, 60)):
        shape = StageShape(out_channels=5, weight_bits=weight_bits)
        transform = random_transform(
            rng, [shape], in_channels=channels, source=symmetric(source_bits)
        )
        x = inputs(rng, transform.input, (9, 8, channels))
        check_transform(transform, x)
        trace = golden.trace_stage(transform.stages[0], transform.input, x)
        conv = transform.stages[0].convolution
        exact = plain_convolution(conv, tensor(x)) + tensor(conv.bias)
        np.testing.assert_array_equal(trace.accumulator, exact.numpy())


# Worst cases --------------------------------------------------------------------------------


def aimed(stage: Stage, source: Format, channel: int, most: bool) -> np.ndarray:
    """One window that drives the accumulator of a channel to its bound."""
    w = stage.convolution.weight[channel].transpose(1, 2, 0)
    return np.where((w > 0) == most, source.hi, source.lo).astype(np.int64)


@pytest.mark.parametrize("activation", list(Activation))
def test_worst_inputs_do_not_overflow(activation: Activation) -> None:
    """Windows made of the input's extremes reach the very bounds of the accumulator."""
    rng = np.random.default_rng(11)
    shape = StageShape(
        out_channels=4,
        padding=0,
        activation=activation,
        weight_bits=12,
        x_bits=16,
        output_bits=16,
        gamma_bits=12,
        u_bits=16,
    )
    transform = random_transform(rng, [shape], in_channels=12, source=symmetric(16))
    (stage,) = transform.stages
    conv = stage.convolution
    bits = conv.accumulator_bits(transform.input)
    seen = 0
    for channel in range(4):
        for most in (False, True):
            x = aimed(stage, transform.input, channel, most)
            check_transform(transform, x)
            acc = golden.trace_stage(stage, transform.input, x).accumulator[0, 0]
            w = conv.weight[channel].astype(object)
            exact = int(np.abs(w).sum()) * transform.input.hi * (1 if most else -1)
            assert acc[channel] == exact + int(conv.bias[channel])
            assert -(1 << (bits - 1)) <= acc.min() and acc.max() < 1 << (bits - 1)
            seen = max(seen, int(acc[channel]).bit_length() + 1)
    # the bound counts the bias on either side, so the width is at most one bit generous
    assert seen >= bits - 1


@pytest.mark.parametrize("seed", range(4))
def test_extreme_images_and_latents(seed: int) -> None:
    network = random_factorized(
        seed, n=6, m=5, weight_bits=12, x_bits=16, output_bits=12, gamma_bits=12, u_bits=16
    )
    g_a, g_s = network.transforms["g_a"], network.transforms["g_s"]
    checkers = (np.indices((16, 32)).sum(axis=0) % 2)[:, :, None] * np.ones(3, np.int64)
    for image in (np.zeros((16, 32, 3), np.int64), np.full((16, 32, 3), 255), checkers * 255):
        check_transform(g_a, image)
    flips = np.random.default_rng(seed).random((2, 3, 5)) < 0.5
    for latent in (
        np.full((2, 3, 5), g_s.input.lo),
        np.full((2, 3, 5), g_s.input.hi),
        np.where(flips, g_s.input.lo, g_s.input.hi),
    ):
        check_transform(g_s, latent)


def test_inputs_out_of_range_are_refused() -> None:
    transform = random_factorized(0, n=3, m=3).transforms["g_a"]
    ok = np.zeros((16, 16, 3), np.int64)
    for bad, words in (
        (ok - 1, r"must lie in 0 \.\. 255"),
        (ok + 256, r"must lie in 0 \.\. 255"),
        (ok.astype(np.float32), "must hold integers"),
        (ok[:, :, :2], r"shape \(height, width, 3\)"),
        (ok[0], r"shape \(height, width, 3\)"),
    ):
        with pytest.raises(ValueError, match=words):
            golden.run_transform(transform, bad)


# Bits and decibels --------------------------------------------------------------------------


def direct_bits(network: Network, symbols: np.ndarray) -> float:
    """Symbol by symbol, from the definition in `golden.symbol_bits`'s docstring."""
    tables = network.entropy["y"]
    bits = 0.0
    for value, channel in zip(
        symbols.reshape(-1).tolist(),
        np.broadcast_to(np.arange(symbols.shape[2]), symbols.shape).reshape(-1).tolist(),
        strict=True,
    ):
        cdf = tables.cdf[channel, : tables.lengths[channel]].tolist()
        intervals = [b - a for a, b in pairwise(cdf)]
        place = value - int(tables.offsets[channel])
        if 0 <= place < len(intervals) - 1:
            bits -= math.log2(intervals[place] / 65536)
            continue
        distance = -place if place < 0 else place - (len(intervals) - 2)
        bits -= math.log2(intervals[-1] / 65536)
        bits += 1 + (2 * (distance.bit_length() - 1) + 1)  # a sign and Elias gamma
    return bits


@pytest.mark.parametrize("seed", [0, 1])
def test_estimated_bits(seed: int) -> None:
    network = random_factorized(seed, n=4, m=6)
    lo, hi = network.symbol_range
    rng = np.random.default_rng(seed)
    symbols = rng.integers(4 * lo, 4 * hi + 1, (9, 11, 6)).astype(np.int32)
    segment = golden.Segment("y", symbols, golden.channel_indices(symbols.shape))
    estimate = golden.estimate_bits(network, golden.Latents(144, 176, (segment,)))
    assert estimate == {"y": pytest.approx(direct_bits(network, symbols), rel=1e-12)}


def test_psnr() -> None:
    a = np.full((3, 4, 3), 100, np.uint8)
    b = a.copy()
    assert psnr(a, b) == math.inf
    b[0, 0, 0] = 106
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / 1.0))
    with pytest.raises(ValueError, match="same shape"):
        psnr(a, b[:2])
