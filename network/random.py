"""Random integer networks, for fuzzing hardware and golden model against each other.

Constants are drawn so that activations are lively: a network whose layers all clip, or all
round to zero, would hide faults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lichen.network.arithmetic import MULTIPLIER_MAX, ROOT_TABLES, NormKind, normalized_root
from lichen.network.context import NEIGHBOURS, PHASES, ContextModel, Contexts
from lichen.network.description import (
    IMAGE_FORMAT,
    Activation,
    Convolution,
    EntropyTables,
    Format,
    Network,
    Normalization,
    Requantizer,
    Stage,
    Transform,
)


@dataclass(frozen=True, kw_only=True)
class StageShape:
    """What `random_stage` needs to know; widths in bits.

    ``output``, where given, is the format of a stage without a normalization.
    """

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
    output: Format | None = None


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
    norm = shape.activation.norm
    mid = symmetric(shape.x_bits if norm is not None else shape.output_bits)
    if shape.activation is Activation.RELU:
        mid = Format(bits=shape.output_bits, signed=False, lo=0, hi=(1 << shape.output_bits) - 1)
    if norm is None and shape.output is not None:
        mid = shape.output
    middling = shape.activation is Activation.NONE and not mid.signed
    if middling:  # half of the range lies below what a sum of nothing gives
        bias += round(1.25 * deviation)
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
    pre_shift = max(0, math.ceil(math.log2(max(deviation, 1))) - 14)
    gain = mid.hi / 2.5 / (deviation / 2**pre_shift) * rng.uniform(0.6, 1.5, out)
    gain = gain / 2 if middling else gain
    shift = min(35, max(0, 16 - math.ceil(math.log2(float(gain.max())))))
    multiplier = np.clip(np.rint(gain * 2.0**shift), 0, MULTIPLIER_MAX).astype(np.int32)
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
    multiplier = np.clip(np.rint(gains * 2.0**shift), 1, MULTIPLIER_MAX).astype(np.int32)
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


def random_tables(rng: np.random.Generator, tables: int, latent: Format) -> EntropyTables:
    """Entropy tables over random parts of what a latent can hold."""
    rows, offsets = [], []
    for _ in range(tables):
        first = int(rng.integers(latent.lo, 1))
        last = int(rng.integers(1, latent.hi + 1))
        cuts = rng.choice((1 << 16) - 1, last - first + 1, replace=False) + 1
        rows.append(np.concatenate([[0], np.sort(cuts), [1 << 16]]))
        offsets.append(first)
    lengths = np.array([len(row) for row in rows], np.int32)
    cdf = np.zeros((tables, lengths.max()), np.int32)
    for row, values in zip(cdf, rows, strict=True):
        row[: len(values)] = values
    return EntropyTables(cdf=cdf, lengths=lengths, offsets=np.array(offsets, np.int32))


UP: dict[str, Any] = {"transposed": True, "output_padding": 1}


def _main_transforms(
    rng: np.random.Generator,
    n: int,
    m: int,
    widths: dict[str, Any],
    y: Format | None = None,
    source: Format | None = None,
) -> dict[str, Transform]:
    """g_a and g_s; ``y`` is what g_a makes, ``source`` what g_s reads if not the same."""
    gdn, igdn = Activation.GDN, Activation.IGDN
    g_a = random_transform(
        rng,
        [StageShape(out_channels=n, activation=gdn, **widths) for _ in range(3)]
        + [StageShape(out_channels=m, output=y, **widths)],
    )
    g_s = random_transform(
        rng,
        [StageShape(out_channels=n, activation=igdn, **UP, **widths) for _ in range(3)]
        + [StageShape(out_channels=3, output=IMAGE_FORMAT, **UP, **widths)],
        in_channels=m,
        source=g_a.output if source is None else source,
    )
    return {"g_a": g_a, "g_s": g_s}


def random_factorized(seed: int, *, n: int, m: int, **widths: Any) -> Network:
    """A network of ``bmshj2018-factorized``'s shape with random weights and tables."""
    rng = np.random.default_rng(seed)
    transforms = _main_transforms(rng, n, m, widths)
    return Network(
        name=f"random-{seed}",
        architecture="bmshj2018-factorized",
        n=n,
        m=m,
        transforms=transforms,
        entropy={"y": random_tables(rng, m, transforms["g_a"].output)},
    )


