"""Integer CDF tables for the entropy coder, evaluated on the grid of the symbols.

A factorized prior codes each latent channel with a table of its own. The probabilities come
from the network's entropy bottleneck (Ballé et al., "Variational image compression with a
scale hyperprior", 2018, appendix 6.1), evaluated at the integers, because the symbols of the
integer network lie there (median 0); or, for networks without an entropy model, from a
discrete Laplacian fitted to calibration symbols. The symbols of y of a hyperprior model take
the tables of a set of Gaussians (section 3 there), one for each of a set of scales. Either can
be refined with the histogram of the symbols that the quantized network really makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lichen.errors import UserError
from lichen.network.description import EntropyTables, Format

FloatArray = npt.NDArray[np.float64]

PRECISION = 16
TAIL_MASS = 1e-9
"""Probability that a table may leave to its escape, as in CompressAI."""

LIKELIHOOD_MIN = 1e-9
"""The lower bound of CompressAI's likelihoods."""


SYMBOL_MAX = (1 << 13) - 1
"""The greatest magnitude of a symbol that tables go to: counts of 16 bits cannot tell more."""

SCALE_MIN, SCALE_MAX, SCALE_LEVELS = 0.11, 256.0, 64
"""The Gaussians of CompressAI's scale table."""


def _sigmoid(x: FloatArray) -> FloatArray:
    return 0.5 * (1 + np.tanh(x / 2))


def _difference_of_sigmoids(lower: FloatArray, upper: FloatArray) -> FloatArray:
    """``sigmoid(upper) - sigmoid(lower)`` without cancellation in the upper tail."""
    sign = np.where(lower + upper > 0, -1.0, 1.0)
    a, b = sign * lower, sign * upper
    # both on the negative side now, where the sigmoid keeps its relative precision
    with np.errstate(over="ignore"):
        return np.abs(1 / (1 + np.exp(-b)) - 1 / (1 + np.exp(-a)))


@dataclass(frozen=True)
class Bottleneck:
    """CompressAI's entropy bottleneck in float64.

    Attributes
    ----------
    parameters : dict of str to array
        ``matrices.I`` (C, out, in), ``biases.I`` (C, out, 1) and ``factors.I`` (C, out, 1),
        as CompressAI names them.
    """

    parameters: Mapping[str, FloatArray]

    @property
    def channels(self) -> int:
        return len(self.parameters["matrices.0"])

    def logits(self, values: FloatArray) -> FloatArray:
        """Logits of the cumulative distribution at (C, K) values."""
        x = values[:, None, :]
        layers = sum(name.startswith("matrices.") for name in self.parameters)
        for i in range(layers):
            matrix = np.logaddexp(0, self.parameters[f"matrices.{i}"])
            x = matrix @ x + self.parameters[f"biases.{i}"]
            if i < layers - 1:
                x = x + np.tanh(self.parameters[f"factors.{i}"]) * np.tanh(x)
        return x[:, 0, :]

    def probabilities(self, lo: int, hi: int) -> tuple[FloatArray, FloatArray]:
        """Of each symbol ``lo .. hi`` (C, hi - lo + 1), and of all others (C,)."""
        edges = np.broadcast_to(np.arange(lo, hi + 2) - 0.5, (self.channels, hi - lo + 2))
        logits = self.logits(edges)
        inside = _difference_of_sigmoids(logits[:, :-1], logits[:, 1:])
        outside = _sigmoid(logits[:, 0]) + _sigmoid(-logits[:, -1])
        return inside, outside


def scale_table(levels: int = SCALE_LEVELS) -> FloatArray:
    """Standard deviations of the Gaussians (levels,), evenly spaced in their logarithms."""
    return np.geomspace(SCALE_MIN, SCALE_MAX, levels)


def scale_thresholds(scales: FloatArray, step: float) -> npt.NDArray[np.int64]:
    """What an integer of ``step`` must reach for each Gaussian but the first.

    Halfway between two scales in their logarithms: a Gaussian of a scale that is off by a
    factor costs as many bits either way.
    """
    return np.ceil(np.sqrt(scales[:-1] * scales[1:]) / step).astype(np.int64)


