"""From real scales to the integer constants of requantizers and normalizations.

Everything here chooses integers for the equations of `lichen.network.arithmetic`; nothing
looks at data.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lichen.network.arithmetic import (
    MANTISSA_BITS,
    MULTIPLIER_MAX,
    NORM_BITS,
    SATURATION_MAX,
    NormKind,
)
from lichen.network.description import SHIFT_MAX, Format, Normalization, Requantizer

MANTISSA_MAX = (1 << MANTISSA_BITS) - 1

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

COMMON_SHIFT_STEPS = 64
"""One pre-shift serves all channels while this many steps of it make one of the output."""

GAIN_SPREAD = 64
"""How far above the median a normalization's multiplier may lie; see `norm_step`."""


def symmetric(bits: int) -> Format:
    """The signed format without its most negative code."""
    most = (1 << (bits - 1)) - 1
    return Format(bits=bits, signed=True, lo=-most, hi=most)


def unsigned(bits: int) -> Format:
    """The unsigned format."""
    return Format(bits=bits, signed=False, lo=0, hi=(1 << bits) - 1)


def make_requantizer(
    gain: FloatArray,
    least: FloatArray,
    most: FloatArray,
    output: Format,
    *,
    slope: float | None = None,
    observed_least: FloatArray | None = None,
) -> tuple[Requantizer, FloatArray]:
    """Constants whose product comes closest to ``gain``, and the gain they have.

    Parameters
    ----------
    gain : (channels,)
        Steps of the output per unit of the accumulator, positive.
    least, most : (channels,)
        What the accumulator can reach.
    output : Format
    slope : float or None
        Factor for negative values (LeakyReLU).
    observed_least : (channels,) or None
        With a slope, the least accumulator that calibration has seen.

    The pre-shift is the smallest with which everything that the 18-bit saturation cuts would
    have been clipped anyway; it is the same for all channels unless that would cost precision.
    Negative values of a LeakyReLU would reach their clipping range only far beyond the
    saturation, so there the range is narrowed to what comes through it: with margin, what
    calibration has seen.
    """
    lo, hi = output.lo, output.hi
    gain = np.clip(gain, 1e-12, float(MULTIPLIER_MAX))
    up = np.minimum((hi + 1) / gain, np.maximum(most, 0))
    down = np.minimum((1 - lo) / gain if lo < 0 else 0.0, np.maximum(-least, 0))
    if slope is not None and observed_least is not None:
        down = np.maximum(down, np.minimum(-1.25 * observed_least, np.maximum(-least, 0)))
    reach = np.maximum(np.maximum(up, down), 1.0)
    shifts = np.clip(np.ceil(np.log2(reach / SATURATION_MAX)), 0, 31).astype(np.int64)
    live = most > least
    if np.all(reach[live] / 2.0 ** shifts.max() >= COMMON_SHIFT_STEPS * output.magnitude):
        shifts[:] = shifts.max()
    while True:
        scaled = gain * 2.0**shifts
        top = float(scaled[live].max()) if live.any() else 1.0
        s = int(np.clip(math.floor(math.log2(MULTIPLIER_MAX / top)), 0, 35))
        m = np.clip(np.rint(scaled * 2.0**s), 1, MULTIPLIER_MAX).astype(np.int64)
        # Rounding m down can leave a saturated value just inside the clipping range.
        half = (1 << s) >> 1
        short = (most / 2.0**shifts > SATURATION_MAX) & (((SATURATION_MAX * m + half) >> s) < hi)
        if slope is None and lo < 0:
            short |= (-least / 2.0**shifts > SATURATION_MAX) & (
                ((-SATURATION_MAX * m + half) >> s) > lo
            )
        short &= shifts < 31
        if not short.any():
            break
        shifts = shifts + (np.ones_like(short) if len(set(shifts)) == 1 else short)
    negative = None
    if slope is not None:
        negative = np.clip(np.rint(scaled * slope * 2.0**s), 0, MULTIPLIER_MAX).astype(np.int64)
        saturates = live & (-least / 2.0**shifts > SATURATION_MAX)
        if saturates.any():
            reached = int(((-SATURATION_MAX * negative[saturates] + half) >> s).max())
            lo = max(lo, min(reached, -1))
        output = Format(bits=output.bits, signed=output.signed, lo=lo, hi=hi)
    requantizer = Requantizer(
        pre_shift=shifts.astype(np.int8),
        multiplier=m.astype(np.int32),
        negative_multiplier=None if negative is None else negative.astype(np.int32),
        shift=s,
        output=output,
    )
    return requantizer, m / 2.0 ** (shifts + s)


