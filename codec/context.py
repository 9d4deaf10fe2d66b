"""Coding latents with the context models of `lichen.network.context`, compiled.

A `ContextCoder` codes rectangles of rows and columns of a latent, one stream each, in raster
order. Everything is integers below 2**31 (the range coder's window has 32 bits), so streams are
the same on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen import native
from lichen.codec import entropy, ranges
from lichen.codec.entropy import BUCKET_BITS, PRECISION, EntropyError, bucket_starts
from lichen.codec.layout import Layout, Window
from lichen.network import context as network_context
from lichen.network.context import (
    BASE_MAX,
    CARRY_BITS,
    EXCESS_LIMITS,
    GAIN_BITS,
    GAIN_LIMITS,
    MAGNITUDE_MAX,
    MEAN_BITS,
    SCALE_MAX,
    VALUE_MAX,
    ContextModel,
    Contexts,
)

BEYOND_LIMITS = 1
_FAILURES = {
    BEYOND_LIMITS: "it holds a symbol that the network cannot make",
    ranges.IMPOSSIBLE: "it holds what no encoder writes",
    ranges.ENDS_WRONG: "it does not end where it should",
}

ENCODER_STATE, DECODER_STATE = 5, 3
"""Lengths of the range coder's states, see `ranges.steps`."""

ESCAPE_BITS_MAX = 31
"""Greatest n of an escape's distance, of n + 1 bits."""

SYMBOL_BYTES_MAX = 12
"""More than any symbol takes: 16 bits and an escape of 2 + 2 ESCAPE_BITS_MAX."""

Symbols = npt.NDArray[np.int32]


