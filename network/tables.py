"""Integer CDF tables, by which the entropy coder codes symbols."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from lichen.network.fields import (
    CHANNELS_MAX,
    IntArray,
    require,
    require_range,
    require_shape,
)
from lichen.network.model import Model


def _at_least_32_bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums of offsets and lengths wrap in narrower types."""
    return array.astype(np.promote_types(array.dtype, np.int32), copy=False)


TableArray = Annotated[IntArray, _at_least_32_bits]
"""Integers of any type, kept in a signed one of 32 or 64 bits."""


class EntropyTables(Model):
    """Integer CDF tables of the entropy coder.

    Attributes
    ----------
    precision : int
        The CDFs end at ``2**precision``.
    cdf : int array (tables, length)
        Row i rises strictly from 0 to ``2**precision`` over its first ``lengths[i]`` entries;
        the rest is 0. The last interval of each row is the escape.
    lengths : int array (tables,)
        Entries used per row: symbols + escape + 1; at least 3.
    offsets : int array (tables,)
        The symbol value of the first interval, within 32 bits, signed.
    """

    precision: Literal[16] = 16
    cdf: TableArray
    lengths: TableArray
    offsets: TableArray

    def _check(self) -> None:
        require(self.cdf.ndim == 2, "cdf must have two dimensions")
        tables = self.cdf.shape[0]
        require(1 <= tables <= CHANNELS_MAX, f"cdf must have 1 .. {CHANNELS_MAX} rows")
        require_shape("lengths", self.lengths, (tables,))
        require_shape("offsets", self.offsets, (tables,))
        require_range("lengths", self.lengths, 3, self.cdf.shape[1])
        limits = np.iinfo(np.int32)
        fit = self.offsets.min() >= limits.min and self.offsets.max() <= limits.max
        require(bool(fit), "offsets must fit 32 bits, signed")
        total = 1 << self.precision
        for i, length in enumerate(self.lengths):
            row, rest = self.cdf[i, :length], self.cdf[i, length:]
            # compared, not subtracted: a difference of 64-bit integers may wrap
            rising = row[0] == 0 and row[-1] == total and bool(np.all(row[1:] > row[:-1]))
            require(rising, f"cdf row {i} must rise strictly from 0 to {total}")
            require(not rest.any(), f"cdf row {i} must be 0 after its {length} entries")
