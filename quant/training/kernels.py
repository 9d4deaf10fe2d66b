"""The arithmetic on floats that hold integers, and its gradients.

In float64 everything here is exact. For float32 on a CPU with 8-bit multipliers there is a fast
way (`fast_cpu`): products of operands of at most 8 bits are summed in 32-bit integers, which is
more exact than float32, gradients are multiplied in bfloat16, and elementwise chains are the
compiled loops of `lichen.quant.training.fused`. Rows are positions of the output in any order,
columns channels.

Transposed convolutions are computed as plain ones: output ``q s + r`` of a stride s sees the
taps ``r + padding + s d`` of the input ``q - d`` alone, so the s * s phases are as many output
channels of a small kernel (`Geometry`).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from lichen.network.arithmetic import (
    SATURATION_MAX,
    SATURATION_MIN,
    TABLE_FRACTION_BITS,
    TABLE_FRACTION_MASK,
    rshift_round,
)
from lichen.network.description import Convolution


@functools.cache
def fast_cpu() -> bool:
    """Whether this CPU has 8-bit multipliers and bfloat16 that PyTorch knows to use."""
    try:
        return bool(
            torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            and torch.cpu._is_vnni_supported()
            and torch.ops.onednn.qconv2d_pointwise
        )
    except (AttributeError, RuntimeError):
        return False


# Elementwise ---------------------------------------------------------------------------------


def _scaled(acc: Tensor, bias: Tensor, pre: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The requantized value before it is rounded and clipped."""
    a = torch.floor((acc + bias) * pre + 0.5).clamp(SATURATION_MIN, SATURATION_MAX)
    return a * torch.where(a < 0, negative, positive)


def _round_clip(before: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(torch.floor(before + 0.5), lo), hi)


def requantize(
    acc: Tensor,
    bias: Tensor,
    pre: Tensor,
    positive: Tensor,
    negative: Tensor,
    lo: Tensor,
    hi: Tensor,
) -> Tensor:
    """`arithmetic.requantize` (and its leaky form) of accumulators without their bias.

    ``pre`` is ``2**-d``, ``positive`` and ``negative`` are the multipliers times ``2**-s``.
    """
    return _round_clip(_scaled(acc, bias, pre, positive, negative), lo, hi)


