"""The integer arithmetic against exact definitions, and its compiled form against itself."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lichen.network import arithmetic
from lichen.network.arithmetic import ROOT_TABLES, NormKind
from lichen.network.description import IMAGE_FORMAT, Format, Normalization

TABLES_SHA256 = "fdadf8f8e3aa94814ffc83cd160d8ef9f20d615d24916fa208d2874b1d77c8c9"
"""Of the tables as little-endian int64, in the order of `NormKind`: they are the same everywhere,
and a change would make every network file mean something else."""


@given(v=st.integers(-(1 << 60), 1 << 60), s=st.integers(0, 47))
def test_rshift_round_is_the_nearest_integer_halves_up(v: int, s: int) -> None:
    expected = math.floor(Fraction(v, 1 << s) + Fraction(1, 2))
    assert arithmetic.rshift_round(v, s) == expected
    assert int(arithmetic.rshift_round(np.int64(v), np.int64(s))) == expected


def test_ties_go_up() -> None:
    values = np.array([-6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6])
    np.testing.assert_array_equal(
        arithmetic.rshift_round(values, 2), [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2]
    )
    np.testing.assert_array_equal(arithmetic.rshift_round(values, 0), values)


def test_saturate18() -> None:
    values = [-(1 << 40), -131073, -131072, -131071, 0, 131070, 131071, 131072, 1 << 40]
    expected = [-131072, -131072, -131072, -131071, 0, 131070, 131071, 131071, 131071]
    np.testing.assert_array_equal(arithmetic.saturate18(np.array(values)), expected)
    assert [int(arithmetic.saturate18(v)) for v in values] == expected


@given(
    acc=st.integers(-(1 << 47), (1 << 47) - 1),
    d=st.integers(0, 31),
    m=st.integers(0, (1 << 17) - 1),
    negative=st.integers(0, (1 << 17) - 1),
    s=st.integers(0, 35),
)
def test_requantize(acc: int, d: int, m: int, negative: int, s: int) -> None:
    a = math.floor(Fraction(acc, 1 << d) + Fraction(1, 2))
    a = min(max(a, -131072), 131071)
    for multiplier, result in (
        (m, arithmetic.requantize(acc, d, m, s, -128, 127)),
        (negative if a < 0 else m, arithmetic.requantize_leaky(acc, d, m, negative, s, -128, 127)),
    ):
        y = math.floor(Fraction(a * multiplier, 1 << s) + Fraction(1, 2))
        assert int(result) == min(max(y, -128), 127)


def test_leading_zeros() -> None:
    values = sorted({v for k in range(33) for v in (2**k - 1, 2**k, 2**k + 1)} | {3, 1000003})
    values = [v for v in values if 1 <= v < 2**32]
    np.testing.assert_array_equal(
        arithmetic.leading_zeros(np.array(values)), [32 - v.bit_length() for v in values]
    )


def norms() -> np.ndarray:
    """Norms over all of 1 .. 2**32 - 1: dense when small, around every binade and node border."""
    rng = np.random.default_rng(0)
    near = [b + o for b in (2**k for k in range(33)) for o in range(-3, 4)]
    nodes = [
        (i << 24 >> z) + o for i in range(64, 257) for z in range(0, 24, 3) for o in (-1, 0, 1)
    ]
    spread = np.exp2(rng.uniform(0, 32, 200_000)).astype(np.int64)
    sample = np.concatenate([np.arange(1, 70_000), near, nodes, spread, [2**32 - 1]])
    return np.unique(sample[(sample >= 1) & (sample < 2**32)])


@pytest.mark.parametrize("kind", list(NormKind))
def test_roots_are_close_everywhere(kind: NormKind) -> None:
    n = norms()
    r, e = arithmetic.normalized_root(n, ROOT_TABLES[kind], kind.squares)
    assert r.min() >= 1 << 15 and r.max() < 1 << 16
    e = e.astype(np.float64)
    value = r * np.exp2(-15 + e) if kind.inverse else r * np.exp2(-16 - e)
    power = (0.5 if kind.squares else 1.0) * (1 if kind.inverse else -1)
    error = np.abs(value / n.astype(np.float64) ** power - 1)
    # one unit of the 16-bit mantissa is 3.05e-5 at its least
    assert error.max() <= 3.2e-5
    # DESIGN, section 3: 1.5e-5 is what a table of this size can do on average over a binade
    assert error.mean() < 1.5e-5


@pytest.mark.parametrize("kind", list(NormKind))
def test_roots_of_arrays_and_integers_agree(kind: NormKind) -> None:
    n = norms()[::97]
    r, e = arithmetic.normalized_root(n, ROOT_TABLES[kind], kind.squares)
    for value, mantissa, exponent in zip(n.tolist(), r.tolist(), e.tolist(), strict=True):
        one = arithmetic.normalized_root(value, ROOT_TABLES[kind], kind.squares)
        assert (int(one[0]), int(one[1])) == (mantissa, exponent)


def test_root_tables_are_pinned() -> None:
    data = b"".join(ROOT_TABLES[kind].astype("<i8").tobytes() for kind in NormKind)
    assert hashlib.sha256(data).hexdigest() == TABLES_SHA256
    for table in ROOT_TABLES.values():
        # what the gateware stores: 16 bits of value, 10 of slope
        assert table[:, 0].min() >= 0 and table[:, 0].max() < 1 << 16
        assert table[64:, 1].min() >= -512 and table[64:, 1].max() < 512


# Compiled -----------------------------------------------------------------------------------

ROWS, CHANNELS = 2000, 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(4))
def test_compiled_requantize(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    bits = 23 if dtype is np.float32 else 46
    acc = rng.integers(-(1 << bits), 1 << bits, (ROWS, CHANNELS))
    acc[: ROWS // 2] >>= rng.integers(0, bits, (ROWS // 2, CHANNELS))
    bias = rng.integers(-(1 << 20), 1 << 20, CHANNELS)
    d = rng.integers(0, 20, CHANNELS)
    m, negative = rng.integers(0, 1 << 17, (2, CHANNELS))
    s, (lo, hi) = int(rng.integers(0, 36)), ((-127, 127), (0, 65535))[seed % 2]
    out = np.empty(acc.shape, np.int32)
    arithmetic.compiled().requantize(acc.astype(dtype), bias, d, m, negative, s, lo, hi, out)
    expected = arithmetic.requantize_leaky(acc + bias, d, m, negative, s, lo, hi)
    np.testing.assert_array_equal(out, expected)
    # equal multipliers make it the plain one
    arithmetic.compiled().requantize(acc.astype(dtype), bias, d, m, m, s, lo, hi, out)
    np.testing.assert_array_equal(out, arithmetic.requantize(acc + bias, d, m, s, lo, hi))


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("t", [0, 5, 31])
def test_compiled_norm_input(squares: bool, t: int) -> None:
    x = np.random.default_rng(t).integers(-32768, 32768, (ROWS, CHANNELS)).astype(np.int32)
    x[0, :2] = -32768, 32767
    out = np.empty(x.shape, np.float64)
    arithmetic.compiled().norm_input(x, squares, t, out)
    np.testing.assert_array_equal(out, arithmetic.norm_input(x.astype(np.int64), squares, t))


@pytest.mark.parametrize("kind", list(NormKind))
@pytest.mark.parametrize("seed", range(2))
def test_compiled_normalize(kind: NormKind, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-32768, 32768, (ROWS, CHANNELS)).astype(np.int32)
    beta = rng.integers(1, 1 << 31, CHANNELS)
    beta[0] = 1
    sums = np.exp2(rng.uniform(0, 31, (ROWS, CHANNELS))).astype(np.int64)
    sums[0], sums[1] = 0, (1 << 32) - 1 - beta
    k = rng.integers(0, 1 << 17, CHANNELS)
    # as far as descriptions go: b >= e where the norm multiplies, b + e <= 62 where it divides
    b = (47, 31)[seed] if kind is not NormKind.GDN1 else (31, 4)[seed]
    a = int(rng.integers(0, 17))
    args = (ROOT_TABLES[kind], kind.squares, kind.inverse, a)
    out = np.empty(x.shape, np.int32)
    arithmetic.compiled().normalize(
        x, sums.astype(np.float64), beta, *args, k, b, -32768, 32767, out
    )
    expected = arithmetic.normalize(x.astype(np.int64), sums + beta, *args, k, b, -32768, 32767)
    np.testing.assert_array_equal(out, expected)


def test_a_shift_beyond_64_bit_arithmetic_is_refused() -> None:
    """GDN1 shifts by b + e: past 62 the half that rounding adds leaves 64 bits."""
    fields = {
        "kind": "gdn1",
        "gamma_bits": 12,
        "gamma": np.full((4, 4), 4095),
        "beta": np.full(4, 1),
        "u_bits": 16,
        "u_shift": 0,
        "product_shift": 0,
        "multiplier": np.ones(4, np.int32),
        "output": IMAGE_FORMAT,
    }
    source = Format(bits=16, signed=True, lo=-32767, hi=32767)
    exponent = (4 * 4095 * 32767 + 1).bit_length() - 1
    fits = Normalization.model_validate(fields | {"shift": 62 - exponent})
    fits.check_source(source)
    long = Normalization.model_validate(fields | {"shift": 63 - exponent})
    with pytest.raises(ValueError, match="shift must be at most 62 less the greatest exponent"):
        long.check_source(source)


# Sizes --------------------------------------------------------------------------------------


@given(lo=st.integers(-(1 << 50), 1 << 50), span=st.integers(0, 1 << 50))
def test_signed_width_is_the_least_that_holds_the_range(lo: int, span: int) -> None:
    bits = arithmetic.signed_width(lo, lo + span)

    def holds(width: int) -> bool:
        return -(1 << (width - 1)) <= lo and lo + span < 1 << (width - 1)

    assert holds(bits) and (bits == 1 or not holds(bits - 1))


@given(a=st.integers(-(10**12), 10**12), b=st.integers(1, 10**6))
def test_ceil_div(a: int, b: int) -> None:
    assert arithmetic.ceil_div(a, b) == math.ceil(Fraction(a, b))
