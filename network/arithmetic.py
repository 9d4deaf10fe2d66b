"""The integer arithmetic of Lichen, defined once.

The golden model runs these functions, the gateware is tested against them and the
fake quantization of training must agree with them. Each is written so that the same
definition serves NumPy ``int64`` arrays, Python integers (exhaustive corner tests)
and numba-compiled loops; none of them uses a float.

Right shifts of negative values are arithmetic (they round towards minus infinity),
so `rshift_round` rounds to nearest with ties towards plus infinity.
"""

from __future__ import annotations

import functools
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from lichen import native

SATURATION_BITS = 18
"""Width of the signed operand that saturation prepares for an 18x18 multiplier."""

SATURATION_MAX = (1 << (SATURATION_BITS - 1)) - 1
SATURATION_MIN = -1 - SATURATION_MAX
"""The range of that operand: -131072 .. 131071."""

MULTIPLIER_BITS = 17
"""Most unsigned bits of a per-channel multiplier: a signed 18-bit operand without its sign."""

MULTIPLIER_MAX = (1 << MULTIPLIER_BITS) - 1
"""Greatest per-channel multiplier, 131071."""

NORM_BITS = 32
"""Width of the unsigned GDN norm ``n``; every norm lies in ``1 .. 2**32 - 1``."""

NORM_MAX = (1 << NORM_BITS) - 1
"""Greatest norm."""

TABLE_INDEX_BITS = 8
TABLE_FRACTION_BITS = 16
"""Bits of the normalized norm that index the root tables, and that interpolate in them."""

TABLE_INDEX_SHIFT = NORM_BITS - TABLE_INDEX_BITS
TABLE_FRACTION_SHIFT = TABLE_INDEX_SHIFT - TABLE_FRACTION_BITS
TABLE_FRACTION_MASK = (1 << TABLE_FRACTION_BITS) - 1
"""Where those bits lie in the normalized norm: the index on top, the fraction below it."""

MANTISSA_BITS = 16
"""Bits of a root table's values, and of the mantissa ``r`` that they give."""


class NormKind(StrEnum):
    """The divisive normalizations of the field and the function of ``n`` each one needs.

    GDN and IGDN are Ballé et al. (2016), "Density modeling of images using a generalized
    normalization transformation"; GDN1 and IGDN1 are the simplified forms of Johnston et
    al. (2019), "Computationally efficient neural image compression".
    """

    GDN = "gdn"  # x / sqrt(beta + sum gamma x^2)
    IGDN = "igdn"  # x * sqrt(beta + sum gamma x^2)
    GDN1 = "gdn1"  # x / (beta + sum gamma |x|)
    IGDN1 = "igdn1"  # x * (beta + sum gamma |x|)

    @property
    def squares(self) -> bool:
        """Whether the norm sums squares (GDN, IGDN) rather than magnitudes."""
        return self in (NormKind.GDN, NormKind.IGDN)

    @property
    def inverse(self) -> bool:
        """Whether the normalization multiplies by the norm (synthesis side) instead of dividing."""
        return self in (NormKind.IGDN, NormKind.IGDN1)


def rshift_round(v, s):
    """``(v + (1 << (s - 1))) >> s``, the identity at ``s = 0``; ``s >= 0``."""
    return (v + ((1 << s) >> 1)) >> s


def clamp(v, lo, hi):
    """``v`` limited to ``lo .. hi``, both included."""
    return np.minimum(np.maximum(v, lo), hi)


def saturate18(v):
    """``v`` limited to the signed 18-bit range."""
    return clamp(v, SATURATION_MIN, SATURATION_MAX)


def requantize(acc, d, m, s, lo, hi):
    """Rescale an accumulator to an activation with one 18x18 multiplication.

    ``a = saturate18(rshift_round(acc, d))``, ``y = clamp(rshift_round(a * m, s), lo, hi)``
    with ``0 <= m < 2**17``.
    """
    a = saturate18(rshift_round(acc, d))
    return clamp(rshift_round(a * m, s), lo, hi)


def requantize_leaky(acc, d, m, m_negative, s, lo, hi):
    """`requantize` with a second multiplier for negative values (LeakyReLU)."""
    a = saturate18(rshift_round(acc, d))
    negative = a < 0
    return clamp(rshift_round(a * (m + negative * (m_negative - m)), s), lo, hi)


def norm_input(x, squares, t):
    """``u``, the non-negative operand of the norm: ``x*x >> t``, or ``|x| >> t`` for GDN1."""
    return (x * x if squares else abs(x)) >> t


def leading_zeros(n):
    """Number of leading zeros of ``n`` as a 32-bit unsigned value, ``1 <= n < 2**32``."""
    z = n * 0
    for step in (16, 8, 4, 2, 1):
        small = (n < (1 << (NORM_BITS - step))) * step
        n = n << small
        z = z + small
    return z


