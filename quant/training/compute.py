"""What a fake stage computes: integers forward, gradients of the real function backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lichen.network.arithmetic import ROOT_TABLES, NormKind
from lichen.network.description import (
    Format,
    Normalization,
    Requantizer,
)
from lichen.quant.training import fused, kernels

Rows = tuple[Tensor, Tensor | None, list[Tensor]]
"""A stage's output in rows, the same as bytes or None, and what its gradient needs."""


class Round(torch.autograd.Function):
    """Nearest integers within ``lo .. hi``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, lo: float, hi: float) -> Tensor:
        ctx.save_for_backward((v >= lo - 0.5) & (v <= hi + 0.5))
        return torch.round(v).clamp_(lo, hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


@dataclass(frozen=True)
class _NormConstants:
    """The constants of a normalization as tensors; see `lichen.quant.training.kernels`."""

    u_scale: Tensor
    table: Tensor
    product: Tensor
    scale: Tensor
    lo: Tensor
    hi: Tensor


@dataclass(frozen=True)
class Constants:
    """What a stage computes with, as tensors; see `lichen.quant.training.kernels`."""

    pre: Tensor
    positive: Tensor
    negative: Tensor
    lo: Tensor
    hi: Tensor
    slope: Tensor
    norm: _NormConstants | None

    @classmethod
    def of(
        cls,
        r: Requantizer,
        norm: Normalization | None,
        slope: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Constants:
        def real(values: Any) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device)

        # powers of two times 17 bits: exact in float32, too
        positive = real(r.multiplier * 0.5**r.shift)
        negative = positive
        if r.negative_multiplier is not None:
            negative = real(r.negative_multiplier * 0.5**r.shift)
        n = None
        if norm is not None:
            n = _NormConstants(
                u_scale=real(0.5**norm.u_shift),
                table=torch.as_tensor(ROOT_TABLES[norm.kind], dtype=torch.int32, device=device),
                product=real(0.5**norm.product_shift),
                scale=real(norm.multiplier * 0.5**norm.shift),
                lo=real(float(norm.output.lo)),
                hi=real(float(norm.output.hi)),
            )
        return cls(
            real(0.5 ** r.pre_shift.astype(np.float64)),
            positive,
            negative,
            real(float(r.output.lo)),
            real(float(r.output.hi)),
            real(slope),
            n,
        )


@dataclass(frozen=True)
class Plan:
    """How a stage computes.

    Attributes
    ----------
    geometry : Geometry
    constants : Constants
    kind : NormKind or None
    low : dtype
        In which gradients are multiplied.
    bytes_in : bool
        The convolution's operands are bytes.
    fused : bool
        Those of the norm as well, outputs fit bfloat16, and the loops of
        `lichen.quant.training.fused` compute what is elementwise.
    signed, signed_out : bool
        Input and output have a sign.
    inward : bool
        Let gradients through at clipped outputs that they would bring back.
    soft : bool
        Return the output before its rounding as well.
    """

    geometry: kernels.Geometry
    constants: Constants
    kind: NormKind | None
    low: torch.dtype
    bytes_in: bool
    fused: bool
    signed: bool
    signed_out: bool
    inward: bool
    soft: bool


def _tiles(rows: int, channels: int) -> int:
    """How many rows to take as one, so that loops over channels are worth vectorizing."""
    tiles = 1
    while channels * tiles < 48 and rows % (2 * tiles) == 0:
        tiles *= 2
    return tiles


class Compute(torch.autograd.Function):
    """A stage on floats that hold integers, and its straight-through gradients.

    ``weight``, ``bias``, ``gamma`` and ``beta`` hold integers; ``gain`` and ``norm_gain`` (C,)
    are the real factors that the multipliers stand for. All of them take gradients. ``codes``
    is the input as bytes, if it is known.

    Returns the output, the output before its rounding or None, and the output as bytes or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codes: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        gain: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        norm_gain: Tensor | None,
        plan: Plan,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        g, c = plan.geometry, plan.constants
        dtype = c.pre.dtype
        plain = g.plain_weight(weight.to(dtype))
        bias, gain = bias.to(dtype), gain.to(dtype)
        if plan.bytes_in:
            if codes is None:
                codes = kernels.to_bytes(x, plan.signed)
            acc = g.byte_sums(codes, 128 if plan.signed else 0, plain)
        else:
            acc = g.sums(x, plain)
        saved = [x, plain, bias, gain, acc]
        soft = g.to_image((acc + bias) * gain, x) if plan.soft else None
        if plan.kind is not None:
            assert gamma is not None and beta is not None and norm_gain is not None
            gamma, beta, norm_gain = gamma.to(dtype), beta.to(dtype), norm_gain.to(dtype)
        run = _fused_forward if plan.fused else _forward
        y, out_codes, more = run(acc, bias, gamma, beta, plan)
        ctx.save_for_backward(*saved, *more, *(() if plan.kind is None else (gamma, beta)))
        ctx.norm_gain = None if norm_gain is None else norm_gain.to(dtype)
        ctx.plan, ctx.types = plan, (x.dtype, weight.dtype)
        ctx.set_materialize_grads(False)
        if out_codes is not None:
            out_codes = g.to_image(out_codes, x)
            ctx.mark_non_differentiable(out_codes)
        return g.to_image(y, x), soft, out_codes

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_soft: Tensor | None, _: Tensor | None
    ) -> tuple[Any, ...]:
        x, plain, bias, gain, acc, *rest = ctx.saved_tensors
        plan: Plan = ctx.plan
        g, low = plan.geometry, plan.low
        rows = torch.zeros_like(acc) if grad is None else g.to_rows(grad, x)
        extra = None if grad_soft is None else g.to_rows(grad_soft, x)
        run = _fused_backward if plan.fused else _backward
        grads = run(rows, extra, acc, bias, gain, rest, ctx.norm_gain, plan)
        grad_acc, grad_bias, grad_gain, grad_gamma, grad_beta, grad_norm_gain = grads
        assert grad_acc is not None
        grad_x, grad_weight = g.back(grad_acc, x.to(low), plain, ctx.needs_input_grad[0])
        if grad_x is not None:
            grad_x = grad_x.to(ctx.types[0])
        return (
            grad_x,
            None,
            g.weight_gradient(grad_weight.to(ctx.types[1])),
            grad_bias,
            grad_gain,
            grad_gamma,
            grad_beta,
            grad_norm_gain,
            None,
        )


