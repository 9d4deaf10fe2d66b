"""Channels taken out, what read them told what to expect in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor

from lichen.quant.float.architectures import (
    ARCHS,
    parameters_of,
)
from lichen.quant.float.channels import Coupling, couplings_of, take
from lichen.quant.slim.gates import Moments, tap_sums

RIDGE = 1e-3
"""What holds regressions of channels on others down, relative to their mean variance."""


BETA_MIN = 1e-6
"""CompressAI's own least beta."""


def remove(
    model: Any,
    arch: str,
    kept: Mapping[str, npt.NDArray[np.int64]],
    moments: Moments | None,
    compensation: str,
) -> dict[str, Tensor]:
    """The parameters of a model with only the ``kept`` channels of the couplings named.

    Removed channels are replaced by what they were on average (see `SlimConfig.compensation`).
    """
    state = parameters_of(model)
    chosen = {name: torch.from_numpy(channels) for name, channels in kept.items()}
    if compensation != "none":
        assert moments is not None
        absolute = ARCHS[arch].hyperprior and not ARCHS[arch].means
        for coupling in couplings_of(arch):
            if coupling.name in chosen:
                _compensate(model, state, coupling, chosen[coupling.name], moments, absolute,
                            linear=compensation == "linear")  # fmt: skip
    return take(state, chosen, arch)


def _compensate(
    model: Any,
    state: dict[str, Tensor],
    coupling: Coupling,
    kept: Tensor,
    moments: Moments,
    absolute: bool,
    linear: bool,
) -> None:
    """Move what all but the ``kept`` channels did on average into what reads them."""
    layer = coupling.layer
    gone = torch.ones(len(state[f"{layer.module}.bias"]), dtype=torch.bool)
    gone[kept] = False
    if layer.norm is not None:
        module = model.get_submodule(layer.norm)
        with torch.no_grad():
            gamma = module.gamma_reparam(module.gamma).cpu()
            beta = module.beta_reparam(module.beta).cpu()
            squares = moments.squares[layer.name]
            means = squares[gone]
            if linear:
                products = moments.square_products[layer.name]
                ratios = _explain(products, squares, kept, gone, positive=True).float()
                means = means - ratios @ squares[kept]
                gamma = gamma.index_add(1, kept, gamma[:, gone] @ ratios)
                state[f"{layer.norm}.gamma"] = module.gamma_reparam.init(gamma)
            beta = (beta + gamma[:, gone] @ means).clamp(min=BETA_MIN)
            state[f"{layer.norm}.beta"] = module.beta_reparam.init(beta)
    for reader in coupling.readers:
        means = moments.read_by(coupling, reader, absolute)
        weight = state[f"{reader.module}.weight"]
        axis = 1 - reader.out_axis
        sums = tap_sums(reader, weight).double()
        shift = means.double()[gone]
        # what h_a reads as magnitudes is no linear function of what others read
        if linear and means is not moments.magnitudes:
            ratios = _explain(moments.products[coupling.name], means, kept, gone)
            shift = shift - ratios @ means.double()[kept]
            leaving = weight.index_select(axis, gone.nonzero()[:, 0])
            moved = torch.tensordot(ratios.float(), leaving, ([0], [axis])).movedim(0, axis)
            state[f"{reader.module}.weight"] = weight.index_add(axis, kept, moved)
        bias = state[f"{reader.module}.bias"].double() + sums[:, gone] @ shift
        state[f"{reader.module}.bias"] = bias.float()


def _explain(
    products: Tensor, means: Tensor, kept: Tensor, gone: Tensor, *, positive: bool = False
) -> Tensor:
    """Coefficients (gone, kept) of the least-squares estimate of channels by others, and a mean."""
    means = means.double()
    covariance = products.double() - means[:, None] * means[None]
    inner, cross = covariance[kept][:, kept], covariance[gone][:, kept]
    ridge = RIDGE * max(float(inner.diagonal().mean()), 1e-12)
    inner = inner + ridge * torch.eye(len(kept), dtype=torch.float64)
    if not positive:
        return torch.linalg.solve(inner, cross.T).T
    # |L' a - L^-1 c|**2 is the squared error but for a constant
    lower = torch.linalg.cholesky(inner)
    targets = torch.linalg.solve_triangular(lower, cross.T, upper=False).T
    matrix = lower.T.numpy()
    return torch.from_numpy(np.stack([nnls(matrix, target)[0] for target in targets.numpy()]))