def norm_exponent(kind: NormKind) -> float:
    """The power of the norm that multiplies x."""
    return (0.5 if kind.squares else 1.0) * (1 if kind.inverse else -1)


def _peak(kind: NormKind, source: Format) -> int:
    return source.magnitude**2 if kind.squares else source.magnitude


def u_shift_for(kind: NormKind, source: Format, u_bits: int) -> int:
    """The least shift with which ``u`` fits its bits."""
    return max(0, _peak(kind, source).bit_length() - u_bits)


def norm_step(
    kind: NormKind,
    source: Format,
    u_shift: int,
    gamma: FloatArray,
    beta: FloatArray,
    gamma_bits: int,
    ratio: FloatArray,
    part: float = 1.0,
) -> FloatArray:
    """Real value of one step of each channel's norm, with which its greatest gamma just fits.

    Parameters
    ----------
    gamma : (channels, channels)
        Real weights of the integers ``u``.
    beta : (channels,)
    ratio : (channels,)
        Scale of x over scale of y.
    part : float
        Of the greatest gamma that is to fit, the rest being clipped.

    Steps are coarser where the norm would leave 32 bits, and where a channel has next to no
    gamma: steps end up in the output multipliers, which share one shift, so a minute step
    would cost the other channels' multipliers their precision.
    """
    step = part * gamma.max(axis=1) / ((1 << gamma_bits) - 1)
    most = gamma.sum(axis=1) * (_peak(kind, source) >> u_shift) + beta
    step = np.maximum(step, most / 2.0 ** (NORM_BITS - 1))
    power = norm_exponent(kind)
    gain = ratio * step**power
    typical = float(np.median(gain))
    excess = typical / gain if kind.inverse else gain / typical
    return step * np.maximum(excess / GAIN_SPREAD, 1.0) ** (1 / abs(power))


def round_norm(
    gamma: FloatArray, beta: FloatArray, step: FloatArray, gamma_bits: int
) -> tuple[IntArray, IntArray]:
    """Nearest integers for gamma and beta."""
    integers = np.clip(np.rint(gamma / step[:, None]), 0, (1 << gamma_bits) - 1)
    return integers.astype(np.int64), round_beta(beta, step)


def round_beta(beta: FloatArray, step: FloatArray) -> IntArray:
    """Nearest integers, at least 1."""
    return np.clip(np.rint(beta / step), 1, 2.0 ** (NORM_BITS - 1)).astype(np.int64)


def make_normalization(
    kind: NormKind,
    source: Format,
    x_scale: FloatArray,
    y_scale: FloatArray,
    gamma: IntArray,
    beta: IntArray,
    step: FloatArray,
    *,
    gamma_bits: int,
    u_shift: int,
    output: Format,
) -> tuple[Normalization, FloatArray]:
    """The integer normalization, and the output scale that its multipliers really have.

    With x = X x_scale, norm = step n and y = Y y_scale, Y = X n^p (x_scale step^p / y_scale);
    the factor in brackets becomes the multiplier k. Raises ValueError when a norm does not fit
    32 bits, which steps of `norm_step` rule out.
    """
    peak = _peak(kind, source) >> u_shift
    a = 0
    while source.magnitude * MANTISSA_MAX >> a > SATURATION_MAX:
        a += 1
    point = 15 if kind.inverse else 16  # of the root's mantissa
    gain = np.maximum(x_scale * step ** norm_exponent(kind) / y_scale, 1e-15)
    b = math.floor(math.log2(MULTIPLIER_MAX / gain.max())) - a + point
    greatest = int((gamma.sum(axis=1) * peak + beta).max())
    exponent = (greatest.bit_length() - 1) >> int(kind.squares)
    least, most = (exponent, 47) if kind.inverse else (0, min(47, SHIFT_MAX - exponent))
    b = int(np.clip(b, least, most))
    k = np.clip(np.rint(gain * 2.0 ** (b + a - point)), 1, MULTIPLIER_MAX)
    normalization = Normalization(
        kind=kind,
        gamma_bits=gamma_bits,
        gamma=gamma.astype(np.int32),
        beta=beta.astype(np.int64),
        u_bits=max(peak.bit_length(), 2),
        u_shift=u_shift,
        product_shift=a,
        multiplier=k.astype(np.int32),
        shift=b,
        output=output,
    )
    normalization.check_source(source)
    return normalization, x_scale * step ** norm_exponent(kind) / (k / 2.0 ** (b + a - point))
