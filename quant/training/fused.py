"""The elementwise arithmetic of training as compiled loops, for float32 on CPUs.

Each function here does in one pass what several functions of `lichen.quant.training.kernels` do,
which are the definition and which a test compares them with; bfloat16 tensors come as ``uint16``
views of their bits. All arrays are rows of channels, constants per channel are float32 (C,).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lichen import caches
from lichen.network.arithmetic import (
    SATURATION_MAX,
    SATURATION_MIN,
    TABLE_FRACTION_BITS,
    TABLE_FRACTION_MASK,
)


def bits_of(x: Tensor) -> Any:
    """A bfloat16 tensor as a NumPy array of its bits, others as they are."""
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def over_rows(
    function: Callable[..., None], rows: int, *arguments: Any, sums: tuple[int, int] | None = None
) -> Any:
    """``function(first, last, *arguments)`` for parts of the rows, on PyTorch's threads.

    With ``sums``, a count and a length, each part gets so many more arrays of zeros to add to;
    returns their totals, float64 (count, length).
    """
    threads = 1 if rows < 1024 else torch.get_num_threads()
    edges = [rows * i // threads for i in range(threads + 1)]
    totals = np.zeros((threads, *(sums or (0, 0))))

    def run(i: int) -> None:
        function(edges[i], edges[i + 1], *arguments, *totals[i])

    if threads == 1:
        run(0)
    else:
        list(_pool(threads).map(run, range(threads)))
    return totals.sum(axis=0)


@functools.cache
def loops() -> SimpleNamespace:
    """The loops; `over_rows` calls them.

    All in one function: Numba compiles them when they are first asked for, with the constants and
    the small functions that they share as closures.
    """
    jit = caches.jit(nogil=True, error_model="numpy")
    inline = caches.jit(nogil=True, error_model="numpy", forceinline=True)
    f4, i4, u4, u2 = np.float32, np.int32, np.uint32, np.uint16
    half, zero, one, two = f4(0.5), f4(0), f4(1), f4(2)
    bits16, mask16 = TABLE_FRACTION_BITS, TABLE_FRACTION_MASK
    half16 = 1 << (TABLE_FRACTION_BITS - 1)
    low18, high18 = f4(SATURATION_MIN), f4(SATURATION_MAX)

    @inline
    def load(bits):
        """A float32 from the bits of a bfloat16."""
        return u4(u4(bits) << u4(16)).view(np.float32)

    @inline
    def store(v):
        """The bits of the nearest bfloat16."""
        bits = f4(v).view(np.uint32)
        return u2(u4(bits + u4(0x7FFF) + u4(u4(bits >> u4(16)) & u4(1))) >> u4(16))

    @inline
    def clip(v, lo, hi):
        v = v if v > lo else lo
        return v if v < hi else hi

    @inline
    def scaled(acc, bias, pre, positive, negative):
        a = clip(np.floor((acc + bias) * pre + half), low18, high18)
        return a * (negative if a < zero else positive)

    @jit
    def requantize(first, last, acc, bias, pre, positive, negative, lo, hi, zero_byte, y, codes):
        """``y`` as bfloat16, ``codes`` as bytes with an offset."""
        for i in range(first, last):
            for c in range(acc.shape[1]):
                before = scaled(acc[i, c], bias[c], pre[c], positive[c], negative[c])
                v = clip(np.floor(before + half), lo, hi)
                y[i, c] = u2(f4(v).view(np.uint32) >> u4(16))
                codes[i, c] = np.uint8(i4(v + zero_byte))

    @jit
    def requantize_norm(
        first, last, acc, bias, pre, positive, negative, lo, hi, squares, u_scale, x, u, total
    ):
        """``x`` as int16, ``u`` as bytes, and ``total``, the sum of u over the channels."""
        for i in range(first, last):
            for c in range(acc.shape[1]):
                before = scaled(acc[i, c], bias[c], pre[c], positive[c], negative[c])
                x[i, c] = np.int16(i4(clip(np.floor(before + half), lo, hi)))
            s = i4(0)
            for c in range(acc.shape[1]):
                v = f4(x[i, c])
                square = v * v if squares else abs(v)
                b = i4(square * u_scale)  # positive, so this rounds down
                u[i, c] = np.uint8(b)
                s = i4(s + b)
            total[i, 0] = f4(s)

    @jit
    def normalize(
        first, last, x, sums, beta, even, inverse, value, slope, product, scale, lo, hi,
        zero_byte, y, codes,
    ):  # fmt: skip
        # In three loops: the lookup alone is not vectorized, and would keep the rest from it.
        # See `lichen.quant.training.kernels.normalized_root`; numba widens every sum of integers to
        # 64 bits, which the casts undo.
        channels = x.shape[1]
        mantissa = np.empty(channels, np.int32)
        power = np.empty(channels, np.int32)
        r = np.empty(channels, np.float32)
        for i in range(first, last):
            if even:
                for c in range(channels):
                    bits = f4(sums[i, c] + beta[c]).view(np.int32)
                    exponent = i4(i4(bits >> i4(23)) - i4(127))
                    odd = i4(i4(1) - i4(exponent & i4(1)))
                    mantissa[c] = i4(i4(i4(bits & i4(0x7FFFFF)) | i4(0x800000)) >> odd)
                    power[c] = i4(exponent >> i4(1))
            else:
                for c in range(channels):
                    bits = f4(sums[i, c] + beta[c]).view(np.int32)
                    mantissa[c] = i4(i4(bits & i4(0x7FFFFF)) | i4(0x800000))
                    power[c] = i4(i4(bits >> i4(23)) - i4(127))
            for c in range(channels):
                index = mantissa[c] >> bits16
                part = (slope[index] * (mantissa[c] & mask16) + half16) >> bits16
                r[c] = f4(value[index] + part)
            sign = i4(1) if inverse else i4(-1)
            for c in range(channels):
                p = clip(np.floor(f4(x[i, c]) * r[c] * product + half), low18, high18)
                e = i4(power[c] * sign)
                factor = i4(i4(e + i4(127)) << i4(23)).view(np.float32)
                v = clip(np.floor(p * scale[c] * factor + half), lo, hi)
                y[i, c] = u2(f4(v).view(np.uint32) >> u4(16))
                codes[i, c] = np.uint8(i4(v + zero_byte))

    @jit
    def normalize_back(
        first, last, grad, x, sums, beta, even, inverse, lo, hi, gain, direct, grad_n, grad_beta,
        along,
    ):  # fmt: skip
        # ``x n**p gain`` instead of the exact value: where it was clipped, and what moves with
        # it, differ by roundings only
        channels = x.shape[1]
        sum_beta, sum_along = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
        power = f4((0.5 if even else 1.0) * (1.0 if inverse else -1.0))
        least, most = lo - half, hi + half
        for i in range(first, last):
            for c in range(channels):
                n = sums[i, c] + beta[c]
                factor = np.sqrt(n) if even else n
                factor = factor * gain[c] if inverse else gain[c] / factor
                before = f4(x[i, c]) * factor
                g = load(grad[i, c])
                g = g if (before >= least) & (before <= most) else zero
                part = g * before
                by_n = part * power / n
                direct[i, c] = store(g * factor)
                grad_n[i, c] = store(by_n)
                sum_beta[c] += by_n
                sum_along[c] += part
            if i % 256 == 255 or i == last - 1:  # small sums keep their precision
                for c in range(channels):
                    grad_beta[c] += sum_beta[c]
                    along[c] += sum_along[c]
                    sum_beta[c] = zero
                    sum_along[c] = zero

    @jit
    def requantize_back(
        first, last, grad, grad_u, x, squares, u_scale, normed, acc, bias, pre, positive,
        negative, lo, hi, gain, slope, inward, out, grad_bias, along,
    ):  # fmt: skip
        channels = acc.shape[1]
        sum_bias, sum_along = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
        row = np.empty(channels, np.float32)
        least, most = lo - half, hi + half
        for i in range(first, last):
            if normed:
                for c in range(channels):
                    v = f4(x[i, c])
                    sign = one if v > zero else (-one if v < zero else zero)
                    steep = two * v * u_scale if squares else sign * u_scale
                    row[c] = load(grad[i, c]) + load(grad_u[i, c]) * steep
            else:
                for c in range(channels):
                    row[c] = load(grad[i, c])
            for c in range(channels):
                before = scaled(acc[i, c], bias[c], pre[c], positive[c], negative[c])
                g = row[c]
                below, above = before < least, before > most
                back = (below & (g < zero)) | (above & (g > zero))
                stopped = (below | above) & ((not inward) | (not back))
                g = zero if stopped else g
                sum_along[c] += g * before
                g = g * gain[c]
                g = g * slope if before < zero else g
                out[i, c] = store(g)
                sum_bias[c] += g
            if i % 256 == 255 or i == last - 1:
                for c in range(channels):
                    grad_bias[c] += sum_bias[c]
                    along[c] += sum_along[c]
                    sum_bias[c] = zero
                    sum_along[c] = zero

    return SimpleNamespace(
        requantize=requantize,
        requantize_norm=requantize_norm,
        normalize=normalize,
        normalize_back=normalize_back,
        requantize_back=requantize_back,
    )
