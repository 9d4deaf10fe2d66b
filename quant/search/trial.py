"""One change tried: a stage requantized, the rest as it is, and what rate and distortion follow."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen.errors import UserError
from lichen.network.description import Network, Transform
from lichen.network.file import dumps
from lichen.network.flow import FEEDS, LATENTS, ORDER
from lichen.network.model import ValidationError
from lichen.quant.calibration.options import (
    FixedOutput,
    Options,
    Widths,
    bits_of,
)
from lichen.quant.calibration.ptq import TransformQuantizer
from lichen.quant.draq.refine import refine_output
from lichen.quant.float.network import FloatNetwork, FloatTransform
from lichen.sim.flow import through
from lichen.sim.golden import (
    Latents,
    code_latent,
    entropy_parameters,
    estimate_bits,
    run_stages,
    run_transform,
    synthesis_input,
)

OUTER = LATENTS[0]
"""The latent of the image itself."""


@dataclass(frozen=True, order=True)
class Change:
    """Other bits for one thing in one stage.

    Attributes
    ----------
    layer : str
        For example ``g_a.conv1``.
    what : str
        A field of `Widths`.
    bits : int
    """

    layer: str
    what: str
    bits: int

    def apply(self, widths: Mapping[str, Widths]) -> dict[str, Widths]:
        """All bits, with the change."""
        changed = replace(widths[self.layer], **{self.what: self.bits})
        if self.what == "gdn_input":
            # a narrower x has a narrower square
            changed = replace(changed, u=min(changed.u, max(2, 2 * (self.bits - 1))))
        return dict(widths) | {self.layer: changed}


Move = tuple[Change, ...]
"""Changes that are made together, one after the other."""


@dataclass(frozen=True)
class RD:
    """Means over crops.

    Attributes
    ----------
    loss : float
        ``bpp + lmbda * mse``.
    bpp : float
    mse : float
        Of 8-bit pixels.
    """

    loss: float
    bpp: float
    mse: float

    def json(self) -> dict[str, float]:
        """With the PSNR of the mean squared error."""
        psnr = 10 * math.log10(255**2 / max(self.mse, 1e-9))
        return {"rd": self.loss, "bpp": self.bpp, "mse": self.mse, "psnr": psnr}


@dataclass(frozen=True)
class Problem:
    """All that a measurement needs beside the network; travels to the workers of a cluster.

    Attributes
    ----------
    real : FloatNetwork
        Whose weights are quantized.
    follow : bool
        Stages are fitted to what the real network makes of the images, so that each makes good
        what those before it lost; otherwise to what the real stage makes of the integers. The
        first suits a network that nothing was trained through its integers yet.
    calibration, held_out : list of uint8 array (H, W, 3)
    lmbda : float
    options : Options
    key : str
        Differs from that of every other problem.
    """

    real: FloatNetwork
    follow: bool
    calibration: list[npt.NDArray[np.uint8]]
    held_out: list[npt.NDArray[np.uint8]]
    lmbda: float
    options: Options
    key: str


@dataclass
class _Trace:
    """What enters each stage, and what comes out in the end.

    ``ints[key][i][n]`` enters stage i of transform ``key`` on image n.
    """

    ints: dict[str, list[list[npt.NDArray]]]
    latents: list[Latents]
    pixels: list[npt.NDArray]
    y: list[npt.NDArray]


def _trace(network: Network, images: Sequence[npt.NDArray[np.uint8]]) -> _Trace:
    ints: dict[str, list[list[npt.NDArray]]] = {
        key: [[] for _ in transform.stages] for key, transform in network.transforms.items()
    }
    trace = _Trace(ints, [], [], [])

    def run(key: str, x: npt.NDArray) -> npt.NDArray:
        outputs = run_stages(network.transforms[key], x)
        for stage, tensor in zip(ints[key], [x, *outputs], strict=False):
            stage.append(tensor)
        return outputs[-1]

    for image in images:
        values, pixels = through(network, image, run)
        trace.pixels.append(pixels)
        trace.y.append(values[OUTER.name])
        trace.latents.append(code_latent(network, values[OUTER.name], *image.shape[:2]))
    return trace


def _to_torch(x: npt.NDArray, scale: npt.NDArray) -> Tensor:
    """Integers (H, W, C) as real values (1, C, H, W)."""
    values = torch.from_numpy((x * scale).astype(np.float32))
    return values.permute(2, 0, 1)[None]


def _reals(network: Network, real: FloatNetwork, trace: _Trace) -> dict[str, list[list[Tensor]]]:
    """What enters each stage of the real network, which starts each transform as `quantize` does:
    g_a and h_a from the images, h_s and g_s from the integers sent."""
    result: dict[str, list[list[Tensor]]] = {
        key: [[] for _ in transform.stages] for key, transform in network.transforms.items()
    }
    ends: dict[str, list[Tensor]] = {}
    inner = {latent.analysis for latent in LATENTS} & {key for key, feed in FEEDS.items() if feed}
    for key in (name for name in ORDER if name in network.transforms):
        transform, ends[key] = real.transforms[key], []
        scale = network.transforms[key].stages[0].scales["input"]
        for n, first in enumerate(trace.ints[key][0]):
            feed = FEEDS[key] if key in inner else None
            x = _to_torch(first, scale) if feed is None else ends[feed][n]
            x = x.abs() if transform.absolute_input else x
            for i, stage in enumerate(transform.stages):
                result[key][i].append(x)
                with torch.no_grad():
                    x = stage.activate(stage.convolve(x))
            ends[key].append(x)
    return result


class Bench:
    """A problem and a network, with everything that measurements of changes share."""

    def __init__(self, problem: Problem, network: Network) -> None:
        self.problem, self.network = problem, network
        self.seen = _trace(network, problem.calibration)
        self.unseen = _trace(network, problem.held_out)
        self.reals = _reals(network, problem.real, self.seen) if problem.follow else None

    def requantized(self, change: Change) -> tuple[Network, str, int]:
        """The network with the change, the transform's key, and the first stage that differs."""
        key, _, name = change.layer.partition(".")
        transform = self.network.transforms[key]
        index = [stage.name for stage in transform.stages].index(name)
        widths = change.apply(bits_of(self.network))
        stages = list(transform.stages)
        between = change.what == "activation"
        if between and not self.problem.follow and change.bits > stages[index].output.bits:
            # What was trained keeps all its constants.
            finer = refine_output(transform, index, change.bits)
            transforms = dict(self.network.transforms) | {key: finer}
            return self.network.model_copy(update={"transforms": transforms}), key, index
        source, scale = transform.sources[index], stages[index].scales["input"]
        ints = self.seen.ints[key][index]
        reals = None if self.reals is None else self.reals[key][index]
        # Where stages follow the real network, those after a change make good what it lost.
        end = len(stages) if self.problem.follow else index + 1 + between
        for i in range(index, end):
            layer = f"{key}.{stages[i].name}"
            real = self.problem.real.transforms[key].stages[i]
            quantizer = TransformQuantizer(
                key,
                FloatTransform([real]),
                source=source,
                source_scale=scale,
                inputs=ints,
                reals=reals,
                options=replace(self.problem.options, per_stage={layer: widths[layer]}),
                last=None if between and i == index else self._output(key, i),
            )
            stages[i] = quantizer.run().stages[0]
            source, scale, ints = quantizer.source, quantizer.scale, quantizer.ints
            reals = None if reals is None else quantizer.floats
        changed = Transform(input=transform.input, stages=stages)
        transforms = dict(self.network.transforms) | {key: changed}
        return self.network.model_copy(update={"transforms": transforms}), key, index

    def _output(self, key: str, index: int) -> FixedOutput:
        """The output that a stage has, for one that is to have the same."""
        stage = self.network.transforms[key].stages[index]
        fraction = 0
        if key == OUTER.analysis and index == len(self.network.transforms[key].stages) - 1:
            fraction = self.network.latent_fraction
        # Beside means the fraction counts among the bits
        # (`lichen.quant.calibration.quantize.quantize`).
        extra = 0 if self.network.means else fraction
        return FixedOutput(
            stage.scales["output"],
            stage.output.bits - extra,
            stage.output.signed,
            extra,
            floor=fraction > 0,
        )

    def measure(self, network: Network, key: str, index: int) -> RD:
        """``R + lambda D`` of a network that differs from stage ``index`` of ``key`` on."""
        rates, errors = [], []
        transform = network.transforms[key]
        rest = Transform(input=transform.sources[index], stages=transform.stages[index:])
        for n, image in enumerate(self.problem.held_out):
            latents, height, width = self.unseen.latents[n], *image.shape[:2]
            if key == OUTER.synthesis:
                pixels = run_transform(rest, self.unseen.ints[key][index][n])
            else:
                y = self.unseen.y[n]
                if key == OUTER.analysis:
                    y = run_transform(rest, self.unseen.ints[key][index][n])
                latents = code_latent(network, y, height, width)
                means, inner = None, network.inner(OUTER)
                if inner is not None and network.has_means(OUTER):
                    means = entropy_parameters(network, latents[inner.name].symbols).means
                g_s = network.transforms[OUTER.synthesis]
                symbols = latents[OUTER.name].symbols
                read = synthesis_input(symbols, means, network.fraction(OUTER), g_s.input)
                pixels = run_transform(g_s, read)
            rates.append(sum(estimate_bits(network, latents).values()) / (height * width))
            errors.append(np.mean((pixels.astype(np.float64) - image) ** 2))
        bpp, mse = float(np.mean(rates)), float(np.mean(errors))
        return RD(bpp + self.problem.lmbda * mse, bpp, mse)

    def own(self) -> RD:
        """The same of the network itself."""
        rates, errors = [], []
        for image, latents, pixels in zip(
            self.problem.held_out, self.unseen.latents, self.unseen.pixels, strict=True
        ):
            bits = sum(estimate_bits(self.network, latents).values())
            rates.append(bits / (image.shape[0] * image.shape[1]))
            errors.append(np.mean((pixels.astype(np.float64) - image) ** 2))
        bpp, mse = float(np.mean(rates)), float(np.mean(errors))
        return RD(bpp + self.problem.lmbda * mse, bpp, mse)


_benches: dict[tuple[str, str], Bench] = {}


def bench_of(problem: Problem, network: Network) -> Bench:
    """The bench of a problem and a network; a process keeps the last one."""
    key = problem.key, hashlib.sha256(dumps(network)).hexdigest()
    if key not in _benches:
        _benches.clear()
        _benches[key] = Bench(problem, network)
    return _benches[key]


@dataclass(frozen=True)
class Trial:
    """Changes that have been made and measured; ``network`` is None where they cannot be made."""

    move: Move
    rd: RD
    network: Network | None


def try_move(problem: Problem, network: Network, move: Move) -> Trial:
    """Requantize what changes touch, and measure it on the crops held out."""
    bench = bench_of(problem, network)
    try:
        for change in move[:-1]:
            bench = Bench(problem, bench.requantized(change)[0])
        changed, key, index = bench.requantized(move[-1])
    except (ValidationError, UserError):  # an accumulator or a norm that would be too wide
        return Trial(move, RD(math.inf, math.inf, math.inf), None)
    return Trial(move, bench.measure(changed, key, index), changed)
