"""The weights of a context model, learned by descent on the bits of latents.

The scale and the mean that `lichen.network.context` computes parametrize a mixture of three
discretized logistic distributions here, whose shape all channels share; its log-likelihood is
what the tables' code lengths come down to. The last steps see weights rounded to the integers
that they will be, with straight-through gradients (Bengio, Leonard and Courville, "Estimating or
propagating gradients through stochastic neurons for conditional computation", 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen.network.context import (
    CARRY_BITS,
    EXCESS_LIMITS,
    GAIN_BITS,
    GAIN_LIMITS,
    MAGNITUDE_MAX,
    MEAN_BITS,
)

SCALE_STEPS = 64
"""Steps of the integer scale for a scale of one symbol."""

NEAR_STEPS = 32
INNER_STEPS = 16
"""Steps of the weights near and inner for a weight of one."""

SPREAD_BITS = 4
"""Fractional bits of the weight spread."""

UNIT_STEPS, UNIT_MAX = 32, 511
"""Steps of what a magnitude counts beside its scale, and the most of them."""

CARRY_FIRST = (0.2, 0.15, 0.05, 0.05)
"""First guess of what the sums of W, N, NW and NE count at the start of a place."""

GAIN_STEPS = 1 << GAIN_BITS
LIKELIHOOD_MIN = 1e-7


@dataclass(frozen=True)
class Shape:
    """How large a context model is.

    Attributes
    ----------
    near : int
        Neighbours for the scale, 2 or 4.
    slope : int
        Neighbours for the mean, 0, 2 or 4.
    inner : int
        Sums over earlier channels.
    bins : int
        Of scales, at most.
    carry : bool
        Sums start with a share of the neighbours'.
    excess : bool
        Sums are of what magnitudes exceed a hyperprior's scale by, and correct it.
    """

    near: int = 4
    slope: int = 4
    inner: int = 4
    bins: int = 40
    carry: bool = False
    excess: bool = False


@dataclass(frozen=True)
class Symbols:
    """One image's latent (h, w, channels), and the numbers that a hyperprior gives, if any."""

    values: npt.NDArray[np.int32]
    indices: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Schedule:
    """How long to learn: passes over the images in all, those of them with rounded weights."""

    passes: int = 4
    rounded: int = 1
    rate: float = 0.02
    seed: int = 1

    def longer(self, times: int) -> Schedule:
        return replace(self, passes=times * self.passes, rounded=times * self.rounded)


def _round(x: Tensor) -> Tensor:
    return x + (torch.round(x) - x).detach()


def neighbours(values: Tensor, group: int) -> list[Tensor]:
    """W, N, NW and NE of (h, w, channels), as the model takes them at edges and group starts."""
    zeros = torch.zeros_like(values)
    west, north = zeros.clone(), zeros.clone()
    west[:, 1:] = values[:, :-1]
    north[1:] = values[:-1]
    top = torch.zeros(len(values), 1, 1, dtype=torch.bool)
    top[::group] = True
    north = torch.where(top, west, north)
    west[:, 0] = north[:, 0]
    corners = []
    for step in (-1, 1):
        corner = north.clone()
        if step < 0:
            corner[1:, 1:] = values[:-1, :-1]
        else:
            corner[1:, :-1] = values[:-1, 1:]
        corners.append(torch.where(top, west, corner))
    return [west, north, *corners]


