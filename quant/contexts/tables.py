"""Tables for the bins of context models: histograms of what remains of symbols, merged.

Every pair of a bin of scales and a phase of means is a cell. Cells whose histograms are alike
share a table: the pair whose merging costs the fewest bits for the entries it saves goes first
(agglomerative, as in context quantization for lossless image coding: Wu, "Lossless compression
of continuous-tone images via context selection, quantization, and modeling", 1997), until all
tables fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lichen.network.context import BINS_MAX, ENTRIES_MAX, MEAN_BITS, PHASES, SCALE_MAX
from lichen.network.description import EntropyTables
from lichen.quant.calibration.entropy import PRECISION, integer_counts

FloatArray = npt.NDArray[np.float64]

REACH = 512
"""Histograms hold what lies within; what lies beyond counts at their ends."""

TABLES = 96
"""Most tables before merging for entries alone goes on."""


@dataclass(frozen=True)
class Cells:
    """One latent's histograms.

    Attributes
    ----------
    edges : int array (bins - 1,)
    phase : int array (PHASES,)
    counts : array (bins, phases, 2 REACH + 1)
    """

    edges: npt.NDArray[np.int64]
    phase: npt.NDArray[np.int64]
    counts: FloatArray


PHASE = np.digitize(np.arange(PHASES), [3, 8]).astype(np.int64)
"""The phase of a mean's fraction in 1/32: near an integer, between, near a half."""


def remainders(
    symbols: npt.NDArray, means: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What the tables code of symbols with these means, and the means' fractions, 0 .. 16."""
    whole = (means + (1 << (MEAN_BITS - 1))) >> MEAN_BITS
    part = means - (whole << MEAN_BITS)
    values = symbols.astype(np.int64) - whole
    return np.where(part < 0, -values, values), np.abs(part)


def scale_edges(scales: Sequence[npt.NDArray[np.int64]], bins: int) -> npt.NDArray[np.int64]:
    """Edges of at most so many bins, in even steps of the scales' logarithm."""
    values = np.concatenate([one.reshape(-1)[::7] for one in scales])
    low, high = np.quantile(values, [0.0005, 0.9999])
    edges = np.geomspace(max(low, 1), max(high, 4), min(bins, BINS_MAX) - 1)
    return np.unique(np.clip(np.rint(edges), 1, SCALE_MAX).astype(np.int64))


def count(
    scales: Sequence[npt.NDArray[np.int64]],
    means: Sequence[npt.NDArray[np.int64]],
    symbols: Sequence[npt.NDArray],
    bins: int,
    phase: npt.NDArray[np.int64] = PHASE,
) -> Cells:
    """Histograms of images' symbols, (h, w, channels) each, in at most so many bins of scales."""
    edges = scale_edges(scales, bins)
    phases = int(phase.max()) + 1
    width = 2 * REACH + 1
    counts = np.zeros((len(edges) + 1) * phases * width)
    for scale, mean, values in zip(scales, means, symbols, strict=True):
        rest, part = remainders(values, mean)
        cell = np.searchsorted(edges, scale, side="right") * phases + phase[part]
        place = cell * width + np.clip(rest, -REACH, REACH) + REACH
        counts += np.bincount(place.reshape(-1), minlength=counts.size)
    return Cells(edges, phase, counts.reshape(len(edges) + 1, phases, width))


def _cost(counts: FloatArray) -> FloatArray:
    """Bits of histograms (n, width) under their own distribution."""
    total = counts.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, counts * np.log2(counts), 0).sum(axis=-1)
        return np.where(total > 0, total * np.log2(total), 0) - terms


def _ranges(counts: FloatArray, outside: float) -> tuple[npt.NDArray, npt.NDArray]:
    """First and last place of each histogram that leave no more than that share outside."""
    total = counts.sum(axis=-1, keepdims=True)
    share = np.maximum(counts, 0) / np.maximum(total, 1)
    first = (share.cumsum(axis=-1) <= outside / 2).sum(axis=-1)
    last = counts.shape[-1] - 1 - (share[:, ::-1].cumsum(axis=-1) <= outside / 2).sum(axis=-1)
    empty = total[:, 0] == 0
    first, last = np.where(empty, REACH, first), np.where(empty, REACH, last)
    return np.minimum(first, last), np.maximum(first, last)


def _entries(counts: FloatArray, outside: float) -> npt.NDArray[np.int64]:
    """Entries that histograms take as tables, the escape's among them."""
    first, last = _ranges(counts, outside)
    return last - first + 2


def merge(counts: FloatArray, entries: int, tables: int, outside: float) -> npt.NDArray[np.int64]:
    """The number of each cell's table (cells,), for histograms (cells, width)."""
    groups = counts.copy()
    member = np.arange(len(groups))
    alive = np.ones(len(groups), bool)
    cost, length = _cost(groups), _entries(groups, outside)

    def against(i: int) -> FloatArray:
        """Bits that merging with i costs for each entry that it saves."""
        joined = groups + groups[i]
        saved = length + length[i] - _entries(joined, outside)
        price = np.maximum(_cost(joined) - cost - cost[i], 0) / np.maximum(saved, 0.5)
        price[~alive] = np.inf
        price[i] = np.inf
        return price

    prices = np.array([against(i) for i in range(len(groups))])
    while alive.sum() > 1 and (alive.sum() > tables or length[alive].sum() > entries):
        i, j = np.unravel_index(int(prices.argmin()), prices.shape)
        groups[i] += groups[j]
        alive[j] = False
        member[member == j] = i
        cost[i], length[i] = _cost(groups[i : i + 1])[0], _entries(groups[i : i + 1], outside)[0]
        prices[j], prices[:, j] = np.inf, np.inf
        prices[i] = against(int(i))
        prices[:, i] = prices[i]
        prices[~alive, i] = np.inf
    return np.searchsorted(np.flatnonzero(alive), member)


def make(
    cells: Mapping[str, Cells],
    *,
    outside: float,
    entries: int = ENTRIES_MAX,
    tables: int = TABLES,
) -> tuple[EntropyTables, dict[str, npt.NDArray[np.int64]]]:
    """The bank for all latents, and which of its tables each bin and phase takes.

    ``outside``: the share of symbols that a table may leave to its escape.
    """
    flat = np.concatenate([one.counts.reshape(-1, 2 * REACH + 1) for one in cells.values()])
    member = merge(flat, entries, tables, outside)
    pooled = np.zeros((int(member.max()) + 1, flat.shape[1]))
    np.add.at(pooled, member, flat)
    first, last = _ranges(pooled, outside)
    rows = []
    for row, a, b in zip(pooled, first, last, strict=True):
        inside = row[a : b + 1]
        escape = row.sum() - inside.sum()
        # a tenth of a count everywhere, for symbols that these images lack
        pmf = np.append(inside + 0.1, escape + 0.5)
        counts = integer_counts(pmf / pmf.sum(), 1 << PRECISION)
        rows.append(np.concatenate([[0], np.cumsum(counts)]))
    cdf = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        cdf[i, : len(row)] = row
    bank = EntropyTables(
        cdf=cdf,
        lengths=np.array([len(row) for row in rows], np.int32),
        offsets=(first - REACH).astype(np.int32),
    )
    choices, begin = {}, 0
    for name, one in cells.items():
        bins, phases = one.counts.shape[:2]
        choices[name] = member[begin : begin + bins * phases].reshape(bins, phases)
        begin += bins * phases
    return bank, choices
