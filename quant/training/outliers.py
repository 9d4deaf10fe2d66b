"""Weights far from the rest of their output channel, which cost all the others their precision.

That outliers are to be bounded statistically and regularized away is the idea of Fang and
Chen, "A multi-stage optimization framework for deploying learned image compression on FPGAs"
(2025). The formulas here are ours: the bound of an output channel is its mean plus and minus
``sigmas`` standard deviations, of the weights as they are quantized (the input's scales folded
in), and the penalty grows with the square of what lies beyond.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen import caches
from lichen.files import write_atomically

SIGMAS = 3.0
"""Bound of the reports, in standard deviations: 0.27 % of normally distributed weights."""


def penalty(weight: Tensor, sigmas: float) -> Tensor:
    """Mean over the output channels of the sum of squared excesses, in standard deviations.

    ``weight`` is (out, ...). The bounds themselves take no gradient: it is the outliers that
    are to move, not the deviation that is to grow.
    """
    rows = weight.flatten(1)
    with torch.no_grad():
        mean = rows.mean(dim=1, keepdim=True)
        deviation = rows.std(dim=1, keepdim=True).clamp(min=1e-12)
    excess = torch.relu((rows - mean).abs() / deviation - sigmas)
    return excess.square().sum() / len(rows)


def outlier_ratio(weight: npt.NDArray, sigmas: float = SIGMAS) -> float:
    """Share of the weights (out, ...) beyond the bounds of their output channels."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    deviation = np.maximum(rows.std(axis=1, keepdims=True), 1e-12)
    return float((np.abs(rows - rows.mean(axis=1, keepdims=True)) > sigmas * deviation).mean())


def peak_ratio(weight: npt.NDArray) -> float:
    """Greatest magnitude of an output channel over its root mean square, median of channels."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    rms = np.sqrt((rows**2).mean(axis=1))
    live = rms > 0
    return float(np.median(np.abs(rows[live]).max(axis=1) / rms[live])) if live.any() else 0.0


def plot(layers: list[dict[str, Any]], path: str | Path) -> None:
    """Bars of the outlier ratio of each layer before and after; the suffix names the format.

    ``layers`` holds ``layer``, ``outliers_before`` and ``outliers_after`` (shares).
    """
    caches.prepare()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(max(5, 0.9 * len(layers)), 3.2))
    where = np.arange(len(layers))
    for offset, key, label in (
        (-0.2, "outliers_before", "FP32 parent"),
        (0.2, "outliers_after", "DRAQ"),
    ):
        axes.bar(where + offset, [100 * layer[key] for layer in layers], 0.4, label=label)
    axes.set_xticks(where, [layer["layer"] for layer in layers], rotation=30, ha="right")
    axes.set_ylabel("outlying weights / %")
    axes.legend()
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png")
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
