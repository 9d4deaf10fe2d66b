"""The real network that integers stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lichen.errors import UserError
from lichen.network.description import Activation, Network, Stage
from lichen.quant.float.network import FloatNetwork, FloatStage, FloatTransform
from lichen.quant.training.fake import FakeTransform


def float_stage(stage: Stage) -> FloatStage:
    """The geometry of a stage; its values stand for nothing."""
    conv, norm = stage.convolution, stage.normalization
    out, slope = stage.out_channels, 0.01
    negative = stage.requantizer.negative_multiplier
    if stage.activation is Activation.LEAKY_RELU and negative is not None:
        slope = float(np.median(negative / np.maximum(stage.requantizer.multiplier, 1)))
    return FloatStage(
        name=stage.name,
        weight=conv.weight.astype(np.float64),
        bias=conv.bias.astype(np.float64),
        stride=conv.stride,
        padding=conv.padding,
        output_padding=conv.output_padding,
        transposed=conv.transposed,
        activation=stage.activation,
        beta=None if norm is None else np.ones(out),
        gamma=None if norm is None else np.zeros((out, out)),
        negative_slope=slope,
        kept_channels=stage.kept_channels,
    )


def without_floor(real: FloatNetwork, network: Network) -> FloatNetwork:
    """Take what rounds latents down off a bias that was read from integers.

    See `lichen.quant.calibration.options.FixedOutput.floor`.
    """
    if not network.latent_fraction:
        return real
    g_a = real.transforms["g_a"]
    step = network.transforms["g_a"].stages[-1].scales["output"]
    last = replace(g_a.stages[-1], bias=g_a.stages[-1].bias + 0.5 * step)
    transforms = dict(real.transforms)
    transforms["g_a"] = replace(g_a, stages=[*g_a.stages[:-1], last])
    return replace(real, transforms=transforms)


def float_network(network: Network, parent: FloatNetwork | None = None) -> FloatNetwork:
    """The real network that the integers of a network stand for.

    ``parent`` supplies entropy bottlenecks and provenance.

    Raises UserError when the network does not say its scales or lacks a transform.
    """
    transforms = {}
    for key, transform in network.transforms.items():
        for stage in transform.stages:
            if not {"weight", "input", "output"} <= set(stage.scales):
                raise UserError(
                    f"stage {key}.{stage.name} does not say its scales; search from a checkpoint."
                )
        absolute = key == "h_a" and not transform.input.signed
        skeleton = FloatTransform([float_stage(s) for s in transform.stages], absolute, key)
        transforms[key] = FakeTransform(transform).to_float(skeleton)
    provenance = {k: v for k, v in network.provenance.items() if k == "source"}
    result = FloatNetwork(
        name=network.name,
        architecture=network.architecture,
        n=network.n,
        m=network.m,
        transforms=transforms,
        bottlenecks={} if parent is None else parent.bottlenecks,
        provenance=provenance if parent is None else parent.provenance,
    )
    return without_floor(result, network)
