"""Training restates the requantizer and the normalizations twice, as often as its speed needs: on
PyTorch's floats (`kernels`), and in compiled loops (`fused`).

Each is the arithmetic to the last bit, as long as its floats hold the products: float64 holds all
that a network file allows, float32 holds 24 bits. Tuning in float32 rounds longer products, and
says how many values that has changed (``float32_mismatch_rate``, `fake.mismatch_rate`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen.network import arithmetic  # noqa: E402
from lichen.network.arithmetic import ROOT_TABLES, NormKind  # noqa: E402
from lichen.quant.training import fused, kernels  # noqa: E402

C = 64


def _signs(rng: np.random.Generator, most: int) -> np.ndarray:
    """Integers of all magnitudes up to ``most``, both signs, and the extremes."""
    values = np.rint(rng.choice([-1, 1], (200, C)) * most ** rng.random((200, C)))
    values[:2] = [[-most], [most]]
    return values.astype(np.int64)


def _bfloat16(bits: np.ndarray) -> np.ndarray:
    """The integers that bits of bfloat16 stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.int64)


@pytest.mark.parametrize("leaky", [False, True])
def test_the_requantizer_is_the_arithmetic(leaky):
    """To the last bit in float64, saturation, rounding and clipping alike."""
    rng = np.random.default_rng(int(leaky))
    acc, bias = _signs(rng, 1 << 40), _signs(rng, 1 << 20)[0]
    d, s = rng.integers(0, 31, C), 20
    m, negative = rng.integers(1, 1 << 17, (2, C))
    lo, hi = -2047, 2047
    if leaky:
        expected = arithmetic.requantize_leaky(acc + bias, d, m, negative, s, lo, hi)
    else:
        negative = m
        expected = arithmetic.requantize(acc + bias, d, m, s, lo, hi)
    real = [torch.from_numpy(np.asarray(v, np.float64)) for v in (acc, bias)]
    real += [torch.from_numpy(v) for v in (0.5**d, m * 0.5**s, negative * 0.5**s)]
    limits = [torch.tensor(float(v), dtype=torch.float64) for v in (lo, hi)]
    np.testing.assert_array_equal(kernels.requantize(*real, *limits).numpy(), expected)
    assert len(np.unique(expected)) > 500 and {lo, hi} <= set(expected.flat)


def _short_requantizer(rng: np.random.Generator) -> tuple[np.ndarray, list, np.ndarray, list]:
    """Accumulators, the constants of the loops, what becomes of them in -127 .. 127, and these
    limits; a sum has 12 bits, its product with a multiplier 23."""
    acc, bias = _signs(rng, 1 << 11), _signs(rng, 1 << 9)[0]
    d, s = rng.integers(0, 3, C), 12
    m, negative = rng.integers(1, 1 << 11, (2, C))
    expected = arithmetic.requantize_leaky(acc + bias, d, m, negative, s, -127, 127)
    constants = [v.astype(np.float32) for v in (bias, 0.5**d, m * 0.5**s, negative * 0.5**s)]
    return acc.astype(np.float32), constants, expected, [np.float32(-127), np.float32(127)]


def test_the_loops_requantize_as_the_arithmetic_does():
    """Where float32 holds the products, it is exact, too."""
    acc, constants, expected, limits = _short_requantizer(np.random.default_rng(2))
    y, codes = np.empty(acc.shape, np.uint16), np.empty(acc.shape, np.uint8)
    fused.loops().requantize(0, len(acc), acc, *constants, *limits, np.float32(128), y, codes)
    np.testing.assert_array_equal(_bfloat16(y), expected)
    np.testing.assert_array_equal(codes.astype(np.int64) - 128, expected)
    assert len(np.unique(expected)) > 200


