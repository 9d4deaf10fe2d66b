"""Fitting the range of the latents to the bits of their symbols, before anything is quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lichen.errors import UserError
from lichen.quant.calibration import calibrate
from lichen.quant.float.network import FloatNetwork


def fit_latent_range(
    network: FloatNetwork, latents: Sequence[npt.NDArray], bits: int
) -> tuple[FloatNetwork, npt.NDArray[np.float64]]:
    """The same function with latent channels that fit symmetric symbols of ``bits``.

    Channels that would leave the range are made smaller in g_a's last convolution and larger
    again in g_s's first: their symbols are coarser, which costs a little distortion and saves
    a little rate, where clipping would cost much. How much smaller is what leaves the least
    squared error of rounding and clipping together. An entropy bottleneck follows.

    Parameters
    ----------
    network : FloatNetwork
        Factorized: only g_s reads the latents.
    latents : sequence of array (h, w, m)
        What g_a makes of the calibration images.
    bits : int

    Returns the network and the factor of each channel, 0 .. 1 (m,).
    """
    values = np.concatenate([y.reshape(-1, y.shape[-1]) for y in latents])
    limit = (1 << (bits - 1)) - 1
    factor = np.ones(values.shape[1])
    beyond = np.rint(np.abs(values).max(axis=0)) > limit
    factor[beyond] = np.minimum(limit / calibrate.mse_clip(values[:, beyond], limit), 1)
    return scale_latents(network, factor), factor


def scale_latents(network: FloatNetwork, factor: npt.NDArray[np.float64]) -> FloatNetwork:
    """The same function with latent channels times these factors (m,), above 0.

    Above 1 symbols are finer: more rate, less distortion. An entropy bottleneck follows.
    Raises UserError for other factors, and for a network with a hyperprior, which reads latents as
    they are.
    """
    if not np.all((factor > 0) & np.isfinite(factor)):
        raise UserError("latents can only be scaled by finite numbers above 0.")
    if network.hyper:
        raise UserError("latents of a network with a hyperprior cannot be scaled.")
    if np.all(factor == 1):
        return network
    g_a, g_s = network.transforms["g_a"], network.transforms["g_s"]
    last, first = g_a.stages[-1], g_s.stages[0]
    last = replace(last, weight=last.weight * factor[:, None, None, None], bias=last.bias * factor)
    first = replace(first, weight=first.weight / factor[None, :, None, None])
    transforms = {
        "g_a": replace(g_a, stages=[*g_a.stages[:-1], last]),
        "g_s": replace(g_s, stages=[first, *g_s.stages[1:]]),
    }
    bottlenecks = dict(network.bottlenecks)
    if "y" in bottlenecks:
        # the first layer of the cumulative multiplies by softplus(matrix)
        matrix = bottlenecks["y"]["matrices.0"]
        slope = np.logaddexp(0, matrix) / factor[:, None, None]
        bottlenecks["y"] = bottlenecks["y"] | {"matrices.0": slope + np.log(-np.expm1(-slope))}
    return replace(
        network, transforms=dict(network.transforms) | transforms, bottlenecks=bottlenecks
    )
