"""A float network becomes an integer network, and what that costs is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.codec.evaluate import PSNR_EXACT
from lichen.errors import UserError
from lichen.network.description import IMAGE_FORMAT, Network, Transform
from lichen.quant.calibrate import CalibrationImages
from lichen.quant.entropy import Bottleneck, TableFit, fit_tables, float_bits
from lichen.quant.float_network import FloatNetwork
from lichen.quant.ptq import FixedOutput, Options, StageReport, TransformQuantizer
from lichen.sim.golden import (
    analysis,
    channel_indices,
    estimate_bits,
    psnr,
    reconstruct,
    symbol_bits,
)

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RateDistortion:
    """Means over images.

    Attributes
    ----------
    psnr : float
        dB, of the reconstruction rounded to 8 bits.
    bpp : float
        Bits per pixel, estimated: what an ideal entropy coder needs.
    images : int
    """

    psnr: float
    bpp: float
    images: int

    def json(self) -> dict[str, Any]:
        return {"psnr": round(self.psnr, 4), "bpp": round(self.bpp, 5), "images": self.images}


@dataclass(frozen=True)
class Quantized:
    """A network and how it came about.

    Attributes
    ----------
    network : Network
    stages : list of StageReport
    tables : TableFit
    before, after : RateDistortion
        FP32 and integers on the calibration crops; both round the latent to integers.
    """

    network: Network
    stages: list[StageReport]
    tables: TableFit
    before: RateDistortion
    after: RateDistortion


def _mean(psnrs: list[float], bits: list[float]) -> RateDistortion:
    return RateDistortion(
        float(np.mean([min(p, PSNR_EXACT) for p in psnrs])), float(np.mean(bits)), len(psnrs)
    )


def measure(network: Network, images: Sequence[Image]) -> RateDistortion:
    """The golden model on images (H, W, 3); bits from the network's tables."""
    psnrs, bits = [], []
    for image in images:
        latents = analysis(network, image)
        psnrs.append(psnr(image, reconstruct(network, latents)))
        total = sum(estimate_bits(network, latents).values())
        bits.append(total / (image.shape[0] * image.shape[1]))
    return _mean(psnrs, bits)


def measure_float(
    network: FloatNetwork, images: Sequence[Image], tables: Network | None = None
) -> RateDistortion:
    """The FP32 network on images (H, W, 3), latents rounded to integers.

    Bits come from the network's entropy bottleneck; for networks without one, from the
    tables of the integer network ``tables``.
    """
    psnrs, bits = [], []
    for image in images:
        symbols = np.rint(network.analyze(image)).astype(np.int64)
        psnrs.append(psnr(image, network.synthesize(symbols, *image.shape[:2])))
        if "y" in network.bottlenecks:
            total = float_bits(Bottleneck(network.bottlenecks["y"]), symbols)
        elif tables is not None:
            total = symbol_bits(tables.entropy["y"], symbols, channel_indices(symbols.shape))
        else:
            total = math.nan
        bits.append(total / (image.shape[0] * image.shape[1]))
    return _mean(psnrs, bits)


def check_supported(network: FloatNetwork) -> None:
    """Raise UserError unless the network is one that `quantize` can do."""
    missing = [name for name in ("g_a", "g_s") if name not in network.transforms]
    if missing:
        raise UserError(f"the network has no {' and no '.join(missing)}; it cannot be quantized.")
    hyper = [name for name in ("h_a", "h_s") if name in network.transforms]
    if hyper:
        raise UserError(
            f"{network.architecture} has a hyperprior, which cannot be quantized yet; "
            "use a checkpoint of bmshj2018-factorized or bmshj2018-factorized-relu."
        )


def steps(network: FloatNetwork) -> int:
    """How often `quantize` calls its ``progress``."""
    return sum(len(network.transforms[name].stages) for name in ("g_a", "g_s")) + 1