def _loops(inline: Callable[..., Any]) -> dict[str, Callable[..., int]]:
    """The loops, for `lichen.native`: arguments as `_SIGNATURES` has them."""
    found = ranges.steps(inline)
    put, finish, slot_of, consume = found.encode, found.finish, found.slot, found.consume
    begin_decoding, ends_right = found.begin_decoding, found.ends_right
    one, sixteen = np.uint64(1), np.uint64(PRECISION)
    bucket_shift = np.uint64(PRECISION - BUCKET_BITS)
    half, mean_bits = 1 << (MEAN_BITS - 1), MEAN_BITS
    most, magnitude, value_most = SCALE_MAX, MAGNITUDE_MAX, VALUE_MAX
    excess_least, excess_most = EXCESS_LIMITS
    gain_bits, base_most = GAIN_BITS, BASE_MAX
    gain_least, gain_most = GAIN_LIMITS
    carry_bits = CARRY_BITS

    @inline
    def places(i, j, top, left, right):
        """Rows and columns of W, N, NW and NE as the model says; -1 for none at all."""
        has_w, has_n = j > left, i > top
        w = (i, j - 1) if has_w else ((i - 1, j) if has_n else (-1, 0))
        if not has_n:
            return w, w, w, w
        n = (i - 1, j)
        nw = (i - 1, j - 1) if has_w else n
        ne = (i - 1, j + 1) if j + 1 < right else n
        return w, n, nw, ne

    @inline
    def small(v):
        return min(abs(v), magnitude)

    @inline
    def limited(v):
        return max(-value_most, min(v, value_most))

    @inline
    def predict(c, w, n, nw, ne, sums, model, extra):
        """The scale and the mean of a symbol; ``extra`` is what a hyperprior says."""
        bias, near, slope, _, outer, shifts, corrected = model
        w, n, nw, ne = np.int64(w), np.int64(n), np.int64(nw), np.int64(ne)
        total = near[0, c] * small(w) + near[1, c] * small(n)
        if near.shape[0] == 4:
            total += near[2, c] * small(nw) + near[3, c] * small(ne)
        total = total << shifts[0]
        across = np.int64(0)
        for k in range(outer.shape[0]):
            across += outer[k, c] * sums[k]
        if corrected:
            gain = max(gain_least, min((1 << gain_bits) + (across >> shifts[3]), gain_most))
            total += (min(extra, base_most) * gain) >> gain_bits
        else:
            total += extra + across
        mean = np.int64(0)
        if slope.shape[0] >= 2:
            mean = slope[0, c] * limited(w) + slope[1, c] * limited(n)
        if slope.shape[0] == 4:
            mean += slope[2, c] * limited(nw) + slope[3, c] * limited(ne)
        return min(bias[c] + (total >> shifts[2]), most), mean

    @inline
    def start(i, j, window, zeros, y):
        """Where the neighbours of a place lie."""
        top, left, right = window[0], window[1], window[2]
        w, n, nw, ne = places(i, j, top, left, right)
        if w[0] < 0:
            return zeros, zeros, zeros, zeros
        return y[w[0], w[1]], y[n[0], n[1]], y[nw[0], nw[1]], y[ne[0], ne[1]]

    @inline
    def enter(sums, carried, i, j, window):
        """What the sums of a place start at."""
        carry, began, totals = carried
        top, left, right = window[0], window[1], window[2]
        sums[:] = 0
        if carry.shape[0] == 0:
            return
        w, n, nw, ne = places(i, j, top, left, right)
        for k in range(sums.shape[0]):
            began[k] = 0
            if w[0] >= 0:
                started = carry[0, k] * totals[w[0] & 1, w[1] - left, k]
                started += carry[1, k] * totals[n[0] & 1, n[1] - left, k]
                started += carry[2, k] * totals[nw[0] & 1, nw[1] - left, k]
                started += carry[3, k] * totals[ne[0] & 1, ne[1] - left, k]
                began[k] = started >> carry_bits
            sums[k] = began[k]

    @inline
    def leave(sums, carried, i, j, window):
        """Keep the sums of a place over its own channels, for its neighbours."""
        carry, began, totals = carried
        if carry.shape[0]:
            for k in range(sums.shape[0]):
                totals[i & 1, j - window[1], k] = sums[k] - began[k]

    @inline
    def extra_sum(i, j, c, indices, spread, levels, shifts):
        if spread.shape[0] == 0:
            return np.int64(0)
        return (spread[c] * levels[indices[i, j, c]]) << shifts[1]

    @inline
    def add(sums, inner, i, j, c, value, indices, unit, usual):
        m = small(np.int64(value))
        if unit.shape[0] > 0:
            index = indices[i, j, c]
            m = max(excess_least, min(m * unit[index] - usual[index], excess_most))
        if m:
            for k in range(inner.shape[0]):
                sums[k] += inner[k, c] * m

    @inline
    def before(sums, carried, window, inner, y, indices, unit, usual):
        """The sums of the places before a window that its own have for neighbours."""
        carry, began, _ = carried
        left, right, first = window[1], window[2], window[3]
        if carry.shape[0] == 0:
            return
        began[:] = 0
        for place in range(max(0, first - (right - left) - 1), first):
            i, j = window[0] + place // (right - left), left + place % (right - left)
            sums[:] = 0
            for c in range(y.shape[2]):
                add(sums, inner, i, j, c, y[i, j, c], indices, unit, usual)
            leave(sums, carried, i, j, window)

    @inline
    def code_escape(out, state, v, above):
        """The sign and Elias's gamma code of a distance v >= 1."""
        put(out, state, np.uint64(1 if above else 0), one, one)
        n = 0
        while v >> (n + 1):
            n += 1
        for _ in range(n):
            put(out, state, np.uint64(0), one, one)
        put(out, state, one, one, one)
        for k in range(n - 1, -1, -1):
            put(out, state, np.uint64((v >> k) & 1), one, one)

    @inline
    def read_bit(data, state):
        bit = slot_of(state, one)
        if bit > one:
            return -1
        consume(data, state, bit, one, one)
        return np.int64(bit)

    @inline
    def read_escape(data, state, beyond):
        """The value of an escape, for a table whose first value beyond is ``beyond``."""
        above = read_bit(data, state)
        n, bit = 0, np.int64(0)
        while above >= 0 and bit == 0:
            bit = read_bit(data, state)
            if bit == 0:
                n += 1
            if n > ESCAPE_BITS_MAX:
                bit = np.int64(-1)
        if above < 0 or bit < 0:
            return np.int64(0), False
        v = np.int64(1)
        for _ in range(n):
            bit = read_bit(data, state)
            if bit < 0:
                return np.int64(0), False
            v = v << 1 | bit
        return (v + beyond - 1 if above else -v), True

    def predictions(
        y, indices, window, bias, near, slope, inner, outer, shifts, spread, levels, unit,
        usual, carry, sums, zeros, began, totals,
        scales, means,
    ):  # fmt: skip
        """All scales and means of a window, for fitting."""
        model = bias, near, slope, inner, outer, shifts, unit.shape[0] > 0
        top, left, right, first, last = window[0], window[1], window[2], window[3], window[4]
        carried = carry, began, totals
        before(sums, carried, window, inner, y, indices, unit, usual)
        for place in range(first, last):
            i, j = top + place // (right - left), left + place % (right - left)
            w, n, nw, ne = start(i, j, window, zeros, y)
            enter(sums, carried, i, j, window)
            for c in range(y.shape[2]):
                extra = extra_sum(i, j, c, indices, spread, levels, shifts)
                scale, mean = predict(c, w[c], n[c], nw[c], ne[c], sums, model, extra)
                scales[i, j, c], means[i, j, c] = scale, mean
                add(sums, inner, i, j, c, y[i, j, c], indices, unit, usual)
            leave(sums, carried, i, j, window)
        return 0

    def encode(
        y, indices, window, bias, near, slope, inner, outer, shifts, spread, levels, unit,
        usual, carry, sums, zeros, began, totals,
        bins, phase, chosen, cdf, lengths, offsets, state, out,
    ):  # fmt: skip
        """Writes the stream of a window; returns its length."""
        model = bias, near, slope, inner, outer, shifts, unit.shape[0] > 0
        top, left, right, first, last = window[0], window[1], window[2], window[3], window[4]
        carried = carry, began, totals
        before(sums, carried, window, inner, y, indices, unit, usual)
        state[:] = 0
        state[1] = np.uint64(0xFFFFFFFF)
        for place in range(first, last):
            i, j = top + place // (right - left), left + place % (right - left)
            w, n, nw, ne = start(i, j, window, zeros, y)
            enter(sums, carried, i, j, window)
            for c in range(y.shape[2]):
                extra = extra_sum(i, j, c, indices, spread, levels, shifts)
                scale, mean = predict(c, w[c], n[c], nw[c], ne[c], sums, model, extra)
                whole = (mean + half) >> mean_bits
                part = mean - (whole << mean_bits)
                t = chosen[bins[scale], phase[abs(part)]]
                value = np.int64(y[i, j, c]) - whole
                value = (-value if part < 0 else value) - offsets[t]
                beyond = lengths[t] - 2
                entry = beyond if value < 0 or value >= beyond else value
                begin = np.uint64(cdf[t, entry])
                width = np.uint64(cdf[t, entry + 1]) - begin
                put(out, state, begin, width, sixteen)
                if entry == beyond:
                    v = value - beyond + 1 if value >= 0 else -value
                    code_escape(out, state, v, value >= 0)
                add(sums, inner, i, j, c, y[i, j, c], indices, unit, usual)
            leave(sums, carried, i, j, window)
        return finish(out, state)

    def decode(
        y, indices, window, bias, near, slope, inner, outer, shifts, spread, levels, unit,
        usual, carry, sums, zeros, began, totals,
        bins, phase, chosen, cdf, lengths, offsets, state, buckets, data, lo, hi,
    ):  # fmt: skip
        """Fills a window; returns 0 or a key of _FAILURES."""
        model = bias, near, slope, inner, outer, shifts, unit.shape[0] > 0
        top, left, right, first, last = window[0], window[1], window[2], window[3], window[4]
        carried = carry, began, totals
        before(sums, carried, window, inner, y, indices, unit, usual)
        begin_decoding(data, state)
        for place in range(first, last):
            i, j = top + place // (right - left), left + place % (right - left)
            w, n, nw, ne = start(i, j, window, zeros, y)
            enter(sums, carried, i, j, window)
            for c in range(y.shape[2]):
                extra = extra_sum(i, j, c, indices, spread, levels, shifts)
                scale, mean = predict(c, w[c], n[c], nw[c], ne[c], sums, model, extra)
                whole = (mean + half) >> mean_bits
                part = mean - (whole << mean_bits)
                t = chosen[bins[scale], phase[abs(part)]]
                slot = slot_of(state, sixteen)
                if slot > np.uint64(0xFFFF):
                    return ranges.IMPOSSIBLE
                entry = np.int64(buckets[t, slot >> bucket_shift])
                while np.uint64(cdf[t, entry + 1]) <= slot:
                    entry += 1
                begin = np.uint64(cdf[t, entry])
                consume(data, state, begin, np.uint64(cdf[t, entry + 1]) - begin, sixteen)
                value, beyond = entry, lengths[t] - 2
                if entry == beyond:
                    value, good = read_escape(data, state, beyond)
                    if not good:
                        return ranges.IMPOSSIBLE
                value += offsets[t]
                symbol = whole + (-value if part < 0 else value)
                if symbol < lo or symbol > hi:
                    return BEYOND_LIMITS
                y[i, j, c] = symbol
                add(sums, inner, i, j, c, symbol, indices, unit, usual)
            leave(sums, carried, i, j, window)
        return 0 if ends_right(data, state) else ranges.ENDS_WRONG

    return {"predictions": predictions, "encode": encode, "decode": decode}


