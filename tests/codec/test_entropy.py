"""The entropy coder: round trips, its format, its size, its speed, and damage."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen.codec.entropy import EntropyCoder, EntropyError, decode, encode
from lichen.network.description import EntropyTables
from lichen.sim.golden import channel_indices, symbol_bits
from tests.codec.tables import TOTAL, from_counts, information, laplacian

INT32 = (-(1 << 31), (1 << 31) - 1)
LAPLACIANS = laplacian([0.05, 0.4, 1.5, 6.0], half=20)


def reference_decode(data: bytes, indices: list[int], tables: EntropyTables) -> list[int]:
    """The stream's description in Python integers, written from the text alone."""
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    x = words.pop(0) + (words.pop(0) << 32) if words else 1 << 32

    def step(cdf: list[int], k: int) -> int:
        nonlocal x
        r = x % 2**k
        s = max(i for i in range(len(cdf) - 1) if cdf[i] <= r)
        x = (cdf[s + 1] - cdf[s]) * (x >> k) + r - cdf[s]
        if x < 2**32:
            x = x * 2**32 + words.pop(0)
        return s

    def uniform(k: int) -> int:
        return step(list(range(2**k + 1)), k)

    out = []
    for t in indices:
        length, offset = int(tables.lengths[t]), int(tables.offsets[t])
        s = step(tables.cdf[t, :length].tolist(), 16)
        if s < length - 2:
            out.append(s + offset)
            continue
        above = uniform(1)
        n = 0
        while uniform(1) == 0:
            n += 1
        v = 1
        for k in (min(n, 16), n - min(n, 16)):
            if k:
                v = (v << k) + uniform(k)
        out.append(offset + length - 3 + v if above else offset - v)
    assert x == 1 << 32
    assert not words
    return out


@st.composite
def tables_strategy(draw: st.DrawFn) -> EntropyTables:
    """One to four tables, any shape of distribution, any offset."""
    counts, offsets = [], []
    for _ in range(draw(st.integers(1, 4))):
        cuts = draw(
            st.one_of(
                st.sets(st.integers(1, TOTAL - 1), min_size=1, max_size=12),
                st.sets(st.integers(1, 20), min_size=1, max_size=12),
                st.sets(st.integers(TOTAL - 20, TOTAL - 1), min_size=1, max_size=12),
            )
        )
        edges = [0, *sorted(cuts), TOTAL]
        counts.append(np.diff(edges).tolist())
        offsets.append(draw(st.one_of(st.integers(-20, 20), st.integers(*INT32))))
    return from_counts(counts, offsets)


@settings(max_examples=150, deadline=None)
@given(tables=tables_strategy(), data=st.data())
def test_round_trip(tables, data):
    size = data.draw(st.integers(0, 40))
    indices = data.draw(
        st.lists(st.integers(0, len(tables.lengths) - 1), min_size=size, max_size=size)
    )
    symbols = []
    for t in indices:
        near = int(tables.offsets[t]) + data.draw(st.integers(-3, int(tables.lengths[t])))
        far = data.draw(st.one_of(st.just(near), st.integers(*INT32)))
        symbols.append(min(max(far, INT32[0]), INT32[1]))
    stream = encode(np.array(symbols, np.int64), np.array(indices, np.int64), tables)
    assert decode(stream, np.array(indices, np.int64), tables).tolist() == symbols
    bits = information(np.array(symbols, object), np.array(indices), tables)
    assert len(stream) <= bits / 8 * 1.0001 + 8


@pytest.mark.parametrize("seed", range(4))
def test_streams_are_as_described(seed):
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, 4, 60)
    symbols = np.rint(rng.laplace(0, 12, 60)).astype(np.int64)
    symbols[rng.integers(0, 60, 8)] = rng.integers(*INT32, 8, endpoint=True)
    stream = encode(symbols, indices, LAPLACIANS)
    assert reference_decode(stream, indices.tolist(), LAPLACIANS) == symbols.tolist()


FROZEN = from_counts([[9, 60000, 5000, 500, 27], [30000, 35000, 536]], [-1, 3])


def test_format_is_frozen():
    """A stream made today can be read for ever: change this only with the file's version."""
    symbols = np.array([[0, 4], [-1, 3], [1, 5], [-9, 1000], [INT32[0], INT32[1]], [0, 2]])
    stream = encode(symbols, np.arange(2), FROZEN)
    assert stream.hex() == (
        "2720f11302000000b85539481051ffb1eaffa18d0000f8ffff7fa23f000080fffbff286b"
    )
    assert reference_decode(stream, [0, 1] * 6, FROZEN) == symbols.reshape(-1).tolist()
    indices = np.broadcast_to(np.arange(2), symbols.shape)
    assert np.array_equal(decode(stream, indices, FROZEN), symbols)