def _normal_cdf(x: FloatArray) -> FloatArray:
    return 0.5 * torch.erfc(torch.from_numpy(-np.sqrt(0.5) * x)).numpy()


def gaussian_probabilities(scales: FloatArray, symbols: npt.NDArray) -> FloatArray:
    """Of integer symbols under zero-mean Gaussians; shapes are broadcast."""
    # on the negative side, where the CDF keeps its relative precision
    distance = np.abs(symbols)
    return _normal_cdf((0.5 - distance) / scales) - _normal_cdf((-0.5 - distance) / scales)


def histogram(
    symbols: Sequence[npt.NDArray],
    lo: int,
    hi: int,
    indices: Sequence[npt.NDArray] | None = None,
    tables: int | None = None,
) -> FloatArray:
    """How often each symbol ``lo .. hi`` occurs with each table, (tables, hi - lo + 1).

    ``symbols`` are integer arrays (h, w, C), ``indices`` their tables; None gives each channel
    its own. What lies outside counts at the nearer end.
    """
    if tables is None:
        tables = symbols[0].shape[-1]
    if indices is None:
        indices = [np.broadcast_to(np.arange(tables), latent.shape) for latent in symbols]
    counts = np.zeros((tables, hi - lo + 1))
    for latent, rows in zip(symbols, indices, strict=True):
        place = np.clip(latent, lo, hi).astype(np.int64) - lo + rows * counts.shape[1]
        counts += np.bincount(place.reshape(-1), minlength=counts.size).reshape(counts.shape)
    return counts


def laplacian(counts: FloatArray, lo: int) -> FloatArray:
    """A discrete Laplacian about each channel's mode with its mean magnitude, normalized."""
    symbols = np.arange(counts.shape[1]) + lo
    mode = symbols[counts.argmax(axis=1)]
    distance = np.abs(symbols[None] - mode[:, None])
    mean = (counts * distance).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    # mean magnitude of p(k) ~ t^|k|: 2 t / (1 - t^2)
    mean = np.maximum(mean, 0.02)
    t = (np.sqrt(1 + mean**2) - 1) / mean
    pmf = t[:, None] ** distance
    return pmf / pmf.sum(axis=1, keepdims=True)


def refine(prior: FloatArray, counts: FloatArray, strength: float) -> FloatArray:
    """The mean of a Dirichlet posterior: ``strength`` samples of the prior, and the counts."""
    total = counts.sum(axis=1, keepdims=True)
    return (counts + strength * prior) / (total + strength)


def best_strength(prior: FloatArray, folds: Sequence[FloatArray]) -> float:
    """The strength of the prior that codes unseen images with the fewest bits.

    By cross-validation over the folds, the histograms of parts of the images; infinity means
    that the counts are no help.
    """
    if len(folds) < 2:
        return np.inf
    candidates = [30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, np.inf]
    cost = np.zeros(len(candidates))
    total = sum(folds, np.zeros_like(prior))
    for test in folds:
        for i, strength in enumerate(candidates):
            pmf = prior if np.isinf(strength) else refine(prior, total - test, strength)
            cost[i] -= (test * np.log2(np.maximum(pmf, 2.0**-PRECISION))).sum()
    return candidates[int(cost.argmin())]