@pytest.mark.parametrize("squares", [False, True])
def test_the_loops_make_the_operands_of_norms(squares):
    acc, constants, expected, limits = _short_requantizer(np.random.default_rng(3))
    t = 6 if squares else 0
    x, u = np.empty(acc.shape, np.int16), np.empty(acc.shape, np.uint8)
    total = np.empty((len(acc), 1), np.float32)
    fused.loops().requantize_norm(
        0, len(acc), acc, *constants, *limits, squares, np.float32(0.5**t), x, u, total
    )
    np.testing.assert_array_equal(x, expected)
    operands = arithmetic.norm_input(expected, squares, t)
    np.testing.assert_array_equal(u, operands)
    np.testing.assert_array_equal(total[:, 0], operands.sum(axis=1))
    assert len(np.unique(operands)) > 50


@pytest.mark.parametrize("kind", NormKind)
def test_the_operands_of_norms_are_the_arithmetic(kind):
    x, t = _signs(np.random.default_rng(4), 127), 2
    scale = torch.tensor(0.5**t, dtype=torch.float64)
    ours = kernels.norm_input(torch.from_numpy(x.astype(np.float64)), scale, squares=kind.squares)
    np.testing.assert_array_equal(ours.numpy(), arithmetic.norm_input(x, kind.squares, t))


def _normalized(kind: NormKind, k_bits: int) -> dict[str, Any]:
    """Operands of a normalization, factors ``k`` of so many bits, and what comes out."""
    rng = np.random.default_rng(len(kind.value))
    x, a, lo, hi = _signs(rng, 127), 8, -127, 127
    sums = np.minimum(np.rint(2 ** (23.9 * rng.random(x.shape))).astype(np.int64), (1 << 24) - 99)
    beta, k = rng.integers(1, 90, C), rng.integers(1, 1 << k_bits, C)
    # so that what comes out is of all sizes
    typical = np.sqrt(2.0**12) if kind.squares else 2.0**12
    b = k_bits + (int(np.log2(typical)) + 8 if kind.inverse else 0)
    expected = arithmetic.normalize(
        x, sums + beta, ROOT_TABLES[kind], kind.squares, kind.inverse, a, k, b, lo, hi
    )
    assert len(np.unique(expected)) > 50
    return {
        "x": x, "sums": sums, "beta": beta, "table": ROOT_TABLES[kind], "product": 0.5**a,
        "scale": k * 0.5**b, "limits": (float(lo), float(hi)), "expected": expected,
    }  # fmt: skip


@pytest.mark.parametrize("kind", NormKind)
def test_normalizations_are_the_arithmetic(kind):
    """To the last bit in float64."""
    case = _normalized(kind, k_bits=10)
    ours = kernels.normalize(
        *(torch.from_numpy(np.asarray(case[v], np.float64)) for v in ("x", "sums", "beta")),
        torch.as_tensor(case["table"], dtype=torch.int32),
        *(torch.as_tensor(v, dtype=torch.float64) for v in (case["product"], case["scale"])),
        *(torch.tensor(v, dtype=torch.float64) for v in case["limits"]),
        squares=kind.squares, inverse=kind.inverse,
    )  # fmt: skip
    np.testing.assert_array_equal(ours.numpy(), case["expected"])


@pytest.mark.parametrize("kind", NormKind)
def test_the_loops_normalize_as_the_arithmetic_does(kind):
    """x r has 23 bits, of which 15 are left; times factors of 7 bits that fits float32, too."""
    case = _normalized(kind, k_bits=7)
    x = case["x"].astype(np.int16)
    y, codes = np.empty(x.shape, np.uint16), np.empty(x.shape, np.uint8)
    fused.loops().normalize(
        0, len(x), x, case["sums"].astype(np.float32), case["beta"].astype(np.float32),
        kind.squares, kind.inverse, *case["table"].T.astype(np.int32),
        np.float32(case["product"]), case["scale"].astype(np.float32),
        *(np.float32(v) for v in case["limits"]), np.float32(128), y, codes,
    )  # fmt: skip
    np.testing.assert_array_equal(_bfloat16(y), case["expected"])
    np.testing.assert_array_equal(codes.astype(np.int64) - 128, case["expected"])
