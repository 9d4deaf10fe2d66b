"""What calibration images tell about a network: samples, clipping ranges, regressions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen.quant.float.network import FloatStage, Observer
from lichen.sim.images import list_images, pad_image, read_image

FloatArray = npt.NDArray[np.float64]


Item = TypeVar("Item")


def _evenly(items: list[Item], most: int) -> list[Item]:
    """So many of them at even distances, or all."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


@dataclass(frozen=True)
class CalibrationImages:
    """Crops to calibrate on.

    Attributes
    ----------
    crops : list of uint8 array (height, width, 3)
        Sides are multiples of the network's downsampling factor.
    digest : str
        SHA-256 of the crops' pixels.
    """

    crops: list[npt.NDArray[np.uint8]]

    def some(self, most: int) -> CalibrationImages:
        """So many of them at even distances, or all."""
        return CalibrationImages(_evenly(self.crops, most))

    @property
    def digest(self) -> str:
        sha = hashlib.sha256()
        for crop in self.crops:
            sha.update(np.array(crop.shape, "<i8").tobytes())
            sha.update(np.ascontiguousarray(crop).tobytes())
        return sha.hexdigest()


def crop_image(image: npt.NDArray[np.uint8], factor: int, size: int) -> npt.NDArray[np.uint8]:
    """The middle of an image (H, W, 3), at most ``size`` pixels a side, as whole ``factor``s.

    An image smaller than ``factor`` is padded by repeating its last row and column.
    """
    image = pad_image(image, factor) if min(image.shape[:2]) < factor else image
    height, width = (max(min(side, size) // factor, 1) * factor for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def usual_size(hyper: bool) -> int:
    """Side of a calibration crop: a hyperprior's z is coarse.

    0.35 % fewer bits on unseen images with 512 than with 256, in a hyperprior of N = 16.
    """
    return 512 if hyper else 256


def load_calibration(
    source: str | Path | list[Path], factor: int, *, size: int = 256, limit: int | None = None
) -> CalibrationImages:
    """One crop from the middle of each image of a folder, or of the files given.

    With ``limit``, images are taken at even distances through the sorted names.

    Raises UserError when the folder holds no images or one cannot be read.
    """
    files = source if isinstance(source, list) else list_images(source)
    if limit is not None:
        files = _evenly(files, limit)
    return CalibrationImages([crop_image(read_image(file), factor, size) for file in files])


def maximum(values: FloatArray) -> FloatArray:
    """Greatest magnitude of each column of (samples, channels)."""
    return np.abs(values).max(axis=0)


def floor_clip(clip: FloatArray) -> FloatArray:
    """Clipping ranges of channels that never fire, lifted off zero."""
    top = float(clip.max()) if clip.size else 0.0
    return np.maximum(clip, top * 1e-5 if top > 0 else 1.0)


def percentile_clip(values: FloatArray, percentile: float) -> FloatArray:
    """Clipping range of each channel of (samples, channels), from a percentile (0 .. 100)."""
    return floor_clip(np.percentile(np.abs(values), percentile, axis=0))


def mse_clip(
    values: FloatArray, levels: int, weights: FloatArray | None = None, steps: int = 40
) -> FloatArray:
    """The clipping range of each channel that loses the least.

    Parameters
    ----------
    values : (samples, channels)
    levels : int
        The greatest integer: ``2**(bits-1) - 1``, or ``2**bits - 1`` if unsigned.
    weights : (samples, channels) or None
        What a squared error counts.
    steps : int
        Candidates between a tenth of the maximum and the maximum.
    """
    top = floor_clip(maximum(values))
    best, clip = np.full(len(top), np.inf), top.copy()
    values = values.astype(np.float32)
    weights = None if weights is None else weights.astype(np.float32)
    for ratio in np.geomspace(1.0, 0.1, steps):
        scale = (top * ratio / levels).astype(np.float32)
        error = np.clip(np.rint(values / scale), -levels, levels) * scale - values
        with np.errstate(over="ignore"):  # an infinite loss is never the least
            error *= error
            if weights is not None:
                error *= weights
            loss = error.mean(axis=0, dtype=np.float64)
        better = loss < best
        best = np.where(better, loss, best)
        clip = np.where(better, top * ratio, clip)
    return clip


class StageSamples:
    """FP32 values of stages at random positions, image after image.

    Parameters
    ----------
    each : int
        Positions of a tensor that one image gives, at most.
    rng : Generator
    """

    def __init__(self, each: int, rng: np.random.Generator) -> None:
        self.each, self.rng = each, rng
        self.parts: dict[str, list[FloatArray]] = {}

    def observer(self, transform: str) -> Observer:
        """Keeps what a run of this transform shows it."""

        def observe(stage: FloatStage, before: Tensor, after: Tensor) -> None:
            rows = before[0].flatten(1).shape[1]
            chosen = self.rng.choice(rows, min(self.each, rows), replace=False)
            for name, tensor in (("x", before), ("output", after)):
                values = tensor[0].flatten(1)[:, torch.from_numpy(chosen)].T.double().numpy()
                self.parts.setdefault(f"{transform}.{stage.name}.{name}", []).append(values)

        return observe

    def joined(self) -> dict[str, FloatArray]:
        """All of them (positions, channels), under names such as ``g_a.conv1.x``.

        ``x`` is what the convolution makes, ``output`` what the activation makes of it.
        """
        return {name: np.concatenate(values) for name, values in self.parts.items()}


@dataclass(frozen=True)
class Phase:
    """The outputs of a convolution that see the same taps.

    A plain convolution has one phase. A transposed one of stride s has ``s * s``: the
    outputs whose row and column leave the same remainders divided by s, each a small
    convolution of its own.

    Attributes
    ----------
    row, column : int
        First output of the phase.
    step : int
        Distance to the next.
    rows, columns : int array
        The taps of the kernel in use.
    """

    row: int
    column: int
    step: int
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]

    def features(self, stage: FloatStage) -> npt.NDArray[np.int64]:
        """Indices, into a flattened ``weight[o]``, of the taps in use, ordered (in, y, x)."""
        k = stage.kernel
        index = np.arange(stage.in_channels * k * k).reshape(stage.in_channels, k, k)
        return index[:, self.rows[:, None], self.columns[None, :]].reshape(-1)


def phases(stage: FloatStage) -> list[Phase]:
    """All phases of a stage's convolution; those without a single tap are left out."""
    taps = np.arange(stage.kernel)
    if not stage.transposed:
        return [Phase(0, 0, 1, taps, taps)]
    s, p = stage.stride, stage.padding
    used = [taps[(r + p - taps) % s == 0] for r in range(s)]
    return [
        Phase(r, c, s, used[r], used[c])
        for r in range(s)
        for c in range(s)
        if len(used[r]) and len(used[c])
    ]


def sample_positions(
    rng: np.random.Generator, phase: Phase, height: int, width: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """At most ``count`` distinct output positions of a phase, rows and columns."""
    rows = np.arange(phase.row, height, phase.step)
    columns = np.arange(phase.column, width, phase.step)
    total = len(rows) * len(columns)
    chosen = np.sort(rng.choice(total, min(count, total), replace=False))
    return rows[chosen // len(columns)], columns[chosen % len(columns)]


def gather_patches(
    x: np.ndarray,
    stage: FloatStage,
    phase: Phase,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """The inputs each output at (rows, columns) sums over, as (positions, features).

    ``x`` is (height, width, channels); what lies outside of it is zero.
    """

    def sources(outputs: npt.NDArray, taps: npt.NDArray, size: int) -> npt.NDArray:
        if stage.transposed:
            index = (outputs[:, None] + stage.padding - taps[None]) // stage.stride
        else:
            index = outputs[:, None] * stage.stride - stage.padding + taps[None]
        return np.where((index >= 0) & (index < size), index, size)

    height, width, _ = x.shape
    padded = np.pad(x.astype(np.float32), ((0, 1), (0, 1), (0, 0)))
    iy = sources(rows, phase.rows, height)
    ix = sources(columns, phase.columns, width)
    patches = padded[iy[:, :, None], ix[:, None, :]]
    return np.ascontiguousarray(patches.transpose(0, 3, 1, 2)).reshape(len(rows), -1)


class Regression:
    """Weighted normal equations of ``target ~ patches @ w``, accumulated over images.

    Attributes
    ----------
    hessian : (features, features)
    cross : (features, outputs)
    feature_sum, target_sum : (features,), (outputs,)
    weight : float
        Sum of the samples' weights.
    """

    def __init__(self, features: int, outputs: int) -> None:
        self.hessian = np.zeros((features, features))
        self.cross = np.zeros((features, outputs))
        self.feature_sum = np.zeros(features)
        self.target_sum = np.zeros(outputs)
        self.weight = 0.0

    def add(
        self, patches: npt.NDArray[np.float32], target: FloatArray, weights: FloatArray
    ) -> None:
        """Samples (n, features), (n, outputs) and what each counts (n,)."""
        weighted = patches * weights[:, None].astype(np.float32)
        self.hessian += weighted.T @ patches
        self.cross += weighted.T @ target.astype(np.float32)
        self.feature_sum += weighted.sum(axis=0, dtype=np.float64)
        self.target_sum += (target * weights[:, None]).sum(axis=0)
        self.weight += float(weights.sum())

    def centred(self) -> tuple[FloatArray, FloatArray]:
        """Hessian and cross products about the means: what is left to a free bias."""
        mean = self.feature_sum / max(self.weight, 1e-300)
        return (
            self.hessian - np.outer(mean, self.feature_sum),
            self.cross - np.outer(mean, self.target_sum),
        )