def quantize(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options | None = None,
    *,
    name: str | None = None,
    refit: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Quantized:
    """Quantize g_a and g_s and make the entropy tables.

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

    The symbols of the latent are the integers that g_a makes; g_s reads them directly and
    makes pixel values 0 .. 255. Equal arguments give equal networks on the same machine.

    Raises UserError for networks with a hyperprior, or without calibration images.
    """
    check_supported(network)
    options = options or Options()
    if not images.crops:
        raise UserError("there are no calibration images; give a folder of photographs.")
    stage_names = {
        f"{key}.{stage.name}" for key in ("g_a", "g_s") for stage in network.transforms[key].stages
    }
    unknown = sorted(set(options.per_stage) - stage_names)
    if unknown:
        raise UserError(
            f"the network has no stage {unknown[0]}, only {', '.join(sorted(stage_names))}."
        )
    encoder = TransformQuantizer(
        "g_a",
        network.transforms["g_a"],
        source=IMAGE_FORMAT,
        source_scale=1 / 255,
        inputs=list(images.crops),
        options=options,
        last=FixedOutput(1.0, options.latent_bits, signed=True),
        progress=progress,
    )
    g_a = encoder.run()
    symbols = encoder.ints
    # The decoder is fitted to what the encoder sends, not to FP32's latents.
    decoder = TransformQuantizer(
        "g_s",
        network.transforms["g_s"],
        source=g_a.output,
        source_scale=1.0,
        inputs=symbols,
        options=options,
        last=FixedOutput(1 / 255, IMAGE_FORMAT.bits, signed=False),
        progress=progress,
    )
    g_s = decoder.run()

    settings = asdict(options) | {
        "per_stage": {key: asdict(widths) for key, widths in options.per_stage.items()},
        "clip_rules": {key: asdict(rule) for key, rule in options.clip_rules.items()},
        "refit": refit,
    }
    result = assemble(
        network,
        images,
        g_a,
        g_s,
        symbols,
        decoder.ints,
        settings=settings,
        name=name,
        refit=refit,
        stages=encoder.reports + decoder.reports,
    )
    progress("measurement")
    return result


def assemble(
    network: FloatNetwork,
    images: CalibrationImages,
    g_a: Transform,
    g_s: Transform,
    symbols: Sequence[npt.NDArray],
    decoded: Sequence[npt.NDArray],
    *,
    settings: Mapping[str, Any],
    stages: list[StageReport],
    name: str | None = None,
    refit: bool = True,
    bottleneck: Mapping[str, npt.NDArray] | None = None,
) -> Quantized:
    """The network of integer transforms: entropy tables, measurement, provenance.

    Parameters
    ----------
    network : FloatNetwork
        The FP32 parent, which the result is compared with.
    g_a, g_s : Transform
    symbols, decoded : sequence of int array (h, w, C)
        What g_a and g_s make of the calibration images.
    settings : dict
        How it was quantized, as JSON values.
    bottleneck : dict of str to array or None
        Parameters of the entropy bottleneck; None takes the parent's, if it has one.
    """
    if bottleneck is None:
        bottleneck = network.bottlenecks.get("y")
    prior = Bottleneck(bottleneck) if bottleneck is not None else None
    fit = fit_tables(prior, symbols, g_a.output, refit=refit)
    result = Network(
        name=network.name if name is None else name,
        architecture=network.architecture,
        n=network.n,
        m=network.m,
        transforms={"g_a": g_a, "g_s": g_s},
        entropy={"y": fit.tables},
    )
    before = measure_float(network, images.crops, result)
    after = _mean(
        [
            psnr(image, pixels.astype(np.uint8))
            for image, pixels in zip(images.crops, decoded, strict=True)
        ],
        [
            symbol_bits(fit.tables, latent, channel_indices(latent.shape))
            / (image.shape[0] * image.shape[1])
            for image, latent in zip(images.crops, symbols, strict=True)
        ],
    )
    provenance = network.provenance | {
        "quantization": dict(settings)
        | {
            "calibration": {"images": len(images.crops), "sha256": images.digest},
            "tables_prior_strength": fit.strength if math.isfinite(fit.strength) else None,
            "fp32": before.json(),
            "integer": after.json(),
        }
    }
    return Quantized(
        result.model_copy(update={"provenance": provenance}), stages, fit, before, after
    )
