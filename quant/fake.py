"""Fake quantization: an integer network with real shadows, trained by straight-through gradients.

A `FakeTransform` is built from the integer description and holds, for every integer tensor, a
real shadow that gradient descent moves, and the logarithm of every scale that hardware leaves
free. Each forward pass first turns the shadows into the very `Stage` objects of the network
description (`FakeTransform.to_transform` returns the same ones) and then computes with their
integers, held in floating point: in float64 every sum, product and shift is exact, so the
results equal the golden model's bit for bit; in float32 sums beyond 2**24 are rounded, and
`mismatch_rate` says how often that shows.

Gradients pass rounding unchanged and stop where a value is clipped (Bengio et al., "Estimating
or propagating gradients through stochastic neurons", 2013). A scale receives what comes from
its consumer (whose weights it is folded into) and from its producer (whose multiplier it
divides), which together is the gradient of learned step sizes (Esser et al., "Learned step size
quantization", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from lichen.network.arithmetic import NORM_BITS, ROOT_TABLES, NormKind
from lichen.network.description import (
    Activation,
    Convolution,
    Format,
    Normalization,
    Requantizer,
    Stage,
    Transform,
)
from lichen.quant import constants
from lichen.quant.float_network import FloatStage, FloatTransform, convolve

BIN_MARGIN = 0.0
"""How far from its integer a shadow may start, in steps; half would be on the edge.

Roundings that were fitted to each other (`lichen.quant.rounding`) must not be undone by noise:
from the middle, only a gradient that keeps its direction moves an integer.
"""


def _channels(values: npt.NDArray | Tensor, like: Tensor) -> Tensor:
    """Constants per channel, shaped and typed to meet (B, C, H, W)."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _sum_channels(values: Tensor) -> Tensor:
    return values.sum(dim=(0, 2, 3))