_LATENT = ("int32[3]", "int32[3]", "int64[1]")
_MODEL = (
    "int64[1]", *["int64[2]"] * 4, *["int64[1]"] * 5, "int64[2]",
    "int64[1]", "int32[1]", "int64[1]", "int64[3]",
)  # fmt: skip
_TABLES = ("uint8[1]", "int64[1]", "int64[2]", "int32[2]", "int64[1]", "int64[1]", "uint64[1]")
_SIGNATURES = {
    "predictions": (*_LATENT, *_MODEL, "int64[3]", "int64[3]"),
    "encode": (*_LATENT, *_MODEL, *_TABLES, "uint8[1]"),
    "decode": (*_LATENT, *_MODEL, *_TABLES, "uint16[2]", "uint8[1]", "int64", "int64"),
}


@functools.cache
def _compiled() -> SimpleNamespace:
    """The loops, compiled."""
    modules = (ranges.__file__, network_context.__file__, entropy.__file__, __file__)
    return native.load("contexts", _loops, _SIGNATURES, [Path(one) for one in modules])


NO_LIMITS = (-(1 << 31), (1 << 31) - 1)


class ContextCoder:
    """One latent's context model made ready; its methods may run in parallel threads.

    Parameters
    ----------
    contexts : Contexts
    name : str
        Of the latent.
    """

    def __init__(self, contexts: Contexts, name: str):
        model, tables = contexts.latents[name], contexts.tables
        self.channels = model.channels
        self.levels = 0 if model.levels is None else len(model.levels)
        self._inner = len(model.inner)
        self._model = [native.pin(array) for array in arithmetic(model)]
        scales = np.arange(SCALE_MAX + 1)
        bins = np.searchsorted(model.edges.astype(np.int64), scales, side="right").astype(np.uint8)
        cdf = np.ascontiguousarray(tables.cdf, np.int32)
        lengths = tables.lengths.astype(np.int64)
        choice = (bins, model.phase.astype(np.int64), model.choice.astype(np.int64))
        bank = (cdf, lengths, tables.offsets.astype(np.int64))
        self._tables = [native.pin(array) for array in (*choice, *bank)]
        self._buckets = native.pin(bucket_starts(cdf, lengths))

    def encode(self, symbols: Symbols, indices: Symbols | None, window: Window) -> bytes:
        """The stream of a window of symbols (h, w, channels).

        ``indices`` (h, w, channels) are the tables' numbers that a hyperprior gives; they matter
        only to models with ``levels``.
        """
        symbols = np.require(symbols, np.int32, ["C", "W"])
        out = np.zeros(window.size * self.channels * SYMBOL_BYTES_MAX + 8, np.uint8)
        length = _compiled().encode(
            symbols, self._indices(indices), *self._start(window), *self._tables,
            np.zeros(ENCODER_STATE, np.uint64), out,
        )  # fmt: skip
        return out[:length].tobytes()

    def decode(
        self,
        data: bytes,
        symbols: Symbols,
        indices: Symbols | None,
        window: Window,
        limits: tuple[int, int] | None = None,
    ) -> None:
        """Fill a window of symbols from its stream; its group before it must be there already.

        Raises EntropyError for a stream that `encode` would not make, or with symbols beyond
        ``limits``.
        """
        failure = _compiled().decode(
            symbols, self._indices(indices), *self._start(window), *self._tables,
            np.zeros(DECODER_STATE, np.uint64), self._buckets, np.frombuffer(data, np.uint8),
            *(NO_LIMITS if limits is None else limits),
        )  # fmt: skip
        if failure:
            raise EntropyError(f"the coded data are damaged: {_FAILURES[failure]}")

    def _start(self, window: Window) -> tuple[Any, ...]:
        """The window, the model, and what a loop counts in."""
        return _scratch(window, self._model, self._inner, self.channels)

    def _indices(self, indices: Symbols | None) -> Symbols:
        """What the loops read; nothing without levels."""
        if not self.levels or indices is None:
            return np.zeros((0, 0, 0), np.int32)
        return np.require(indices, np.int32, ["C", "W"])