def _root_table(kind: NormKind) -> npt.NDArray[np.int64]:
    """Values and slopes of the function of ``n`` over its normalized range, ``(256, 2)``.

    Entry i covers normalized norms whose top 8 bits are i. Values are 16-bit unsigned with
    the binary point chosen so that they lie in 2**15 .. 2**16 - 1. The nodes are moved by
    half of the largest distance between the function and its chord, which halves the error
    of linear interpolation.
    """
    index = np.arange(257, dtype=np.float64)
    if kind is NormKind.GDN:
        f = np.maximum(index, 64) / 64
        value, curvature = 65536 / np.sqrt(f), 65536 * 0.75 / (f * f * np.sqrt(f)) / 64**2
    elif kind is NormKind.IGDN:
        f = np.maximum(index, 64) / 64
        value, curvature = 32768 * np.sqrt(f), -32768 * 0.25 / (f * np.sqrt(f)) / 64**2
    elif kind is NormKind.GDN1:
        f = np.maximum(index, 128) / 128
        value, curvature = 65536 / f, 65536 * 2 / (f * f * f) / 128**2
    else:  # IGDN1 multiplies by n itself: the normalized norm is the value
        value, curvature = index * 256, np.zeros(257)
    node = np.clip(np.rint(value - curvature / 16), 0, 65535).astype(np.int64)
    return np.stack([node[:-1], np.diff(node)], axis=1)


# Only operations that IEEE 754 rounds correctly (+, -, *, /, sqrt, rint) make the tables, so
# they are the same on every machine; a test pins their digest.
ROOT_TABLES: dict[NormKind, npt.NDArray[np.int64]] = {k: _root_table(k) for k in NormKind}
"""Per kind: 256 rows of (value, slope); see `normalized_root`."""


def root_position(n, even):
    """Where `normalized_root` looks ``n`` up: ``(index, fraction, e)``.

    ``n`` in ``1 .. 2**32 - 1`` is shifted left until its leading one is in the top bit
    (``even`` false) or in the top two (``even`` true, GDN and IGDN, whose exponent must be
    even before it is halved). The top 8 bits are the index, the next 16 the fraction.
    """
    z = leading_zeros(n)
    z = z - (z & even)
    normalized = n << z
    index = normalized >> TABLE_INDEX_SHIFT
    fraction = (normalized >> TABLE_FRACTION_SHIFT) & TABLE_FRACTION_MASK
    return index, fraction, (NORM_BITS - 1 - z) >> (even * 1)


def interpolate(value, slope, fraction):
    """The mantissa ``r`` between two nodes of a root table, ``fraction`` in ``0 .. 65535``."""
    return value + rshift_round(slope * fraction, TABLE_FRACTION_BITS)


def normalized_root(n, table, even):
    """The function of the norm that multiplies ``x``, as mantissa and exponent ``(r, e)``.

    =====  ====================  =====
    kind   value                 even
    =====  ====================  =====
    GDN    n**-0.5 = r 2**-16-e  true
    IGDN   n**0.5  = r 2**-15+e  true
    GDN1   1 / n   = r 2**-16-e  false
    IGDN1  n       = r 2**-15+e  false
    =====  ====================  =====

    ``table`` is a row of `ROOT_TABLES`; ``r`` lies in ``2**15 .. 2**16 - 1``.
    """
    index, fraction, e = root_position(n, even)
    return interpolate(table[index, 0], table[index, 1], fraction), e


def scale_by_root(x, r, e, inverse, a, k, b, lo, hi):
    """``x`` times the function of its norm, given as ``(r, e)``; see `normalize`."""
    p = saturate18(rshift_round(x * r, a))
    shift = b + e - 2 * e * inverse
    return clamp(rshift_round(p * k, shift), lo, hi)


def normalize(x, n, table, even, inverse, a, k, b, lo, hi):
    """The output of a divisive normalization, from ``x`` and its norm ``n``.

    ``p = saturate18(rshift_round(x * r, a))``, ``y = clamp(rshift_round(p * k, b + e), lo,
    hi)``, with ``b - e`` when the normalization multiplies by the norm (``inverse``), in which case
    the network file guarantees ``b >= e``.
    """
    r, e = normalized_root(n, table, even)
    return scale_by_root(x, r, e, inverse, a, k, b, lo, hi)


def latent_symbol(y, mu, f):
    """The symbol of a latent: ``rshift_round(y - mu, f)``, ``f`` fractional bits in both."""
    return rshift_round(y - mu, f)


def latent_value(symbol, mu, f, lo, hi):
    """What the synthesis reads for a symbol about a mean: ``(symbol << f) + mu`` in ``lo .. hi``.

    At most ``2**(f - 1)`` from the ``y`` of the symbol, where that lies in ``lo .. hi``.
    """
    return clamp((symbol << f) + mu, lo, hi)


def scale_index(v, thresholds):
    """How many of the rising thresholds ``v`` reaches (``v >= t``): the index of its table."""
    return np.searchsorted(thresholds, v, side="right")


