"""DRAQ: calibrated clipping, outlier regularization, fine-tuning through the integers.

After Fang and Chen, "A multi-stage optimization framework for deploying learned image
compression on FPGAs" (2025), whose names for the parts are kept; the estimators, the penalty
and the schedule are ours:

1. *Calibrated clipping.* `lichen.quant.calibration.ptq` with per-channel ranges; with
   ``clip="rd"``, the estimator of each tensor is the one with the least ``R + lambda D``
   (`choose_clips`).
2. *Regularization.* The real network is trained with a penalty on outlying weights that grows
   (`lichen.quant.training.outliers`), and calibrated anew.
3. *Fine-tuning.* Every integer, every free scale and the entropy bottleneck are trained with
   ``R + lambda D`` and a penalty that fades, through fake quantization
   (`lichen.quant.training.fake`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen.errors import UserError
from lichen.network.description import Network
from lichen.network.flow import LATENTS
from lichen.quant.calibration.calibrate import CalibrationImages, StageSamples
from lichen.quant.calibration.latents import fit_latent_range
from lichen.quant.calibration.options import ClipRule, Options
from lichen.quant.calibration.ptq import slope_weights
from lichen.quant.calibration.quantize import Quantized, assemble, check_supported, quantize
from lichen.quant.float.checkpoint import stated_lambda
from lichen.quant.float.network import FloatNetwork, to_torch
from lichen.quant.training import finetune, outliers, rate
from lichen.quant.training.data import CropSource
from lichen.quant.training.fake import mismatch_rate
from lichen.quant.training.finetune import INTEGER, REAL, FineTuner
from lichen.quant.training.tune_config import TuneConfig
from lichen.sim.flow import through
from lichen.sim.golden import (
    analysis,
    reconstruct,
    run_transform,
)
from lichen.sim.quality import squared_error

CLIP_CANDIDATES = (
    ClipRule("mse"),
    ClipRule("mse", factor=1.25),
    ClipRule("mse", factor=1.5),
    ClipRule("mse", factor=1.9),
    ClipRule("mse", factor=2.4),
    ClipRule("percentile", 99.99),
    ClipRule("percentile", 100.0),
)
"""What ``clip="rd"`` chooses from, for each tensor."""

CLIP_SAMPLES = 4096
"""Positions of each tensor that estimates are made from, in that search."""


@dataclass(frozen=True, kw_only=True)
class DraqOptions:
    """What `draq` does.

    Attributes
    ----------
    quantization : Options
        Widths and rounding of the calibrated start.
    rd_clip : bool
        Choose each tensor's clipping estimator by the loss.
    tune : TuneConfig
        Fine-tuning; its settings but for length, optimizer and rate also serve the regularization.
    regularize_steps : int
        Steps of the real network with the penalty; 0 leaves them out.
    regularize_lr : float
        Peak learning rate of these steps, which Adam makes: a real network that is trained already
        loses more by large steps than fewer outliers win (docs/notes/draq.md).
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    """

    quantization: Options
    tune: TuneConfig
    rd_clip: bool = False
    regularize_steps: int = 0
    regularize_lr: float = 1e-4
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.quantization.method != "ptq":
            raise UserError("DRAQ starts from ptq; the method minmax is a baseline of its own.")
        if self.regularize_steps < 0:
            raise UserError(
                f"the steps of regularization must not be negative: {self.regularize_steps}."
            )


@dataclass(frozen=True)
class DraqResult:
    """The network, and what each part of DRAQ did.

    Attributes
    ----------
    start : Quantized
        After calibration (and regularization), before fine-tuning.
    final : Quantized
    outliers : list of dict
        Per layer: share of outlying weights and peak over root mean square, before and after.
    clips : dict of str to ClipRule
        The estimators chosen by the loss.
    mismatches : dict of str to float
        Share of each layer's outputs at which the float32 of training differs from the
        integers, on calibration images.
    seconds_per_step : float
    steps : int
    """

    start: Quantized
    final: Quantized
    outliers: list[dict[str, Any]]
    clips: dict[str, ClipRule]
    mismatches: dict[str, float]
    seconds_per_step: float
    steps: int

    def json(self) -> dict[str, Any]:
        """Everything but the networks."""
        return {
            "outliers": self.outliers,
            "clip_rules": {key: rule.json() for key, rule in self.clips.items()},
            "float32_mismatch_rate": self.mismatches,
            "seconds_per_step": round(self.seconds_per_step, 4),
            "steps": self.steps,
            "start": self.start.after.json(),
            "final": self.final.after.json(),
        }


def lambda_of(network: FloatNetwork) -> float | None:
    """The lambda that a network was trained with, if its provenance says so."""
    source = network.provenance.get("source")
    return stated_lambda(source) if isinstance(source, Mapping) else None


def coded_key(network: FloatNetwork) -> str:
    """The symbols that an entropy bottleneck codes: of z with a hyperprior, otherwise of y."""
    return "z" if network.hyper else "y"


def bottleneck_of(
    network: FloatNetwork, images: CalibrationImages, seed: int
) -> dict[str, npt.NDArray]:
    """The network's entropy bottleneck, or one fitted to its latents where it has none.

    Raises UserError for a hyperprior without one.
    """
    if coded_key(network) in network.bottlenecks:
        return network.bottlenecks[coded_key(network)]
    if network.hyper:
        raise UserError("the network has a hyperprior without an entropy bottleneck.")
    return rate.fit_bottleneck([network.analyze(image) for image in images.crops], seed)


# Clipping by the loss ----------------------------------------------------------------------


def _tensor_samples(
    network: FloatNetwork, images: CalibrationImages, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """FP32 samples (positions, channels) under names such as ``g_a.conv1.x``."""
    each = max(CLIP_SAMPLES // len(images.crops), 64)
    samples = StageSamples(each, np.random.default_rng(seed))

    def run(key: str, x: torch.Tensor) -> torch.Tensor:
        return network.transforms[key](x, samples.observer(key))

    for image in images.crops:
        network.through(to_torch(image) / 255, run)
    return samples.joined()


def choose_clips(
    network: FloatNetwork,
    start: Network,
    bottleneck: Mapping[str, npt.NDArray],
    images: CalibrationImages,
    lmbda: float,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda tensor: None,
) -> dict[str, ClipRule]:
    """For each activation tensor, the candidate with the least ``R + lambda D``.

    Starting from the ranges of ``start``, tensor after tensor takes each candidate's range in
    turn, the FP32 weights refolded and rounded to nearest (so that no candidate profits from
    roundings fitted to another), and keeps the best. Fixed outputs (latents, pixels) have
    nothing to choose.
    """
    samples = _tensor_samples(network, images, seed)
    config = TuneConfig(steps=0, lmbda=lmbda, distill=0.0, seed=seed)
    source = CropSource([], patch=config.patch)
    tuner = FineTuner(INTEGER, start, network, dict(bottleneck), config, source)
    for key, transform in tuner.transforms.items():
        for stage, real in zip(transform.stages, network.transforms[key].stages, strict=True):
            stage.approach(real, within=None)
    with torch.no_grad():  # g_a rounds latents with a fraction down, as it did
        last = tuner.transforms[LATENTS[0].analysis].stages[-1]
        last.start_bias -= tuner.offset / last.start_gain
    chosen = {}
    for key, transform in tuner.transforms.items():
        for stage in transform.stages:
            name = f"{key}.{stage.start.name}"
            x, y = samples[f"{name}.x"], samples[f"{name}.output"]
            tensors: list[tuple[str, Any, Any, Any, Any]] = []
            if stage.kind is not None:
                weights = slope_weights(x, y)
                form = stage.start.requantizer.output
                tensors.append(("x", stage.log_x, x, weights, form))
            if not stage.fixed:
                tensors.append(("output", stage.log_y, y, None, stage.start.output))
            for tensor, parameter, values, weights, form in tensors:
                before = stage.start.scales[tensor] * form.hi
                best, least, kept = None, math.inf, parameter.detach().clone()
                for rule in CLIP_CANDIDATES:
                    change = np.log(rule.clip(values, form.hi, weights) / before)
                    with torch.no_grad():
                        parameter.copy_(torch.from_numpy(change))
                    loss = tuner.evaluate(images.crops)[0]
                    if loss < least:
                        best, least, kept = rule, loss, parameter.detach().clone()
                with torch.no_grad():
                    parameter.copy_(kept)
                assert best is not None
                chosen[f"{name}.{tensor}"] = best
                progress(f"{name}.{tensor}")
    return chosen


# The whole ---------------------------------------------------------------------------------


def _folded(network: FloatNetwork, start: Network) -> dict[str, npt.NDArray]:
    """Each layer's real weights as they are quantized: the input's scales folded in."""
    return {
        f"{key}.{real.name}": real.weight * stage.scales["input"][None, :, None, None]
        for key in start.transforms
        for real, stage in zip(
            network.transforms[key].stages, start.transforms[key].stages, strict=True
        )
    }


def outlier_report(parent: FloatNetwork, start: Network, final: Network) -> list[dict[str, Any]]:
    """Per layer: outliers of the parent's weights and of the final integers."""
    before = _folded(parent, start)
    report = []
    for key in final.transforms:
        for stage in final.transforms[key].stages:
            name = f"{key}.{stage.name}"
            weight = stage.convolution.weight
            report.append(
                {
                    "layer": name,
                    "outliers_before": outliers.outlier_ratio(before[name]),
                    "outliers_after": outliers.outlier_ratio(weight),
                    "peak_before": outliers.peak_ratio(before[name]),
                    "peak_after": outliers.peak_ratio(weight),
                }
            )
    return report


