"""Progressive mixed-precision search: bits go where they are worth what they cost.

After the second stage of Fang and Chen, "A multi-stage optimization framework for deploying
learned image compression on FPGAs" (2025); the cost, the local requantization and the order of
trials are ours. From a uniformly quantized network on, each step takes bits from weights,
activations or normalizations of one stage: where the cost saved per loss is greatest. A loss is
always measured, on crops that nothing is calibrated on, with the network really requantized; what
is only estimated is which changes are worth measuring (lazy greedy, after Minoux, "Accelerated
greedy algorithms for maximizing submodular set functions", 1978).

*Loss.* ``R + lambda D`` in bits per pixel, above that of the start, as a share of the start's R.
Since lambda is the slope of the rate-distortion curve where the network stands on it, this is, to
first order, the rate that the change costs at equal quality: a BD-rate.

*Requantization.* The stage that a change of bits touches (two, where the format between them
changes) is quantized anew as ptq does it, on the integers that reach it, and so are all stages
after it in the transform: each is fitted to what the real network makes there, and so makes good
what those before it lost. What bits lose then depends on the bits, not on the order in which they
were taken. After fine-tuning only the stages touched are, and all others stay what training has
made of them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lichen import caches
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.hw.plan import planner
from lichen.hw.plan.price import Pace, with_widths
from lichen.network.description import PHOTO, Activation, Network, Stage, Transform
from lichen.network.file import dumps, load
from lichen.quant.calibration.calibrate import CalibrationImages
from lichen.quant.calibration.latents import fit_latent_range
from lichen.quant.calibration.ptq import (
    WIDTHS_MAX,
    WIDTHS_MIN,
    FixedOutput,
    Options,
    TransformQuantizer,
    Widths,
    bits_of,
)
from lichen.quant.calibration.quantize import Quantized, check_supported, quantize
from lichen.quant.draq.draq import bottleneck_of, coded_key, measured, real_network, tuned_network
from lichen.quant.draq.refine import refine_output
from lichen.quant.float.network import FloatNetwork, FloatStage, FloatTransform
from lichen.quant.float.tensors import save_tensors
from lichen.quant.training import finetune, rate
from lichen.quant.training.data import CropSource
from lichen.quant.training.fake import FakeTransform
from lichen.quant.training.finetune import INTEGER, FineTuner, TuneConfig
from lichen.sim.golden import (
    Latents,
    code_latent,
    entropy_parameters,
    estimate_bits,
    hyper_input,
    run_stages,
    run_transform,
    synthesis_input,
)

JUMP = 3
"""Most bits that a step takes away at once: a packing may begin only there."""

BATCHES = 3
"""Times that a step measures a batch of changes before it takes the best of them."""

SWEEP = 4
"""Batches of changes measured before the search ends, though they seem to lose too much."""

FREE = 1e-9
"""Relative difference of two costs that counts as none."""

LEAST_LOSS = 1e-5
"""Losses below this share of the start's rate count as so much, or a gain would divide by zero."""

BARGAIN = 1.5
"""Bits are bought where they win so many times what it seems to lose to save as much elsewhere."""

LEAST_GAIN = 5e-4
"""Share of the start's rate that bits which cost nothing must win to be given."""


# Costs -------------------------------------------------------------------------------------


class Cost(Protocol):
    """What an assignment of bits costs.

    Attributes
    ----------
    name : str
    kinds : tuple of str
        Fields of `Widths` that it depends on.
    free : tuple of str
        Fields that it does not depend on: what may have more bits if that helps.
    transforms : tuple of str
        Keys of the transforms that it counts.
    """

    name: str
    kinds: tuple[str, ...]
    free: tuple[str, ...]
    transforms: tuple[str, ...]

    def __call__(self, widths: Mapping[str, Widths]) -> float:
        """The cost of the bits of all stages."""
        ...

    def reached(self, network: Network, cost: float) -> dict[str, Any] | None:
        """What says that the search may end, or None."""
        ...

    def json(self) -> dict[str, Any]: ...


class BopsCost:
    """Bit-operations of all transforms for one `PHOTO`, as `Network.bops` counts them."""

    name = "bops"
    kinds: tuple[str, ...] = ("weight", "activation", "gamma", "u")
    free: tuple[str, ...] = ("gdn_input",)

    def __init__(self, network: Network) -> None:
        self.transforms = tuple(network.transforms)
        # each product of two operands: MACs, whose weights, and whose output is the input
        self._terms: list[tuple[int, str, str | None, int]] = []
        size = PHOTO
        for key in ("g_a", "h_a", "h_s", "g_s"):
            if key not in network.transforms:
                continue
            transform = network.transforms[key]
            sizes, before = transform.sizes(*size), None
            for stage, (h, w) in zip(transform.stages, sizes[1:], strict=True):
                layer, norm = f"{key}.{stage.name}", stage.normalization
                macs = stage.convolution.macs(h, w)
                self._terms.append((macs, layer, before, transform.input.bits))
                if norm is not None:
                    self._terms.append((norm.macs(h, w), layer, layer, 0))
                before = layer
            size = sizes[-1]

    def __call__(self, widths: Mapping[str, Widths]) -> float:
        total = 0
        for macs, layer, before, bits in self._terms:
            own = widths[layer]
            if before == layer:
                total += macs * own.gamma * own.u
            else:
                total += macs * own.weight * (bits if before is None else widths[before].activation)
        return float(total)

    def reached(self, network: Network, cost: float) -> dict[str, Any] | None:
        return None

    def json(self) -> dict[str, Any]:
        return {"name": self.name}


