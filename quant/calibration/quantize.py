"""A float network becomes an integer network, and what that costs is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lichen.errors import UserError
from lichen.network.arithmetic import latent_symbol
from lichen.network.description import IMAGE_FORMAT, Activation, Format, Network, Transform
from lichen.network.flow import IMAGE, LATENTS, Latent
from lichen.quant.calibration.calibrate import CalibrationImages, crop_image
from lichen.quant.calibration.constants import symmetric, unsigned
from lichen.quant.calibration.entropy import (
    SCALE_MAX,
    SYMBOL_MAX,
    Bottleneck,
    TableFit,
    fit_gaussian_tables,
    fit_tables,
    scale_table,
    scale_thresholds,
)
from lichen.quant.calibration.measure import (
    Image,
    RateDistortion,
    estimate_float_bits,
    loss,
    mean_of,
    measure,
    measure_float,
    pixels_of,
)
from lichen.quant.calibration.options import FixedOutput, Options
from lichen.quant.calibration.ptq import StageReport, TransformQuantizer
from lichen.quant.float.network import FloatLatents, FloatNetwork, FloatStage
from lichen.sim.golden import (
    EntropyParameters,
    Latents,
    Segment,
    channel_indices,
    choose_tables,
    estimate_bits,
    hyper_input,
    synthesis_input,
)
from lichen.sim.quality import psnr

PARAMETER_BITS = 16
"""Width of what h_s makes: scales run from 0.11 to 256."""


FRACTION_IMAGES = 8
"""Calibration crops that `choose_fraction` looks at."""


FRACTION_MAX = 8


MEAN_FRACTION = 2
"""Fewest fractional bits chosen beside means: 8 bits then hold latents up to 31.75."""


@dataclass(frozen=True)
class Quantized:
    """A network and how it came about.

    Attributes
    ----------
    network : Network
    stages : list of StageReport
    tables : dict of str to TableFit
        Under the names of ``network.entropy``.
    before, after : RateDistortion
        FP32 and integers on the calibration crops; both round the latent to integers.
    """

    network: Network
    stages: list[StageReport]
    tables: dict[str, TableFit]
    before: RateDistortion
    after: RateDistortion


def check_supported(network: FloatNetwork) -> None:
    """Raise UserError unless the network is one that `quantize` can do."""
    had = [
        latent
        for latent in LATENTS
        if latent.source == IMAGE
        or latent.analysis in network.transforms
        or latent.synthesis in network.transforms
    ]
    needed = [name for latent in had for name in (latent.analysis, latent.synthesis)]
    missing = [name for name in needed if name not in network.transforms]
    if missing:
        raise UserError(f"the network has no {' and no '.join(missing)}; it cannot be quantized.")


def check_latents(name: str, latents: Sequence[Tensor]) -> None:
    """Raise UserError when FP32 latents are far beyond what entropy tables go to."""
    greatest = max(float(latent.abs().max()) for latent in latents)
    if greatest > SYMBOL_MAX:
        raise UserError(
            f"the latents {name} of the calibration images reach {greatest:.3g}, and symbols end "
            f"at {SYMBOL_MAX}; the checkpoint is damaged, or was trained without a rate."
        )


def steps(network: FloatNetwork) -> int:
    """How often `quantize` calls its ``progress``."""
    return sum(len(transform.stages) for transform in network.transforms.values()) + 1


def scale_step(parameters: Format) -> float:
    """What one step of the scales that h_s makes in this format stands for."""
    return SCALE_MAX / 2.0 ** (parameters.bits - parameters.signed)


def _hyper_format(network: FloatNetwork, options: Options) -> Format:
    """What h_a reads."""
    bits = options.widths.activation
    return unsigned(bits) if network.transforms["h_a"].absolute_input else symmetric(bits)


def choose_fraction(network: FloatNetwork, images: Sequence[Image], options: Options) -> int:
    """Fractional bits of y for a network with a hyperprior, from some of the images.

    A scale hyperprior takes those with which FP32 needs the fewest bits for y and z when h_a
    reads magnitudes of that fraction, limited to its input format: coarse ones lose what lies
    below one step, fine ones clip. Beside means, where g_s reads the fraction, too, it is as
    many as ``latent_bits`` (8 if None) have room for at the greatest latent seen, at most
    `FRACTION_MAX`; with ``latent_bits`` None never fewer than `MEAN_FRACTION`, the latent then
    getting more bits.
    """
    chosen = images[:: max(1, len(images) // FRACTION_IMAGES)][:FRACTION_IMAGES]
    latents = [network.analyze(image) for image in chosen]
    if network.means:
        bits = 8 if options.latent_bits is None else options.latent_bits
        greatest = max(float(np.abs(y).max()) for y in latents)
        room = math.floor(math.log2(symmetric(bits).hi / max(greatest, 1e-9)))
        least = MEAN_FRACTION if options.latent_bits is None else 0
        return min(max(room, least), FRACTION_MAX)
    hi = _hyper_format(network, options).hi
    cost = np.zeros(FRACTION_MAX + 1)
    for f in range(len(cost)):
        for y in latents:
            seen = np.clip(np.rint(np.abs(y) * 2**f), 0, hi) / 2**f
            z, scales, _ = network.entropy_parameters(seen)
            coded = FloatLatents(np.rint(y).astype(np.int64), z, scales)
            cost[f] += np.nansum(list(estimate_float_bits(network, coded).values()))
    return int(cost.argmin())


def _fit_entropy(
    bottlenecks: Mapping[str, Mapping[str, npt.NDArray]],
    network: Network,
    latents: Sequence[Latents],
    *,
    means: bool,
    refit: bool,
) -> dict[str, TableFit]:
    """Tables for all segments of the calibration images."""
    fits = {}
    for latent in reversed(network.latents):
        symbols = [coded[latent.name].symbols for coded in latents]
        value = network.transforms[latent.analysis].output
        if network.inner(latent) is None:
            parameters = bottlenecks.get(latent.name)
            bottleneck = None if parameters is None else Bottleneck(parameters)
            fits[latent.name] = fit_tables(bottleneck, symbols, value, refit=refit)
            continue
        indices = [coded[latent.name].indices for coded in latents]
        lo, hi = network.symbols(latent)
        if means:
            # twice the latent's range; what means beyond it cause takes the escape
            lo, hi = max(lo, 2 * value.lo), min(hi, 2 * value.hi)
        fits[latent.name] = fit_gaussian_tables(
            scale_table(), symbols, indices, lo, hi, clipped=not means, refit=refit
        )
    return fits


def quantize(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options | None = None,
    *,
    name: str | None = None,
    refit: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Quantized:
    """Quantize all transforms and make the entropy tables.

    Parameters
    ----------
    network : FloatNetwork
    images : CalibrationImages
        With sides that are multiples of ``network.factor``; at least one.
    options : Options or None
        None: ptq at 8 bits.
    name : str or None
        Of the result; None takes the float network's.
    refit : bool
        Refine the entropy tables with the calibration symbols, where that helps unseen images.
    progress : callable
        Called `steps` times with the name of what was done.

    The transforms are quantized in the order in which each feeds the next, on the integers
    that those before it make: g_a, h_a, h_s, g_s. Without a hyperprior, the symbols of the
    latent are the integers that g_a makes; `Network` says what they are with one. g_s makes
    pixel values 0 .. 255. Equal arguments give equal networks on the same machine.

    Raises UserError when a transform is missing, or without calibration images.
    """
    check_supported(network)
    options = options or Options()
    if not images.crops:
        raise UserError("there are no calibration images; give a folder of photographs.")
    _check_options(network, options)
    run = _Transforms(
        network, images.crops, options, progress, network.name if name is None else name
    )
    decoded = run()
    settings = asdict(options) | {
        "per_stage": {key: asdict(widths) for key, widths in options.per_stage.items()},
        "clip_rules": {key: asdict(rule) for key, rule in options.clip_rules.items()},
        "refit": refit,
    }
    result = assemble(
        network,
        images,
        run.integers({key: run.transforms[key] for key in network.transforms}),
        [Latents(0, 0, tuple(segments)) for segments in run.segments],
        decoded,
        settings=settings,
        stages=run.reports,
        refit=refit,
    )
    progress("measurement")
    return result


def _check_options(network: FloatNetwork, options: Options) -> None:
    """Raise UserError for options that the network has no use for."""
    names = network.stage_names
    unknown = sorted(set(options.per_stage) - set(names))
    if unknown:
        raise UserError(f"the network has no stage {unknown[0]}, only {', '.join(sorted(names))}.")
    if options.latent_fraction and not network.hyper:
        raise UserError("the fraction of the latent must be 0 for a network without a hyperprior.")


class _Transforms:
    """Quantizes the transforms of a network, each on what those before it make of the images.

    Attributes
    ----------
    transforms : dict of str to Transform
        What is done.
    reports : list of StageReport
    fraction : int
        Fractional bits of y.
    segments : list of list of Segment
        What the integer encoder makes of each image, in coding order.
    """

    def __init__(
        self,
        network: FloatNetwork,
        crops: list[Image],
        options: Options,
        progress: Callable[[str], None],
        name: str,
    ) -> None:
        self.network, self.crops, self.options = network, crops, options
        self.progress, self.name = progress, name
        self.transforms: dict[str, Transform] = {}
        self.reports: list[StageReport] = []
        self.fraction = options.latent_fraction or 0
        if network.hyper and options.latent_fraction is None:
            self.fraction = choose_fraction(network, crops, options)
        self.segments: list[list[Segment]] = [[] for _ in crops]
        self._thresholds: npt.NDArray | None = None
        self._values: dict[str, list[npt.NDArray]] = {}  # of the latents, in integers
        self._floats: dict[str, list[Tensor]] = {}  # and FP32's

    def __call__(self) -> list[npt.NDArray]:
        """Quantize all transforms; what the last one makes of the images."""
        made: list[npt.NDArray] | None = None
        for latent in self.network.latents:
            self._analysis(latent)
        for latent in reversed(self.network.latents):
            made = self._synthesis(latent, self._code(latent, made))
        assert made is not None
        return made

    def integers(self, transforms: Mapping[str, Transform]) -> Network:
        """The integer network of these transforms, without tables."""
        return Network(
            name=self.name,
            architecture=self.network.architecture,
            n=self.network.n,
            m=self.network.m,
            transforms=dict(transforms),
            latent_fraction=self.fraction,
            scale_thresholds=self._thresholds,
        )

    def _fraction(self, latent: Latent) -> int:
        """Fractional bits of a latent, as of `Network.fraction`."""
        return self.fraction if latent.source == IMAGE else 0

    def _run(self, key: str, **arguments: Any) -> TransformQuantizer:
        quantizer = TransformQuantizer(
            key,
            self.network.transforms[key],
            options=self.options,
            progress=self.progress,
            **arguments,
        )
        self.transforms[key] = quantizer.run()
        self.reports.extend(quantizer.reports)
        return quantizer

    def _analysis(self, latent: Latent) -> None:
        """Quantize what makes a latent."""
        outer, transform = latent.source == IMAGE, self.network.transforms[latent.analysis]
        f = self._fraction(latent)
        # Beside means g_s reads the fraction as well: it counts among the bits of the latent.
        extra = 0 if self.network.means else f
        source, scale, reals = IMAGE_FORMAT, 1 / 255, None
        inputs: list[npt.NDArray] = list(self.crops)
        if not outer:
            source, scale = _hyper_format(self.network, self.options), 2.0**-self.fraction
            inputs = [hyper_input(value, source) for value in self._values[latent.source]]
            # FP32 of the latent before it was rounded and limited
            floats = self._floats[latent.source]
            reals = [value.abs() if transform.absolute_input else value for value in floats]
        made = self._run(
            latent.analysis,
            source=source,
            source_scale=scale,
            inputs=inputs,
            reals=reals,
            last=FixedOutput(2.0**-f, self.options.latent_bits, True, extra, floor=f > 0),
        )
        check_latents(latent.name, made.floats)
        self._values[latent.name], self._floats[latent.name] = made.ints, made.floats

    def _code(self, latent: Latent, said: list[npt.NDArray] | None) -> list[npt.NDArray]:
        """The symbols of a latent; what its synthesis reads of them.

        ``said`` is what the inner latent's synthesis makes, None where there is none.
        """
        values, reads = self._values[latent.name], []
        f, value_format = self._fraction(latent), self.transforms[latent.analysis].output
        coded = [EntropyParameters(channel_indices(value.shape), None) for value in values]
        if said is not None:
            network = self.integers(self.transforms)
            coded = [choose_tables(network, latent, one) for one in said]
        for i, (value, parameters) in enumerate(zip(values, coded, strict=True)):
            means = parameters.means
            symbols = latent_symbol(value, 0 if means is None else means, f)
            self.segments[i].append(Segment(latent.name, symbols, parameters.indices))
            # beside means, the latents that g_s reads have the format of y
            reads.append(synthesis_input(symbols, means, f, value_format))
        return reads

    def _synthesis(self, latent: Latent, reads: list[npt.NDArray]) -> list[npt.NDArray]:
        """Quantize what reads a latent; what it makes.

        It is fitted to what the encoder sends, not to FP32's latents.
        """
        source, scale = self.transforms[latent.analysis].output, 1.0
        if latent.source == IMAGE:
            if self.network.means:
                scale = 2.0**-self.fraction
            else:
                source = symmetric(source.bits - self.fraction)
            last = FixedOutput(1 / 255, IMAGE_FORMAT.bits, False)
        else:
            last = self._parameters(self.network.transforms[latent.synthesis].stages[-1])
        return self._run(
            latent.synthesis, source=source, source_scale=scale, inputs=reads, last=last
        ).ints

    def _parameters(self, last: FloatStage) -> FixedOutput:
        """The scales, and perhaps means, that the last stage of a synthesis makes."""
        signed = last.activation is not Activation.RELU
        step = scale_step(symmetric(PARAMETER_BITS) if signed else unsigned(PARAMETER_BITS))
        steps = np.full(last.out_channels, step)
        if self.network.means:
            steps[last.out_channels // 2 :] = 2.0**-self.fraction
        self._thresholds = scale_thresholds(scale_table(), step)
        return FixedOutput(steps, PARAMETER_BITS, signed)


CLIP_FACTORS = (1.0, 1.25, 1.5, 2.0)
"""What `choose_clip_factor` chooses from."""


SOME, HELD_OUT, SOME_CROP = 24, 12, 256
"""How many images, and of what size, choices are made on."""


def some_and_held_out(
    network: FloatNetwork, images: CalibrationImages
) -> tuple[CalibrationImages, list[Image]]:
    """Parts of every other calibration image to calibrate trials on, and of others to measure.

    A single image must do for both.
    """
    size = -(-SOME_CROP // network.factor) * network.factor
    crops = [crop_image(crop, network.factor, size) for crop in images.crops]
    return CalibrationImages(crops[::2][:SOME]), crops[1::2][:HELD_OUT] or crops


def choose_clip_factor(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options,
    lmbda: float,
    *,
    field: str = "clip_factor",
    progress: Callable[[str], None] = lambda factor: None,
) -> tuple[float, dict[float, float]]:
    """The clip factor with the least `loss` on some of the calibration images.

    No one factor serves all: the range of least squared error is far too tight for networks
    that are well trained, and right for small ones (docs/notes/draq.md). Every other image is
    calibrated on and the rest measured: ranges that just hold what was seen clip other images (a
    single image must do for both).

    Parameters
    ----------
    network : FloatNetwork
    images : CalibrationImages
    options : Options
    lmbda : float
        Weight of the mean squared error of 8-bit pixels against bits per pixel.
    field : str
        Of `Options`: ``clip_factor``, or ``gdn_input_clip_factor``.
    progress : callable
        Called after each trial.

    Returns the factor, and the loss of each of `CLIP_FACTORS` in bits per pixel against the first.
    """
    some, held = some_and_held_out(network, images)
    found: dict[float, RateDistortion] = {}
    for factor in CLIP_FACTORS:
        tried: dict[str, Any] = {"clip": "mse", field: factor}
        trial = quantize(network, some, replace(options, **tried))
        found[factor] = measure(trial.network, held)
        progress(f"clip factor {factor}")
    first = found[CLIP_FACTORS[0]]
    losses = {factor: loss(after, first, lmbda) for factor, after in found.items()}
    return min(losses, key=lambda factor: losses[factor]), losses


def assemble(
    network: FloatNetwork,
    images: CalibrationImages,
    integer: Network,
    latents: Sequence[Latents],
    decoded: Sequence[npt.NDArray],
    *,
    settings: Mapping[str, Any],
    stages: list[StageReport],
    refit: bool = True,
    bottlenecks: Mapping[str, Mapping[str, npt.NDArray]] | None = None,
) -> Quantized:
    """Complete integer transforms: entropy tables, measurement, provenance.

    Parameters
    ----------
    network : FloatNetwork
        The FP32 parent, which the result is compared with.
    images : CalibrationImages
    integer : Network
        All transforms; entropy tables and provenance are made anew.
    latents, decoded : sequence of Latents, of int array (H, W, 3)
        What the integer transforms make of the calibration images.
    settings : dict
        How it was quantized, as JSON values.
    stages : list of StageReport
    refit : bool
        See `quantize`.
    bottlenecks : dict or None
        Parameters of the entropy bottlenecks that the tables start from; None takes the
        parent's, if it has any.
    """
    prior = network.bottlenecks if bottlenecks is None else bottlenecks
    fits = _fit_entropy(prior, integer, latents, means=network.means, refit=refit)
    result = Network(
        **dict(integer)
        | {"entropy": {key: fit.tables for key, fit in fits.items()}, "provenance": {}}
    )
    before = measure_float(network, images.crops, result)
    after = mean_of(
        [
            psnr(image, pixels.astype(np.uint8))
            for image, pixels in zip(images.crops, decoded, strict=True)
        ],
        [estimate_bits(result, latent) for latent in latents],
        pixels_of(images.crops),
    )
    provenance = network.provenance | {
        "quantization": dict(settings)
        | {
            "calibration": {"images": len(images.crops), "sha256": images.digest},
            "tables_prior_strength": {
                key: fit.strength if math.isfinite(fit.strength) else None
                for key, fit in fits.items()
            },
            "fp32": before.json(),
            "integer": after.json(),
        }
    }
    return Quantized(
        result.model_copy(update={"provenance": provenance}), stages, fits, before, after
    )
