"""Outlier channel splitting: copies of channels that cost all the others their precision.

After Zhao, Hu, Dotzel, De Sa and Zhang, "Improving neural network quantization without
retraining using outlier channel splitting" (2019): a channel that is made twice is read with half
the weights, so that the greatest weight of a row, and with it the step of them all, gets smaller.
Here copies are also rounded at interleaved places, so that their mean has finer steps
(`lichen.quant.calibration.interleave`); a copy's weights are rounded so as to make good what the
first one's rounding lost (`lichen.quant.calibration.ptq`); and channels are chosen by the noise in
the picture that a model expects from weights and activations. The function stays the same,
products are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lichen.errors import UserError
from lichen.network.description import PHOTO
from lichen.quant.calibration import interleave
from lichen.quant.calibration.calibrate import (
    CalibrationImages,
    Regression,
    StageSamples,
    gather_patches,
    phases,
    sample_positions,
)
from lichen.quant.calibration.options import Options
from lichen.quant.calibration.ptq import slope_weights
from lichen.quant.float.channels import output_sizes, transform_macs
from lichen.quant.float.network import (
    FloatNetwork,
    FloatStage,
    FloatTransform,
    Observer,
    to_torch,
)

FloatArray = npt.NDArray[np.float64]

EQUATIONS = 4
"""Positions per input of a stage that the correlations of its inputs are taken from."""

COPIES_MAX = 8
"""Of one channel, itself among them."""

IMAGES = 24
"""Calibration images that statistics are made from, at most."""

SAMPLES = 4096
"""Positions of each tensor that statistics are made from."""


@dataclass
class _Tensor:
    """Channels between two stages, how often each is made, and what rounding costs there.

    Attributes
    ----------
    peaks : float array (out, channels)
        Greatest magnitudes of the reading stage's weights, in units of the weight of what their
        output's noise counts.
    weights : float
        Noise in the picture for peaks whose squares sum to 1.
    activations : float array (channels,)
        Noise in the picture from rounding each channel.
    makers : float array (channels,)
        Noise in the picture from the rounding of the weights that make each channel. Copies are
        rounded so that n of them together have steps of an n-th.
    kept : float array (COPIES_MAX, channels)
        Noise from rounding the channel that 1, 2 .. copies keep.
    copies : int array (channels,)
    """

    peaks: FloatArray
    weights: float
    activations: FloatArray
    makers: FloatArray
    kept: FloatArray
    copies: npt.NDArray[np.int64]

    def best(self) -> tuple[float, int]:
        """The copy that takes most noise away: how much (0 if none may), and of which channel."""
        channels = np.arange(len(self.copies))
        more = np.minimum(self.copies, COPIES_MAX - 1)
        now = self.peaks / self.copies
        order = np.sort(now, axis=1)
        first, second = order[:, -1:], order[:, -2:-1]
        # the row's peak if this channel were made once more
        others = np.where(now == first, second, first)
        after = np.maximum(others, self.peaks / (self.copies + 1))
        gain = self.weights * (first**2 - after**2).sum(axis=0)
        gain += self.activations * (
            self.kept[self.copies - 1, channels] - self.kept[more, channels]
        )
        gain += self.makers * (1 / self.copies**2 - 1 / (self.copies + 1) ** 2)
        gain[self.copies == COPIES_MAX] = 0
        return float(gain.max()), int(gain.argmax())


def _gains(transform: FloatTransform, slopes: Sequence[FloatArray], after: FloatArray) -> list:
    """Energy in the picture per energy of an error in each stage's input (channels,), in order.

    ``slopes`` are the mean squared slopes of the activations, ``after`` the same of the
    transform's output. Errors are taken as uncorrelated; what follows the last is left out.
    """
    gains = [after]
    for stage, slope in zip(reversed(transform.stages), reversed(slopes), strict=True):
        share = 1.0 if stage.transposed else 1 / stage.stride**2
        energy = (stage.weight**2).sum(axis=(2, 3)) * share
        gains.insert(0, (gains[0] * slope) @ energy)
    return gains


def _variance(inputs: Sequence[torch.Tensor]) -> float:
    """Variance of inputs (1, channels, H, W) over all positions, summed over the channels.

    The bias takes up what an error of weights makes of the mean.
    """
    rows = torch.cat([x[0].flatten(1) for x in inputs], dim=1).double()
    return float(rows.var(dim=1).sum())


def _both(first: Observer, second: Observer) -> Observer:
    """One run shown to two."""

    def observe(stage: FloatStage, before: torch.Tensor, after: torch.Tensor) -> None:
        first(stage, before, after)
        second(stage, before, after)

    return observe


class _Correlations:
    """How correlated the inputs of each stage are, over images run through a transform.

    Rounding that preserves outputs makes good what one weight's rounding does by the weights that
    are rounded after it: only that part of an input stays which those of the others don't tell.
    """

    def __init__(self, transform: FloatTransform, images: int, rng: np.random.Generator) -> None:
        self.rng = rng
        # the phase that sums most inputs stands for all
        self.phases = [
            max(phases(stage), key=lambda phase: len(phase.rows) * len(phase.columns))
            for stage in transform.stages
        ]
        self.sums = [
            Regression(len(phase.features(stage)), 0)
            for phase, stage in zip(self.phases, transform.stages, strict=True)
        ]
        self.counts = [-(-EQUATIONS * len(sums.hessian) // images) for sums in self.sums]

    def observer(self, entering: torch.Tensor) -> Observer:
        """Takes in what a run on this input (1, channels, H, W) shows it."""
        index, x = 0, entering

        def observe(stage: FloatStage, before: torch.Tensor, after: torch.Tensor) -> None:
            nonlocal index, x
            phase, sums = self.phases[index], self.sums[index]
            rows, columns = sample_positions(
                self.rng, phase, before.shape[2], before.shape[3], self.counts[index]
            )
            patches = gather_patches(x[0].permute(1, 2, 0).numpy(), stage, phase, rows, columns)
            sums.add(patches, np.empty((len(patches), 0)), np.ones(len(patches)))
            index, x = index + 1, after

        return observe

    def rounding_gains(self, damping: float) -> list[float]:
        """Part of its weights' rounding noise that each stage keeps, 0 .. 1."""
        gains = []
        for sums in self.sums:
            hessian, _ = sums.centred()
            total = np.trace(hessian)
            hessian += damping * total / len(hessian) * np.eye(len(hessian))
            gains.append(float((np.diag(np.linalg.cholesky(hessian)) ** 2).sum() / total))
        return gains


