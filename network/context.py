"""Context models: which table codes a symbol, from symbols that are decoded already.

A `ContextModel` predicts two integers for every symbol, its scale and its mean, from four
neighbours of the same channel and from what the channels before it hold at the same place; a
table of the bank that all latents of a network share (`Contexts`) belongs to each pair. It is
adaptive Golomb coding's idea (Weinberger, Seroussi and Sapiro, "The LOCO-I lossless image
compression algorithm", 2000) on latents: contexts are few because magnitudes add up to a scale.

The arithmetic, for the symbol of channel c at row i and column j (docs/contexts.md has it in
full, `lichen.codec.context` computes it):

- ``m(v) = min(|v|, MAGNITUDE_MAX)``; W, N, NW and NE are the neighbours (i, j-1), (i-1, j),
  (i-1, j-1) and (i-1, j+1) of channel c. Where there is no row above, W stands for all; beyond
  the left or right edge N; at the first place all are 0.
- ``A[k] = sum over channels d < c of inner[k, d] m(symbol[i, j, d])``. With ``carry`` it starts at
  ``carry[., k] . (T[k] at W, N, NW, NE) >> CARRY_BITS`` in place of 0, where ``T[k]`` is the sum
  over all channels of a place, without what it started at.
- ``sum = (near[., c] . m(W, N, NW, NE) << near_shift) + outer[., c] . A`` and, beside a
  hyperprior, ``+ (spread[c] levels[index] << spread_shift)``.
- ``scale = min(bias[c] + (sum >> shift), SCALE_MAX)``; ``bin`` is how many edges it reaches.
- With ``unit`` and ``usual`` a hyperprior's scale is corrected by how much the channels before
  exceed what it said of them: there ``A[k]`` sums ``inner[k, d] x`` of
  ``x = clamp(m unit[index] - usual[index], -256, 255)``, ``gain = clamp(256 + (outer[., c] . A
  >> gain_shift), 64, 1024)``, and in place of the last two terms stands
  ``min(spread[c] levels[index], 2**20 - 1) gain >> 8``.
- ``mean = slope[., c] . (W, N, NW, NE)``, each limited to ``+-VALUE_MAX``, in 1/32;
  ``whole = (mean + 16) >> 5``, ``part = mean - 32 whole``, -16 .. 15.
- The table is ``choice[bin, phase[|part|]]``; it codes ``symbol - whole``, negated where part
  is negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lichen.network.fields import (
    IntArray,
    JsonObject,
    require,
    require_range,
    require_shape,
)
from lichen.network.model import Field, Model
from lichen.network.tables import EntropyTables

NEIGHBOURS = ("W", "N", "NW", "NE")
MAGNITUDE_MAX = 31
"""What the magnitude of a neighbour counts as at most."""

VALUE_MAX = (1 << 15) - 1
"""What a neighbour counts as at most in the mean."""

MEAN_BITS = 5
"""Fractional bits of the mean."""

PHASES = (1 << (MEAN_BITS - 1)) + 1
"""Values of ``|part|``."""

SCALE_MAX = (1 << 16) - 1
BINS_MAX = 64
EXCESS_LIMITS = (-256, 255)
"""Of what a symbol's magnitude exceeds the usual by, in 1/32 of its scale."""

GAIN_BITS = 8
"""Fractional bits of the gain of a scale."""

GAIN_LIMITS = (1 << (GAIN_BITS - 2), 1 << (GAIN_BITS + 2))
"""A quarter to four."""

CARRY_BITS = 6
"""Fractional bits of the weights of the neighbours' sums over channels."""

BASE_MAX = (1 << 20) - 1
"""What a scale counts as at most before its gain."""

TABLES_MAX = 128
ENTRIES_MAX = 6000
"""Most entries of 16 bits in the tables of a network."""

BITS_MAX = 12000
"""Most bits of weights and edges in a network."""

SUM_MAX = (1 << 31) - 1

EXCESS = ("unit", "usual", "gain_shift")
"""What corrects a hyperprior's scales: all of them or none."""

SINCE = {**dict.fromkeys(EXCESS, 3), "carry": 4}
"""Formats of the network file with which fields came that format 2 has not."""

_WEIGHT_BITS, _SLOPE_BITS, _BIAS_BITS, _LEVEL_BITS, _UNIT_BITS = 5, 6, 12, 16, 9


def _stored(array: IntArray | None) -> int:
    """Bits of a memory for an array: as wide as its widest entry, of two's complement or none."""
    if array is None or not array.size:
        return 0
    low, high = int(array.min()), int(array.max())
    return array.size * max(
        high.bit_length() + (low < 0), (-low - 1).bit_length() + 1 if low < 0 else 1
    )


