"""Post-training quantization: a float transform and calibration images become integers.

Two methods share one way of building the integer constants (`lichen.quant.calibration.constants`).

``minmax``
    The baseline every paper compares with: each weight rounded to the nearest step of its
    output channel's greatest magnitude, one scale per activation tensor from the greatest
    magnitude seen in the FP32 network, no correction of any kind.

``ptq``
    Per-channel scales before the normalizations and between the stages, which cost nothing:
    they fold into the normalization's constants and into the next stage's weights before
    those are quantized. Clipping ranges minimize the squared error. Weights are rounded so
    as to preserve the stage's output on the calibration images
    (`lichen.quant.calibration.rounding`), stage after stage, each on the integers that the
    quantized stages before it really make.

Only integers leave this module; the real scales go into `Stage.scales` for reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen.network.arithmetic import NormKind, norm_input
from lichen.network.description import (
    Activation,
    Convolution,
    Format,
    Normalization,
    Stage,
    Transform,
)
from lichen.quant.calibration import calibrate, constants, interleave, rounding
from lichen.quant.calibration.calibrate import Regression
from lichen.quant.calibration.constants import symmetric, unsigned
from lichen.quant.calibration.options import FixedOutput, Options, Widths
from lichen.quant.float.network import FloatStage, FloatTransform
from lichen.sim.golden import run_transform

FloatArray = npt.NDArray[np.float64]


IntArray = npt.NDArray[np.int64]


WEIGHT_CLIPS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.5)
"""Clipping ranges tried for each row of weights, relative to its greatest magnitude."""


GAMMA_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""The same for rows of gamma."""


def slope_weights(x: FloatArray, y: FloatArray) -> FloatArray:
    """What a squared error of x counts: where a normalization is steep, it counts more."""
    return (np.abs(y) / np.maximum(np.abs(x), 1e-9)) ** 2


@dataclass(frozen=True)
class _Samples:
    """What a stage does at sampled positions in FP32, and its extremes everywhere.

    ``x`` is the convolution's output and ``y`` the activation's, (samples, channels);
    ``positions`` holds, for each image and phase, the rows and columns sampled, in order.
    """

    x: FloatArray
    y: FloatArray
    x_max: FloatArray
    x_min: FloatArray
    y_max: FloatArray
    positions: list[list[tuple[IntArray, IntArray]]]


@dataclass(frozen=True)
class StageReport:
    """How a stage was quantized.

    Attributes
    ----------
    transform : str
    stage : Stage
    clip : dict of str to float array (channels,)
        Greatest real magnitude that ``weight`` (with the input's scales folded in), ``x``
        (before a normalization) and ``output`` can represent.
    sqnr_db : float
        Signal-to-quantization-noise ratio of the output on the calibration images, against
        FP32 all the way from the transform's input.
    """

    transform: str
    stage: Stage
    clip: dict[str, FloatArray]
    sqnr_db: float

    def json(self) -> dict[str, Any]:
        """Bits, clipping ranges as least and greatest over the channels, and loss."""
        stage, norm = self.stage, self.stage.normalization
        return {
            "transform": self.transform,
            "stage": stage.name,
            "activation": stage.activation.value,
            "weight_bits": stage.convolution.weight_bits,
            "output_bits": stage.output.bits,
            "gdn_input_bits": None if norm is None else stage.requantizer.output.bits,
            "u_bits": None if norm is None else norm.u_bits,
            "gamma_bits": None if norm is None else norm.gamma_bits,
            "clip": {k: [float(v.min()), float(v.max())] for k, v in self.clip.items()},
            "sqnr_db": round(self.sqnr_db, 3),
        }


def _clips(stage: Stage) -> dict[str, FloatArray]:
    """Greatest real magnitudes that a stage's integers stand for; see `StageReport`."""
    scales = stage.scales
    clip = {"weight": scales["weight"] * ((1 << (stage.convolution.weight_bits - 1)) - 1)}
    if "x" in scales:
        clip["x"] = scales["x"] * stage.requantizer.output.hi
    clip["output"] = scales["output"] * stage.output.hi
    return clip