def _kept(x: FloatArray, y: FloatArray, steps: FloatArray, jitter: FloatArray) -> FloatArray:
    """Noise from rounding each channel that 1 .. COPIES_MAX copies keep (COPIES_MAX, channels).

    ``jitter`` is the mean squared difference of two copies, in steps: what it takes from the
    correlation of their roundings is that of the polynomial's first harmonic.
    """
    held = np.exp(-2 * np.pi**2 * jitter)
    kept = []
    for count in range(1, COPIES_MAX + 1):
        _, noise = interleave.spacing(x, y, steps, np.full(len(steps), count))
        kept.append(1 / count + held * (noise - 1 / count))
    return np.array(kept)


def repeat(
    stage: FloatStage, reader: FloatStage, copies: npt.NDArray[np.int64]
) -> tuple[FloatStage, FloatStage]:
    """A stage that makes channels several times, and the stage that reads them.

    ``copies`` (channels,) says how often, at least 1; the first of each keep their numbers, their
    copies come behind them in the same order.
    """
    more = np.repeat(np.arange(len(copies)), copies - 1)
    index = np.concatenate([np.arange(len(copies)), more])
    norm: dict[str, Any] = {}
    if stage.gamma is not None and stage.beta is not None:
        first = np.arange(len(index)) < len(copies)
        gamma = stage.gamma[np.ix_(index, index)] * first[None]
        norm = {"gamma": gamma, "beta": stage.beta[index]}
    kept = None if stage.kept_channels is None else stage.kept_channels[index]
    made = replace(
        stage,
        weight=stage.weight[index],
        bias=stage.bias[index],
        kept_channels=kept,
        copy_of=index,
        **norm,
    )
    weight = reader.weight[:, index] / copies[index][None, :, None, None]
    return made, replace(reader, weight=weight)


