"""How much an image differs from another one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PSNR_EXACT = 100.0
"""What an image that comes back unchanged counts as, in dB, so that means stay finite."""


def psnr(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit images; infinite when they are equal."""
    if a.shape != b.shape:
        raise ValueError(f"the images must have the same shape, not {a.shape} and {b.shape}")
    total = 0
    for one, two in zip(a, b, strict=True):
        difference = one.astype(np.int64) - two
        total += int(np.square(difference).sum())
    error = total / a.size
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def squared_error(psnr: float) -> float:
    """The mean squared error of 8-bit pixels that a PSNR (dB) stands for."""
    return 255.0**2 / 10 ** (psnr / 10)
