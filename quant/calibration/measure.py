"""Rate and distortion of integer and of real networks, on images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.network.description import Network
from lichen.quant.calibration.entropy import (
    Bottleneck,
    float_bits,
    gaussian_bits,
)
from lichen.quant.float.network import FloatLatents, FloatNetwork
from lichen.sim.golden import (
    analysis,
    channel_indices,
    estimate_bits,
    reconstruct,
    symbol_bits,
)
from lichen.sim.quality import PSNR_EXACT, psnr, squared_error

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
    segments : dict of str to float
        The part of ``bpp`` that each of the symbols ``y`` and ``z`` take.
    mse : float
        Mean squared error of 8-bit pixels; its mean is not that of the images' PSNRs.
    """

    psnr: float
    bpp: float
    images: int
    segments: dict[str, float]
    mse: float

    def json(self) -> dict[str, Any]:
        return {
            "psnr": round(self.psnr, 4),
            "bpp": round(self.bpp, 5),
            "images": self.images,
            "segments": {name: round(bpp, 5) for name, bpp in self.segments.items()},
        }


def mean_of(psnrs: list[float], bits: list[dict[str, float]], pixels: list[int]) -> RateDistortion:
    """The mean over images of so many pixels, of PSNRs and of bits by segment."""
    segments = {
        name: float(np.mean([b[name] / p for b, p in zip(bits, pixels, strict=True)]))
        for name in (bits[0] if bits else ())
    }
    return RateDistortion(
        float(np.mean([min(p, PSNR_EXACT) for p in psnrs])),
        sum(segments.values()),
        len(psnrs),
        segments,
        float(np.mean([squared_error(p) for p in psnrs])),
    )


def loss(found: RateDistortion, start: RateDistortion, lmbda: float) -> float:
    """Bits per pixel lost against ``start``: of ``R + lambda D``, as a mean of PSNRs counts images.

    A decibel counts as it does at the geometric mean of the start's squared errors. The mean of
    the errors themselves is that of rough photographs, and next to deaf to what smooth ones lose.
    """
    level = squared_error(start.psnr)
    return found.bpp - start.bpp + lmbda * level * math.log(10) / 10 * (start.psnr - found.psnr)


def pixels_of(images: Sequence[Image]) -> list[int]:
    return [image.shape[0] * image.shape[1] for image in images]


def measure(network: Network, images: Sequence[Image]) -> RateDistortion:
    """The golden model on images (H, W, 3); bits from the network's tables."""
    psnrs, bits = [], []
    for image in images:
        latents = analysis(network, image)
        psnrs.append(psnr(image, reconstruct(network, latents)))
        bits.append(estimate_bits(network, latents))
    return mean_of(psnrs, bits, pixels_of(images))


def estimate_float_bits(
    network: FloatNetwork, latents: FloatLatents, tables: Network | None = None
) -> dict[str, float]:
    """Bits of each segment under the FP32 entropy model, as CompressAI counts them.

    Factorized symbols of a network without an entropy bottleneck take the tables of the
    integer network ``tables``; without those, their bits are not a number.
    """
    bits = {}
    factorized = {"y": latents.y} if latents.z is None else {"z": latents.z}
    for name, symbols in factorized.items():
        if name in network.bottlenecks:
            bits[name] = float_bits(Bottleneck(network.bottlenecks[name]), symbols)
        elif tables is not None:
            rows = channel_indices(symbols.shape)
            bits[name] = symbol_bits(tables.entropy[name], symbols, rows)
        else:
            bits[name] = math.nan
    if latents.scales is not None:
        bits["y"] = gaussian_bits(latents.scales, latents.y)
    return bits


def measure_float(
    network: FloatNetwork, images: Iterable[Image], tables: Network | None = None
) -> RateDistortion:
    """The FP32 network on images (H, W, 3), symbols rounded to integers.

    Bits as in `estimate_float_bits`.
    """
    psnrs, bits, pixels = [], [], []
    for image in images:
        pixels.append(image.shape[0] * image.shape[1])
        latents = network.code(image)
        psnrs.append(psnr(image, network.reconstruct(latents, *image.shape[:2])))
        bits.append(estimate_float_bits(network, latents, tables))
    return mean_of(psnrs, bits, pixels)