class HardwareCost:
    """The share of a board that a transform needs at a pace, by fixed prices.

    Parameters
    ----------
    network : Network
        Supplies the shapes, and the prices: those that suit it.
    transform : str
        Which transform is to be built.
    pace : Pace
    """

    name = "hardware"
    kinds: tuple[str, ...] = ("weight", "activation", "gamma", "u", "gdn_input")
    free: tuple[str, ...] = ()

    def __init__(self, network: Network, transform: str, pace: Pace) -> None:
        self.transforms: tuple[str, ...] = (transform,)
        self.pace = pace
        self.shape = network.transform(transform)
        self._found: dict[tuple[Widths, ...], float] = {}
        self.prices = pace.prices(self.shape)

    def __call__(self, widths: Mapping[str, Widths]) -> float:
        (key,) = self.transforms
        own = {stage.name: widths[f"{key}.{stage.name}"] for stage in self.shape.stages}
        known = tuple(own.values())
        if known not in self._found:
            self._found[known] = self.pace.cost(with_widths(self.shape, own), self.prices)
        return self._found[known]

    def reached(self, network: Network, cost: float) -> dict[str, Any] | None:
        """The plan, once one keeps the pace and fits: with a cost above 1 none can."""
        transform, pace = network.transforms[self.transforms[0]], self.pace
        if cost > 1 or pace.reach(transform) is None:
            return None
        plan = planner.plan(transform, pace.budget, device=pace.device, max_width=pace.max_width)
        if plan.cycles_per_frame > pace.cycles_per_frame or not planner.fits(
            plan.resources, pace.budget
        ):
            return None
        return {
            "cycles_per_frame": plan.cycles_per_frame,
            "dsp": plan.resources.dsp,
            "bram": plan.resources.bram,
            "lut": plan.resources.lut,
            "folding": plan.folding.model_dump(mode="json"),
        }

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "transform": self.transforms[0],
            "max_width": self.pace.max_width,
            "cycles_per_frame": self.pace.cycles_per_frame,
            "prices": asdict(self.prices),
        }


# Requantizing a stage ----------------------------------------------------------------------


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
        y = run("g_a", image)
        means = None
        if network.hyper:
            z = run("h_a", hyper_input(y, network.transforms["h_a"].input))
            run("h_s", z)
            means = entropy_parameters(network, z).means
        latents = code_latent(network, y, *image.shape[:2])
        read = synthesis_input(
            latents["y"].symbols, means, network.latent_fraction, network.transforms["g_s"].input
        )
        trace.pixels.append(run("g_s", read))
        trace.y.append(y)
        trace.latents.append(latents)
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
    for key in ("g_a", "h_a", "h_s", "g_s"):
        if key not in network.transforms:
            continue
        transform, ends[key] = real.transforms[key], []
        scale = network.transforms[key].stages[0].scales["input"]
        for n, first in enumerate(trace.ints[key][0]):
            x = ends["g_a"][n] if key == "h_a" else _to_torch(first, scale)
            x = x.abs() if transform.absolute_input else x
            for i, stage in enumerate(transform.stages):
                result[key][i].append(x)
                with torch.no_grad():
                    x = stage.activate(stage.convolve(x))
            ends[key].append(x)
    return result


class _Bench:
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
        if key == "g_a" and index == len(self.network.transforms[key].stages) - 1:
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
            if key == "g_s":
                pixels = run_transform(rest, self.unseen.ints[key][index][n])
            else:
                y = self.unseen.y[n]
                if key == "g_a":
                    y = run_transform(rest, self.unseen.ints[key][index][n])
                latents = code_latent(network, y, height, width)
                means = None
                if network.means:
                    means = entropy_parameters(network, latents["z"].symbols).means
                g_s = network.transforms["g_s"]
                symbols = latents["y"].symbols
                read = synthesis_input(symbols, means, network.latent_fraction, g_s.input)
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


_benches: dict[tuple[str, str], _Bench] = {}


def _bench(problem: Problem, network: Network) -> _Bench:
    """The bench of a problem and a network; a process keeps the last one."""
    key = problem.key, hashlib.sha256(dumps(network)).hexdigest()
    if key not in _benches:
        _benches.clear()
        _benches[key] = _Bench(problem, network)
    return _benches[key]


@dataclass(frozen=True)
class Trial:
    """Changes that have been made and measured; ``network`` is None where they cannot be made."""

    move: Move
    rd: RD
    network: Network | None


def try_move(problem: Problem, network: Network, move: Move) -> Trial:
    """Requantize what changes touch, and measure it on the crops held out."""
    bench = _bench(problem, network)
    try:
        for change in move[:-1]:
            bench = _Bench(problem, bench.requantized(change)[0])
        changed, key, index = bench.requantized(move[-1])
    except (ValidationError, UserError):  # an accumulator or a norm that would be too wide
        return Trial(move, RD(math.inf, math.inf, math.inf), None)
    return Trial(move, bench.measure(changed, key, index), changed)


class Executor(Protocol):
    """Where changes are tried."""

    def trials(self, problem: Problem, network: Network, moves: Sequence[Move]) -> Iterable[Trial]:
        """One trial for each move, in order."""
        ...


