"""The rate that fine-tuning sees: CompressAI's entropy bottleneck, its own or one fitted, and
its Gaussians."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen.quant.calibration.entropy import LIKELIHOOD_MIN, SCALE_MIN

with warnings.catch_warnings():
    # compressai's import decorates functions with the deprecated torch.jit.script.
    warnings.simplefilter("ignore")
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional

FIT_STEPS = 600
FIT_BATCH = 1024


def make_bottleneck(channels: int, parameters: Mapping[str, npt.NDArray] | None) -> Any:
    """An entropy bottleneck in training mode, with the given parameters if there are any."""
    module = EntropyBottleneck(channels)
    if parameters is not None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in parameters:
                    parameter.copy_(torch.as_tensor(parameters[name]))
    # CompressAI's quantiles belong to its coder; symbols here sit on the integer grid.
    module.quantiles.requires_grad_(False)
    return module.train()


def parameters_of(module: Any) -> dict[str, npt.NDArray]:
    """The parameters as a float network stores them."""
    return {k: v.detach().cpu().double().numpy() for k, v in module.named_parameters()}


def noisy_bits(module: Any, y: Tensor) -> Tensor:
    """Bits of latents (B, C, h, w) with uniform noise in place of rounding, summed."""
    _, likelihood = module(y.float())
    return -torch.log2(likelihood.clamp(min=LIKELIHOOD_MIN)).sum()


@functools.cache
def _gaussian(device: torch.device) -> Any:
    return GaussianConditional(None, scale_bound=SCALE_MIN).to(device).train()


def noisy_gaussian_bits(y: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """The same under Gaussians; scales below CompressAI's bound count as that."""
    _, likelihood = _gaussian(y.device)(y.float(), scales.float(), means=means.float())
    return -torch.log2(likelihood.clamp(min=LIKELIHOOD_MIN)).sum()


def fit_bottleneck(
    latents: Sequence[npt.NDArray], seed: int = 0, steps: int = FIT_STEPS
) -> dict[str, npt.NDArray]:
    """Parameters of a bottleneck fitted to real latents (h, w, C), for networks without one.

    Minimizes the bits of the latents with uniform noise. Reproducible from the seed.
    """
    values = np.concatenate([y.reshape(-1, y.shape[-1]) for y in latents]).astype(np.float32)
    samples = torch.from_numpy(np.ascontiguousarray(values.T))
    # the distribution starts about as wide as the latents are
    scale = max(float(np.percentile(np.abs(values), 99)), 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = EntropyBottleneck(samples.shape[0], init_scale=scale)
        module.quantiles.requires_grad_(False)
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-4)
        module.train()
        for _ in range(steps):
            chosen = torch.randint(samples.shape[1], (min(FIT_BATCH, samples.shape[1]),))
            bits = noisy_bits(module, samples[None, :, chosen, None])
            optimizer.zero_grad()
            (bits / len(chosen) / len(samples)).backward()
            optimizer.step()
            schedule.step()
    return parameters_of(module)