def ceil_div(a: int, b: int) -> int:
    """Integer division rounding up, ``b > 0``."""
    return -(-a // b)


def signed_width(lo: int, hi: int) -> int:
    """Fewest bits of a two's-complement number that holds every value of ``lo .. hi``."""
    return max(max(int(hi), 0).bit_length(), max(-1 - int(lo), 0).bit_length()) + 1


def _loops(inline):
    """The elementwise arithmetic above as loops over rows of channels, constants per channel.

    They call the very functions of this module.
    """
    for function in (
        rshift_round,
        clamp,
        saturate18,
        requantize_leaky,
        leading_zeros,
        root_position,
        interpolate,
        scale_by_root,
    ):
        inline(function)
    m_most = MULTIPLIER_MAX

    @inline
    def bits32(v):
        """An integer of at most 32 bits, so that the compiler knows it: vectors multiply those."""
        return np.int64(np.int32(v))

    def whole(kind):
        """What makes an integer of a sum; no vector instruction makes one of 64 bits of a float."""
        return bits32 if kind == "float32" else inline(lambda v: np.int64(v))

    def requantize_rows(kind):
        integer = whole(kind)

        def loop(acc, bias, d, m, m_negative, s, lo, hi, out):
            for i in range(acc.shape[0]):
                for c in range(acc.shape[1]):
                    v = integer(acc[i, c]) + bias[c]
                    positive, negative = bits32(m[c]) & m_most, bits32(m_negative[c]) & m_most
                    out[i, c] = requantize_leaky(v, bits32(d[c]), positive, negative, s, lo, hi)
            return 0

        return loop

    def norm_input_rows(kind):
        def loop(x, squares, t, out):
            for i in range(x.shape[0]):
                for c in range(x.shape[1]):
                    v = np.int64(x[i, c])
                    # `norm_input`, whose conditional numba cannot type for a run-time flag
                    out[i, c] = np.int32((v * v if squares != 0 else abs(v)) >> t)
            return 0

        return loop

    def normalize_rows(kind):
        integer = whole(kind)

        def loop(x, sums, beta, table, even, inverse, a, k, b, lo, hi, scratch, out):
            # `normalize` in three loops: the table lookup alone is not vectorized, and would keep
            # the rest from it
            channels = x.shape[1]
            index, fraction, e, r = scratch[0], scratch[1], scratch[2], scratch[3]
            for i in range(x.shape[0]):
                for c in range(channels):
                    n = integer(sums[i, c]) + beta[c]
                    index[c], fraction[c], e[c] = root_position(n, even)
                for c in range(channels):
                    j = index[c]
                    r[c] = interpolate(table[j, 0], table[j, 1], np.int64(fraction[c]))
                for c in range(channels):
                    v, root, power = np.int64(x[i, c]), np.int64(r[c]), np.int64(e[c])
                    out[i, c] = scale_by_root(v, root, power, inverse, a, bits32(k[c]), b, lo, hi)
            return 0

        return loop

    return {
        f"{name}_{kind}": make(kind)
        for name, make in (
            ("requantize", requantize_rows),
            ("norm_input", norm_input_rows),
            ("normalize", normalize_rows),
        )
        for kind in _SUMS
    }


_SUMS = ("float32", "float64")
"""Types of sums, which hold integers exactly."""

_CHANNEL = "int64[1]"


def _signatures(kind: str) -> dict[str, tuple[str, ...]]:
    """Arguments of the loops for sums of a type."""
    sums, x = f"{kind}[2]", "int32[2]"
    scalar = "int64"
    return {
        f"requantize_{kind}": (sums, *[_CHANNEL] * 4, scalar, scalar, scalar, x),
        f"norm_input_{kind}": (x, scalar, scalar, sums),
        f"normalize_{kind}": (
            x, sums, _CHANNEL, "int64[2]", scalar, scalar, scalar, _CHANNEL, scalar, scalar, scalar,
            "int32[2]", x,
        ),
    }  # fmt: skip


@functools.cache
def compiled() -> SimpleNamespace:
    """The loops of `_loops`, compiled (`lichen.native`).

    A namespace of ``requantize(acc, bias, d, m, m_negative, s, lo, hi, out)``,
    ``norm_input(x, squares, t, out)`` and ``normalize(x, sums, beta, table, even, inverse, a,
    k, b, lo, hi, out)``, all on arrays (rows, channels) with constants per channel; sums come
    as floats that hold integers exactly, everything else is int64 but x and out, int32.
    """
    signatures = {name: found for kind in _SUMS for name, found in _signatures(kind).items()}
    loops = native.load("arithmetic", _loops, signatures, [Path(__file__)])

    def requantize(acc, *rest):
        getattr(loops, f"requantize_{acc.dtype}")(acc, *rest)

    def norm_input(x, squares, t, out):
        getattr(loops, f"norm_input_{out.dtype}")(x, squares, t, out)

    def normalize(x, sums, *rest):
        scratch = np.empty((4, x.shape[1]), np.int32)
        getattr(loops, f"normalize_{sums.dtype}")(x, sums, *rest[:-1], scratch, rest[-1])

    return SimpleNamespace(requantize=requantize, norm_input=norm_input, normalize=normalize)