def requantize_back(
    grad: Tensor,
    acc: Tensor,
    bias: Tensor,
    pre: Tensor,
    positive: Tensor,
    negative: Tensor,
    lo: Tensor,
    hi: Tensor,
    gain: Tensor,
    slope: Tensor,
    soft: Tensor | None,
    *,
    inward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the accumulator, of the bias (C,), and of the gain times it (C,).

    ``soft`` is a gradient of the value before its rounding, which clipping does not stop.
    """
    before = _scaled(acc, bias, pre, positive, negative)
    grad = _stop_clipped(grad.to(acc.dtype), before, lo, hi, inward)
    along = (grad * before).sum(0)
    grad = grad * gain
    grad = torch.where(before < 0, grad * slope, grad)
    if soft is not None:
        soft = soft * gain
        along = along + (soft * (acc + bias)).sum(0)
        grad = grad + soft
    return grad, grad.sum(0), along


def _stop_clipped(grad: Tensor, before: Tensor, lo: Tensor, hi: Tensor, inward: bool) -> Tensor:
    below, above = before < lo - 0.5, before > hi + 0.5
    if inward:
        below, above = below & (grad > 0), above & (grad < 0)
    return torch.where(below | above, torch.zeros_like(grad), grad)


def norm_input(x: Tensor, scale: Tensor, *, squares: bool) -> Tensor:
    """`arithmetic.norm_input`, ``scale`` being ``2**-t``."""
    return torch.floor((x * x if squares else x.abs()) * scale)


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """``2.0**exponent`` of integer exponents, exactly."""
    if dtype == torch.float64:
        return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
    return ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)


def normalized_root(n: Tensor, table: Tensor, even: bool) -> tuple[Tensor, Tensor]:
    """`arithmetic.normalized_root` on floats that hold integers: mantissa, exponent (integers).

    Reads index and fraction off the bits of the floating-point number, whose leading one is
    where the arithmetic's normalization puts it. ``table`` is int32 (256, 2).
    """
    if n.dtype == torch.float64:
        bits = n.view(torch.int64)
        exponent = ((bits >> 52) - 1023).to(torch.int32)
        mantissa = ((bits >> 29) & 0x7FFFFF).to(torch.int32)
    else:
        bits = n.view(torch.int32)
        exponent = (bits >> 23) - 127
        mantissa = bits & 0x7FFFFF
    if even:
        # the top bit, or the top two where the exponent must be even, of an 8-bit index
        odd = 1 - (exponent & 1)
        mantissa = (mantissa | 0x800000) >> odd
    else:
        mantissa = mantissa | 0x800000
    index, fraction = mantissa >> TABLE_FRACTION_BITS, mantissa & TABLE_FRACTION_MASK
    value, slope = table[:, 0][index.long()], table[:, 1][index.long()]
    r = value + rshift_round(slope * fraction, TABLE_FRACTION_BITS)
    return r, exponent >> int(even)


def _normalized(
    x: Tensor,
    sums: Tensor,
    beta: Tensor,
    table: Tensor,
    product: Tensor,
    scale: Tensor,
    squares: bool,
    inverse: bool,
) -> Tensor:
    n = sums + beta
    r, e = normalized_root(n, table, squares)
    p = torch.floor(x * r.to(n.dtype) * product + 0.5).clamp(SATURATION_MIN, SATURATION_MAX)
    return p * scale * power_of_two(e if inverse else -e, n.dtype)


def normalize(
    x: Tensor,
    sums: Tensor,
    beta: Tensor,
    table: Tensor,
    product: Tensor,
    scale: Tensor,
    lo: Tensor,
    hi: Tensor,
    *,
    squares: bool,
    inverse: bool,
) -> Tensor:
    """`arithmetic.normalize`, from x and the sums of its norm without beta.

    ``product`` is ``2**-a`` and ``scale`` the multiplier times ``2**-b``.
    """
    before = _normalized(x, sums, beta, table, product, scale, squares, inverse)
    return _round_clip(before, lo, hi)


def normalize_back(
    grad: Tensor,
    x: Tensor,
    sums: Tensor,
    beta: Tensor,
    lo: Tensor,
    hi: Tensor,
    gain: Tensor,
    *,
    squares: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (directly), of the norm, of beta (C,), and of the gain times it (C,).

    They are those of ``x n**p gain``, which differs from the result by roundings only.
    """
    n = sums + beta
    factor = torch.sqrt(n) if squares else n
    factor = factor * gain if inverse else gain / factor
    before = x * factor
    power = (0.5 if squares else 1.0) * (1.0 if inverse else -1.0)
    grad = _stop_clipped(grad.to(sums.dtype), before, lo, hi, False)
    along = grad * before
    grad_n = along * power / n
    return grad * factor, grad_n, grad_n.sum(0), along.sum(0)


def norm_input_back(grad_u: Tensor, x: Tensor, scale: Tensor, *, squares: bool) -> Tensor:
    """The part of the gradient of x that comes through u."""
    return grad_u.to(x.dtype) * (x * (2 * scale) if squares else torch.sign(x) * scale)


# Convolutions --------------------------------------------------------------------------------


def to_bytes(x: Tensor, signed: bool) -> Tensor:
    """Integers of at most 8 bits as bytes; with a sign, 128 stands for zero."""
    return (x.float() + 128 if signed else x).to(torch.uint8)


def _byte_convolution(x: Tensor, zero: int, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Exact sums of products of bytes (B, C, H, W) and weights of 8 bits, as float32."""
    out = weight.shape[0]
    ones = torch.ones(out)
    packed = torch.ops.onednn.qconv_prepack(
        weight.to(torch.int8), ones, 1.0, zero, [stride] * 2, [padding] * 2, [1, 1], 1,
        list(x.shape),
    )  # fmt: skip
    return torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, zero, packed, ones, torch.zeros(out, dtype=torch.int32), None,
        [stride] * 2, [padding] * 2, [1, 1], 1, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


class Geometry:
    """A convolution, plain or transposed, as a plain one that makes rows of channels.

    Parameters
    ----------
    conv : Convolution
        Only its geometry is used.
    """

    def __init__(self, conv: Convolution) -> None:
        self.transposed, self.stride, self.padding = conv.transposed, conv.stride, conv.padding
        self.kernel, self.channels = conv.kernel, conv.out_channels
        self.conv = conv
        self.phases = 1
        if not conv.transposed:
            return
        s, k, p = conv.stride, conv.kernel, conv.padding
        self.phases = s
        least = min(math.ceil(-(r + p) / s) for r in range(s))
        most = max((k - 1 - r - p) // s for r in range(s))
        self.before, self.taps = most, most - least + 1
        # the tap that phase r multiplies at place j; k stands for none
        self.tap = [[r + p + s * (most - j) for j in range(self.taps)] for r in range(s)]
        self.tap = [[t if 0 <= t < k else k for t in row] for row in self.tap]
        # and back: the phase and place of each tap
        self.place = [
            next((r, j) for r in range(s) for j in range(self.taps) if self.tap[r][j] == t)
            for t in range(k)
        ]

    def plain_weight(self, weight: Tensor) -> Tensor:
        """Weights (out, in, k, k) as those of the plain convolution."""
        if not self.transposed:
            return weight
        out, inputs = weight.shape[:2]
        s, taps = self.stride, self.taps
        tap = torch.tensor(self.tap, device=weight.device).reshape(-1)
        padded = functional.pad(weight, (0, 1, 0, 1))
        picked = padded.index_select(2, tap).index_select(3, tap)
        picked = picked.reshape(out, inputs, s, taps, s, taps).permute(2, 4, 0, 1, 3, 5)
        return picked.reshape(s * s * out, inputs, taps, taps)

    def weight_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of the weights from that of `plain_weight`."""
        if not self.transposed:
            return grad
        s, taps, inputs = self.stride, self.taps, grad.shape[1]
        grad = grad.reshape(s, s, self.channels, inputs, taps, taps)
        grad = grad.permute(2, 3, 0, 4, 1, 5).reshape(self.channels, inputs, s * taps, s * taps)
        flat = torch.tensor([r * taps + j for r, j in self.place], device=grad.device)
        return grad.index_select(2, flat).index_select(3, flat)

    def size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        size = self.conv.geometry.output_size
        return size(x.shape[2]), size(x.shape[3])

    def _pads(self, x: Tensor) -> tuple[int, int, int, int]:
        """Left, right, top, bottom of the plain convolution's input."""
        if not self.transposed:
            return (self.padding,) * 4
        pads = []
        for size in (3, 2):
            positions = -(-self.conv.geometry.output_size(x.shape[size]) // self.stride)
            pads += [self.before, positions + self.taps - 1 - self.before - x.shape[size]]
        return pads[0], pads[1], pads[2], pads[3]

    def _padded(self, x: Tensor, value: float = 0.0) -> tuple[Tensor, int]:
        """The input with what padding it needs beyond a symmetric one, and that one."""
        pads = self._pads(x)
        if len(set(pads)) == 1 and pads[0] >= 0:
            return x, pads[0]
        return functional.pad(x, pads, value=value), 0

    def sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """Rows (positions, out) of sums of products; weights from `plain_weight`."""
        x, padding = self._padded(x.to(weight.dtype))
        stride = 1 if self.transposed else self.stride
        acc = functional.conv2d(x, weight, stride=stride, padding=padding)
        return acc.permute(0, 2, 3, 1).reshape(-1, self.channels)

    def byte_sums(self, x: Tensor, zero: int, weight: Tensor) -> Tensor:
        """The same of bytes, of which ``zero`` stands for 0, and weights of 8 bits."""
        x, padding = self._padded(x, zero)
        acc = _byte_convolution(x, zero, weight, 1 if self.transposed else self.stride, padding)
        return acc.permute(0, 2, 3, 1).reshape(-1, self.channels)

    def back(
        self, grad: Tensor, x: Tensor, weight: Tensor, needs_input: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Gradients of ``x`` and of `plain_weight`, from that of the rows; in the type of ``x``."""
        shape = x.shape
        stride = 1 if self.transposed else self.stride
        pads = self._pads(x)
        padded, padding = self._padded(x)
        kernel = weight.shape[-1]
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size in padded.shape[2:])
        columns = weight.shape[0]
        image = grad.reshape(shape[0], height, width, columns).permute(0, 3, 1, 2)
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            image.to(x.dtype), padded, weight.to(x.dtype), None, [stride] * 2, [padding] * 2,
            [1, 1], False, [0, 0], 1, [needs_input, True, False],
        )  # fmt: skip
        if needs_input and padded is not x:
            grad_x = grad_x[:, :, pads[2] : pads[2] + shape[2], pads[0] : pads[0] + shape[3]]
        return grad_x, grad_weight

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Positions of the plain convolution."""
        height, width = self.size(x)
        return -(-height // self.phases), -(-width // self.phases)

    def to_image(self, rows: Tensor, x: Tensor) -> Tensor:
        """Rows as (B, out, H, W), channels last; ``x`` is the input they were made of."""
        height, width = self._grid(x)
        batch, c, s = x.shape[0], self.channels, self.phases
        if s == 1:
            return rows.reshape(batch, height, width, c).permute(0, 3, 1, 2)
        pixels = rows.reshape(batch, height, width, s, s, c).permute(0, 1, 3, 2, 4, 5)
        image = pixels.reshape(batch, height * s, width * s, c).permute(0, 3, 1, 2)
        rows_out, columns_out = self.size(x)
        if image.shape[2:] == (rows_out, columns_out):
            return image
        image = image[:, :, :rows_out, :columns_out]
        return image.contiguous(memory_format=torch.channels_last)

    def to_rows(self, image: Tensor, x: Tensor) -> Tensor:
        """The inverse of `to_image`; rows of no position are zero."""
        height, width = self._grid(x)
        batch, c, s = x.shape[0], self.channels, self.phases
        missing = (width * s - image.shape[3], height * s - image.shape[2])
        if any(missing):
            image = functional.pad(image, (0, missing[0], 0, missing[1]))
        pixels = image.permute(0, 2, 3, 1)
        if s > 1:
            pixels = pixels.reshape(batch, height, s, width, s, c).permute(0, 1, 3, 2, 4, 5)
        return pixels.reshape(-1, c)


def byte_norm_sums(u: Tensor, total: Tensor, gamma: Tensor) -> Tensor:
    """Rows of ``sum gamma u`` from bytes u, their sums ``total``, and gamma of 8 bits."""
    # bytes of gamma less 128, which have a sign, and 128 times the sum of u
    image = u.reshape(1, len(u), 1, u.shape[1]).permute(0, 3, 1, 2)
    acc = _byte_convolution(image, 0, (gamma - 128)[:, :, None, None], 1, 0)
    return acc.permute(0, 2, 3, 1).reshape(len(u), -1).add_(total, alpha=128)
