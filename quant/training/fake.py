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
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from lichen.network.arithmetic import NORM_BITS, NormKind
from lichen.network.description import (
    Activation,
    Format,
    Normalization,
    Requantizer,
    Stage,
    Transform,
)
from lichen.quant.calibration import constants
from lichen.quant.float.network import FloatStage, FloatTransform, convolve
from lichen.quant.training import kernels
from lichen.quant.training.compute import Compute, Constants, Integers, Plan, Round, fits_a_byte

BIN_MARGIN = 0.0
"""How far from its integer a shadow may start, in steps; half would be on the edge.

Roundings that were fitted to each other (`lichen.quant.calibration.rounding`) must not be undone by
noise: from the middle, only a gradient that keeps its direction moves an integer.
"""


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
        self.geometry = kernels.Geometry(conv)
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

    def integers(self, source: Format, log_input: Tensor) -> Integers:
        """The exact `Stage` of the shadows as they are, and its tensors with gradients."""
        weight = Round.apply(self.folded_weight(log_input), -self.limit, self.limit)
        bias = Round.apply(self._bias(), -(2.0**44), 2.0**44)
        gain = self._gain()
        requantizer = self._requantizer(weight, bias, source, gain)
        gamma, beta, norm_gain, normalization = None, None, None, None
        if self.kind is not None:
            gamma, beta = self._norm_integers(requantizer.output)
            norm_gain = self._norm_gain()
            normalization = self._normalization(requantizer.output, gamma, beta, norm_gain)
        return Integers(weight, bias, requantizer, gain, gamma, beta, normalization, norm_gain)

    def to_stage(self, source: Format, log_input: Tensor) -> Stage:
        """The exact stage of the shadows as they are."""
        integers, start = self.integers(source, log_input), self.start
        convolution = start.convolution.model_copy(
            update={
                "weight": integers.weight.detach().cpu().numpy().astype(np.int16),
                "bias": integers.bias.detach().cpu().numpy().astype(np.int64),
            }
        )
        return Stage(
            name=start.name,
            convolution=convolution,
            requantizer=integers.requantizer,
            activation=start.activation,
            normalization=integers.normalization,
            scales=self._scales(log_input),
            kept_channels=start.kept_channels,
        )

    def forward(
        self,
        x: Tensor,
        integers: Integers,
        source: Format,
        dtype: torch.dtype,
        *,
        codes: Tensor | None = None,
        inward: bool = False,
        soft: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run on integers (B, in, H, W).

        Parameters
        ----------
        dtype : float32 or float64
            To compute in. On CPUs with 8-bit multipliers, float32 means them
            (`lichen.quant.training.kernels`), and outputs are bfloat16 where that holds their
            integers.
        codes : uint8 tensor or None
            The input as bytes.
        inward : bool
            Gradients bring clipped outputs back.
        soft : bool
            Return the requantized values before their rounding and clipping as well (stages
            without a normalization).

        Returns the output, ``soft`` or None, and the output as bytes, if it is known as such.
        """
        r, norm, conv = integers.requantizer, integers.normalization, self.start.convolution
        fast = dtype == torch.float32 and x.device.type == "cpu" and kernels.fast_cpu()
        out = integers.output
        norm_in_bytes = norm is None or (norm.u_max(r.output) <= 255 and norm.gamma_bits <= 8)
        plan = Plan(
            geometry=self.geometry,
            constants=Constants.of(r, norm, self.slope, dtype, x.device),
            kind=self.kind,
            low=torch.bfloat16 if fast else dtype,
            bytes_in=fast and conv.weight_bits <= 8 and fits_a_byte(source),
            fused=fast and not soft and norm_in_bytes and fits_a_byte(out),
            signed=source.lo < 0,
            signed_out=out.lo < 0,
            inward=inward,
            soft=soft,
        )
        return Compute.apply(
            x,
            codes,
            integers.weight,
            integers.bias,
            integers.gain,
            integers.gamma,
            integers.beta,
            integers.norm_gain,
            plan,
        )

    def forward_real(self, x: Tensor, log_input: Tensor) -> Tensor:
        """The same function without rounding and clipping."""
        acc = self.convolve(x, self.folded_weight(log_input), self._bias())
        y = acc * self._gain()[:, None, None].to(acc.dtype)
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
        return y * self._norm_gain()[:, None, None].to(y.dtype)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Sums of products (B, out, H', W') in the precision of ``x``."""
        conv = self.start.convolution
        return convolve(conv, x, weight.to(x.dtype), bias.to(x.dtype))

    def _requantizer(
        self, weight: Tensor, bias: Tensor, source: Format, gain: Tensor
    ) -> Requantizer:
        start, out = self.start, self.start.requantizer.output
        # `Convolution.accumulator_range`, in float64 and so exactly
        with torch.no_grad():
            rows = weight.flatten(1).double()
            positive, negative = rows.clamp(min=0).sum(1), rows.clamp(max=0).sum(1)
            lo, hi = min(source.lo, 0), max(source.hi, 0)
            b = bias.double()
            reach = torch.stack(
                [
                    lo * positive + hi * negative + b.clamp(max=0),
                    hi * positive + lo * negative + b.clamp(min=0),
                    gain.double(),
                ]
            )
        least, most, factors = reach.cpu().numpy()
        leaky = start.activation is Activation.LEAKY_RELU
        if not leaky:
            return constants.make_requantizer(factors, least, most, out)[0]
        # All that the starting format holds of the negative side is to come through.
        seen = out.lo / factors / max(self.slope, 1e-9) / 1.25
        return constants.make_requantizer(
            factors, least, most, out, slope=self.slope, observed_least=seen
        )[0]

    def _norm_integers(self, x_format: Format) -> tuple[Tensor, Tensor]:
        """Integer gamma and beta, with gradients."""
        norm = self.start.normalization
        assert norm is not None
        gamma = Round.apply(self._folded_gamma(), 0, (1 << norm.gamma_bits) - 1)
        beta = Round.apply(self._beta(), 1, 2.0 ** (NORM_BITS - 1))
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
        (`lichen.quant.calibration.options.FixedOutput.floor`), and becomes the parent's in the
        second.

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

    def run(
        self, x: Tensor, *, inward: bool = False, soft: bool = True
    ) -> tuple[list[Tensor], Tensor]:
        """Outputs (B, C, H, W) of all stages on integers ``x``, and the last one before rounding.

        The precision is that of ``x``, at least float32; outputs may be bfloat16 where that
        holds them exactly. ``inward`` lets gradients bring clipped outputs of the last stage
        back. Without ``soft``, the second value is the last output itself.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        outputs: list[Tensor] = []
        before: Tensor | None = None
        codes: Tensor | None = None
        source, last = self.input, len(self.stages) - 1
        for i, (fake, log_input) in enumerate(zip(self.stages, self.log_inputs(), strict=True)):
            integers = fake.integers(source, log_input)
            x, before, codes = fake(
                x,
                integers,
                source,
                dtype,
                codes=codes,
                inward=inward and i == last,
                soft=soft and i == last and fake.kind is None,
            )
            outputs.append(x)
            source = integers.output
        return outputs, x if before is None else before

    def forward(self, x: Tensor, *, inward: bool = False) -> Tensor:
        """The integers that the transform makes of integers (B, in, H, W)."""
        return self.run(x, inward=inward, soft=False)[0][-1]

    def forward_real(self, x: Tensor) -> Tensor:
        """The same function without rounding and clipping."""
        for fake, log_input in zip(self.stages, self.log_inputs(), strict=True):
            x = fake.forward_real(x, log_input)
        return x

    @torch.no_grad()
    def to_transform(self) -> Transform:
        """The integer transform; golden's results equal a float64 forward pass bit for bit."""
        stages, source = [], self.input
        for fake, log_input in zip(self.stages, self.log_inputs(), strict=True):
            stages.append(fake.to_stage(source, log_input))
            source = stages[-1].output
        return Transform(input=self.input, stages=stages)

    def to_float(self, real: FloatTransform) -> FloatTransform:
        """The real transform that the shadows describe."""
        stages = [
            fake.to_float(float_stage, log_input)
            for fake, float_stage, log_input in zip(
                self.stages, real.stages, self.log_inputs(), strict=True
            )
        ]
        return replace(real, stages=stages)


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
            values_here = ours[0].permute(1, 2, 0).float().cpu().numpy()
            wrong[i] += int((values_here != golden).sum())
            total[i] += golden.size
    return [float(v) for v in wrong / np.maximum(total, 1)]
