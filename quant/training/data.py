"""Training and calibration images: a folder decoded once, kept as bytes, cropped at random."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lichen.errors import UserError
from lichen.sim.images import read_image


def load_rgb(path: str | Path) -> np.ndarray:
    """One image file as uint8, shape (height, width, 3), as every command reads it."""
    return read_image(path)


class CropSource:
    """A folder of images in memory that deals random square crops.

    Every batch is a function of `(seed, step)` alone, so that a resumed run sees
    exactly the crops an uninterrupted one would have seen.

    Args:
        files: image paths.
        patch: crop size in pixels; images smaller than it (in either direction)
            are refused with a UserError.
        downscale: probability in 0..1 that a crop is taken up to twice as large
            and reduced with a Lanczos filter (sharper content).
    """

    def __init__(self, files: Sequence[str | Path], *, patch: int, downscale: float = 0.0):
        self.patch = patch
        self.downscale = downscale
        self.images: list[np.ndarray] = []
        digest = hashlib.sha256()
        for file in files:
            image = load_rgb(file)
            if min(image.shape[:2]) < patch:
                raise UserError(
                    f"{file} is {image.shape[1]}x{image.shape[0]}, smaller than the patch of "
                    f"{patch}; remove it or choose a smaller patch."
                )
            # Digest of the decoded pixels: a re-compressed PNG is still the same data set.
            digest.update(np.array(image.shape, dtype="<i8").tobytes())
            digest.update(image.tobytes())
            self.images.append(image)
        self.digest = digest.hexdigest()

    def batch(self, seed: int, step: int, size: int) -> np.ndarray:
        """Crops of training step `step`: uint8, shape (size, 3, patch, patch).

        Images are drawn with equal probability; each crop is flipped left-right and
        top-bottom with probability one half each.
        """
        rng = np.random.default_rng([seed, step])
        crops = np.empty((size, 3, self.patch, self.patch), dtype=np.uint8)
        for i in range(size):
            image = self.images[rng.integers(len(self.images))]
            height, width = image.shape[:2]
            side = self.patch
            if rng.random() < self.downscale:
                largest = min(2 * self.patch, height, width)
                side = int(rng.integers(self.patch, largest + 1))
            top = rng.integers(height - side + 1)
            left = rng.integers(width - side + 1)
            crop = image[top : top + side, left : left + side]
            if side != self.patch:
                reduced = Image.fromarray(crop).resize(
                    (self.patch, self.patch), Image.Resampling.LANCZOS
                )
                crop = np.asarray(reduced)
            if rng.random() < 0.5:
                crop = crop[:, ::-1]
            if rng.random() < 0.5:
                crop = crop[::-1]
            crops[i] = crop.transpose(2, 0, 1)
        return crops