def _forward(
    acc: Tensor, bias: Tensor, gamma: Tensor | None, beta: Tensor | None, plan: Plan
) -> Rows:
    """What follows the sums of products."""
    c = plan.constants
    y = kernels.requantize(acc, bias, c.pre, c.positive, c.negative, c.lo, c.hi)
    if plan.kind is None:
        return y, None, []
    assert gamma is not None and beta is not None and c.norm is not None
    squares, inverse = plan.kind.squares, plan.kind.inverse
    u = kernels.norm_input(y, c.norm.u_scale, squares=squares)
    sums = u @ gamma.T
    n = c.norm
    out = kernels.normalize(
        y, sums, beta, n.table, n.product, n.scale, n.lo, n.hi, squares=squares, inverse=inverse
    )
    return out, None, [y, u, sums]


def _backward(
    grad: Tensor,
    soft: Tensor | None,
    acc: Tensor,
    bias: Tensor,
    gain: Tensor,
    saved: Sequence[Tensor],
    norm_gain: Tensor | None,
    plan: Plan,
) -> list[Tensor | None]:
    """Gradients of the accumulator, of bias, gain, gamma, beta and norm gain."""
    c = plan.constants
    norm: list[Tensor | None] = [None, None, None]
    if plan.kind is not None:
        assert c.norm is not None and norm_gain is not None
        y, u, sums, gamma, beta = saved
        squares, inverse = plan.kind.squares, plan.kind.inverse
        direct, grad_n, grad_beta, along = kernels.normalize_back(
            grad, y, sums, beta, c.norm.lo, c.norm.hi, norm_gain, squares=squares, inverse=inverse
        )
        grad = direct + kernels.norm_input_back(grad_n @ gamma, y, c.norm.u_scale, squares=squares)
        norm = [grad_n.T @ u, grad_beta, along / norm_gain]
    grad_acc, grad_bias, along = kernels.requantize_back(
        grad, acc, bias, c.pre, c.positive, c.negative, c.lo, c.hi, gain, c.slope, soft,
        inward=plan.inward,
    )  # fmt: skip
    return [grad_acc, grad_bias, along / gain, *norm]


def _constants_for(c: Constants, bias: Tensor, tiles: int) -> tuple[Any, ...]:
    """Arguments of the loops for `requantize`, for so many rows taken as one."""
    channels = (bias, c.pre, c.positive, c.negative)
    return (
        *(t.repeat(tiles).numpy() for t in channels),
        np.float32(c.lo.item()),
        np.float32(c.hi.item()),
    )