@pytest.mark.parametrize(
    ("counts", "offset"),
    [
        ([TOTAL - 1, 1], 0),  # nearly all mass on the one symbol
        ([1, TOTAL - 1], 5),  # nearly all on the escape
        ([TOTAL // 2, TOTAL // 2], -3),
        ([1, TOTAL - 2, 1], INT32[1]),
        ([1] * TOTAL, INT32[0]),  # the widest there can be
        ([TOTAL - 1000] + [1] * 1000, -500),
        ([1] * 1000 + [TOTAL - 1000], -500),
    ],
)
def test_extreme_tables(counts, offset):
    tables = from_counts([counts], [offset])
    rng = np.random.default_rng(1)
    inside = rng.choice(len(counts), 500, p=np.array(counts) / TOTAL) + offset
    outside = np.array([*INT32, 0, offset - 1, offset + len(counts) - 1, offset, -1])
    symbols = np.clip(np.concatenate([inside, outside, inside]), *INT32)
    indices = np.zeros(symbols.size, np.int64)
    stream = encode(symbols, indices, tables)
    assert np.array_equal(decode(stream, indices, tables), symbols)
    bits = information(symbols, indices, tables)
    assert bits / 8 - 1 <= len(stream) <= bits / 8 * 1.0001 + 8


def test_every_distance_has_a_code():
    tables = from_counts([[3, 4, TOTAL - 7]], [0])
    powers = 1 << np.arange(31)
    symbols = np.concatenate([powers, powers - 1, powers + 1, -powers, -powers - 1, -powers + 1])
    assert np.array_equal(decode(encode(symbols, 0, tables), 0 * symbols, tables), symbols)


def test_nothing_is_nothing():
    for shape in ((0,), (4, 0), (0, 3, 7)):
        stream = encode(np.zeros(shape, np.int32), np.zeros(shape, np.int32), LAPLACIANS)
        assert stream == b""
        assert decode(b"", np.zeros(shape, np.int32), LAPLACIANS).shape == shape
    with pytest.raises(EntropyError):
        decode(bytes(8), np.zeros(0, np.int32), LAPLACIANS)
    with pytest.raises(EntropyError):
        decode(b"", np.zeros(1, np.int32), LAPLACIANS)


def test_shapes_and_types_do_not_matter():
    rng = np.random.default_rng(2)
    symbols = rng.integers(-9, 9, (5, 6, 4))
    expected = encode(symbols, np.arange(4), LAPLACIANS)
    indices = np.broadcast_to(np.arange(4), symbols.shape)
    for kind in (np.int8, np.int16, np.int64, ">i4"):
        assert encode(symbols.astype(kind), indices.astype(np.uint8), LAPLACIANS) == expected
    assert encode(np.asfortranarray(symbols), indices, LAPLACIANS) == expected
    decoded = decode(expected, indices, LAPLACIANS)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)


def test_unusable_arguments():
    with pytest.raises(ValueError, match=r"must lie in 0 .. 3, but span -1 .. 0"):
        encode([0, 0], [0, -1], LAPLACIANS)
    with pytest.raises(ValueError, match=r"must lie in 0 .. 3"):
        decode(bytes(8), np.array([4]), LAPLACIANS)
    with pytest.raises(ValueError, match="integers"):
        encode([0.5], [0], LAPLACIANS)
    with pytest.raises(ValueError, match="integers"):
        decode(bytes(8), np.array([0.0]), LAPLACIANS)
    with pytest.raises(ValueError, match="32 bits"):
        encode([1 << 31], [0], LAPLACIANS)
    with pytest.raises(ValueError, match="32 bits"):
        EntropyCoder(from_counts([[1, TOTAL - 1]], [1 << 31]))


def test_size_is_the_models_estimate(tiny_network):
    """Within 0.01 % and 8 bytes of `golden.symbol_bits`, escapes included."""
    tables = tiny_network.entropy["y"]
    channels = len(tables.lengths)
    rng = np.random.default_rng(3)
    for scale in (0.3, 2.0, 30.0):
        symbols = np.rint(rng.laplace(0, scale, (24, 32, channels))).astype(np.int32)
        ideal = symbol_bits(tables, symbols, channel_indices(symbols.shape)) / 8
        size = len(encode(symbols, np.arange(channels), tables))
        assert ideal - 1 <= size <= ideal * 1.0001 + 8


def outcome(data: bytes, indices: np.ndarray, coder: EntropyCoder) -> np.ndarray | None:
    """What decoding gives: None for the one error it may raise, or symbols.

    Those must be the ones that encode to just these data, so damage never goes unnoticed by
    whoever compares what was coded with what is decoded.
    """
    try:
        symbols = coder.decode(data, indices)
    except EntropyError as error:
        assert str(error).startswith("the coded data are damaged: ")
        return None
    assert symbols.shape == indices.shape
    assert coder.encode(symbols, indices) == data
    return symbols


@pytest.fixture(scope="module")
def stream() -> tuple[bytes, np.ndarray, EntropyCoder]:
    """Some hundred symbols with escapes."""
    rng = np.random.default_rng(4)
    indices = rng.integers(0, 4, 300)
    symbols = np.rint(rng.laplace(0, 8, 300)).astype(np.int64)
    symbols[::50] = rng.integers(*INT32, 6)
    return encode(symbols, indices, LAPLACIANS), indices, EntropyCoder(LAPLACIANS)


def test_every_truncation_and_extension_is_seen(stream):
    data, indices, coder = stream
    assert outcome(data, indices, coder) is not None
    for size in range(len(data)):
        assert outcome(data[:size], indices, coder) is None
    for more in (b"\0", bytes(4), data[-4:], bytes(1000)):
        assert outcome(data + more, indices, coder) is None
    assert outcome(data, indices[:-1], coder) is None
    assert outcome(data, np.append(indices, 0), coder) is None


def test_damaged_bytes_never_hurt(stream):
    data, indices, coder = stream
    seen = 0
    for position in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            seen += outcome(bytes(damaged), indices, coder) is None
    # most are, but bits of escapes can be flipped without further consequences
    assert 0.5 < seen / (3 * len(data)) < 1


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), count=st.integers(0, 5000))
def test_noise_never_hurts(data, count):
    outcome(data, np.arange(count) % 4, EntropyCoder(LAPLACIANS))


