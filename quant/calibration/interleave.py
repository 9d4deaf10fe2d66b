"""Copies of a channel that round at interleaved places, so that their mean has finer steps.

Two quantizers of step s whose inputs are a half-step apart make, averaged, one of step s / 2: a
quarter of the noise, where two that round independently leave half. A stage has no offset behind
its activation, but its bias stands before it: copies whose biases lie symmetrically around the
channel's own average to the same value whatever the slope of the activation, and stay as far
apart as the slope says. Where it varies, no distance suits all positions and the mean over them
counts.

The noises of two uniform quantizers of step 1 that are d apart have the correlation
``1 - 6 f (1 - f)``, f being the fractional part of d, if values spread over many steps: that of a
second Bernoulli polynomial, as in Widrow and Kollar, "Quantization Noise" (2008).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

POSITIONS = 512
"""Slopes of a channel that are looked at."""

CANDIDATES = np.geomspace(0.25, 4, 33)
"""Distances tried, in units of that which interleaves evenly at the median slope."""


def averaged_noise(distance: npt.NDArray, copies: int) -> npt.NDArray:
    """Noise energy of the mean of so many quantizers, each ``distance`` steps from the last.

    Relative to that of one of them: 1 / copies**2 at a distance of 1 / copies, 1 at 0.
    """
    energy = np.full_like(distance, copies)
    for k in range(1, copies):
        f = (k * distance) % 1
        energy += 2 * (copies - k) * (1 - 6 * f * (1 - f))
    return energy / copies**2


def spacing(
    x: FloatArray, y: FloatArray, steps: FloatArray, copies: npt.NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """How far apart the inputs of a channel's copies should lie.

    Parameters
    ----------
    x, y : float array (positions, channels)
        An activation's inputs and outputs.
    steps : float array (channels,)
        Of the rounded outputs.
    copies : int array (channels,)
        At least 1.

    Returns the distances (channels,), in units of x, and the noise that the mean of the copies
    keeps of that of one, expected over the positions (channels,): 1 for single channels.
    """
    keep = slice(None, None, max(1, len(x) // POSITIONS))
    slope = np.abs(y[keep]) / np.maximum(np.abs(x[keep]), 1e-9)
    median = np.maximum(np.median(slope, axis=0), 1e-9)
    distance, noise = np.zeros(len(steps)), np.ones(len(steps))
    for count in range(2, int(copies.max(initial=1)) + 1):
        for channel in np.flatnonzero(copies == count):
            unit = steps[channel] / (count * median[channel])
            apart = slope[:, channel] * unit / steps[channel]
            means = averaged_noise(CANDIDATES[:, None] * apart, count).mean(axis=1)
            best = means.argmin()
            distance[channel], noise[channel] = CANDIDATES[best] * unit, means[best]
    return distance, noise


def shifts(
    distance: FloatArray, ranks: npt.NDArray[np.int64], copies: npt.NDArray[np.int64]
) -> FloatArray:
    """What each copy's bias gets: symmetric around 0. ``ranks`` count copies from 0."""
    return distance * (ranks - (copies - 1) / 2)