class Learner(torch.nn.Module):
    """A context model with real weights.

    Parameters
    ----------
    channels : int
    shape : Shape
    levels : float array or None
        First guess of the scale for each number of a hyperprior.
    group : int
        Rows until contexts forget.
    """

    def __init__(
        self,
        channels: int,
        shape: Shape,
        levels: npt.NDArray[np.float64] | None,
        group: int,
        seed: int,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        parameter = torch.nn.Parameter
        self.group, self.rounded = group, False
        self.excess, self.carries = shape.excess, shape.carry
        self.bias = parameter(torch.full((channels,), 0.3))
        self.near = parameter(torch.full((shape.near, channels), 0.1))
        self.slope = parameter(torch.zeros(shape.slope, channels))
        self.inner = parameter(0.2 * torch.rand(shape.inner, channels, generator=generator))
        self.outer = parameter(0.1 * torch.rand(shape.inner, channels, generator=generator))
        if shape.carry:
            self.carry = parameter(torch.tensor(CARRY_FIRST).repeat(shape.inner, 1).T.clone())
        self.mixture = parameter(torch.tensor([0.5, 0.5, -0.6]))
        self.widths = parameter(torch.tensor([-1.0, -0.6, -0.1]))
        self.levels: Tensor | None = None
        if levels is not None:
            self.levels = torch.from_numpy(np.log(levels)).float()
            self.correction = parameter(torch.zeros(len(levels)))
            self.spread = parameter(torch.full((channels,), 0.5))
            if shape.excess:
                self.unit = parameter(-self.levels.clone())
                self.usual = parameter(torch.full((len(levels),), 0.6))

    @property
    def outer_steps(self) -> int:
        """Steps of outer for a weight of one: a power of two that leaves the largest 31 or less.

        At least as many as let spread's steps be told apart.
        """
        largest = float(self.outer.detach().abs().max()) if self.outer.numel() else 0.1
        steps = int(2 ** np.floor(np.log2(31.49 / max(largest, 2.0**-10))))
        if self.excess:
            return min(max(steps, GAIN_STEPS // UNIT_STEPS), 1 << 14)
        return max(steps, (SCALE_STEPS << SPREAD_BITS) // INNER_STEPS)

    def balance(self) -> None:
        """Make the largest weights of each row of inner as large as 5 bits hold."""
        with torch.no_grad():
            if self.inner.numel():
                factor = self.inner.abs().amax(dim=1, keepdim=True) * INNER_STEPS / 31
                self.inner.div_(factor)
                self.outer.mul_(factor)

    def weights(self) -> dict[str, Tensor]:
        """Those that count: magnitudes, and rounded from `rounded` on."""
        found = {
            "bias": self.bias.abs(),
            "near": self.near.abs(),
            "inner": self.inner.abs(),
            "outer": self.outer.abs(),
            "slope": self.slope,
        }
        if self.levels is not None:
            found["spread"] = self.spread.abs()
        if self.excess:
            found |= {"unit": torch.exp(self.unit), "usual": self.usual.abs()}
        if self.carries:
            found["carry"] = self.carry.abs()
        if not self.rounded:
            return found
        steps = {
            "bias": SCALE_STEPS,
            "near": NEAR_STEPS,
            "inner": INNER_STEPS,
            "outer": self.outer_steps,
            "slope": 1 << MEAN_BITS,
            "spread": 1 << SPREAD_BITS,
            "unit": UNIT_STEPS,
            "usual": UNIT_STEPS,
            "carry": 1 << CARRY_BITS,
        }
        ranges = {"bias": (0, 4095), "slope": (-32, 31)}
        ranges |= dict.fromkeys(("unit", "usual"), (0, UNIT_MAX))
        return {
            name: _round(value * steps[name]).clamp(*ranges.get(name, (0, 31))) / steps[name]
            for name, value in found.items()
        }

    def forward(self, values: Tensor, indices: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scales and means of (h, w, channels)."""
        w = self.weights()
        magnitudes = values.abs().clamp(max=MAGNITUDE_MAX)
        around = neighbours(values, self.group)
        scale = w["bias"] + sum(
            one.abs().clamp(max=MAGNITUDE_MAX) * weight
            for one, weight in zip(around, w["near"], strict=False)
        )
        counted = magnitudes
        if self.excess:
            least, most = (limit / UNIT_STEPS for limit in EXCESS_LIMITS)
            counted = (magnitudes * w["unit"][indices] - w["usual"][indices]).clamp(least, most)
        across = torch.zeros_like(values)
        for k, (inner, outer) in enumerate(zip(w["inner"], w["outer"], strict=True)):
            weighted = counted * inner
            sums = weighted.cumsum(dim=2)
            before = sums - weighted
            if self.carries:
                totals = neighbours(sums[:, :, -1:], self.group)
                before = before + sum(
                    total * weight for total, weight in zip(totals, w["carry"][:, k], strict=True)
                )
            across = across + before * outer
        hyper = torch.zeros_like(values)
        if self.levels is not None and indices is not None:
            hyper = torch.exp(self.levels + self.correction)[indices] * w["spread"]
        if self.excess:
            least, most = (limit / GAIN_STEPS for limit in GAIN_LIMITS)
            scale = scale + hyper * (1 + across).clamp(least, most)
        else:
            scale = scale + hyper + across
        mean = torch.zeros_like(values)
        for one, weight in zip(around, w["slope"], strict=False):
            mean = mean + one * weight
        return (_round(scale * SCALE_STEPS) / SCALE_STEPS, mean) if self.rounded else (scale, mean)

    def bits(self, values: Tensor, indices: Tensor | None) -> Tensor:
        """Mean bits of a symbol."""
        scale, mean = self(values, indices)
        distance = (values - mean).abs()
        shares = torch.softmax(self.mixture, 0)
        likelihood = torch.full_like(values, LIKELIHOOD_MIN)
        for share, width in zip(shares, self.widths, strict=True):
            unit = (scale * torch.exp(width)).clamp(min=0.02)
            upper, lower = (0.5 - distance) / unit, (-0.5 - distance) / unit
            likelihood = likelihood + share * (torch.sigmoid(upper) - torch.sigmoid(lower))
        return -torch.log2(likelihood).mean()


def learn(
    images: Sequence[Symbols],
    shape: Shape,
    levels: npt.NDArray[np.float64] | None,
    group: int,
    schedule: Schedule,
    progress: Callable[[str], None] = lambda step: None,
) -> Learner:
    """Weights for latents of images, rounded in the end; calls progress once a pass."""
    data = [
        (torch.from_numpy(one.values.astype(np.float32)),
         None if one.indices is None else torch.from_numpy(one.indices.astype(np.int64)))
        for one in images
    ]  # fmt: skip
    learner = Learner(data[0][0].shape[2], shape, levels, group, schedule.seed)
    optimizer = torch.optim.Adam(learner.parameters(), lr=schedule.rate)
    rng = np.random.default_rng(schedule.seed)
    total, done = schedule.passes * len(data), 0
    for number in range(schedule.passes):
        if number == schedule.passes - schedule.rounded:
            learner.balance()
            learner.rounded = True
        for i in rng.permutation(len(data)):
            optimizer.param_groups[0]["lr"] = schedule.rate * (1 - done / total) + 2e-4
            optimizer.zero_grad()
            learner.bits(*data[i]).backward()
            optimizer.step()
            done += 1
        progress("weights")
    return learner


def integers(learner: Learner) -> dict[str, Any]:
    """The fields of a `ContextModel` that the learner decides."""
    learner.rounded = True
    with torch.no_grad():
        w = {name: value.double().numpy() for name, value in learner.weights().items()}
    outer_steps = learner.outer_steps
    # the scale in 1/64 is (near in 1/32 << shift + 1, inner in 1/16 x outer) >> shift; where inner
    # x outer are a gain, (near in 1/32 << shift + 1, spread in 1/16 x level in 1/64) >> shift
    shift = int(np.log2(INNER_STEPS * outer_steps / SCALE_STEPS))
    if learner.excess:
        shift = SPREAD_BITS

    def whole(name: str, steps: int) -> npt.NDArray[np.int16]:
        return np.rint(w[name] * steps).astype(np.int16)

    fields: dict[str, Any] = {
        "bias": whole("bias", SCALE_STEPS),
        "near": whole("near", NEAR_STEPS),
        "inner": whole("inner", INNER_STEPS),
        "outer": whole("outer", outer_steps),
        "slope": whole("slope", 1 << MEAN_BITS),
        "near_shift": shift + 1,
        "shift": shift,
    }
    if learner.levels is not None:
        with torch.no_grad():
            scales = torch.exp(learner.levels + learner.correction).double().numpy()
        levels = np.rint(np.clip(scales * SCALE_STEPS, 0, 65535))
        fields |= {"spread": whole("spread", 1 << SPREAD_BITS), "levels": levels.astype(np.int32)}
        fields["spread_shift"] = shift - SPREAD_BITS
    if learner.carries:
        fields["carry"] = whole("carry", 1 << CARRY_BITS)
    if learner.excess:
        fields |= {name: whole(name, UNIT_STEPS) for name in ("unit", "usual")}
        fields["gain_shift"] = int(np.log2(UNIT_STEPS * INNER_STEPS * outer_steps // GAIN_STEPS))
    return fields
