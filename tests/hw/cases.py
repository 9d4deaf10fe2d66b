# amaranth: UnusedElaboratable=no
"""Random transforms with random foldings, small enough for any simulator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from amaranth.hdl import Shape

from lichen.hw.engine.element import Backend, packs
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.kinds import transform_units, units_of
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Activation, Transform
from lichen.network.random import StageShape, random_transform, symmetric

NORMS = (Activation.GDN, Activation.IGDN, Activation.GDN1, Activation.IGDN1)
PLAIN = (Activation.NONE, Activation.RELU, Activation.LEAKY_RELU)


@dataclass(frozen=True)
class Case:
    """A transform, how it is folded, and an input."""

    transform: Transform
    folding: Folding
    image: np.ndarray

    def pipeline(self, *, debug: bool = True) -> Pipeline:
        return Pipeline(self.transform, self.folding, debug=debug)


def _pick(rng: np.random.Generator, values):
    return values[int(rng.integers(len(values)))]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def random_array(
    rng: np.random.Generator,
    outputs: int,
    inputs: int,
    before: int | None,
    chains: int,
    most: int,
    operands: tuple[Shape, Shape],
) -> ArrayFolding:
    """An array of at most ``most`` multipliers behind ``before`` channels a beat."""
    lanes = [
        s
        for s in range(1, inputs + 1)
        if chains * s <= most and (before is None or s % before == 0 or before % s == 0)
    ] or [1]
    s = _pick(rng, lanes)
    length = int(rng.integers(1, max(1, min(ceil_div(outputs, chains), most // (s * chains))) + 1))
    pixels = int(rng.integers(1, max(1, min(5, most // (s * chains * length))) + 1))
    backends = [Backend.PORTABLE, Backend.DSP, Backend.LUT]
    if length % 2 == 0 and packs(*operands):
        backends += [Backend.PACKED] * 3
    return ArrayFolding(pixels=pixels, chain_length=length, lanes=s, backend=_pick(rng, backends))


def random_folding(
    rng: np.random.Generator, transform: Transform, max_width: int, most: int = 40
) -> Folding:
    """A valid folding whose every array has at most ``most`` multipliers."""
    stages, before = [], None
    for stage, source in zip(transform.stages, transform.sources, strict=True):
        channels = stage.out_channels
        operands = [kind.operands for kind in units_of(stage, source)]
        chains = int(rng.integers(1, min(4, channels) + 1))
        inputs = stage.convolution.in_channels
        conv = random_array(rng, channels, inputs, before, chains, most, operands[0])
        norm = None
        if stage.normalization is not None:
            norm = random_array(rng, channels, channels, chains, chains, most, operands[1])
        stages.append(StageFolding(chains=chains, convolution=conv, normalization=norm))
        before = chains
    return Folding(max_width=max_width, stages=stages)


def some_tight(rng: np.random.Generator, transform: Transform, folding: Folding) -> Folding:
    """The folding with as few row slots as can be in front of some convolutions."""
    stages = []
    for kinds, stage in zip(transform_units(transform), folding.stages, strict=True):
        conv = kinds[0].tight(stage.convolution) if rng.integers(2) else stage.convolution
        stages.append(stage.model_copy(update={"convolution": conv}))
    return folding.model_copy(update={"stages": stages})


def random_shape(rng: np.random.Generator, channels: int) -> StageShape:
    """Any stage the gateware supports."""
    kernel = _pick(rng, (1, 2, 3, 3, 4, 5, 5, 7, 9))
    bits = [int(rng.integers(4, 11)) for _ in range(3)]
    return StageShape(
        out_channels=channels,
        kernel=kernel,
        stride=_pick(rng, (1, 2, 2, 3, 4)),
        padding=_pick(rng, (kernel // 2, kernel // 2, int(rng.integers(0, kernel)))),
        activation=_pick(rng, NORMS if rng.random() < 0.6 else PLAIN),
        weight_bits=int(rng.integers(2, 11)),
        x_bits=bits[0],
        output_bits=bits[1],
        u_bits=bits[2],
        gamma_bits=int(rng.integers(2, 11)),
    )


def random_case(seed: int, *, cycles: int = 5000) -> Case:
    """The case of a seed; its frame takes at most ``cycles`` cycles."""
    rng = np.random.default_rng(seed)
    while True:
        channels = [int(rng.integers(8, 41)) for _ in range(int(rng.integers(1, 3)))]
        channels[-1] = int(rng.integers(8, 49))
        shapes = [random_shape(rng, c) for c in channels]
        transform = random_transform(rng, shapes, in_channels=_pick(rng, (1, 3, 3, 4)))
        height, width = (int(v) for v in rng.integers(1, 34, 2))
        folding = random_folding(rng, transform, width + int(rng.integers(0, 20)))
        folding = some_tight(np.random.default_rng([seed, 1]), transform, folding)
        if _runs(transform, folding, (height, width), cycles):
            break
    image = rng.integers(0, 256, (height, width, transform.in_channels))
    return Case(transform, folding, image)


def _runs(transform: Transform, folding: Folding, size: tuple[int, int], cycles: int) -> bool:
    """Whether a frame of this height and width leaves something, in so many cycles."""
    try:
        transform.sizes(*size)
    except ValueError:
        return False
    return Pipeline(transform, folding).predicted_cycles(*size) <= cycles


def random_upsampling(seed: int, *, cycles: int = 4000) -> Case:
    """A decoder's transform likewise: transposed convolutions, perhaps a plain one behind."""
    rng = np.random.default_rng(seed)
    while True:
        shapes = []
        for _ in range(int(rng.integers(1, 3))):
            kernel, stride = int(rng.integers(2, 10)), int(rng.integers(1, 5))
            shape = random_shape(rng, int(rng.integers(1, 10)))
            geometry = {
                "kernel": kernel,
                "stride": stride,
                "padding": _pick(rng, (kernel // 2, int(rng.integers(0, kernel)))),
                "output_padding": int(rng.integers(0, stride)),
            }
            shapes.append(replace(shape, transposed=True, **geometry))
        if rng.random() < 0.2:
            shapes.append(random_shape(rng, 3))
        source = symmetric(int(rng.integers(3, 10)))
        transform = random_transform(
            rng, shapes, in_channels=int(rng.integers(1, 9)), source=source
        )
        height, width = (int(v) for v in rng.integers(1, 9, 2))
        folding = random_folding(rng, transform, width + int(rng.integers(0, 5)), most=24)
        folding = some_tight(np.random.default_rng([seed, 1]), transform, folding)
        if _runs(transform, folding, (height, width), cycles):
            break
    image = rng.integers(source.lo, source.hi + 1, (height, width, transform.in_channels))
    return Case(transform, folding, image)