def with_level(config: TuneConfig, start: Quantized) -> TuneConfig:
    """The settings with the level at which PSNR counts as squared error does: the start's.

    There lambda goes on meaning what it means to the parent: with the geometric mean of the
    calibration crops' squared errors, the rate of a tuned network hardly moves.
    """
    return replace(config, level=squared_error(start.after.psnr))


def real_network(tuner: FineTuner, network: FloatNetwork) -> FloatNetwork:
    """The real network that a tuner's shadows describe."""
    transforms = {
        key: transform.to_float(network.transforms[key])
        for key, transform in tuner.transforms.items()
    }
    bottlenecks = dict(network.bottlenecks)
    if bottlenecks:
        bottlenecks[coded_key(network)] = rate.parameters_of(tuner.bottleneck)
    return replace(
        network, transforms=dict(network.transforms) | transforms, bottlenecks=bottlenecks
    )


def tuned_network(tuner: FineTuner) -> Network:
    """The starting network with the tuner's integers; its tables are still the start's."""
    transforms = {key: fake.to_transform() for key, fake in tuner.transforms.items()}
    return tuner.start.model_copy(update={"transforms": transforms})


def draq(
    network: FloatNetwork,
    images: CalibrationImages,
    train: Sequence[str | Path],
    options: DraqOptions,
    *,
    state: Path | None = None,
    resume: bool = False,
    name: str | None = None,
    refit: bool = True,
    progress: bool = True,
    stop_after: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> DraqResult:
    """Quantize and fine-tune.

    Parameters
    ----------
    network : FloatNetwork
        A factorized one may lack its entropy bottleneck.
    images : CalibrationImages
    train : sequence of path
        Training images.
    state : Path or None
        Where the state of the run is kept, and what ``resume`` goes on from.
    stop_after : int or None
        End fine-tuning after so many steps of this call, saved; the result is what there is.
    log : callable
        Gets a line of figures now and then.

    Raises UserError for unusable networks, options, images or states.
    """
    check_supported(network)
    tune = options.tune
    device = finetune.choose_device(options.device)
    source = CropSource(train, patch=tune.patch, downscale=tune.downscale)
    saved = None
    if resume:
        if state is None:
            raise ValueError("resuming takes a state")
        saved = finetune.load_tuner(state)
        _check_same_run(options, images, saved[1]["extra"])
    parent, quantization = network, options.quantization
    if not network.hyper:
        bits = quantization.latent_bits or quantization.widths.activation
        latents = [network.analyze(image) for image in images.crops]
        parent, _ = fit_latent_range(network, latents, bits)
        quantization = replace(quantization, latent_bits=bits)
    if tune.patch % network.factor:
        raise UserError(f"the patch must be a multiple of {network.factor}, not {tune.patch}.")
    run = _Run(
        network, parent, images, source, options, quantization, device, state, name, refit,
        progress, stop_after, log,
    )  # fmt: skip
    begun = run.calibrate() if saved is None else run.go_on(saved)
    # A run saved in its second phase has done with the first.
    if options.regularize_steps and (saved is None or saved[1]["phase"] == REAL):
        begun, saved = run.regularize(begun, saved), None
    return run.finish(begun, saved)


Saved = tuple[dict[str, Tensor], dict[str, Any], Network]
"""What `lichen.quant.training.finetune.load_tuner` returns."""


@dataclass(frozen=True)
class _Begun:
    """Where a phase starts: integers, the real network that they stand for, its bottleneck."""

    start: Quantized
    network: Network
    real: FloatNetwork
    bottleneck: dict[str, npt.NDArray]
    rules: dict[str, ClipRule]


@dataclass(frozen=True)
class _Run:
    """What the phases of a run have in common; ``parent`` is the network with latents that fit."""

    network: FloatNetwork
    parent: FloatNetwork
    images: CalibrationImages
    source: CropSource
    options: DraqOptions
    quantization: Options
    device: torch.device
    state: Path | None
    name: str | None
    refit: bool
    progress: bool
    stop_after: int | None
    log: Callable[[str], None]

    def _quantized(self, real: FloatNetwork, rules: Mapping[str, ClipRule]) -> Quantized:
        own = self.quantization
        chosen = replace(own, clip_rules=dict(own.clip_rules) | dict(rules))
        return quantize(real, self.images, chosen, name=self.name, refit=self.refit)

    def calibrate(self) -> _Begun:
        """The calibrated start, with clipping rules chosen if asked."""
        tune = self.options.tune
        bottleneck = bottleneck_of(self.parent, self.images, tune.seed)
        start, rules = self._quantized(self.parent, {}), {}
        if self.options.rd_clip:
            rules = choose_clips(
                self.parent, start.network, bottleneck, self.images, tune.lmbda, seed=tune.seed
            )
            start = self._quantized(self.parent, rules)
        self.log(f"calibrated: {start.after.psnr:.3f} dB, {start.after.bpp:.4f} bpp")
        return _Begun(start, start.network, self.parent, bottleneck, rules)

    def go_on(self, saved: Saved) -> _Begun:
        """Where a saved run stands."""
        tensors, info, network = saved
        rules = {key: ClipRule(**rule) for key, rule in info["extra"]["clips"].items()}
        bottleneck = {
            key.removeprefix("model.bottleneck."): value.double().numpy()
            for key, value in tensors.items()
            if key.startswith("model.bottleneck.")
        }
        start = measured(
            self.network,
            self.images,
            network,
            bottleneck,
            network.provenance,
            self.name,
            self.refit,
        )
        return _Begun(start, network, self.parent, bottleneck, rules)

    def _tune(
        self, phase: str, config: TuneConfig, begun: _Begun, saved: Saved | None
    ) -> FineTuner:
        """Run a phase to its end."""
        tuner = FineTuner(
            phase, begun.network, begun.real, begun.bottleneck, config, self.source, self.device
        )
        if saved is not None:
            tuner.restore(*saved[:2])
        extra = {
            "options": _settings(self.options),
            "calibration": self.images.digest,
            "clips": {key: asdict(rule) for key, rule in begun.rules.items()},
        }

        def save() -> None:
            if self.state is not None:
                finetune.save_tuner(tuner, self.state, extra)

        finetune.run(
            tuner, save=save, progress=self.progress, stop_after=self.stop_after, log=self.log
        )
        tuner.settle()
        return tuner

    def regularize(self, begun: _Begun, saved: Saved | None) -> _Begun:
        """Train the real network with the penalty, and calibrate what comes of it."""
        config = replace(
            with_level(self.options.tune, begun.start),
            steps=self.options.regularize_steps,
            minutes=None,
            distill=0.0,
            optimizer="adam",
            lr=self.options.regularize_lr,
        )
        tuner = self._tune(REAL, config, begun, saved)
        real = real_network(tuner, self.parent)
        start = self._quantized(real, begun.rules)
        self.log(f"regularized: {start.after.psnr:.3f} dB, {start.after.bpp:.4f} bpp")
        bottleneck = rate.parameters_of(tuner.bottleneck)
        return _Begun(start, start.network, real, bottleneck, begun.rules)

    def finish(self, begun: _Begun, saved: Saved | None) -> DraqResult:
        """Fine-tune the integers, and measure them."""
        config = with_level(self.options.tune, begun.start)
        tuner = self._tune(INTEGER, config, begun, saved)
        tuned, rules = tuned_network(tuner), begun.rules
        settings = _settings(self.options) | {
            "method": "draq",
            "refit": self.refit,
            "steps_done": tuner.step,
            "clip_rules": {key: rule.json() for key, rule in rules.items()},
            "training": {"images": len(self.source.images), "sha256": self.source.digest},
        }
        bottleneck = rate.parameters_of(tuner.bottleneck)
        final = measured(
            self.network, self.images, tuned, bottleneck, settings, self.name, self.refit
        )
        return DraqResult(
            begun.start,
            final,
            outlier_report(self.parent, begun.start.network, final.network),
            rules,
            float32_mismatches(tuner, tuned, self.images),
            tuner.elapsed / max(tuner.step, 1),
            tuner.step,
        )


def float32_mismatches(
    tuner: FineTuner, tuned: Network, images: CalibrationImages
) -> dict[str, float]:
    """Share of each layer's outputs at which training's float32 differs from the integers."""
    inputs: dict[str, list[npt.NDArray]] = {key: [] for key in tuned.transforms}

    def run(key: str, x: npt.NDArray) -> npt.NDArray:
        inputs[key].append(x)
        return run_transform(tuned.transforms[key], x)

    for crop in images.crops[:2]:
        through(tuned, crop, run)
    mismatches = {}
    for key, values in inputs.items():
        shares = mismatch_rate(tuner.transforms[key], values)
        for stage, share in zip(tuned.transforms[key].stages, shares, strict=True):
            mismatches[f"{key}.{stage.name}"] = share
    return mismatches


def measured(
    network: FloatNetwork,
    images: CalibrationImages,
    integer: Network,
    bottleneck: Mapping[str, npt.NDArray],
    settings: Mapping[str, Any],
    name: str | None,
    refit: bool,
) -> Quantized:
    """Tables for an integer network, and its measurement against the parent."""
    named = integer.model_copy(update={"name": network.name if name is None else name})
    latents = [analysis(named, crop) for crop in images.crops]
    return assemble(
        network,
        images,
        named,
        latents,
        [reconstruct(named, latent) for latent in latents],
        settings=settings,
        stages=[],
        refit=refit,
        bottlenecks={coded_key(network): bottleneck},
    )


def _settings(options: DraqOptions) -> dict[str, Any]:
    """The options as JSON values."""
    return json.loads(json.dumps(asdict(options)))


def _check_same_run(
    options: DraqOptions, images: CalibrationImages, saved: Mapping[str, Any]
) -> None:
    """A resumed run may get longer or change its machine, nothing else."""
    if saved["calibration"] != images.digest:
        raise UserError(
            "the calibration images differ from those of the saved run; give the same folder or "
            "start anew."
        )
    mine, theirs = _settings(options), dict(saved["options"])
    for values in (mine, theirs):
        values["tune"] = {k: v for k, v in values["tune"].items() if k not in ("steps", "minutes")}
        values.pop("device")
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise UserError(
                f"the saved run differs in its options ({key.replace('_', ' ')}); resume it with "
                "the same ones or start anew."
            )
