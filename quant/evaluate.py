"""FP32 networks on images: rate from bytes really coded, distortion from 8-bit pixels."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lichen.quant.data import load_rgb


@dataclass(frozen=True)
class ImageResult:
    """One image: size in pixels, coded bytes, bits per pixel, PSNR in dB (inf if equal)."""

    name: str
    width: int
    height: int
    bytes: int
    bpp: float
    psnr: float


@dataclass(frozen=True)
class Evaluation:
    """Results of a set of images; `bpp` and `psnr` are means over images, as CompressAI's."""

    images: list[ImageResult]
    bpp: float
    psnr: float

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON output."""
        return asdict(self)


def integer_grid(model: Any) -> Any:
    """A copy of a CompressAI model whose coded symbols lie on the integer grid (median 0).

    The quantiles are solved by bisection, then every entropy bottleneck's median is set to
    zero and its tables are built at the integers: `compress` codes round(y), not
    round(y - median), as the integer network does.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "quantiles"):
                module._update_quantiles()
                module.quantiles[:, 0, 1] = 0
        model.update(force=True)
    return model


def pad_to_multiple(image: np.ndarray, multiple: int) -> np.ndarray:
    """Replicate the bottom row and right column of (height, width, channels) up to a multiple."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of two uint8 arrays of one shape, peak 255; infinite where they are equal."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def evaluate_fp32(model: Any, images: Iterable[str | Path | np.ndarray]) -> Evaluation:
    """Code and decode images with an FP32 CompressAI model.

    Args:
        model: a supported CompressAI model; it is not changed.
        images: image files, or uint8 arrays of shape (height, width, 3).

    Returns:
        Per image and mean: bits of the coded bytes (CompressAI's rANS, symbols on the integer
        grid) over the pixels of the unpadded image, and PSNR of the reconstruction rounded to
        8 bits and cropped. Padding replicates the bottom and right edges up to a multiple of
        the model's downsampling factor.
    """
    coder = integer_grid(model)
    results = []
    for index, item in enumerate(images):
        is_array = isinstance(item, np.ndarray)
        name = f"image {index}" if is_array else Path(str(item)).name
        image = item if isinstance(item, np.ndarray) else load_rgb(item)
        height, width = image.shape[:2]
        padded = pad_to_multiple(image, coder.downsampling_factor)
        x = torch.from_numpy(padded.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        with torch.no_grad():
            coded = coder.compress(x)
            decoded = coder.decompress(coded["strings"], coded["shape"])["x_hat"]
        pixels = (decoded[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        pixels = pixels.transpose(1, 2, 0)[:height, :width]
        size = sum(len(strings[0]) for strings in coded["strings"])
        results.append(
            ImageResult(name, width, height, size, 8 * size / (height * width), psnr(image, pixels))
        )
    if not results:
        return Evaluation([], math.nan, math.nan)
    return Evaluation(
        results,
        float(np.mean([r.bpp for r in results])),
        float(np.mean([r.psnr for r in results])),
    )
