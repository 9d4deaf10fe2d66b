"""Random integer networks, for fuzzing hardware and golden model against each other.

Constants are drawn so that activations are lively: a network whose layers all clip, or all
round to zero, would hide faults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lichen.network.arithmetic import ROOT_TABLES, NormKind, normalized_root
from lichen.network.description import (
    IMAGE_FORMAT,
    Activation,
    Convolution,
    Format,
    Network,
    Normalization,
    Requantizer,
    Stage,
    Transform,
)


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """What `random_stage` needs to know; widths in bits."""

    out_channels: int
    kernel: int = 5
    stride: int = 2
    padding: int | None = None
    output_padding: int = 0
    transposed: bool = False
    activation: Activation = Activation.NONE
    weight_bits: int = 8
    x_bits: int = 8
    output_bits: int = 8
    gamma_bits: int = 8
    u_bits: int = 8


def symmetric(bits: int) -> Format:
    """The signed format without its most negative code."""
    most = (1 << (bits - 1)) - 1
    return Format(bits=bits, signed=True, lo=-most, hi=most)


def random_stage(
    rng: np.random.Generator, name: str, in_channels: int, source: Format, shape: StageShape
) -> Stage:
    """A stage with random weights whose outputs use most of their range."""
    out, k = shape.out_channels, shape.kernel
    limit = (1 << (shape.weight_bits - 1)) - 1
    spread = max(limit / 2.5, 0.7)
    weight = np.clip(np.rint(rng.normal(0, spread, (out, in_channels, k, k))), -limit, limit)
    deviation = source.hi / 2 * math.sqrt(in_channels * k * k) * spread
    if source.lo >= 0:
        deviation *= 1.2
    bias = np.rint(rng.normal(0, deviation / 4, out)).astype(np.int64)
    convolution = Convolution(
        kernel=k,
        stride=shape.stride,
        padding=k // 2 if shape.padding is None else shape.padding,
        output_padding=shape.output_padding,
        transposed=shape.transposed,
        weight_bits=shape.weight_bits,
        weight=weight.astype(np.int16),
        bias=bias,
    )
    norm = shape.activation.norm
    mid = symmetric(shape.x_bits if norm is not None else shape.output_bits)
    if shape.activation is Activation.RELU:
        mid = Format(bits=shape.output_bits, signed=False, lo=0, hi=(1 << shape.output_bits) - 1)
    pre_shift = max(0, math.ceil(math.log2(max(deviation, 1))) - 14)
    gain = mid.hi / 2.5 / (deviation / 2**pre_shift) * rng.uniform(0.6, 1.5, out)
    shift = min(35, max(0, 16 - math.ceil(math.log2(float(gain.max())))))
    multiplier = np.clip(np.rint(gain * 2.0**shift), 0, (1 << 17) - 1).astype(np.int32)
    requantizer = Requantizer(
        pre_shift=np.full(out, pre_shift, np.int8) - (rng.random(out) < 0.3) * (pre_shift > 0),
        multiplier=multiplier,
        negative_multiplier=(multiplier // 7)
        if shape.activation is Activation.LEAKY_RELU
        else None,
        shift=shift,
        output=mid,
    )
    normalization = None
    if norm is not None:
        normalization = random_normalization(rng, norm, mid, out, shape)
    return Stage(
        name=name,
        convolution=convolution,
        requantizer=requantizer,
        activation=shape.activation,
        normalization=normalization,
    )


def random_normalization(
    rng: np.random.Generator, kind: NormKind, source: Format, channels: int, shape: StageShape
) -> Normalization:
    """A normalization of random constants whose outputs use most of their range."""
    peak = source.magnitude**2 if kind.squares else source.magnitude
    u_shift = max(0, peak.bit_length() - shape.u_bits)
    top = (1 << shape.gamma_bits) - 1
    gamma = np.rint(top * rng.random((channels, channels)) ** 4).astype(np.int32)
    u_typical = max(peak / 8 / 2**u_shift, 0.5)
    beta = rng.integers(1, max(2, int(u_typical * top * channels / 4)), channels)
    typical = int(min(2**32 - 1, beta.mean() + gamma.sum(axis=1).mean() * u_typical)) or 1
    r, e = normalized_root(np.int64(typical), ROOT_TABLES[kind], kind.squares)
    product_shift = max(0, source.bits + 16 - 18)
    output = symmetric(shape.output_bits)
    # y = (x r >> a) k >> (b +- e), with x around a third of its range
    before = source.hi / 2.5 * int(r) / 2**product_shift
    gain = output.hi / 2 / before * 2.0 ** (-int(e) if kind.inverse else int(e))
    gains = gain * rng.uniform(0.6, 1.5, channels)
    shift = int(np.clip(16 - math.ceil(math.log2(gains.max())), 0, 47))
    if kind.inverse:
        norm_max = int(gamma.sum(axis=1).max()) * (peak >> u_shift) + int(beta.max())
        shift = max(shift, (norm_max.bit_length() - 1) >> int(kind.squares))
    multiplier = np.clip(np.rint(gains * 2.0**shift), 1, (1 << 17) - 1).astype(np.int32)
    return Normalization(
        kind=kind,
        gamma_bits=shape.gamma_bits,
        gamma=gamma,
        beta=beta.astype(np.int64),
        u_bits=shape.u_bits,
        u_shift=u_shift,
        product_shift=product_shift,
        multiplier=multiplier,
        shift=shift,
        output=output,
    )


def random_transform(
    rng: np.random.Generator,
    shapes: list[StageShape],
    *,
    in_channels: int = 3,
    source: Format = IMAGE_FORMAT,
) -> Transform:
    """A transform of random stages, named ``conv1``, ``conv2``, ..."""
    stages: list[Stage] = []
    fmt, channels = source, in_channels
    for i, shape in enumerate(shapes):
        stages.append(random_stage(rng, f"conv{i + 1}", channels, fmt, shape))
        fmt, channels = stages[-1].output, shape.out_channels
    return Transform(input=source, stages=stages)


def random_factorized(seed: int, *, n: int, m: int, **widths: Any) -> Network:
    """A network of ``bmshj2018-factorized``'s shape with random weights (g_a and g_s)."""
    rng = np.random.default_rng(seed)
    gdn, igdn = Activation.GDN, Activation.IGDN
    g_a = random_transform(
        rng,
        [StageShape(out_channels=n, activation=gdn, **widths) for _ in range(3)]
        + [StageShape(out_channels=m, **widths)],
    )
    up: dict[str, Any] = {"transposed": True, "output_padding": 1}
    g_s = random_transform(
        rng,
        [StageShape(out_channels=n, activation=igdn, **up, **widths) for _ in range(3)]
        + [StageShape(out_channels=3, **up, **widths)],
        in_channels=m,
        source=g_a.output,
    )
    return Network(
        name=f"random-{seed}",
        architecture="bmshj2018-factorized",
        n=n,
        m=m,
        transforms={"g_a": g_a, "g_s": g_s},
    )