class TransformQuantizer:
    """Quantizes one transform, stage after stage.

    Parameters
    ----------
    name : str
        For example ``g_a``; selects ``Options.per_stage``.
    transform : FloatTransform
    source : Format
        Of the integers that enter.
    source_scale : float or float array (channels,)
        Real value of one step of them.
    inputs : list of int array (height, width, channels)
        What enters on the calibration images.
    options : Options
    reals : list of Tensor (1, channels, height, width) or None
        What enters the FP32 transform; None takes the integers' real values.
    last : FixedOutput or None
        Demands on the last stage's output.
    progress : callable
        Called with ``transform.stage`` when that stage is done.

    After `run`, ``ints`` and ``floats`` hold the outputs of the integer and of the FP32
    transform for each input (FP32 as tensors (1, channels, height, width)), ``scale`` the
    real value of one step of the output (channels,), and ``reports`` one entry per stage.
    """

    def __init__(
        self,
        name: str,
        transform: FloatTransform,
        *,
        source: Format,
        source_scale: float | FloatArray,
        inputs: list[npt.NDArray],
        options: Options,
        reals: list[Tensor] | None = None,
        last: FixedOutput | None = None,
        progress: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.name = name
        self.transform = transform
        self.source = source
        self.scale = np.full(transform.in_channels, source_scale)
        self.ints = inputs
        self.floats = reals or [
            torch.from_numpy(x.astype(np.float32) * self.scale.astype(np.float32)).permute(2, 0, 1)[
                None
            ]
            for x in inputs
        ]
        self.options = options
        self.last = last
        self.progress = progress
        self.reports: list[StageReport] = []

    @property
    def naive(self) -> bool:
        return self.options.method == "minmax"

    def run(self) -> Transform:
        """Quantize all stages."""
        first, stages = self.source, []
        for index, stage in enumerate(self.transform.stages):
            fixed = self.last if index == len(self.transform.stages) - 1 else None
            stages.append(self._stage(index, stage, fixed))
            self.progress(f"{self.name}.{stage.name}")
        return Transform(input=first, stages=stages)

    def _run_integers(self, stage: Stage) -> list[npt.NDArray]:
        transform = Transform(input=self.source, stages=[stage])
        return [run_transform(transform, x) for x in self.ints]

    # One stage -----------------------------------------------------------------------------

    def _stage(self, index: int, stage: FloatStage, fixed: FixedOutput | None) -> Stage:
        options, norm = self.options, stage.activation.norm
        widths = options.per_stage.get(f"{self.name}.{stage.name}", options.widths)
        rng = np.random.default_rng([options.seed, index, *self.name.encode()])
        samples, regressions, outputs = self._observe(stage, rng)

        # Format and scale of the output y, and of x, which the requantizer makes: the same
        # unless a normalization stands between them.
        if fixed is not None:
            y_format = fixed.format(samples.y_max)
            y_clip = np.broadcast_to(fixed.scale, stage.out_channels) * float(y_format.hi)
        else:
            relu = stage.activation is Activation.RELU
            y_format = unsigned(widths.activation) if relu else symmetric(widths.activation)
            y_clip = self._clip(f"{stage.name}.output", samples.y, samples.y_max, y_format)
        x_format, x_clip = y_format, y_clip
        if norm is not None:
            steep = slope_weights(samples.x, samples.y)
            x_format = symmetric(widths.gdn_input)
            x_clip = self._clip(f"{stage.name}.x", samples.x, samples.x_max, x_format, steep)
        x_scale, y_scale = x_clip / x_format.hi, y_clip / y_format.hi

        # What an integer stands for lies this many steps above it.
        offset = 0.5 if fixed is not None and fixed.floor else 0.0
        shift = -offset * y_scale
        if stage.copy_of is not None:  # copies round at other places
            copies = np.bincount(stage.origins)[stage.origins]
            distance, _ = interleave.spacing(samples.x, samples.y, y_scale, copies)
            shift = shift + interleave.shifts(distance, stage.ranks, copies)
        convolution, weight_scale = self._convolution(stage, widths, regressions, shift)
        least, most = convolution.accumulator_range(self.source)
        requantizer, gain = constants.make_requantizer(
            weight_scale / x_scale,
            least.astype(np.float64),
            most.astype(np.float64),
            x_format,
            slope=stage.negative_slope if stage.activation is Activation.LEAKY_RELU else None,
            observed_least=samples.x_min / weight_scale,
        )
        # Where a scale is free, the multiplier's rounding error goes into it.
        if not self.naive and (fixed is None or norm is not None):
            x_scale = weight_scale / gain
            if norm is None:
                y_scale = x_scale
        scales = {"weight": weight_scale, "input": self.scale}
        normalization = None
        if norm is not None:
            before = Stage(
                name=stage.name,
                convolution=convolution,
                requantizer=requantizer,
                activation=Activation.NONE,
            )
            normalization, real = self._normalization(
                stage,
                norm,
                widths,
                x_format,
                x_scale,
                y_format,
                y_scale,
                samples,
                self._run_integers(before),
            )
            if not self.naive and fixed is None:
                y_scale = real
            scales["x"] = x_scale
        result = Stage(
            name=stage.name,
            convolution=convolution,
            requantizer=requantizer,
            activation=stage.activation,
            normalization=normalization,
            scales=scales | {"output": y_scale},
            kept_channels=stage.kept_channels,
        )
        self.ints = self._run_integers(result)
        self.floats, self.source, self.scale = outputs, result.output, y_scale
        self.reports.append(StageReport(self.name, result, _clips(result), self._sqnr(offset)))
        return result

    def _clip(
        self,
        tensor: str,
        values: FloatArray,
        most: FloatArray,
        fmt: Format,
        weights: FloatArray | None = None,
    ) -> FloatArray:
        if self.naive:
            return np.full(len(most), max(float(most.max()), 1e-9))
        return self.options.clip_rule(f"{self.name}.{tensor}").clip(values, fmt.hi, weights)

    def _observe(
        self, stage: FloatStage, rng: np.random.Generator
    ) -> tuple[_Samples, list[tuple[calibrate.Phase, Regression]], list[Tensor]]:
        """Run the stage in FP32; sample it, and the integers it is to be computed from."""
        regressions, counts = [], []
        phases = calibrate.phases(stage)
        for phase in phases:
            features = len(phase.features(stage))
            regressions.append((phase, Regression(features, stage.out_channels)))
            wanted = max(self.options.samples // len(phases), self.options.equations * features)
            counts.append(-(-wanted // len(self.floats)))
        xs, ys, outputs, positions = [], [], [], []
        x_max, x_min, y_max = (np.zeros(stage.out_channels) for _ in range(3))
        for ints, floats in zip(self.ints, self.floats, strict=True):
            with torch.no_grad():
                before, after = stage.run(floats, self.name)
            outputs.append(after)
            x, y = (t[0].permute(1, 2, 0).numpy() for t in (before, after))
            x_max = np.maximum(x_max, np.abs(x).max(axis=(0, 1)))
            x_min = np.minimum(x_min, x.min(axis=(0, 1)))
            y_max = np.maximum(y_max, np.abs(y).max(axis=(0, 1)))
            here = []
            for (phase, regression), count in zip(regressions, counts, strict=True):
                rows, columns = calibrate.sample_positions(
                    rng, phase, x.shape[0], x.shape[1], count
                )
                here.append((rows, columns))
                xs.append(x[rows, columns].astype(np.float64))
                ys.append(y[rows, columns].astype(np.float64))
                if not self.naive:
                    patches = calibrate.gather_patches(ints, stage, phase, rows, columns)
                    regression.add(patches, xs[-1], self._importance(stage, xs[-1], ys[-1]))
            positions.append(here)
        samples = _Samples(np.concatenate(xs), np.concatenate(ys), x_max, x_min, y_max, positions)
        return samples, regressions, outputs

    def _importance(self, stage: FloatStage, x: FloatArray, y: FloatArray) -> FloatArray:
        """What an error of x counts at each position, on average over the channels."""
        if stage.activation.norm is None:
            return np.ones(len(x))
        ratio = (y / np.where(np.abs(x) < 1e-9, 1e-9, x)) ** 2
        ratio[np.abs(x) < 1e-9] = 0
        return (ratio / np.maximum(ratio.mean(axis=0), 1e-12)).mean(axis=1)

    # Weights -------------------------------------------------------------------------------

    def _convolution(
        self,
        stage: FloatStage,
        widths: Widths,
        regressions: list[tuple[calibrate.Phase, Regression]],
        shift: FloatArray,
    ) -> tuple[Convolution, FloatArray]:
        limit = (1 << (widths.weight - 1)) - 1
        out = stage.out_channels
        folded = (stage.weight * self.scale[None, :, None, None]).reshape(out, -1)
        if self.naive:
            scale = calibrate.floor_clip(np.abs(folded).max(axis=1)) / limit
            integers = rounding.nearest(folded, scale, -limit, limit)
            bias = stage.bias
        else:
            integers, scale, bias = self._fit_weights(stage, folded, limit, regressions)
        bias = bias + shift
        convolution = Convolution(
            kernel=stage.kernel,
            stride=stage.stride,
            padding=stage.padding,
            output_padding=stage.output_padding,
            transposed=stage.transposed,
            weight_bits=widths.weight,
            weight=integers.reshape(stage.weight.shape).astype(np.int16),
            bias=np.rint(np.clip(bias / scale, -(2.0**44), 2.0**44)).astype(np.int64),
        )
        return convolution, scale

    def _fit_weights(
        self,
        stage: FloatStage,
        folded: FloatArray,
        limit: int,
        regressions: list[tuple[calibrate.Phase, Regression]],
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Integer weights (out, features), the scale of each row, and the bias to go with it."""
        optimal = self.options.rounding == "optimal"
        one = len(regressions) == 1
        problems = []
        for phase, regression in regressions:
            features = phase.features(stage)
            if one:
                # the bias is free to take up the mean
                hessian, cross = regression.centred()
            else:
                hessian = regression.hessian
                cross = regression.cross - np.outer(regression.feature_sum, stage.bias)
            energy = max(float(np.diag(hessian).mean()), 1e-12)
            damping = self.options.damping * energy
            hessian = hessian + damping * np.eye(len(features))
            prior = folded[:, features]
            target = prior
            if optimal:  # the weights that, on the integers at hand, come closest to FP32
                target = np.linalg.solve(hessian, cross + damping * prior.T).T
            problems.append((features, hessian, target))

        ranks, origins = stage.ranks, stage.origins
        integers, scale = np.zeros_like(folded), np.ones(len(folded))
        for rank in range(int(ranks.max()) + 1):
            rows = np.flatnonzero(ranks == rank)
            wanted = [(features, hessian, target[rows]) for features, hessian, target in problems]
            if rank:  # copies make good what those before them lost
                same = (origins[rows, None] == origins[None]) & (ranks < rank)[None]
                made = same.astype(np.float64) @ (integers * scale[:, None])
                wanted = [
                    (features, hessian, (rank + 1) * target - made[:, features])
                    for features, hessian, target in wanted
                ]
            integers[rows], scale[rows] = self._round_rows(wanted, folded.shape[1], limit)
        # The bias makes the mean error zero.
        weight = sum(r.weight for _, r in regressions)
        residual = np.zeros(len(folded))
        for (features, _, _), (_, r) in zip(problems, regressions, strict=True):
            residual += r.target_sum - (integers[:, features] * scale[:, None]) @ r.feature_sum
        return integers, scale, residual / max(weight, 1e-300)

    def _round_rows(
        self, problems: list[tuple[IntArray, FloatArray, FloatArray]], width: int, limit: int
    ) -> tuple[FloatArray, FloatArray]:
        """Integers (rows, ``width``) and scales for targets of rows, of each phase's features."""
        optimal = self.options.rounding == "optimal"
        rows_of = len(problems[0][2])
        targets = np.zeros((rows_of, width))
        for features, _, target in problems:
            targets[:, features] = target
        top = calibrate.floor_clip(np.abs(targets).max(axis=1)) / limit
        ratios = np.array(WEIGHT_CLIPS)
        # All candidates for the scales at once, as more rows: (ratio, row) flattened.
        scales = (ratios[:, None] * top[None]).reshape(-1)
        candidates = np.zeros((len(scales), width))
        loss = np.zeros(len(scales))
        for features, hessian, target in problems:
            rows = np.tile(target, (len(ratios), 1))
            if optimal:
                rounded = rounding.sequential_rounding(rows, scales, hessian, -limit, limit)
            else:
                rounded = rounding.nearest(rows, scales, -limit, limit)
            candidates[:, features] = rounded
            loss += rounding.row_errors(rounded, rows, scales, hessian)
        winner = loss.reshape(len(ratios), -1).argmin(axis=0)
        best = winner * rows_of + np.arange(rows_of)
        scale, integers = scales[best], candidates[best]
        if optimal:
            for features, hessian, target in problems:
                integers[:, features] = rounding.coordinate_descent(
                    integers[:, features], target, scale, hessian, -limit, limit
                )
        return integers, scale

    # Normalizations ------------------------------------------------------------------------

    def _normalization(
        self,
        stage: FloatStage,
        kind: NormKind,
        widths: Widths,
        x_format: Format,
        x_scale: FloatArray,
        y_format: Format,
        y_scale: FloatArray,
        samples: _Samples,
        xs: list[npt.NDArray],
    ) -> tuple[Normalization, FloatArray]:
        assert stage.gamma is not None and stage.beta is not None
        u_shift = constants.u_shift_for(kind, x_format, widths.u)
        folded = stage.gamma * (x_scale**2 if kind.squares else x_scale)[None] * 2.0**u_shift

        beta = stage.beta

        def step_of(gamma: FloatArray, part: float = 1.0) -> FloatArray:
            ratio = x_scale / y_scale
            return constants.norm_step(
                kind, x_format, u_shift, gamma, beta, widths.gamma, ratio, part
            )

        if self.naive or self.options.rounding == "nearest":
            step = step_of(folded)
            gamma, whole = constants.round_norm(folded, beta, step, widths.gamma)
        else:
            x = np.concatenate(
                [
                    image[rows, columns]
                    for image, places in zip(xs, samples.positions, strict=True)
                    for rows, columns in places
                ]
            )
            u = norm_input(x.astype(np.int64), kind.squares, u_shift).astype(np.float64)
            gamma, whole, step = self._fit_norm(stage, widths, folded, samples, u, step_of)
        return constants.make_normalization(
            kind,
            x_format,
            x_scale,
            y_scale,
            gamma,
            whole,
            step,
            gamma_bits=widths.gamma,
            u_shift=u_shift,
            output=y_format,
        )

    def _fit_norm(
        self,
        stage: FloatStage,
        widths: Widths,
        folded: FloatArray,
        samples: _Samples,
        u: FloatArray,
        step_of: Callable[[FloatArray, float], FloatArray],
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Integer gamma and beta that preserve the norm where the output depends on it.

        To first order an error dn of the norm n changes y by a constant times y dn / n, so
        that is the weight of a sample. The offset beta is free to take up the mean, and with
        it what the truncation of u loses.
        """
        limit = (1 << widths.gamma) - 1
        norm = stage.norm(torch.from_numpy(samples.x.T[None, :, :, None]))[0, :, :, 0].numpy().T
        weights = (samples.y / norm) ** 2
        weights /= np.maximum(weights.mean(axis=0), 1e-300)
        channels = len(folded)
        hessian = np.empty((channels, channels, channels))
        target, means = np.empty_like(folded), np.empty_like(folded)
        norm_mean = np.empty(channels)
        for i in range(channels):
            w = weights[:, i]
            total = max(w.sum(), 1e-300)
            means[i] = w @ u / total
            norm_mean[i] = w @ norm[:, i] / total
            weighted = u * w[:, None]
            hessian[i] = weighted.T @ u - total * np.outer(means[i], means[i])
            cross = weighted.T @ norm[:, i] - total * means[i] * norm_mean[i]
            damping = self.options.damping * max(np.diag(hessian[i]).mean(), 1e-12)
            hessian[i] += damping * np.eye(channels)
            target[i] = np.linalg.solve(hessian[i], cross + damping * folded[i])
        target = np.maximum(target, 0)
        # All clipping ranges at once, as more rows: (part, row) flattened.
        parts = np.array(GAMMA_CLIPS)
        steps = np.concatenate([step_of(target, part) for part in GAMMA_CLIPS])
        loss = np.empty(len(steps))
        candidates = np.empty((len(steps), channels))
        for first in range(0, len(steps), channels):
            block = slice(first, first + channels)
            rounded = rounding.nearest(target, steps[block], 0, limit)
            rounded = rounding.coordinate_descent(rounded, target, steps[block], hessian, 0, limit)
            candidates[block] = rounded
            loss[block] = rounding.row_errors(rounded, target, steps[block], hessian)
        best = loss.reshape(len(parts), channels).argmin(axis=0) * channels + np.arange(channels)
        step, integers = steps[best], candidates[best]
        beta = norm_mean - ((integers * step[:, None]) * means).sum(axis=1)
        return integers.astype(np.int64), constants.round_beta(beta, step), step

    def _sqnr(self, offset: float) -> float:
        signal = noise = 0.0
        for ints, floats in zip(self.ints, self.floats, strict=True):
            y = floats[0].permute(1, 2, 0).double().numpy()
            signal += float((y**2).sum())
            noise += float((((ints + offset) * self.scale - y) ** 2).sum())
        return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))