class InProcess:
    """One after the other, here."""

    def trials(self, problem: Problem, network: Network, moves: Sequence[Move]) -> Iterable[Trial]:
        return (try_move(problem, network, move) for move in moves)


class Cluster:
    """On the workers of a Dask scheduler.

    Which changes are tried does not depend on how many workers there are, so that the result is
    that of `InProcess`, given the same versions of everything.

    Raises UserError when the extra is missing or no scheduler answers.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError(
                f"a cluster needs the cluster extra ({error.name} is missing); "
                "install it with: pip install 'lichen[cluster]'"
            ) from None
        try:
            self.client = Client(address, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"there is no Dask scheduler at {address} ({reason}).") from None
        self._sent: tuple[str, Any] | None = None

    def trials(self, problem: Problem, network: Network, moves: Sequence[Move]) -> Iterable[Trial]:
        if self._sent is None or self._sent[0] != problem.key:
            self._sent = problem.key, self.client.scatter(problem, broadcast=True, hash=False)
        here = self.client.scatter(network, broadcast=True, hash=False)
        futures = [
            self.client.submit(try_move, self._sent[1], here, move, pure=False) for move in moves
        ]
        return (future.result() for future in futures)


# Networks from integers --------------------------------------------------------------------


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
    """Take what rounds latents down (`lichen.quant.calibration.ptq.FixedOutput.floor`) off a bias
    that was read from integers."""
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


# The search --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes
    ----------
    quantization : Options
        Of the start, and how stages are requantized.
    lmbda : float
        Weight of the mean squared error of 8-bit pixels against bits per pixel.
    max_loss : float
        Where to end, see the module: 0.01 is 1 %. Below 0, that much must be won against the
        start, by bits given where they cost little.
    least : int
        Fewest bits of anything.
    tries : int
        Changes measured at a time.
    held_out : int
        Every so-many-th crop is measured on, and not calibrated on.
    layers : tuple of str
        Stages that may change, such as ``g_a.conv1``; none means all.
    kinds : tuple of str
        Fields of `Widths` that may change; none means all that the cost depends on.
    among : tuple of int
        The only numbers of bits to take or give; none means any.
    tune : TuneConfig or None
        Fine-tuning of a round; its ``steps`` are those of one round.
    tune_every : int
        Steps of the search from one fine-tuning to the next.
    device : str
        Of fine-tuning: ``auto``, ``cpu`` or ``cuda``.
    """

    quantization: Options
    lmbda: float
    max_loss: float = 0.01
    least: int = WIDTHS_MIN
    tries: int = 4
    held_out: int = 3
    layers: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    among: tuple[int, ...] = ()
    tune: TuneConfig | None = None
    tune_every: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        for good, what in (
            (
                abs(self.max_loss) < 1,
                f"the loss must lie between -100 and 100 %, not be {self.max_loss:.0%}",
            ),
            (
                WIDTHS_MIN <= self.least <= 8,
                f"the fewest bits must lie in {WIDTHS_MIN} .. 8, not {self.least}",
            ),
            (self.tries >= 1, f"at least one change must be tried at a time, not {self.tries}"),
            (
                self.held_out >= 2,
                f"at most every second crop can be held out, not every {self.held_out}",
            ),
            (
                self.tune_every >= 1,
                f"fine-tuning must come after at least one step, not {self.tune_every}",
            ),
            (
                self.quantization.method == "ptq",
                "the search starts from ptq; the method minmax is a baseline of its own",
            ),
        ):
            if not good:
                raise UserError(what + ".")

    def json(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(asdict(self)))


@dataclass
class _State:
    """All that a search goes on from."""

    start: Network
    network: Network
    real: FloatNetwork
    bottleneck: dict[str, npt.NDArray]
    follow: bool
    first: RD
    now: RD
    log: list[dict[str, Any]]
    slopes: dict[str, float] = field(default_factory=dict)
    lowered: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    bought: list[str] = field(default_factory=list)
    rounds: int = 0
    since: int = 0
    trials: int = 0
    ended: str | None = None
    target: dict[str, Any] | None = None


@dataclass(frozen=True)
class SearchResult:
    """Where the search ended.

    Attributes
    ----------
    start : Network
        Where it began.
    final : Quantized
        The network, its tables fitted anew, measured on all crops.
    first, last : RD
        On the crops held out.
    log : list of dict
        One entry a step.
    ended : str
        ``loss``, ``target``, or ``stopped`` by ``stop_after``.
    target : dict or None
        The plan that met the board target.
    """

    start: Network
    final: Quantized
    first: RD
    last: RD
    log: list[dict[str, Any]]
    ended: str
    target: dict[str, Any] | None


MakeCost = Callable[[Network], Cost]
STATE_HEADER = "lichen-search"