class _Round(torch.autograd.Function):
    """Nearest integers within ``lo .. hi``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, lo: float, hi: float) -> Tensor:
        ctx.save_for_backward((v >= lo - 0.5) & (v <= hi + 0.5))
        return torch.round(v).clamp_(lo, hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


class _Requantize(torch.autograd.Function):
    """`arithmetic.requantize` (and its leaky form) on floats that hold integers.

    ``gain`` (C,) is the real factor that the constants stand for; it takes a gradient.
    ``inward`` lets gradients through at clipped values that they would bring back.
    """

    @staticmethod
    def forward(
        ctx: Any, acc: Tensor, gain: Tensor, requantizer: Requantizer, slope: float, inward: bool
    ) -> Tensor:
        r, out = requantizer, requantizer.output
        a = torch.floor(acc * _channels(0.5 ** r.pre_shift.astype(np.float64), acc) + 0.5)
        a.clamp_(-131072, 131071)
        # a power of two times 17 bits: exact in float32, too
        positive = _channels(r.multiplier * 0.5**r.shift, acc)
        if r.negative_multiplier is None:
            before = a * positive
        else:
            negative = _channels(r.negative_multiplier * 0.5**r.shift, acc)
            before = a * torch.where(a < 0, negative, positive)
        ctx.save_for_backward(before, gain, a < 0 if r.negative_multiplier is not None else None)
        ctx.limits, ctx.slope, ctx.inward = (out.lo, out.hi), slope, inward
        return torch.floor(before + 0.5).clamp_(out.lo, out.hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        before, gain, negative = ctx.saved_tensors
        grad = _stop_clipped(grad, before, ctx.limits, ctx.inward)
        grad_gain = _sum_channels(grad * before).to(gain.dtype) / gain
        grad_acc = grad * _channels(gain, grad)
        if negative is not None:
            grad_acc = torch.where(negative, grad_acc * ctx.slope, grad_acc)
        return grad_acc, grad_gain, None, None, None


def _stop_clipped(
    grad: Tensor, before: Tensor, limits: tuple[int, int], inward: bool = False
) -> Tensor:
    lo, hi = limits
    below, above = before < lo - 0.5, before > hi + 0.5
    if inward:
        below, above = below & (grad > 0), above & (grad < 0)
    return grad.masked_fill(below | above, 0.0)


class _NormInput(torch.autograd.Function):
    """`arithmetic.norm_input`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, squares: bool, t: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.squares, ctx.t = squares, t
        return torch.floor((x * x if squares else x.abs()) * 0.5**t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        slope = x * (2 * 0.5**ctx.t) if ctx.squares else x.sign() * 0.5**ctx.t
        return grad * slope, None, None


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """``2.0**exponent`` of int32 exponents, exactly."""
    if dtype == torch.float64:
        return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
    return ((exponent + 127) << 23).view(torch.float32)


def normalized_root(n: Tensor, kind: NormKind) -> tuple[Tensor, Tensor]:
    """`arithmetic.normalized_root` on floats that hold integers; the exponent as int32."""
    even = int(kind.squares)
    mantissa, length = torch.frexp(n)  # length: the bits of n
    odd = length & even
    # the top bit, or the top two where the exponent must be even, of an 8-bit index
    position = mantissa * torch.where(odd.bool(), 128.0, 256.0).to(n.dtype)
    index = torch.floor(position)
    fraction = torch.floor((position - index) * 65536)
    table = torch.as_tensor(ROOT_TABLES[kind], dtype=n.dtype, device=n.device)
    where = index.reshape(-1).to(torch.int32)
    value = table[:, 0].index_select(0, where).view_as(n)
    slope = table[:, 1].index_select(0, where).view_as(n)
    return value + torch.floor(slope * fraction * 2.0**-16 + 0.5), (length - 1) >> even


class _Normalize(torch.autograd.Function):
    """`arithmetic.normalize`, from x and its norm; ``gain`` (C,) is what the constants stand for.

    The result is ``x n**p gain`` but for the roundings, and that is what the gradients are of.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: Tensor, gain: Tensor, norm: Normalization) -> Tensor:
        r, e = normalized_root(n, norm.kind)
        power = _power_of_two(e if norm.kind.inverse else -e, x.dtype)
        p = torch.floor(x * r * 0.5**norm.product_shift + 0.5).clamp_(-131072, 131071)
        scale = _channels(norm.multiplier * 0.5**norm.shift, x)
        before = p * scale * power
        lo, hi = norm.output.lo, norm.output.hi
        ctx.save_for_backward(n, gain, before)
        ctx.limits, ctx.power = (lo, hi), constants.norm_exponent(norm.kind)
        return torch.floor(before + 0.5).clamp_(lo, hi)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        n, gain, before = ctx.saved_tensors
        grad = _stop_clipped(grad, before, ctx.limits)
        product = grad * before
        factor = n.sqrt() if ctx.power in (0.5, -0.5) else n
        root = factor if ctx.power > 0 else 1 / factor
        grad_x = grad * root * _channels(gain, grad)
        grad_n = product * ctx.power / n
        return grad_x, grad_n, _sum_channels(product).to(gain.dtype) / gain, None


@dataclass(frozen=True)
class _Integers:
    """A stage of the integer network, and the same integers as tensors that take gradients.

    ``gain`` and ``norm_gain`` (C,) are the real factors that the multipliers come closest to.
    """

    stage: Stage
    weight: Tensor
    bias: Tensor
    gain: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    norm_gain: Tensor | None


class FakeStage(nn.Module):
    """One stage with real shadows.

    Parameters
    ----------
    stage : Stage
        Supplies geometry, formats and the integers to start from.
    source : Format
        Of the input.
    fixed : bool
        The output's scale is given (latents, pixels) and not learned.

    Attributes
    ----------
    weight : Parameter (out, in, k, k)
        In integer steps of the starting network, so that learning rates are steps.
    bias : Parameter (out,)
        Change against the start, in steps of the requantizer's output.
    gamma : Parameter (out, out)
        In integer steps.
    beta : Parameter (out,)
        Relative to the start.
    log_weight, log_x, log_y, log_norm : Parameter (out,)
        Natural logarithms of what the scales of weights, of x before a normalization, of the
        output and of the norm are multiplied with, against the start. Without a normalization
        there is no ``log_x`` and no ``log_norm``; a fixed output has no ``log_y``.
    """

    start_bias: Tensor
    start_gain: Tensor
    start_beta: Tensor
    start_norm_gain: Tensor

    def __init__(self, stage: Stage, source: Format, *, fixed: bool = False) -> None:
        super().__init__()
        conv, r, norm = stage.convolution, stage.requantizer, stage.normalization
        self.start, self.source, self.fixed = stage, source, fixed
        self.limit = (1 << (conv.weight_bits - 1)) - 1
        self.slope = 1.0
        if r.negative_multiplier is not None:
            m = r.multiplier.astype(np.float64)
            self.slope = float(np.median(r.negative_multiplier / np.maximum(m, 1)))
        gain = r.multiplier * 0.5 ** (r.pre_shift.astype(np.float64) + r.shift)
        out = conv.out_channels

        def real(values: npt.NDArray) -> Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.float64))

        self.weight = nn.Parameter(real(conv.weight).float())
        self.bias = nn.Parameter(torch.zeros(out))
        self.log_weight = nn.Parameter(torch.zeros(out))
        self.register_buffer("start_bias", real(conv.bias))
        self.register_buffer("start_gain", real(np.maximum(gain, 1e-12)))
        if not fixed:
            self.log_y = nn.Parameter(torch.zeros(out))
        if norm is not None:
            self.log_x = nn.Parameter(torch.zeros(out))
            self.log_norm = nn.Parameter(torch.zeros(out))
            self.gamma = nn.Parameter(real(norm.gamma).float())
            self.beta = nn.Parameter(torch.ones(out))
            self.register_buffer("start_beta", real(norm.beta))
            point = 15 if norm.kind.inverse else 16
            k = norm.multiplier * 0.5 ** (norm.shift + norm.product_shift - point)
            self.register_buffer("start_norm_gain", real(np.maximum(k, 1e-15)))

    @property
    def log_output(self) -> Tensor:
        """Logarithm of the change of the output's scale (out,)."""
        return torch.zeros_like(self.log_weight) if self.fixed else self.log_y

    @property
    def kind(self) -> NormKind | None:
        return self.start.activation.norm

    # Shadows as what they stand for, with gradients ----------------------------------------

    def folded_weight(self, log_input: Tensor) -> Tensor:
        """Real weights in integer steps, the input's scales (in,) folded in."""
        return self.weight * torch.exp(log_input[None] - self.log_weight[:, None])[..., None, None]

    def _bias(self) -> Tensor:
        real = self.start_bias + self.bias.double() / self.start_gain
        return real * torch.exp(-self.log_weight.double())

    def _gain(self) -> Tensor:
        after = self.log_output if self.kind is None else self.log_x
        return self.start_gain * torch.exp((self.log_weight - after).double())

    def _folded_gamma(self) -> Tensor:
        assert self.kind is not None
        power = 2.0 if self.kind.squares else 1.0
        return self.gamma * torch.exp(power * self.log_x[None] - self.log_norm[:, None])

    def _beta(self) -> Tensor:
        return self.start_beta * self.beta.double() * torch.exp(-self.log_norm.double())

    def _norm_gain(self) -> Tensor:
        assert self.kind is not None
        power = constants.norm_exponent(self.kind)
        change = self.log_x + power * self.log_norm - self.log_output
        return self.start_norm_gain * torch.exp(change.double())

    def integers(self, source: Format, log_input: Tensor) -> _Integers:
        """The exact `Stage` of the shadows as they are, and its tensors with gradients."""
        start = self.start
        weight = _Round.apply(self.folded_weight(log_input), -self.limit, self.limit)
        bias = _Round.apply(self._bias(), -(2.0**44), 2.0**44)
        gain = self._gain()
        convolution = start.convolution.model_copy(
            update={
                "weight": weight.detach().cpu().numpy().astype(np.int16),
                "bias": bias.detach().cpu().numpy().astype(np.int64),
            }
        )
        requantizer = self._requantizer(convolution, source, gain)
        gamma, beta, norm_gain, normalization = None, None, None, None
        if self.kind is not None:
            gamma, beta = self._norm_integers(requantizer.output)
            norm_gain = self._norm_gain()
            normalization = self._normalization(requantizer.output, gamma, beta, norm_gain)
        stage = Stage(
            name=start.name,
            convolution=convolution,
            requantizer=requantizer,
            activation=start.activation,
            normalization=normalization,
            scales=self._scales(log_input),
            kept_channels=start.kept_channels,
        )
        return _Integers(stage, weight, bias, gain, gamma, beta, norm_gain)

    def forward(
        self, x: Tensor, integers: _Integers, *, pixels: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Run on integers (B, in, H, W); returns the output, and x before its rounding.

        ``pixels`` lets gradients bring clipped outputs back (see `_Requantize`).
        """
        stage = integers.stage
        acc = self.convolve(x, integers.weight, integers.bias)
        y = _Requantize.apply(acc, integers.gain, stage.requantizer, self.slope, pixels)
        if stage.normalization is not None:
            assert integers.gamma is not None and integers.beta is not None
            norm = stage.normalization
            u = _NormInput.apply(y, norm.kind.squares, norm.u_shift)
            gamma = integers.gamma[:, :, None, None].to(u.dtype)
            n = functional.conv2d(u, gamma, integers.beta.to(u.dtype))
            y = _Normalize.apply(y, n, integers.norm_gain, norm)
        return y, acc * _channels(integers.gain, acc)

    def forward_real(self, x: Tensor, log_input: Tensor) -> Tensor:
        """The same function without rounding and clipping."""
        acc = self.convolve(x, self.folded_weight(log_input), self._bias())
        y = acc * _channels(self._gain(), acc)
        if self.start.activation is Activation.RELU:
            return functional.relu(y)
        if self.start.activation is Activation.LEAKY_RELU:
            return functional.leaky_relu(y, self.slope)
        norm, kind = self.start.normalization, self.kind
        if norm is None or kind is None:
            return y
        u = (y * y if kind.squares else y.abs()) * 0.5**norm.u_shift
        gamma = self._folded_gamma().clamp(min=0)
        beta = self._beta().clamp(min=1e-3)
        n = functional.conv2d(u, gamma[:, :, None, None].to(u.dtype), beta.to(u.dtype))
        root = n.sqrt() if kind.squares else n
        y = y * root if kind.inverse else y / root
        return y * _channels(self._norm_gain(), y)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Sums of products (B, out, H', W') in the precision of ``x``."""
        conv = self.start.convolution
        return convolve(conv, x, weight.to(x.dtype), bias.to(x.dtype))

    def _requantizer(self, conv: Convolution, source: Format, gain: Tensor) -> Requantizer:
        start, out = self.start, self.start.requantizer.output
        least, most = (v.astype(np.float64) for v in conv.accumulator_range(source))
        factors = gain.detach().cpu().numpy()
        leaky = start.activation is Activation.LEAKY_RELU
        if not leaky:
            return constants.make_requantizer(factors, least, most, out)[0]
        # All that the starting format holds of the negative side is to come through.
        reach = out.lo / factors / max(self.slope, 1e-9) / 1.25
        return constants.make_requantizer(
            factors, least, most, out, slope=self.slope, observed_least=reach
        )[0]

    def _norm_integers(self, x_format: Format) -> tuple[Tensor, Tensor]:
        """Integer gamma and beta, with gradients."""
        norm = self.start.normalization
        assert norm is not None
        gamma = _Round.apply(self._folded_gamma(), 0, (1 << norm.gamma_bits) - 1)
        beta = _Round.apply(self._beta(), 1, 2.0 ** (NORM_BITS - 1))
        # Wide u and gamma only: every norm must stay within 32 bits.
        room = ((1 << NORM_BITS) - 1 - beta.detach()) / max(norm.u_max(x_format), 1)
        rows = gamma.detach().double()
        excess = rows.sum(dim=1) > room
        if excess.any():
            part = torch.floor(rows * (room / rows.sum(dim=1).clamp(min=1))[:, None])
            gamma = torch.where(excess[:, None], part.to(gamma.dtype), gamma)
        return gamma, beta

    def _normalization(
        self, x_format: Format, gamma: Tensor, beta: Tensor, gain: Tensor
    ) -> Normalization:
        norm = self.start.normalization
        assert norm is not None
        one = np.ones(len(gain))
        return constants.make_normalization(
            norm.kind,
            x_format,
            gain.detach().cpu().numpy(),
            one,
            gamma.detach().cpu().numpy().astype(np.int64),
            beta.detach().cpu().numpy().astype(np.int64),
            one,
            gamma_bits=norm.gamma_bits,
            u_shift=norm.u_shift,
            output=norm.output,
        )[0]

    # Reports and initial values ------------------------------------------------------------

    def _scales(self, log_input: Tensor) -> dict[str, npt.NDArray]:
        """The starting network's scales, where it has them, as they are now."""
        changes = {"weight": self.log_weight, "input": log_input, "output": self.log_output}
        if self.kind is not None:
            changes["x"] = self.log_x
        return {
            key: value * np.exp(changes[key].detach().cpu().double().numpy())
            for key, value in self.start.scales.items()
            if key in changes
        }

    def norm_step(self) -> npt.NDArray:
        """Real value of one step of the starting network's norm (out,), from its scales."""
        assert self.kind is not None
        s = self.start.scales
        gain = self.start_norm_gain.cpu().numpy()
        return (gain * s["output"] / s["x"]) ** (1 / constants.norm_exponent(self.kind))

    @torch.no_grad()
    def approach(self, float_stage: FloatStage, *, within: float | None = BIN_MARGIN) -> None:
        """Move the shadows to the real values that the integers stand for.

        With ``within``, at most so many steps away from the integers (which then stay as they
        are while it is below a half); None takes the real values whole. The integer bias stays
        the start's in the first case, with what it holds to round the output down
        (`lichen.quant.ptq.FixedOutput.floor`), and becomes the parent's in the second.

        Raises ValueError when the starting network does not say its scales.
        """
        norm, scales = self.start.normalization, self.start.scales
        if not {"weight", "input", "output"} <= set(scales):
            raise ValueError(f"stage {self.start.name} has no scales")

        def near(parameter: Tensor, real: npt.NDArray) -> None:
            target = torch.as_tensor(real, dtype=torch.float64).to(parameter)
            if within is not None:
                whole = torch.round(parameter)
                target = torch.minimum(torch.maximum(target, whole - within), whole + within)
            parameter.copy_(target)

        folded = float_stage.weight * scales["input"][None, :, None, None]
        near(self.weight, folded / scales["weight"][:, None, None, None])
        if within is None:
            real = torch.as_tensor(float_stage.bias / scales["weight"])
            self.start_bias.copy_(real)
            after = scales["output" if self.kind is None else "x"]
            self.start_gain.copy_(torch.as_tensor(scales["weight"] / after))
        if norm is None or float_stage.gamma is None or float_stage.beta is None:
            return
        step = self.norm_step()
        u = scales["x"] ** 2 if norm.kind.squares else scales["x"]
        near(self.gamma, float_stage.gamma * u[None] * 2.0**norm.u_shift / step[:, None])
        if within is None:
            self.start_beta.copy_(torch.as_tensor(float_stage.beta / step))

    @torch.no_grad()
    def to_float(self, float_stage: FloatStage, log_input: Tensor) -> FloatStage:
        """The real stage that the shadows describe; ``float_stage`` supplies the rest."""
        scales = self._scales(log_input)
        weight = self.folded_weight(log_input).cpu().double().numpy()
        weight = weight * scales["weight"][:, None, None, None]
        changes: dict[str, npt.NDArray] = {
            "weight": weight / scales["input"][None, :, None, None],
            "bias": self._bias().cpu().numpy() * scales["weight"],
        }
        norm = self.start.normalization
        if norm is not None:
            step = self.norm_step() * np.exp(self.log_norm.cpu().double().numpy())
            u = scales["x"] ** 2 if norm.kind.squares else scales["x"]
            gamma = self._folded_gamma().clamp(min=0).cpu().double().numpy()
            changes["gamma"] = gamma * step[:, None] / u[None] / 2.0**norm.u_shift
            changes["beta"] = self._beta().clamp(min=1e-3).cpu().numpy() * step
        same = {field.name: getattr(float_stage, field.name) for field in fields(float_stage)}
        return FloatStage(**(same | changes))


class FakeTransform(nn.Module):
    """An integer transform with real shadows.

    Parameters
    ----------
    transform : Transform
        The integers to start from.
    real : FloatTransform or None
        Real weights that the shadows start at, as far as the integers allow.
    within : float or None
        See `FakeStage.approach`.
    """

    def __init__(
        self,
        transform: Transform,
        real: FloatTransform | None = None,
        *,
        within: float | None = BIN_MARGIN,
    ) -> None:
        super().__init__()
        self.input = transform.input
        last = len(transform.stages) - 1
        self.stages: Any = nn.ModuleList(
            FakeStage(stage, source, fixed=i == last)
            for i, (stage, source) in enumerate(
                zip(transform.stages, transform.sources, strict=True)
            )
        )
        if real is not None:
            fakes: list[Any] = list(self.stages)
            for fake, float_stage in zip(fakes, real.stages, strict=True):
                fake.approach(float_stage, within=within)

    def log_inputs(self) -> list[Tensor]:
        """Logarithms of the changes of each stage's input scales."""
        first = self.stages[0].weight
        inputs = [torch.zeros(first.shape[1], device=first.device)]
        return inputs + [stage.log_output for stage in list(self.stages)[:-1]]

    def integers(self) -> list[_Integers]:
        """The stages as they are; one pass over the weights, none over any image."""
        result, source = [], self.input
        for fake, log_input in zip(self.stages, self.log_inputs(), strict=True):
            result.append(fake.integers(source, log_input))
            source = result[-1].stage.output
        return result

    def run(self, x: Tensor, *, pixels: bool = False) -> tuple[list[Tensor], Tensor]:
        """Outputs (B, C, H, W) of all stages on integers ``x``, and ``soft``.

        ``soft`` is the last output before its rounding and clipping. The precision is that of
        ``x``.
        """
        outputs, soft, last = [], x, len(self.stages) - 1
        for i, (fake, integers) in enumerate(zip(self.stages, self.integers(), strict=True)):
            x, soft = fake(x, integers, pixels=pixels and i == last)
            outputs.append(x)
        return outputs, soft

    def forward(self, x: Tensor, *, pixels: bool = False) -> Tensor:
        """The integers that the transform makes of integers (B, in, H, W)."""
        return self.run(x, pixels=pixels)[0][-1]

    def forward_real(self, x: Tensor) -> Tensor:
        """The same function without rounding and clipping."""
        for fake, log_input in zip(self.stages, self.log_inputs(), strict=True):
            x = fake.forward_real(x, log_input)
        return x

    @torch.no_grad()
    def to_transform(self) -> Transform:
        """The integer transform; golden's results equal a float64 forward pass bit for bit."""
        return Transform(input=self.input, stages=[part.stage for part in self.integers()])

    def to_float(self, real: FloatTransform) -> FloatTransform:
        """The real transform that the shadows describe."""
        stages = [
            fake.to_float(float_stage, log_input)
            for fake, float_stage, log_input in zip(
                self.stages, real.stages, self.log_inputs(), strict=True
            )
        ]
        return FloatTransform(stages, absolute_input=real.absolute_input)


def mismatch_rate(transform: FakeTransform, inputs: Sequence[npt.NDArray]) -> list[float]:
    """Share of values, per stage, at which float32 differs from golden on (H, W, C) integers."""
    from lichen.sim.golden import run_stages

    exact = transform.to_transform()
    wrong = np.zeros(len(exact.stages))
    total = np.zeros(len(exact.stages))
    device = transform.stages[0].weight.device
    for values in inputs:
        x = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None].to(device)
        with torch.no_grad():
            outputs = transform.run(x)[0]
        for i, (ours, golden) in enumerate(zip(outputs, run_stages(exact, values), strict=True)):
            values_here = ours[0].permute(1, 2, 0).cpu().numpy()
            wrong[i] += int((values_here != golden).sum())
            total[i] += golden.size
    return [float(v) for v in wrong / np.maximum(total, 1)]