def _fused_forward(
    acc: Tensor, bias: Tensor, gamma: Tensor | None, beta: Tensor | None, plan: Plan
) -> Rows:
    c, loops = plan.constants, fused.loops()
    zero = np.float32(128 if plan.signed_out else 0)
    y = torch.empty(acc.shape, dtype=torch.bfloat16)
    codes = torch.empty(acc.shape, dtype=torch.uint8)
    rows, channels = acc.shape
    if plan.kind is None:
        tiles = _tiles(rows, channels)
        shape = (rows // tiles, channels * tiles)
        fused.over_rows(
            loops.requantize, shape[0], acc.reshape(shape).numpy(),
            *_constants_for(c, bias, tiles), zero, fused.bits_of(y).reshape(shape),
            codes.numpy().reshape(shape),
        )  # fmt: skip
        return y, codes, []
    assert gamma is not None and beta is not None and c.norm is not None
    n = c.norm
    x = torch.empty(acc.shape, dtype=torch.int16)
    u = torch.empty(acc.shape, dtype=torch.uint8)
    total = torch.empty((rows, 1))
    squares, inverse = plan.kind.squares, plan.kind.inverse
    fused.over_rows(
        loops.requantize_norm, rows, acc.numpy(), *_constants_for(c, bias, 1), squares,
        np.float32(n.u_scale.item()), x.numpy(), u.numpy(), total.numpy(),
    )  # fmt: skip
    sums = kernels.byte_norm_sums(u, total, gamma)
    value, slope = (np.ascontiguousarray(v) for v in n.table.numpy().T)
    fused.over_rows(
        loops.normalize, rows, x.numpy(), sums.numpy(), beta.numpy(), squares, inverse, value,
        slope, np.float32(n.product.item()), n.scale.numpy(), np.float32(n.lo.item()),
        np.float32(n.hi.item()), zero, fused.bits_of(y), codes.numpy(),
    )  # fmt: skip
    return y, codes, [x, u, sums]


def _fused_backward(
    grad: Tensor,
    soft: Tensor | None,
    acc: Tensor,
    bias: Tensor,
    gain: Tensor,
    saved: Sequence[Tensor],
    norm_gain: Tensor | None,
    plan: Plan,
) -> list[Tensor | None]:
    assert soft is None
    c, loops = plan.constants, fused.loops()
    rows, channels = acc.shape
    norm: list[Tensor | None] = [None, None, None]
    grad = grad.to(torch.bfloat16).contiguous()
    # what the loop reads only behind a normalization
    more: tuple[Any, ...] = (
        fused.bits_of(grad[:1]), np.zeros((1, 1), np.int16), False, np.float32(0), False,
    )  # fmt: skip
    if plan.kind is not None:
        assert c.norm is not None and norm_gain is not None
        n = c.norm
        x, u, sums, gamma, beta = saved
        squares, inverse = plan.kind.squares, plan.kind.inverse
        direct, grad_n = torch.empty_like(grad), torch.empty_like(grad)
        grad_beta, along = fused.over_rows(
            loops.normalize_back, rows, fused.bits_of(grad), x.numpy(), sums.numpy(),
            beta.numpy(), squares, inverse, np.float32(n.lo.item()), np.float32(n.hi.item()),
            norm_gain.numpy(), fused.bits_of(direct), fused.bits_of(grad_n),
            sums=(2, channels),
        )  # fmt: skip
        grad_u = grad_n @ gamma.to(torch.bfloat16)
        norm = [
            (grad_n.T @ u.to(torch.bfloat16)).float(),
            torch.from_numpy(grad_beta).float(),
            torch.from_numpy(along).float() / norm_gain,
        ]
        grad = direct
        scale = np.float32(n.u_scale.item())
        more = (fused.bits_of(grad_u), x.numpy(), squares, scale, True)
    tiles = 1 if plan.kind is not None else _tiles(rows, channels)
    shape = (rows // tiles, channels * tiles)
    grad_acc = torch.empty(acc.shape, dtype=torch.bfloat16)
    grad_bias, along = fused.over_rows(
        loops.requantize_back, shape[0], fused.bits_of(grad).reshape(shape), *more,
        acc.numpy().reshape(shape), *_constants_for(c, bias, tiles),
        gain.repeat(tiles).numpy(), np.float32(c.slope.item()), plan.inward,
        fused.bits_of(grad_acc).reshape(shape), sums=(2, shape[1]),
    ).reshape(2, tiles, channels).sum(axis=1)  # fmt: skip
    return [
        grad_acc,
        torch.from_numpy(grad_bias).float(),
        torch.from_numpy(along).float() / gain,
        *norm,
    ]


@dataclass(frozen=True)
class Integers:
    """A stage's integers as tensors that take gradients, and the constants that go with them.

    ``gain`` and ``norm_gain`` (C,) are the real factors that the multipliers come closest to.
    """

    weight: Tensor
    bias: Tensor
    requantizer: Requantizer
    gain: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    normalization: Normalization | None
    norm_gain: Tensor | None

    @property
    def output(self) -> Format:
        """Format of the stage's output."""
        return (self.normalization or self.requantizer).output


def fits_a_byte(values: Format) -> bool:
    """Whether integers of the format are bytes, with 128 for zero if they have a sign."""
    return values.lo >= -128 and values.hi <= (127 if values.lo < 0 else 255)