def test_mutations_never_hurt(stream):
    data, indices, coder = stream
    rng = np.random.default_rng(5)
    for _ in range(5000):
        damaged = np.frombuffer(data, np.uint8).copy()
        for _ in range(rng.integers(1, 5)):
            at = rng.integers(len(damaged))
            damaged[at : at + rng.integers(1, 9)] = rng.integers(256)
        outcome(damaged.tobytes(), indices, coder)


def reference_encode(steps: list[tuple[int, int, int]]) -> bytes:
    """The stream of steps (start, f, k), which need not make sense."""
    x, words = 1 << 32, []
    for start, f, k in reversed(steps):
        if x >= f << (64 - k):
            words.append(x % 2**32)
            x >>= 32
        x = (x // f << k) + x % f + start
    return b"".join(w.to_bytes(4, "little") for w in [x % 2**32, x >> 32, *reversed(words)])


def test_impossible_escapes_are_damage():
    """Not every distance that can be written leads to a symbol."""
    counts = [9, 1000, TOTAL - 1009]

    def escape(above: int, zeros: int) -> bytes:
        bits = [above, *[0] * zeros, 1]
        steps = [(1009, TOTAL - 1009, 16), *((bit, 1, 1) for bit in bits)]
        for k in (min(zeros, 16), min(zeros, 32) - min(zeros, 16)):
            if k:
                steps.append((0, 1, k))
        return reference_encode(steps)

    def decoded(data: bytes, offset: int) -> np.ndarray | None:
        return outcome(data, np.zeros(1, np.int64), EntropyCoder(from_counts([counts], [offset])))

    assert decoded(escape(0, 0), 5) == [4]
    assert decoded(escape(1, 3), 5) == [5 + 1 + 8]
    assert decoded(escape(0, 31), 0) == [INT32[0]]
    assert decoded(escape(0, 31), -1) is None
    assert decoded(escape(1, 30), (1 << 30) - 2) == [INT32[1]]
    assert decoded(escape(1, 30), (1 << 30) - 1) is None
    for zeros in range(32, 200):
        assert decoded(escape(1, zeros), 0) is None


def test_speed():
    """At least 5 million symbols a second each way, escapes included (some 20 to 40 here)."""
    channels = 96
    tables = laplacian(np.linspace(0.1, 4, channels), half=25)
    rng = np.random.default_rng(6)
    scales = np.linspace(0.1, 4, channels)
    symbols = np.rint(rng.laplace(0, 1, (96, 64, channels)) * scales).astype(np.int32)
    symbols[rng.random(symbols.shape) < 0.01] = 4000
    indices = np.broadcast_to(np.arange(channels), symbols.shape)
    stream = encode(symbols, indices, tables)
    decode(stream, indices, tables)
    writing, reading = [], []
    for _ in range(5):
        start = time.process_time()
        encode(symbols, indices, tables)
        middle = time.process_time()
        decode(stream, indices, tables)
        writing.append(middle - start)
        reading.append(time.process_time() - middle)
    assert symbols.size / min(writing) > 5e6
    assert symbols.size / min(reading) > 5e6


def test_torch_stays_out():
    """The light install has none."""
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from lichen.codec.entropy import encode, decode; print('ok')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert run.stdout == "ok\n"


def test_streams_are_equal_across_processes_and_threads():
    """The same bytes with other thread counts and a fresh interpreter."""
    code = (
        "import hashlib, numpy as np\n"
        "from lichen.codec.entropy import encode\n"
        "from tests.codec.tables import laplacian\n"
        "tables = laplacian([0.05, 0.4, 1.5, 6.0], half=20)\n"
        "symbols = (np.arange(4000) * 7919 % 61 - 30).reshape(-1, 4)\n"
        "print(hashlib.sha256(encode(symbols, np.arange(4), tables)).hexdigest())\n"
    )
    symbols = (np.arange(4000) * 7919 % 61 - 30).reshape(-1, 4)
    here = hashlib.sha256(encode(symbols, np.arange(4), LAPLACIANS)).hexdigest()
    for threads in ("1", "4"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
        )
        assert run.stdout.strip() == here