def random_hyperprior(
    seed: int,
    *,
    n: int,
    m: int,
    means: bool = False,
    fraction: int = 2,
    scales: int = 16,
    **widths: Any,
) -> Network:
    """A network of the shape of ``bmshj2018-hyperprior``, or with ``means`` of ``mbt2018-mean``.

    Weights, tables and thresholds are random; y has ``fraction`` fractional bits beside 8.
    """
    rng = np.random.default_rng(seed)
    code = symmetric(8)
    y = Format(bits=8 + fraction, signed=True, lo=code.lo << fraction, hi=code.hi << fraction)
    # with means g_s reads the fraction, too
    transforms = _main_transforms(rng, n, m, widths, y, y if means else code)
    act = Activation.LEAKY_RELU if means else Activation.RELU
    plain: dict[str, Any] = {"kernel": 3, "stride": 1}
    h_a = random_transform(
        rng,
        [
            StageShape(out_channels=n, activation=act, **plain, **widths),
            StageShape(out_channels=n, activation=act, **widths),
            StageShape(out_channels=n, output=code, **widths),
        ],
        in_channels=m,
        source=code if means else Format(bits=8, signed=False, lo=0, hi=255),
    )
    sizes = (m, m * 3 // 2, 2 * m) if means else (n, n, m)
    # means about as large as y
    top = y.hi if means else (1 << 16) - 1
    parameters = Format(bits=16, signed=means, lo=-top if means else 0, hi=top)
    last = Activation.NONE if means else Activation.RELU
    h_s = random_transform(
        rng,
        [
            StageShape(out_channels=sizes[0], activation=act, **UP, **widths),
            StageShape(out_channels=sizes[1], activation=act, **UP, **widths),
            StageShape(
                out_channels=sizes[2], activation=last, output=parameters, **plain, **widths
            ),
        ],
        in_channels=n,
        source=code,
    )
    thresholds = np.sort(rng.integers(top // 64 + 1, top, scales - 1))
    return Network(
        name=f"random-{seed}",
        architecture="mbt2018-mean" if means else "bmshj2018-hyperprior",
        n=n,
        m=m,
        transforms=transforms | {"h_a": h_a, "h_s": h_s},
        latent_fraction=fraction,
        scale_thresholds=thresholds,
        entropy={
            "y": random_tables(rng, scales, code),
            "z": random_tables(rng, n, code),
        },
    )


def random_contexts(
    seed: int, network: Network, *, excess: bool = False, carry: bool = False
) -> Network:
    """The network with random context models, every field of which says something.

    Those of format 3 with ``excess``, where there is a hyperprior; those of format 4 with
    ``carry``.
    """
    rng = np.random.default_rng(seed)
    latents = {}
    tables = 9
    for latent in network.latents:
        channels, levels = network.channels(latent) or 1, None
        if network.inner(latent) is not None:
            thresholds = network.thresholds(latent)
            levels = 1 + (0 if thresholds is None else len(thresholds))
        bins, phases, inner = int(rng.integers(2, 12)), int(rng.integers(1, 5)), 3
        corrected: dict[str, Any] = {}
        if levels is not None and excess:
            corrected = {name: rng.integers(0, 512, levels) for name in ("unit", "usual")}
            corrected["gain_shift"] = int(rng.integers(8, 14))
        latents[latent.name] = ContextModel(
            bias=rng.integers(0, 200, channels),
            near=rng.integers(0, 32, (int(rng.choice([2, 4])), channels)),
            slope=rng.integers(-32, 32, (int(rng.choice([0, 2, 4])), channels)),
            inner=rng.integers(0, 32, (inner, channels)),
            outer=rng.integers(0, 32, (inner, channels)),
            carry=rng.integers(0, 32, (len(NEIGHBOURS), inner)) if carry else None,
            spread=None if levels is None else rng.integers(0, 32, channels),
            levels=None if levels is None else rng.integers(0, 2000, levels),
            near_shift=int(rng.integers(0, 5)),
            spread_shift=int(rng.integers(0, 4)) if levels is None or not excess else 0,
            shift=int(rng.integers(0, 6)),
            edges=np.sort(rng.choice(3000, bins - 1, replace=False)) + 1,
            phase=np.sort(rng.integers(0, phases, PHASES)),
            choice=rng.integers(0, tables, (bins, phases)),
            **corrected,
        )
    bank = random_tables(rng, tables, symmetric(6))
    return network.model_copy(update={"contexts": Contexts(tables=bank, latents=latents)})