def split_channels(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options,
    part: float,
    *,
    seed: int = 0,
) -> FloatNetwork:
    """The same function with copies of some channels between the stages of g_a and g_s.

    Copies are taken one by one, always that which takes most noise away for its products.

    Parameters
    ----------
    network : FloatNetwork
    images : CalibrationImages
        `IMAGES` of them, at even distances, give the statistics.
    options : Options
        Widths and clipping rules that the network will be quantized with.
    part : float
        Products to add at most, of those that g_a and g_s have, 0 .. 1.

    Raises UserError for a part out of range.
    """
    if not 0 <= part <= 1:
        raise UserError(f"the products to add must lie in 0 .. 1 of what there is, not {part}.")
    crops = images.some(IMAGES).crops
    pixels = [to_torch(image / 255) for image in crops]
    latents = [to_torch(network.code(image).read) for image in crops]
    sampler = StageSamples(max(SAMPLES // len(crops), 64), np.random.default_rng(seed))
    tensors: dict[tuple[str, int], _Tensor] = {}
    sizes = {}
    after = np.ones(3)
    for key, entering in (("g_s", latents), ("g_a", pixels)):
        down = 1 if key == "g_a" else network.transforms["g_a"].downsampling
        stages = network.transforms[key].stages
        sizes[key] = output_sizes(stages, PHOTO[0] // down, PHOTO[1] // down)
        rng = np.random.default_rng([seed, *key.encode()])
        found, after = _tensors(
            network.transforms[key], key, entering, sizes[key], options, sampler, rng, after
        )
        tensors |= {(key, i): tensor for i, tensor in found.items()}
    channels = _spend(network, tensors, sizes, part)
    transforms = dict(network.transforms)
    for key in sizes:
        stages = list(network.transforms[key].stages)
        for i in range(len(stages) - 1):
            stages[i], stages[i + 1] = repeat(stages[i], stages[i + 1], tensors[key, i].copies)
        transforms[key] = replace(network.transforms[key], stages=stages)
    provenance = network.provenance | {"split_channels": channels}
    return replace(network, transforms=transforms, provenance=provenance)


def _tensors(
    transform: FloatTransform,
    key: str,
    entering: list[torch.Tensor],
    sizes: list[tuple[int, int]],
    options: Options,
    sampler: StageSamples,
    rng: np.random.Generator,
    after: npt.NDArray,
) -> tuple[dict[int, _Tensor], npt.NDArray]:
    """What the tensors between the stages of a transform lose, by the stage that makes them.

    ``after`` is what errors of its output count, channel by channel; returned is what errors of
    its input do.
    """
    stages, tensors = transform.stages, {}
    correlations = _Correlations(transform, len(entering), rng)
    for values in entering:
        observers = (sampler.observer(key), correlations.observer(values))
        transform(values, _both(*observers))
    samples = sampler.joined()
    rounding = correlations.rounding_gains(options.damping)
    slopes = [np.ones(stage.out_channels) for stage in stages]
    for i, stage in enumerate(stages):
        if stage.normalized:
            x, y = (samples[f"{key}.{stage.name}.{what}"] for what in ("x", "output"))
            slopes[i] = slope_weights(x, y).mean(axis=0)
    gains = _gains(transform, slopes, after)
    steps, square = np.ones(stages[0].in_channels), _variance(entering)
    if key == "g_a":
        steps, square = steps / 255, square * 255**2
    weights = []  # of each stage: noise of a row of peak 1, and rows' peaks
    for i, stage in enumerate(stages):
        widths = options.per_stage.get(f"{key}.{stage.name}", options.widths)
        counts = gains[i + 1] * slopes[i] * math.prod(sizes[i])
        folded = stage.weight * steps[None, :, None, None]
        folded = folded * np.sqrt(counts)[:, None, None, None]
        taps = stage.kernel**2 / (stage.stride**2 if stage.transposed else 1)
        unit = rounding[i] * square * taps / 12 / ((1 << (widths.weight - 1)) - 1) ** 2
        peaks = np.abs(folded).max(axis=(2, 3))
        weights.append((unit, peaks))
        if i:
            maker_unit, maker_peaks = weights[i - 1]
            activations = (folded**2).sum(axis=(0, 2, 3)) * taps / stage.kernel**2 / 12
            makers = maker_unit * maker_peaks.max(axis=1) ** 2
            before = f"{key}.{stages[i - 1].name}"
            tensors[i - 1] = _Tensor(
                peaks,
                unit,
                activations,
                makers,
                _kept(
                    samples[f"{before}.x"],
                    samples[f"{before}.output"],
                    steps,
                    # two copies' weights err in opposite ways
                    4 * makers / np.maximum(12 * activations, 1e-300),
                ),
                np.ones(stage.in_channels, np.int64),
            )
        if i + 1 < len(stages):
            levels = (1 << (widths.activation - 1)) - 1
            tensor = f"{key}.{stage.name}.output"
            y = samples[tensor]
            steps = options.clip_rule(tensor).clip(y, levels) / levels
            square = float((np.clip(y / steps, -levels, levels) ** 2).mean(axis=0).sum())
    return tensors, gains[0]


def _spend(
    network: FloatNetwork,
    tensors: Mapping[tuple[str, int], _Tensor],
    sizes: Mapping[str, list[tuple[int, int]]],
    part: float,
) -> dict[str, list[int]]:
    """Take copies one by one for a part of the products; the channels that stages then make."""
    channels = {key: [s.out_channels for s in network.transforms[key].stages] for key in sizes}

    def macs(key: str, more: int | None = None) -> int:
        transform = network.transforms[key]
        outputs = [c + (i == more) for i, c in enumerate(channels[key])]
        return transform_macs(transform.stages, sizes[key], transform.in_channels, outputs)

    left = part * sum(macs(key) for key in sizes)
    while True:
        prices = {where: macs(where[0], where[1]) - macs(where[0]) for where in tensors}
        best = {
            where: found
            for where, tensor in tensors.items()
            if prices[where] <= left and (found := tensor.best())[0] > 0
        }
        if not best:
            break
        where = max(best, key=lambda place: best[place][0] / prices[place])
        tensors[where].copies[best[where][1]] += 1
        channels[where[0]][where[1]] += 1
        left -= prices[where]
    return channels