class Search:
    """A search in memory.

    Parameters
    ----------
    network : FloatNetwork
    images : CalibrationImages
        At least two; some are held out.
    options : SearchOptions
    make_cost : callable
        Makes the cost from the starting network.
    name : str or None
        Of the result; None takes the checkpoint's.
    start : Network or None
        Where to start; None quantizes with ``options.quantization``.
    train : sequence of path
        Photographs for fine-tuning.
    state : Path or None
        Where the state is kept after every step, and what ``resume`` goes on from.
    executor : Executor or None
    watch : callable
        Called with a phrase and the number of changes tried since the last call.
    """

    def __init__(
        self,
        network: FloatNetwork,
        images: CalibrationImages,
        options: SearchOptions,
        make_cost: MakeCost,
        *,
        name: str | None = None,
        start: Network | None = None,
        train: Sequence[str | Path] = (),
        state: Path | None = None,
        resume: bool = False,
        executor: Executor | None = None,
        watch: Callable[[str, int], None] = lambda phrase, trials: None,
    ) -> None:
        check_supported(network)
        if len(images.crops) < 2:
            raise UserError("a search takes at least two calibration images: one is held out.")
        self.parent, self.images, self.options = network, images, options
        self.name, self.path, self.watch = name, state, watch
        self.executor = executor or InProcess()
        every = options.held_out
        self.held_out = images.crops[every - 1 :: every] or images.crops[-1:]
        known = {id(crop) for crop in self.held_out}
        self.calibration = [crop for crop in images.crops if id(crop) not in known]
        self.source: CropSource | None = None
        if options.tune is not None:
            tune = options.tune
            if tune.patch % network.factor:
                raise UserError(
                    f"the patch must be a multiple of {network.factor}, not {tune.patch}."
                )
            self.source = CropSource(train, patch=tune.patch, downscale=tune.downscale)
        self.quantization = options.quantization
        if not network.hyper:
            bits = self.quantization.latent_bits or self.quantization.widths.activation
            self.quantization = replace(self.quantization, latent_bits=bits)
        self._settings: dict[str, Any] = {
            "options": options.json(),
            "calibration": images.digest,
            "training": None if self.source is None else self.source.digest,
            "network": _digest(network),
            "start": None if start is None else hashlib.sha256(dumps(start)).hexdigest(),
        }
        saved = self._load() if resume else None
        self.state = self._begin(start) if saved is None else saved
        self.cost = make_cost(self.state.start)
        self._check_names()
        if saved is None:
            entry = self._entry("start", None)
            self.state.log.append(entry)
            self._check_target(entry["cost"])
            self._save()
        elif self.state.log[0]["how"] != self.cost.json():
            raise UserError(
                f"{self.path} counts another cost; resume with the same options or start anew."
            )

    # Start and end -------------------------------------------------------------------------

    def _begin(self, start: Network | None) -> _State:
        real, follow = self.parent, start is None
        bottleneck = bottleneck_of(real, self.images, self.quantization.seed)
        if start is not None:
            _check_same_shape(self.parent, start)
            real = float_network(start, self.parent)
            if not real.hyper:
                # ranges of latents may have been fitted, and weights have been trained
                latents = [real.analyze(image) for image in self.calibration]
                bottleneck = rate.fit_bottleneck(latents, self.quantization.seed)
        else:
            if not real.hyper:
                latents = [real.analyze(image) for image in self.calibration]
                bits = self.quantization.latent_bits
                assert bits is not None
                real, _ = fit_latent_range(real, latents, bits)
                bottleneck = bottleneck_of(real, self.images, self.quantization.seed)
            self.watch("start", 0)
            crops = CalibrationImages(self.calibration)
            start = quantize(real, crops, self.quantization).network
        nothing = RD(math.inf, math.inf, math.inf)
        state = _State(start, start, real, bottleneck, follow, nothing, nothing, [])
        self.state = state
        if self.options.tune is not None:
            # What more training alone would win must not count as won by the search.
            state.now = _bench(self._problem(), start).own()
            self._tune()
            state.start = state.network
        state.first = state.now = _bench(self._problem(), state.network).own()
        return state

    def _problem(self) -> Problem:
        s = self.state
        return Problem(
            s.real,
            s.follow,
            self.calibration,
            self.held_out,
            self.options.lmbda,
            self.quantization,
            _digest(s.real) + self.images.digest,
        )

    def _check_names(self) -> None:
        layers = set(bits_of(self.state.start))
        unknown = sorted(set(self.options.layers) - layers)
        if unknown:
            raise UserError(
                f"the network has no stage {unknown[0]}, only {', '.join(sorted(layers))}."
            )
        if not self.knobs():
            raise UserError("there is nothing to search: no stage and kind of bits that counts.")

    def knobs(self) -> list[tuple[str, str]]:
        """Stages, and what of them may change, in order."""
        return self._knobs(self.cost.kinds)

    def _knobs(self, of: Sequence[str]) -> list[tuple[str, str]]:
        kinds = [k for k in of if not self.options.kinds or k in self.options.kinds]
        result = []
        for key in self.cost.transforms:
            transform = self.state.start.transforms[key]
            for stage in transform.stages:
                layer = f"{key}.{stage.name}"
                if self.options.layers and layer not in self.options.layers:
                    continue
                for kind in kinds:
                    fixed = kind == "activation" and stage is transform.stages[-1]
                    lacks = kind in ("gamma", "u", "gdn_input") and stage.normalization is None
                    if not fixed and not lacks:
                        result.append((layer, kind))
        return result

    def run(self, stop_after: int | None = None) -> SearchResult:
        """Search to the end, or for so many steps."""
        done = 0
        while self.state.ended is None and (stop_after is None or done < stop_after):
            self.step()
            self._save()
            done += 1
        return self._result()

    def _result(self) -> SearchResult:
        s = self.state
        settings = {
            "method": "search",
            **self.options.json(),
            "cost": self.cost.json(),
            "steps": sum(1 for entry in s.log if entry["step"] in CHANGING),
            "loss": self.loss(s.now),
            "ended": s.ended or "stopped",
        }
        final = measured(
            self.parent, self.images, s.network, s.bottleneck, settings, self.name, True
        )
        return SearchResult(s.start, final, s.first, s.now, s.log, s.ended or "stopped", s.target)

    # Steps ---------------------------------------------------------------------------------

    def _allowed(self, bits: int) -> bool:
        return not self.options.among or bits in self.options.among

    def _lesser(self, bits: int, *, far: bool = False) -> list[int]:
        """Fewer bits than these that a step may leave, most first; ``far``: of any length."""
        allowed = [b for b in range(self.options.least, bits) if self._allowed(b)]
        return [b for b in reversed(allowed) if far or b >= min(bits - JUMP, max(allowed))]

    def loss(self, rd: RD) -> float:
        """Above the start, as a share of its rate."""
        first = self.state.first
        return (rd.loss - first.loss) / first.bpp if math.isfinite(first.bpp) else 0.0

    def step(self) -> None:
        """One step: bits given that cannot cost anything, else bought if the loss is to be lower,
        else taken away, else given back for free, else bought where they are worth more than those
        that could be taken, else exchanged, else whatever only seemed to lose too much, else
        fine-tuning, else the end."""
        s = self.state
        tuning = self.options.tune is not None
        if tuning and s.since >= self.options.tune_every:
            self._tune()
            return
        if not s.slopes:
            self._survey()
        kinds = self.cost.kinds
        if (
            self._raise(self.cost.free)
            or (self._room < 0 and self._buy())
            or self._lower()
            or self._raise(kinds)
            or self._buy()
            or self._exchange()
            or self._sweep()
        ):
            return
        if tuning and s.since:
            self._tune()
            return
        s.ended = "loss"

    def _try(self, moves: Sequence[Move]) -> list[Trial]:
        """Measure moves; what single changes say about their knobs is remembered."""
        s, trials = self.state, []
        widths = bits_of(s.network)
        for trial in self.executor.trials(self._problem(), s.network, moves):
            if trial.network is not None and len(trial.move) == 1:
                (change,) = trial.move
                before = getattr(widths[change.layer], change.what)
                lost = trial.rd.loss - s.now.loss
                s.slopes[f"{change.layer}.{change.what}"] = lost / _noise(change.bits, before)
            trials.append(trial)
            s.trials += 1
            self.watch(", ".join(f"{c.layer} {c.what} {c.bits}" for c in trial.move), 1)
        return trials

    def _survey(self) -> None:
        """Try the next fewer bits of everything."""
        widths = bits_of(self.state.network)
        moves: list[Move] = []
        for layer, what in self._knobs((*self.cost.kinds, *self.cost.free)):
            lesser = self._lesser(getattr(widths[layer], what))
            if lesser:
                moves.append((Change(layer, what, lesser[0]),))
        trials = self._try(moves)
        told = [self._told(trial) for trial in trials]
        self.state.log.append(self._entry("survey", None) | {"tried": told})

    def _greater(self, bits: int, what: str) -> int | None:
        """The next more bits than these, None where there are no more."""
        more = range(bits + 1, WIDTHS_MAX[what] + 1)
        return next((b for b in more if self._allowed(b)), None)

    @property
    def _room(self) -> float:
        """How much more R + lambda D may be lost."""
        s = self.state
        return s.first.loss + self.options.max_loss * s.first.bpp - s.now.loss

    def _lower(self) -> bool:
        """Take bits away where most is saved per loss; False when nothing may go."""
        widths = bits_of(self.state.network)
        worth = self._lower_moves(widths, self.cost(widths))

        def estimate(move: Move) -> float:
            # going by its knob's last trial
            slope = self.state.slopes.get(f"{move[0].layer}.{move[0].what}", 0.0)
            return slope * worth[move][1]

        saved = {move: saving for move, (saving, _) in worth.items()}
        return self._best_of("lower", saved, estimate, sure=True)

    def _lower_moves(
        self, widths: Mapping[str, Widths], cost: float, *, far: bool = False
    ) -> dict[Move, tuple[float, float]]:
        """Changes that take bits away from ``widths`` and come below ``cost``, with what each saves
        of it and how much noise it adds."""
        moves: dict[Move, tuple[float, float]] = {}
        kept = {*self.state.raised, *self.state.bought}
        for layer, what in self.knobs():
            if f"{layer}.{what}" in kept:
                continue
            bits, lowest = getattr(widths[layer], what), cost
            for b in self._lesser(bits, far=far):
                change = Change(layer, what, b)
                then = self.cost(change.apply(widths))
                if then < lowest * (1 - FREE):
                    moves[(change,)] = cost - then, _noise(b, bits)
                    lowest = then
        return moves

    def _exchange(self) -> bool:
        """Give bits in one place to take more in another; False when nothing is won.

        Single steps end where the next one would lose too much, or where what was taken first
        is in the way of something better. And some places are worth more bits than the start's.
        """
        widths = bits_of(self.state.network)
        saved, losses = self._exchanges(widths, self.cost(widths))
        return self._best_of("exchange", saved, losses.__getitem__)

    def _exchanges(
        self, widths: Mapping[str, Widths], cost: float, *, far: bool = False
    ) -> tuple[dict[Move, float], dict[Move, float]]:
        """One more width here and fewer bits there, below ``cost``: what each saves of it, and what
        it seems to lose."""
        slopes = self.state.slopes
        saved: dict[Move, float] = {}
        losses: dict[Move, float] = {}
        for layer, what in self.knobs():
            bits = getattr(widths[layer], what)
            more = self._greater(bits, what)
            if more is None:
                continue
            back = Change(layer, what, more)
            between = back.apply(widths)
            won = slopes.get(f"{layer}.{what}", 0.0) * _noise(bits, more)
            for (change,), (saving, noise) in self._lower_moves(between, cost, far=far).items():
                if (change.layer, change.what) != (layer, what):
                    lost = slopes.get(f"{change.layer}.{change.what}", 0.0) * noise
                    saved[back, change] = saving
                    losses[back, change] = lost - won
        return saved, losses

    def _sweep(self) -> bool:
        """Measure what estimates have ruled out, and steps of any length; False when none stays
        within the loss.

        An estimate is what the knob's last trial lost, and losses of a fraction of a percent are
        half noise: before the end the least of them are looked at themselves.
        """
        s = self.state
        widths = bits_of(s.network)
        cost = self.cost(widths)
        saved, losses = self._exchanges(widths, cost, far=True)
        for move, (saving, noise) in self._lower_moves(widths, cost, far=True).items():
            slope = s.slopes.get(f"{move[0].layer}.{move[0].what}", 0.0)
            saved[move], losses[move] = saving, slope * noise
        least = sorted(saved, key=lambda move: (losses[move], move))
        trials = self._try(least[: SWEEP * self.options.tries])
        good = [t for t in trials if t.rd.loss - s.now.loss <= self._room]
        if not good:
            return False
        best = min(good, key=lambda t: (-saved[t.move], t.rd.loss, t.move))
        self._accept("lower" if len(best.move) == 1 else "exchange", best, trials, s.lowered)
        return True

    def _best_of(
        self,
        how: str,
        saved: Mapping[Move, float],
        estimate: Callable[[Move], float],
        *,
        sure: bool = False,
    ) -> bool:
        """Measure the moves that seem best, and make the one that is; False where none may be.

        ``sure`` measures some even if nothing seems to stay within the loss.
        """
        s, room = self.state, self._room
        least = LEAST_LOSS * s.first.bpp
        tried: dict[Move, Trial] = {}

        def worth(move: Move, loss: float) -> tuple[float, Move]:
            return -saved[move] / max(loss, least), move

        def good() -> list[tuple[tuple[float, Move], Trial]]:
            losses = {t.move: t.rd.loss - s.now.loss for t in tried.values()}
            return sorted(
                (worth(move, loss), tried[move]) for move, loss in losses.items() if loss <= room
            )

        for _ in range(BATCHES):
            best = good()
            left = [(move, estimate(move)) for move in saved if move not in tried]
            order = sorted(worth(move, loss) for move, loss in left if loss <= room)
            if best and (not order or best[0][0] <= order[0]):
                break
            if not order:
                if tried or not sure:
                    break
                order = sorted((loss, move) for move, loss in left)
            chosen = [move for _, move in order[: self.options.tries]]
            tried |= {trial.move: trial for trial in self._try(chosen)}
        best = good()
        if not best:
            return False
        self._accept(how, best[0][1], list(tried.values()), s.lowered)
        return True

    def _raise(self, kinds: Sequence[str]) -> bool:
        """Give bits of some kinds where that costs nothing; False when none helps."""
        s = self.state
        widths = bits_of(s.network)
        cost, least = self.cost(widths), LEAST_GAIN * s.first.bpp
        found = []
        for layer, what in self._knobs(kinds):
            bits = getattr(widths[layer], what)
            more = self._greater(bits, what)
            if f"{layer}.{what}" in s.lowered or more is None:
                continue
            change = Change(layer, what, more)
            won = s.slopes.get(f"{layer}.{what}", math.inf) * _noise(bits, more)
            if self.cost(change.apply(widths)) <= cost * (1 + FREE):
                found.append((-won, (change,)))
        trials = self._try([move for _, move in sorted(found)[: self.options.tries]])
        best = min(trials, key=lambda t: (t.rd.loss, t.move), default=None)
        if best is None or best.rd.loss > s.now.loss - least:
            return False
        self._accept("raise", best, trials, s.raised)
        return True

    def _buy(self) -> bool:
        """Give bits where most is won per cost while the loss is to be lower than it is, or
        where more is won than taking as much elsewhere seems to lose; False when nothing is."""
        s = self.state
        widths = bits_of(s.network)
        cost = self.cost(widths)
        least, free = LEAST_GAIN * s.first.bpp, FREE * cost
        rate = 0.0
        if self._room >= 0:
            lower = self._lower_moves(widths, cost)
            rates = [
                s.slopes.get(f"{c.layer}.{c.what}", 0.0) * noise / saving
                for (c,), (saving, noise) in lower.items()
            ]
            positive = [r for r in rates if r > 0]
            if not positive:
                return False
            rate = BARGAIN * min(positive)
        prices: dict[Move, float] = {}
        found = []
        for layer, what in self.knobs():
            bits = getattr(widths[layer], what)
            more = self._greater(bits, what)
            if more is None:
                continue
            change = Change(layer, what, more)
            price = prices[(change,)] = max(free, self.cost(change.apply(widths)) - cost)
            won = s.slopes.get(f"{layer}.{what}", 0.0) * _noise(bits, more)
            if won >= least / 2 and won / price >= rate / 2:
                found.append((-won / price, (change,)))
        trials = self._try([move for _, move in sorted(found)[: self.options.tries]])
        good = [t for t in trials if s.now.loss - t.rd.loss >= max(least, rate * prices[t.move])]
        if not good:
            return False
        best = min(good, key=lambda t: ((t.rd.loss - s.now.loss) / prices[t.move], t.move))
        self._accept("buy", best, trials, s.bought)
        return True

    def _accept(self, how: str, best: Trial, trials: list[Trial], knobs: list[str]) -> None:
        s, widths = self.state, bits_of(self.state.network)
        assert best.network is not None
        told = [self._told(trial) for trial in trials]
        changes = []
        for change in best.move:
            name = f"{change.layer}.{change.what}"
            if name not in knobs:
                knobs.append(name)
            before = getattr(widths[change.layer], change.what)
            changes.append({"layer": change.layer, "what": change.what, "from": before,
                            "to": change.bits})  # fmt: skip
        s.network, s.now = best.network, best.rd
        s.since += 1
        entry = self._entry(how, {"changes": changes})
        s.log.append(entry | {"tried": told})
        self._check_target(entry["cost"])

    def _check_target(self, cost: float) -> None:
        s = self.state
        s.target = self.cost.reached(s.network, cost)
        if s.target is not None:
            s.ended = "target"

    def _told(self, trial: Trial) -> dict[str, Any]:
        """A trial of a change to the network at hand, for the log."""
        widths = bits_of(self.state.network)
        for change in trial.move:
            widths = change.apply(widths)
        possible = trial.network is not None
        return {
            "changes": [asdict(change) for change in trial.move],
            "loss": self.loss(trial.rd) if possible else None,
            "cost": self.cost(widths),
        }

    def _entry(self, step: str, change: dict[str, Any] | None) -> dict[str, Any]:
        """Where the search stands, for the log."""
        s = self.state
        entry: dict[str, Any] = {"step": step, **(change or {})}
        if step == "start":
            entry |= {"how": self.cost.json()}
        return entry | {
            "cost": self.cost(bits_of(s.network)),
            "bops": s.network.bops(*PHOTO),
            "macs": s.network.macs(*PHOTO),
            "loss": self.loss(s.now),
            **s.now.json(),
            "trials": s.trials,
        }

    # Fine-tuning ---------------------------------------------------------------------------

    def _tune(self) -> None:
        """A round of fine-tuning; kept if it helps on the crops held out."""
        s, options = self.state, self.options
        assert options.tune is not None and self.source is not None
        self.watch(f"fine-tuning, round {s.rounds + 1}", 0)
        steps = options.tune.steps or 0
        config = replace(
            options.tune,
            lmbda=options.lmbda,
            warmup=min(options.tune.warmup, steps // 4),
            # other crops in every round
            seed=options.tune.seed + 1000 * (s.rounds + 1),
        )
        device = finetune.choose_device(options.device)
        tuner = FineTuner(INTEGER, s.network, s.real, s.bottleneck, config, self.source, device)
        finetune.run(tuner, progress=False)
        bottleneck = rate.parameters_of(tuner.bottleneck)
        real = without_floor(real_network(tuner, s.real), s.network)
        network = measured(
            self.parent, self.images, tuned_network(tuner), bottleneck, {}, None, True
        ).network
        before = s.real, s.bottleneck, s.network, s.follow
        s.real, s.bottleneck, s.network, s.follow = real, bottleneck, network, False
        rd = _bench(self._problem(), network).own()
        kept = rd.loss <= s.now.loss
        if kept:
            s.now = rd
        else:
            s.real, s.bottleneck, s.network, s.follow = before
        s.rounds, s.since = s.rounds + 1, 0
        if s.log:
            s.log.append(self._entry("tune", {"steps": steps, "kept": kept}))

    # State ---------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.path is None:
            return
        s = self.state
        tensors = {
            "start": torch.frombuffer(bytearray(dumps(s.start)), dtype=torch.uint8),
            "network": torch.frombuffer(bytearray(dumps(s.network)), dtype=torch.uint8),
        }
        tensors |= {f"bottleneck.{k}": torch.from_numpy(v) for k, v in s.bottleneck.items()}
        tensors |= {f"real.{k}": torch.from_numpy(v) for k, v in _arrays(s.real).items()}
        values = {
            "settings": self._settings,
            "first": asdict(s.first),
            "now": asdict(s.now),
        }
        for name in _PLAIN:
            values[name] = getattr(s, name)
        save_tensors(tensors, self.path, {STATE_HEADER: json.dumps(values)})

    def _load(self) -> _State:
        path = self.path
        if path is None:
            raise ValueError("resuming takes a state")
        if not path.exists():
            raise UserError(
                f"{path} does not exist, so there is nothing to resume; leave out --resume to "
                "start."
            )
        try:
            with safe_open(path, framework="np") as file:
                values = json.loads((file.metadata() or {})[STATE_HEADER])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            settings = values["settings"]
            arrays = {
                k.removeprefix("real."): v for k, v in tensors.items() if k.startswith("real.")
            }
            bottleneck = {
                k.removeprefix("bottleneck."): v
                for k, v in tensors.items()
                if k.startswith("bottleneck.")
            }
            state = _State(
                start=_network(tensors["start"]),
                network=_network(tensors["network"]),
                real=_with_arrays(self.parent, arrays),
                bottleneck=bottleneck,
                first=RD(**values["first"]),
                now=RD(**values["now"]),
                **{name: values[name] for name in _PLAIN},
            )
        except (SafetensorError, KeyError, ValueError, TypeError, OSError):
            raise UserError(f"{path} is not the state of a search; delete it.") from None
        for what, sentence in (
            ("calibration", "the calibration images differ"),
            ("training", "the training images differ"),
            ("network", "the checkpoint differs"),
            ("start", "the starting network differs"),
            ("options", "the options differ"),
        ):
            if settings[what] != self._settings[what]:
                raise UserError(
                    f"{sentence} from those of the saved search; give the same or start anew "
                    "without --resume."
                )
        return state


CHANGING = ("lower", "raise", "buy", "exchange")
"""Kinds of steps that change bits."""

_PLAIN = (
    "follow", "log", "slopes", "lowered", "raised", "bought", "rounds", "since", "trials", "ended",
    "target",
)  # fmt: skip
"""What of a state is stored as JSON values."""


def _noise(bits: int, before: int) -> float:
    """How much the noise of rounding grows from so many bits to fewer, in some unit."""
    return 4.0**-bits - 4.0**-before


def _arrays(real: FloatNetwork) -> dict[str, npt.NDArray]:
    """All weights of a real network."""
    result = {}
    for key, transform in real.transforms.items():
        for stage in transform.stages:
            for name in ("weight", "bias", "beta", "gamma"):
                if (value := getattr(stage, name)) is not None:
                    result[f"{key}.{stage.name}.{name}"] = np.ascontiguousarray(value)
    return result


def _with_arrays(network: FloatNetwork, arrays: Mapping[str, npt.NDArray]) -> FloatNetwork:
    """A real network with other weights, as `_arrays` gives them."""
    transforms = {}
    for key, transform in network.transforms.items():
        stages = []
        for stage in transform.stages:
            changed: dict[str, Any] = {
                name: arrays[f"{key}.{stage.name}.{name}"]
                for name in ("weight", "bias", "beta", "gamma")
                if getattr(stage, name) is not None
            }
            stages.append(replace(stage, **changed))
        transforms[key] = replace(transform, stages=stages)
    return replace(network, transforms=transforms)


def _digest(network: FloatNetwork) -> str:
    """SHA-256 of all weights."""
    sha = hashlib.sha256()
    for name, value in sorted(_arrays(network).items()):
        sha.update(name.encode())
        sha.update(value.astype("<f8").tobytes())
    return sha.hexdigest()


def _network(data: npt.NDArray[np.uint8]) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.lichen"
        path.write_bytes(data.tobytes())
        return load(path).model_copy(update={"format": 1})  # no longer that file


def _check_same_shape(network: FloatNetwork, start: Network) -> None:
    """Raise UserError unless a network has the stages of a checkpoint."""
    for key, transform in network.transforms.items():
        mine = [(s.name, s.weight.shape) for s in transform.stages]
        theirs = [
            (s.name, s.convolution.weight.shape)
            for s in (start.transforms[key].stages if key in start.transforms else [])
        ]
        if mine != theirs:
            raise UserError(
                f"{key} of the starting network has other stages than the checkpoint; "
                "give the checkpoint that it was made of."
            )


# Plot --------------------------------------------------------------------------------------


def plot(log: Sequence[Mapping[str, Any]], path: str | Path, *, cost: str) -> None:
    """The path: loss against cost, with everything that was tried; the suffix names the format.

    ``cost`` is what the cost is called.
    """
    caches.prepare()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = log[0]["cost"]

    def points(entries: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        known = [entry for entry in entries if entry["loss"] is not None]
        return [100 * e["cost"] / first for e in known], [100 * e["loss"] for e in known]

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    tried = [trial for entry in log for trial in entry.get("tried", ())]
    top = max([100 * entry["loss"] for entry in log] + [0.0])
    xs, ys = points(tried)
    axes.plot(xs, ys, ".", color="0.75", markersize=4, label="tried", zorder=1)
    axes.plot(*points(log), "-", color="#5b8c5a", zorder=2)
    for step, marker, label in (
        ("lower", "o", "bits taken away"),
        ("raise", "^", "bits given back"),
        ("exchange", "D", "exchanged"),
        ("tune", "s", "fine-tuned"),
    ):
        entries = [entry for entry in log if entry["step"] == step]
        if entries:
            axes.plot(*points(entries), marker, markersize=4, label=label, zorder=3)
    axes.set_ylim(min([0.0, *(100 * e["loss"] for e in log)]) - 0.1 * (top + 0.1), 1.5 * top + 0.1)
    axes.invert_xaxis()
    axes.set_xlabel(f"{cost}, % of the start")
    axes.set_ylabel("loss, % of the rate")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())


__all__ = [
    "BopsCost",
    "Change",
    "Cluster",
    "HardwareCost",
    "InProcess",
    "Problem",
    "Search",
    "SearchOptions",
    "SearchResult",
    "coded_key",
    "plot",
    "try_move",
]