class ContextModel(Model):
    """How one latent chooses its tables.

    Attributes
    ----------
    bias : int array (channels,)
        0 .. 4095.
    near : int array (4 or 2, channels)
        0 .. 31, of the neighbours W, N, NW, NE; the last two may be left out.
    slope : int array (4, 2 or 0, channels)
        -32 .. 31, of the same neighbours.
    inner, outer : int array (k, channels)
        0 .. 31; k from 0 to 8.
    carry : int array (4, k) or None
        0 .. 31: what the sums of the neighbours W, N, NW and NE over all their channels count at
        the start of a place, in 1/64. Only beside ``inner``.
    spread : int array (channels,) or None
        0 .. 31. Only for latents whose table number a hyperprior gives.
    levels : int array (levels,) or None
        0 .. 65535, one for each of these numbers.
    unit, usual : int array (levels,) or None
        0 .. 511: steps that a magnitude of one counts, and those that are usual, in 1/32 of the
        scale of each level. Both or neither; only beside levels.
    near_shift, spread_shift, shift : int
        0 .. 15.
    gain_shift : int or None
        0 .. 15; goes with ``unit``, and spread_shift is 0 then.
    edges : int array (bins - 1,)
        1 .. 65535, rising; at most 63.
    phase : int array (17,)
        0 .. phases - 1, not falling; at most 8 phases.
    choice : int array (bins, phases)
        Number of a table of the bank.
    """

    bias: IntArray
    near: IntArray
    slope: IntArray
    inner: IntArray
    outer: IntArray
    carry: IntArray | None = None
    spread: IntArray | None = None
    levels: IntArray | None = None
    unit: IntArray | None = None
    usual: IntArray | None = None
    gain_shift: int | None = Field(default=None, ge=0, le=15)
    near_shift: int = Field(ge=0, le=15)
    spread_shift: int = Field(default=0, ge=0, le=15)
    shift: int = Field(ge=0, le=15)
    edges: IntArray
    phase: IntArray
    choice: IntArray

    @property
    def channels(self) -> int:
        return int(self.bias.shape[0])

    @property
    def bits(self) -> int:
        """Of weights, edges and the choice of tables, as gateware would store them."""
        arrays = (value for _, value in self if isinstance(value, np.ndarray))
        return sum(_stored(array) for array in arrays)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """`Model.model_dump`; fields that format 2 lacks are left out where they say nothing."""
        found = super().model_dump(**options)
        return {key: value for key, value in found.items() if key not in SINCE or value is not None}

    def _check(self) -> None:
        require(self.bias.ndim == 1 and self.bias.size > 0, "bias must have one dimension")
        c = self.channels
        for name, counts in (("near", (2, 4)), ("slope", (0, 2, 4)), ("inner", range(9))):
            array = getattr(self, name)
            require(
                array.ndim == 2 and array.shape[0] in counts and array.shape[1] == c,
                f"{name} must have shape (n, {c}) with n one of "
                f"{', '.join(map(str, counts))}, not {array.shape}",
            )
        require_shape("outer", self.outer, self.inner.shape)
        if self.carry is not None:
            require(len(self.inner) > 0, "carry goes with inner")
            require_shape("carry", self.carry, (len(NEIGHBOURS), len(self.inner)))
            require_range("carry", self.carry, 0, (1 << _WEIGHT_BITS) - 1)
        require_range("bias", self.bias, 0, (1 << _BIAS_BITS) - 1)
        for name in ("near", "inner", "outer"):
            require_range(name, getattr(self, name), 0, (1 << _WEIGHT_BITS) - 1)
        require_range("slope", self.slope, -(1 << (_SLOPE_BITS - 1)), (1 << (_SLOPE_BITS - 1)) - 1)
        require(
            (self.spread is None) == (self.levels is None), "spread and levels go with each other"
        )
        if self.spread is not None and self.levels is not None:
            require_shape("spread", self.spread, (c,))
            require_range("spread", self.spread, 0, (1 << _WEIGHT_BITS) - 1)
            require(self.levels.ndim == 1, "levels must have one dimension")
            require_range("levels", self.levels, 0, (1 << _LEVEL_BITS) - 1)
        self._check_excess()
        self._check_choice()
        require(
            self.greatest_sum() <= SUM_MAX,
            f"the sum of a context may reach {self.greatest_sum()}, beyond 31 bits",
        )

    def _check_excess(self) -> None:
        given = [getattr(self, name) is not None for name in EXCESS]
        require(all(given) or not any(given), f"{', '.join(EXCESS)} go with each other")
        if self.unit is None or self.usual is None:
            return
        require(self.levels is not None, "unit goes with levels")
        assert self.levels is not None
        require(self.spread_shift == 0, "spread_shift must be 0 beside unit")
        for name in ("unit", "usual"):
            require_shape(name, getattr(self, name), self.levels.shape)
            require_range(name, getattr(self, name), 0, (1 << _UNIT_BITS) - 1)

    def _check_choice(self) -> None:
        require(self.edges.ndim == 1, "edges must have one dimension")
        require(self.edges.size < BINS_MAX, f"edges must be fewer than {BINS_MAX}")
        require_range("edges", self.edges, 1, SCALE_MAX)
        require(bool(np.all(np.diff(self.edges.astype(np.int64)) > 0)), "edges must rise")
        require_shape("phase", self.phase, (PHASES,))
        require(self.choice.ndim == 2, "choice must have two dimensions")
        phases = self.choice.shape[1]
        require(1 <= phases <= 8, f"choice must have 1 to 8 phases, not {phases}")
        require_shape("choice", self.choice, (self.edges.size + 1, phases))
        require_range("phase", self.phase, 0, phases - 1)
        require(bool(np.all(np.diff(self.phase.astype(np.int64)) >= 0)), "phase must not fall")
        require_range("choice", self.choice, 0, TABLES_MAX - 1)

    def greatest_sum(self) -> int:
        """The most that anything in the scale's arithmetic can reach."""
        near = int((self.near.astype(object).sum(axis=0) * MAGNITUDE_MAX).max()) << self.near_shift
        most = MAGNITUDE_MAX if self.unit is None else -EXCESS_LIMITS[0]
        reached = self.inner.astype(np.int64).sum(axis=1) * most
        across = carried = 0
        if self.carry is not None:
            products = self.carry.astype(np.int64).sum(axis=0) * reached
            carried = int(products.max())
            reached = reached + (products >> CARRY_BITS) + 1  # sums of excesses round down
        if len(self.outer):
            across = int((self.outer.astype(object) * reached[:, None].astype(object)).sum(0).max())
        spread = 0
        if self.spread is not None and self.levels is not None:
            level = int(self.levels.max()) if self.levels.size else 0
            spread = int(self.spread.max()) * level << self.spread_shift
        if self.unit is not None:
            # the gain is added up apart from the scale
            base = min(spread, BASE_MAX) * GAIN_LIMITS[1] >> GAIN_BITS
            total = near + base + (1 << _BIAS_BITS)
            return max(across, carried, total, BASE_MAX * GAIN_LIMITS[1])
        return max(carried, near + across + spread + (1 << _BIAS_BITS))