def integer_counts(pmf: FloatArray, total: int) -> npt.NDArray[np.int64]:
    """Positive integers of sum ``total`` in proportion to a probability vector.

    Of all such integers these lose next to nothing against the probabilities: starting from
    the rounded values, single counts are given or taken where that costs the fewest bits.
    Raises ValueError when there are more entries than ``total``.
    """
    if len(pmf) > total:
        raise ValueError(f"{len(pmf)} symbols do not fit a table of {total}")
    pmf = np.maximum(pmf, 0) / max(float(pmf.sum()), 1e-300)
    counts = np.maximum(np.rint(pmf * total), 1).astype(np.int64)
    excess = int(counts.sum()) - total
    while excess:
        if excess > 0:
            with np.errstate(divide="ignore"):
                cost = np.where(
                    counts > 1, pmf * np.log(counts / np.maximum(counts - 1, 1)), np.inf
                )
            step = -1
        else:
            cost = -pmf * np.log1p(1 / counts)
            step = 1
        # a share of the change at a time: exact for small excesses, quick for large ones
        part = max(1, min(abs(excess), int(np.isfinite(cost).sum())) // 4)
        chosen = np.argsort(cost, kind="stable")[:part]
        counts[chosen] += step
        excess += step * part
    return counts


def make_tables(
    inside: FloatArray,
    outside: FloatArray,
    lo: int,
    observed: FloatArray | None = None,
    tail_mass: float = TAIL_MASS,
) -> EntropyTables:
    """Tables of each channel over the symbols that matter to it.

    Parameters
    ----------
    inside : (C, K)
        Probabilities of the symbols ``lo .. lo + K - 1``.
    outside : (C,)
        Probability of everything else.
    observed : (C, K) or None
        Counts; a symbol seen is in the table whatever its probability.
    tail_mass : float
        Each side is cut where no more than half of this lies beyond.
    """
    channels, length = inside.shape
    rows, offsets = [], []
    for c in range(channels):
        below = np.cumsum(inside[c])
        above = np.cumsum(inside[c][::-1])
        first = min(int((below <= tail_mass / 2).sum()), length - 1)
        last = max(length - 1 - int((above <= tail_mass / 2).sum()), 0)
        if observed is not None and observed[c].any():
            seen = np.flatnonzero(observed[c])
            first, last = min(first, int(seen[0])), max(last, int(seen[-1]))
        first, last = min(first, last), max(first, last)
        kept = inside[c, first : last + 1]
        escape = max(float(inside[c].sum() - kept.sum()), 0.0) + float(outside[c])
        counts = integer_counts(np.append(kept, escape), 1 << PRECISION)
        rows.append(np.concatenate([[0], np.cumsum(counts)]))
        offsets.append(lo + first)
    cdf = np.zeros((channels, max(len(row) for row in rows)), np.int32)
    for c, row in enumerate(rows):
        cdf[c, : len(row)] = row
    return EntropyTables(
        cdf=cdf,
        lengths=np.array([len(row) for row in rows], np.int32),
        offsets=np.array(offsets, np.int32),
    )


@dataclass(frozen=True)
class TableFit:
    """Tables, and how they came about.

    Attributes
    ----------
    tables : EntropyTables
    strength : float
        Of the prior against the calibration symbols, in samples; infinite without a refit.
    bits_prior, bits : float
        Mean bits of a calibration symbol with the prior alone, and with the tables.
    """

    tables: EntropyTables
    strength: float
    bits_prior: float
    bits: float


def cross_entropy(pmf: FloatArray, counts: FloatArray) -> float:
    """Mean bits of a symbol."""
    return float(-(counts * np.log2(np.maximum(pmf, 2.0**-PRECISION))).sum() / max(counts.sum(), 1))


FOLDS = 4
"""Parts of the calibration images in the cross-validation of tables."""


def _fit(
    prior: FloatArray, outside: FloatArray, folds: list[FloatArray], lo: int, refit: bool
) -> TableFit:
    counts = sum(folds, np.zeros_like(prior))
    strength = best_strength(prior, folds) if refit else np.inf
    pmf = prior
    if np.isfinite(strength):
        pmf = refine(prior, counts, strength)
        outside = outside * strength / (counts.sum(axis=1) + strength)
    tables = make_tables(pmf, outside, lo, counts)
    return TableFit(tables, strength, cross_entropy(prior, counts), cross_entropy(pmf, counts))


def fit_tables(
    bottleneck: Bottleneck | None,
    symbols: Sequence[npt.NDArray],
    latent: Format,
    *,
    refit: bool = True,
) -> TableFit:
    """A table for each channel of a latent.

    Parameters
    ----------
    bottleneck : Bottleneck or None
        None fits a Laplacian to the symbols.
    symbols : sequence of int array (h, w, C)
        Of the calibration images.
    latent : Format
        What the integer network can make: nothing outside of it gets a probability, nor beyond
        `SYMBOL_MAX`, where symbols take the escape.
    refit : bool
        Refine the prior with the symbols' histogram as far as that helps unseen images.
    """
    lo, hi = max(latent.lo, -SYMBOL_MAX), min(latent.hi, SYMBOL_MAX)
    parts = min(FOLDS, len(symbols))
    folds = [histogram(symbols[i::parts], lo, hi) for i in range(parts)]
    if bottleneck is None:
        prior = laplacian(sum(folds, np.zeros_like(folds[0])), lo)
    else:
        prior, _ = bottleneck.probabilities(lo, hi)
        # the integer network clips, so the tails belong to the outermost symbols
        edges = np.array([[lo - 0.5, hi + 0.5]])
        logits = bottleneck.logits(np.broadcast_to(edges, (bottleneck.channels, 2)))
        prior[:, 0] += _sigmoid(logits[:, 0])
        prior[:, -1] += _sigmoid(-logits[:, 1])
        total = prior.sum(axis=1, keepdims=True)
        if not (np.isfinite(total).all() and (total > 0).all()):
            raise UserError(
                "the entropy bottleneck of the FP32 network gives symbols no probabilities; "
                "the checkpoint is damaged, or its training diverged."
            )
        prior /= total
    return _fit(prior, np.zeros(len(prior)), folds, lo, refit)


def fit_gaussian_tables(
    scales: FloatArray,
    symbols: Sequence[npt.NDArray],
    indices: Sequence[npt.NDArray],
    lo: int,
    hi: int,
    *,
    clipped: bool,
    refit: bool = True,
) -> TableFit:
    """A table for each scale of zero-mean Gaussians.

    Parameters
    ----------
    scales : (tables,)
        Standard deviations, rising.
    symbols, indices : sequence of int array (h, w, C)
        Of the calibration images: symbols, and the scale of each.
    lo, hi : int
        Range of the tables.
    clipped : bool
        Nothing lies outside of the range: its ends get the tails. If not, the escape gets them.
    refit : bool
        Refine the Gaussians with the symbols' histogram as far as that helps unseen images.
    """
    lo, hi = max(lo, -SYMBOL_MAX), min(hi, SYMBOL_MAX)
    prior = gaussian_probabilities(scales[:, None], np.arange(lo, hi + 1)[None])
    below, above = _normal_cdf((lo - 0.5) / scales), _normal_cdf((-hi - 0.5) / scales)
    outside = below + above
    if clipped:
        prior[:, 0] += below
        prior[:, -1] += above
        outside = np.zeros(len(scales))
    parts = min(FOLDS, len(symbols))
    folds = [
        histogram(symbols[i::parts], lo, hi, indices[i::parts], len(scales)) for i in range(parts)
    ]
    return _fit(prior, outside, folds, lo, refit)


def float_bits(bottleneck: Bottleneck, symbols: npt.NDArray) -> float:
    """Bits that the FP32 entropy model gives integer symbols (h, w, C), as CompressAI counts."""
    # at the symbols themselves: a table of their range could have millions of entries
    values = symbols.reshape(-1, symbols.shape[-1]).T
    inside = _difference_of_sigmoids(
        bottleneck.logits(values - 0.5), bottleneck.logits(values + 0.5)
    )
    return float(-np.log2(np.maximum(inside, LIKELIHOOD_MIN)).sum())


def gaussian_bits(scales: FloatArray, symbols: npt.NDArray) -> float:
    """Bits of integer symbols under Gaussians of FP32 scales, as CompressAI counts."""
    p = gaussian_probabilities(np.maximum(scales, SCALE_MIN), symbols)
    return float(-np.log2(np.maximum(p, LIKELIHOOD_MIN)).sum())
