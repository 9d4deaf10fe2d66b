"""Context models in compiled loops: against their definition read literally, and as streams."""

from __future__ import annotations

import numpy as np
import pytest

from lichen import native
from lichen.codec import context
from lichen.codec.context import ContextCoder, predictions
from lichen.codec.entropy import EntropyError
from lichen.codec.layout import Layout, Window
from lichen.network.context import ContextModel
from lichen.network.random import random_contexts
from tests.codec.cases import KINDS, make_network

LAYOUTS = (Layout(), Layout(columns=5, rows=3, places=7), Layout(columns=1, rows=1, places=1))


def latent(network, name, size, seed, spread=3.0):
    """Symbols with a few far outside of all tables, and table numbers."""
    one = next(one for one in network.latents if one.name == name)
    rng = np.random.default_rng(seed)
    shape = (*size, network.channels(one))
    symbols = np.rint(rng.laplace(0, spread, shape)).astype(np.int32)
    far = rng.random(shape) < 0.01
    symbols[far] = rng.integers(-127, 128, int(far.sum()))
    levels = 1 if network.contexts.latents[name].levels is None else 16
    return symbols, rng.integers(0, levels, shape).astype(np.int32)


def definition(model: ContextModel, y, indices, i, j, c, top, left, right):
    """Scale and mean of a symbol as docs/contexts.md says them, in Python's integers."""

    has_w, has_n = j > left, i > top
    if not has_w and not has_n:
        places = []
    elif not has_n:
        places = [(i, j - 1)] * 4
    else:
        n = i - 1, j
        places = [
            (i, j - 1) if has_w else n,
            n,
            (i - 1, j - 1) if has_w else n,
            (i - 1, j + 1) if j + 1 < right else n,
        ]
    around = [int(y[row, column, c]) for row, column in places] or [0] * 4
    total = sum(int(w) * min(abs(v), 31) for w, v in zip(model.near[:, c], around, strict=False))
    total <<= model.near_shift

    def counts(row, column, d):
        m = min(abs(int(y[row, column, d])), 31)
        if model.unit is None:
            return m
        index = indices[row, column, d]
        return max(-256, min(m * int(model.unit[index]) - int(model.usual[index]), 255))

    def channels_sum(k, row, column, end):
        return sum(int(model.inner[k, d]) * counts(row, column, d) for d in range(end))

    def starts(k):
        if model.carry is None or not places:
            return 0
        totals = [channels_sum(k, *place, y.shape[2]) for place in places]
        return sum(int(w) * t for w, t in zip(model.carry[:, k], totals, strict=True)) >> 6

    across = sum(
        int(outer[c]) * (starts(k) + channels_sum(k, i, j, c))
        for k, outer in enumerate(model.outer)
    )
    hyper = 0
    if model.levels is not None:
        hyper = int(model.spread[c]) * int(model.levels[indices[i, j, c]]) << model.spread_shift
    if model.unit is None:
        total += hyper + across
    else:
        gain = max(64, min(256 + (across >> model.gain_shift), 1024))
        total += min(hyper, (1 << 20) - 1) * gain >> 8
    scale = min(int(model.bias[c]) + (total >> model.shift), 65535)
    limited = [max(-32767, min(v, 32767)) for v in around]
    return scale, sum(int(w) * v for w, v in zip(model.slope[:, c], limited, strict=False))


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("excess", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_definition(kind, excess, carry):
    network = random_contexts(5, make_network(kind), excess=excess, carry=carry)
    for name, model in network.contexts.latents.items():
        y, indices = latent(network, name, (5, 7), 3)
        for layout in LAYOUTS[:2]:
            scales, means = predictions(model, y, indices, layout)
            for i, j, c in np.ndindex(y.shape):
                top, left = i - i % layout.rows, j - j % layout.columns
                right = min(left + layout.columns, 7)
                expected = definition(model, y, indices, i, j, c, top, left, right)
                assert (scales[i, j, c], means[i, j, c]) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_streams_come_back(kind, seed):
    network = random_contexts(seed, make_network(kind), excess=bool(seed % 2), carry=seed >= 2)
    for name in network.contexts.latents:
        coder = ContextCoder(network.contexts, name)
        y, indices = latent(network, name, (11, 13), seed, 1.0 + seed)
        for layout in LAYOUTS:
            found = np.full_like(y, 99)
            for group in layout.groups(11, 13):
                for window in group:
                    coder.decode(coder.encode(y, indices, window), found, indices, window)
            assert np.array_equal(found, y)


@pytest.mark.parametrize("kind", KINDS)
def test_the_interpreter_makes_the_same_streams(kind, monkeypatch):
    """Compiled loops are the Python they are written in, without its checks."""
    network = random_contexts(4, make_network(kind), excess=True, carry=True)
    window = Window((0, 3), (0, 5), (2, 15))
    for name in network.contexts.latents:
        y, indices = latent(network, name, (3, 5), 6)
        coder = ContextCoder(network.contexts, name)
        stream = coder.encode(y, indices, window)
        with monkeypatch.context() as patch:
            loops = native.interpreted(context._loops)
            patch.setattr(context, "_compiled", lambda loops=loops: loops)
            assert coder.encode(y, indices, window) == stream
            found = y.copy()
            for block in window.blocks():
                found[block] = 99
            coder.decode(stream, found, indices, window)
            assert np.array_equal(found, y)


def test_every_symbol_of_32_bits_is_coded():
    network = random_contexts(1, make_network("mean-scale"))
    coder = ContextCoder(network.contexts, "y")
    y, indices = latent(network, "y", (2, 6), 0)
    limits = np.iinfo(np.int32)
    y[0, 0], y[0, 1], y[1, 3] = limits.min, limits.max, [limits.min, limits.max] * 3
    window = Window((0, 2), (0, 6), (0, 12))
    found = np.zeros_like(y)
    coder.decode(coder.encode(y, indices, window), found, indices, window)
    assert np.array_equal(found, y)


def test_streams_are_canonical_and_damage_is_bounded():
    """What decodes at all is what encoding makes of it; nothing else happens than an error."""
    network = random_contexts(2, make_network("factorized"))
    coder = ContextCoder(network.contexts, "y")
    y, indices = latent(network, "y", (2, 5), 0, 1.0)
    window = Window((0, 2), (0, 5), (0, 10))
    good, rng = coder.encode(y, indices, window), np.random.default_rng(1)
    decoded = 0
    for round_ in range(4000):
        data = bytearray(good)
        if round_ % 4 == 0:
            data = bytearray(rng.bytes(int(rng.integers(0, 40))))
        elif round_ % 4 == 1:
            del data[int(rng.integers(len(data))) :]
        else:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        found = np.zeros_like(y)
        try:
            coder.decode(bytes(data), found, indices, window, (-(1 << 31), (1 << 31) - 1))
        except EntropyError:
            continue
        decoded += 1
        assert coder.encode(found, indices, window) == bytes(data)
    assert decoded < 2500
    for longer in (good + b"\0", good + b"\1"):
        with pytest.raises(EntropyError):
            coder.decode(longer, np.zeros_like(y), indices, window)


def test_symbols_beyond_what_the_network_makes_are_refused():
    network = random_contexts(2, make_network("factorized"))
    coder = ContextCoder(network.contexts, "y")
    y, indices = latent(network, "y", (1, 3), 0)
    y[0, 2, 3] = 128
    window = Window((0, 1), (0, 3), (0, 3))
    data = coder.encode(y, indices, window)
    with pytest.raises(EntropyError, match="cannot make"):
        coder.decode(data, np.zeros_like(y), indices, window, (-127, 127))


def test_streams_take_their_information_and_a_byte():
    """Code lengths, summed by the definition, against the bytes."""
    network = random_contexts(3, make_network("factorized"))
    model, tables = network.contexts.latents["y"], network.contexts.tables
    y, indices = latent(network, "y", (8, 40), 3, 2.0)
    window = Window((0, 8), (0, 40), (0, 320))
    scales, means = predictions(model, y, indices, Layout())
    bits = 0.0
    for symbol, scale, mean in zip(y.flat, scales.flat, means.flat, strict=True):
        whole = (int(mean) + 16) >> 5
        part = int(mean) - 32 * whole
        t = model.choice[np.searchsorted(model.edges, scale, side="right"), model.phase[abs(part)]]
        value = (-1 if part < 0 else 1) * (int(symbol) - whole) - int(tables.offsets[t])
        beyond = int(tables.lengths[t]) - 2
        entry = value if 0 <= value < beyond else beyond
        bits += 16 - np.log2(int(tables.cdf[t, entry + 1]) - int(tables.cdf[t, entry]))
        if entry == beyond:
            bits += 2 * ((-value if value < 0 else value - beyond + 1).bit_length() - 1) + 2
    length = len(ContextCoder(network.contexts, "y").encode(y, indices, window))
    assert bits / 8 - 1 <= length <= bits / 8 * 1.001 + 2


@pytest.mark.parametrize(("height", "width", "ratio"), [(1, 1, 1), (9, 130, 1), (17, 48, 4)])
def test_layouts_cover_everything_once(height, width, ratio):
    for layout in (*LAYOUTS, Layout(columns=40, rows=4, places=100)):
        count, order = np.zeros((height, width), int), []
        groups = list(layout.groups(height, width, ratio))
        for group in groups:
            for window in group:
                assert 0 < window.size <= layout.places
                assert sum(count[block].size for block in window.blocks()) == window.size
                for block in window.blocks():
                    count[block] += 1
                order.append(window)
        assert (count == 1).all()
        assert layout.segments(height, width, ratio) == len(order)