class Replaced(Model):
    """The network file that a network with contexts came from: files of version 1 name it.

    Attributes
    ----------
    sha256 : str
        Of that file.
    decoder : str
        What its decoding half is named by (`lichen.network.identity`): a network whose own is
        another one does not replace it.
    """

    sha256: str = Field(pattern="[0-9a-f]{64}")
    decoder: str = Field(pattern="[0-9a-f]{32}")


class Contexts(Model):
    """The context models of a network and their tables.

    Attributes
    ----------
    tables : EntropyTables
        The bank.
    latents : dict of str to ContextModel
        ``y``, and for hyperprior models ``z``.
    replaced : Replaced or None
        The file of the network without contexts, if there is one.
    provenance : dict
        What they were fitted to, and what they save.
    """

    tables: EntropyTables
    latents: dict[str, ContextModel]
    replaced: Replaced | None = None
    provenance: JsonObject = Field(default_factory=dict)

    @property
    def format(self) -> int:
        """Of the network file: the least that has all there is."""
        models = self.latents.values()
        newer = (
            since
            for name, since in SINCE.items()
            if any(getattr(model, name) is not None for model in models)
        )
        return max(newer, default=2)

    @property
    def entries(self) -> int:
        """Entries of 16 bits that the tables take; 0 and 65536 are known."""
        return int((self.tables.lengths.astype(np.int64) - 1).sum())

    @property
    def bits(self) -> int:
        return sum(model.bits for model in self.latents.values())

    def _check(self) -> None:
        count = len(self.tables.lengths)
        require(1 <= count <= TABLES_MAX, f"contexts take 1 to {TABLES_MAX} tables, not {count}")
        for name, model in self.latents.items():
            require_range(f"latents.{name}.choice", model.choice, 0, count - 1)
        require_range("tables.offsets", self.tables.offsets, -VALUE_MAX, VALUE_MAX)
        require(
            self.entries <= ENTRIES_MAX,
            f"the tables have {self.entries} entries, more than {ENTRIES_MAX}",
        )
        require(
            self.bits <= BITS_MAX,
            f"weights and edges take {self.bits} bits, more than {BITS_MAX}",
        )