def _scratch(window: Window, model: Sequence[Any], inner: int, channels: int) -> tuple[Any, ...]:
    """A window, a model, room for its sums over channels, neighbours where there are none, and
    room for what sums started at and for those of two rows."""
    measures = np.array([window.rows[0], *window.columns, *window.places], np.int64)
    left, right = window.columns
    totals = np.zeros((2, right - left, inner), np.int64)
    sums, began = np.zeros((2, inner), np.int64)
    return (measures, *model, sums, np.zeros(channels, np.int32), began, totals)


def arithmetic(model: ContextModel) -> list[npt.NDArray[np.int64]]:
    """What the loops read of a model: `_MODEL`, but for what they count in."""
    shifts = [model.near_shift, model.spread_shift, model.shift, model.gain_shift or 0]
    arrays = (
        model.bias, model.near, model.slope, model.inner, model.outer, shifts, model.spread,
        model.levels, model.unit, model.usual,
    )  # fmt: skip
    carry = np.zeros((0, 0)) if model.carry is None else model.carry
    found = [np.ascontiguousarray([] if a is None else a, np.int64) for a in arrays]
    return [*found, np.ascontiguousarray(carry, np.int64)]


def predictions(
    model: ContextModel, symbols: Symbols, indices: Symbols | None, layout: Layout
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Scales and means of all symbols (h, w, channels) of a latent, for fitting."""
    scales, means = np.zeros(symbols.shape, np.int64), np.zeros(symbols.shape, np.int64)
    symbols = np.ascontiguousarray(symbols, np.int32)
    if indices is None or model.levels is None:
        indices = np.zeros((0, 0, 0), np.int32)
    fields = arithmetic(model)
    for group in layout.groups(*symbols.shape[:2]):
        window = replace(group[0], places=(0, group[-1].places[1]))
        start = _scratch(window, fields, len(model.inner), model.channels)
        _compiled().predictions(
            symbols, np.ascontiguousarray(indices, np.int32), *start, scales, means
        )
    return scales, means
