"""FP32 networks on images: rate from bytes really coded, distortion from 8-bit pixels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lichen.codec.evaluate import Codec, Evaluation, Pixels, evaluate
from lichen.sim.images import pad_image

MS_SSIM_MIN = 161
"""Least height and width: five scales with a window of 11 (Wang et al., "Multi-scale structural
similarity for image quality assessment", 2003)."""


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


def ms_ssim(a: Pixels, b: Pixels) -> float | None:
    """Multi-scale structural similarity, 0 .. 1, of two 8-bit images (height, width, 3).

    As CompressAI measures it (pytorch_msssim). None for images smaller than `MS_SSIM_MIN`.
    """
    import pytorch_msssim

    if min(a.shape[:2]) < MS_SSIM_MIN:
        return None
    x, y = (torch.from_numpy(p.transpose(2, 0, 1)[None].astype(np.float32)) for p in (a, b))
    return float(pytorch_msssim.ms_ssim(x, y, data_range=255))


class FloatCodec(Codec):
    """An FP32 CompressAI model with CompressAI's rANS, symbols on the integer grid.

    Padding replicates the bottom and right edges up to a multiple of the model's
    downsampling factor; the model is not changed.
    """

    def __init__(self, model: Any, name: str = "FP32"):
        self.name = name
        self.description = "FP32, ans"
        self._model = integer_grid(model)

    def encode(self, image: Pixels) -> list[bytes]:
        padded = pad_image(image, self._model.downsampling_factor)
        x = torch.from_numpy(padded.transpose(2, 0, 1)[None].astype(np.float32) / 255)
        with torch.no_grad():
            return [strings[0] for strings in self._model.compress(x)["strings"]]

    def decode(self, streams: Sequence[bytes], height: int, width: int) -> Pixels:
        factor = self._model.downsampling_factor
        # CompressAI's shape is that of the innermost latent: 1/64 of the image's sides where
        # there is a hyperprior, and the factor otherwise
        shape = (-(-height // factor), -(-width // factor))
        with torch.no_grad():
            decoded = self._model.decompress([[stream] for stream in streams], shape)["x_hat"]
        pixels = (decoded[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return pixels.transpose(1, 2, 0)[:height, :width]


def evaluate_fp32(model: Any, images: Iterable[str | Path | np.ndarray]) -> Evaluation:
    """Code and decode images with an FP32 CompressAI model (see `FloatCodec`).

    Args:
        model: a supported CompressAI model.
        images: image files, or uint8 arrays of shape (height, width, 3); at least one.
    """
    return evaluate(FloatCodec(model), images)
