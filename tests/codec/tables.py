"""Entropy tables for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lichen.network.description import EntropyTables

TOTAL = 1 << 16


def from_counts(counts: Sequence[Sequence[int]], offsets: Sequence[int]) -> EntropyTables:
    """Tables with these interval widths, the escape's last; each sums to 65536."""
    rows = [np.concatenate([[0], np.cumsum(row)]) for row in counts]
    cdf = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        cdf[i, : len(row)] = row
    return EntropyTables(
        cdf=cdf,
        lengths=np.array([len(row) for row in rows], np.int32),
        offsets=np.array(offsets, np.int64),
    )


def laplacian(scales: Sequence[float], half: int, escape: int = 3) -> EntropyTables:
    """A table per scale over the symbols ``-half .. half``."""
    counts = []
    for scale in scales:
        pmf = np.exp(-np.abs(np.arange(-half, half + 1)) / scale)
        row = np.maximum(np.floor(pmf / pmf.sum() * (TOTAL - escape - 2 * half - 1)), 0) + 1
        row[half] += TOTAL - escape - row.sum()
        counts.append([*row.astype(int), escape])
    return from_counts(counts, [-half] * len(counts))


def information(symbols: np.ndarray, indices: np.ndarray, tables: EntropyTables) -> float:
    """Bits of symbols under their tables, escapes in Elias's gamma code and a sign."""
    bits = 0.0
    pairs = zip(symbols.reshape(-1).tolist(), indices.reshape(-1).tolist(), strict=True)
    for symbol, t in pairs:
        length, offset = int(tables.lengths[t]), int(tables.offsets[t])
        costs = 16 - np.log2(np.diff(tables.cdf[t, :length].astype(np.int64)))
        value = symbol - offset
        if 0 <= value <= length - 3:
            bits += float(costs[value])
        else:
            distance = -value if value < 0 else value - (length - 3)
            bits += float(costs[-1]) + 2 * (distance.bit_length() - 1) + 2
    return bits
