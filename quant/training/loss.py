"""CompressAI's rate-distortion loss, and the passes through a model that it is taken of."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lichen.network.flow import IMAGE, LATENTS, TRANSFORMS, Latent, inward, outward
from lichen.quant.float.architectures import ARCHS, latents_of


def _ste_round(x: Tensor) -> Tensor:
    """Round to the integer grid; the gradient passes straight through."""
    return x + (torch.round(x) - x).detach()


class Transforms:
    """A model's transforms as functions, in mixed precision and compiled if asked.

    In bfloat16 the last layers of all but g_s stay in float32: latents of a few hundred would
    lose their fraction, and these layers are small.
    """

    def __init__(self, model: Any, *, bfloat16: bool = False, compiled: bool = False):
        self._parts: dict[str, list[tuple[Callable[[Tensor], Tensor], bool]]] = {}
        for name in TRANSFORMS:
            layers = getattr(model, name, None)
            if layers is None:
                continue
            parts = [(layers, bfloat16)]
            if bfloat16 and name != LATENTS[0].synthesis:
                parts = [(layers[:-1], True), (layers[-1], False)]
            self._parts[name] = [
                (torch.compile(part) if compiled else part, half) for part, half in parts
            ]

    def __call__(self, name: str, x: Tensor) -> Tensor:
        for part, half in self._parts[name]:
            with torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext():
                x = part(x)
            x = x.float()
        return x


def forward_train(
    model: Any, arch: str, x: Tensor, rounded: bool, transforms: Transforms | None = None
) -> dict[str, Any]:
    """Forward pass in training: noisy likelihoods; the synthesis reads noisy or rounded latents.

    Args:
        model: a CompressAI model of `arch` in training mode.
        x: images, float32 in 0..1, shape (batch, 3, height, width).
        rounded: True gives synthesis (and h_s) latents rounded to the integer grid.
        transforms: what computes the transforms; by default the model's own modules.

    Returns:
        CompressAI's dictionary: `x_hat` and `likelihoods`.
    """
    run = transforms or Transforms(model)
    kind, latents = ARCHS[arch], latents_of(arch)
    likelihoods: dict[str, Tensor] = {}

    def seen(latent: Latent, source: Tensor) -> Tensor:
        return source if latent.source == IMAGE or kind.means else torch.abs(source)

    def read(latent: Latent, said: Tensor | None) -> Tensor:
        value, means = values[latent.name], None
        if said is None:
            noisy, likelihood = model.entropy_bottleneck(value)
        else:
            scales, means = said.chunk(2, 1) if kind.means else (said, None)
            noisy, likelihood = model.gaussian_conditional(value, scales, means=means)
        likelihoods[latent.name] = likelihood
        if not rounded:
            return noisy
        return _ste_round(value) if means is None else _ste_round(value - means) + means

    values = inward(latents, x, seen, run)
    x_hat = outward(latents, read, run)
    return {"x_hat": x_hat, "likelihoods": {name: likelihoods[name] for name in values}}


def rd_loss(out: dict[str, Any], x: Tensor, lmbda: float) -> tuple[Tensor, Tensor, Tensor]:
    """CompressAI's `lmbda * 255**2 * MSE + bpp`; returns (loss, bpp, mse), mse in 0..1 units."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    nats = torch.stack([-torch.log(p).sum() for p in out["likelihoods"].values()]).sum()
    bpp = nats / (math.log(2) * pixels)
    mse = torch.mean((out["x_hat"] - x) ** 2)
    return lmbda * 255**2 * mse + bpp, bpp, mse
