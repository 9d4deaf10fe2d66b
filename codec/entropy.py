"""Entropy coding of integer symbols with integer CDF tables.

Range asymmetric numeral systems (rANS; Duda, "Asymmetric numeral systems: entropy coding
combining speed of Huffman coding with compression rate of arithmetic coding", 2013) on the
16-bit tables of `lichen.network.description.EntropyTables`. There is no float anywhere, so a
stream decodes alike on every machine. One coder state per stream: streams that code in
parallel are the business of the container.

The stream
----------
No symbols make an empty stream. Otherwise a stream is a sequence of 32-bit words, little
endian: the state ``x`` (64 bits, low word first), then the words that the decoder shifts in, in
the order in which it does.

Decoding step, for an alphabet of total ``2**k`` whose entry ``s`` has the interval
``start .. start + f - 1``: find the ``s`` whose interval holds ``r = x mod 2**k``, then
``x = f * (x >> k) + r - start``, and while ``x < 2**32``, ``x = x * 2**32 + next word`` (at
most once). Each symbol takes these steps:

1. One with ``k = 16`` and the CDF of the symbol's table. Unless the entry is the table's last,
   the escape, the symbol is its number plus the table's offset.
2. After an escape, one with ``k = 1``: 0 for a symbol below the table, 1 for one above.
3. Then the distance ``v >= 1`` from the table's first or last symbol in Elias's gamma code: ``n``
   steps with ``k = 1`` that give 0 and one that gives 1, where ``n = floor(log2 v) <= 31``; and the
   ``n`` lower bits of ``v``, the upper ``min(n, 16)`` of them in one step with uniform entries,
   the rest, if any, in another.

After the last symbol ``x`` is ``2**32`` and no word is left: that is where the encoder, which
takes all steps backwards, started. Streams are canonical: what decodes at all is what `encode`
makes of the symbols it gives.

Damage
------
Decoding never reads out of bounds and takes no more time and memory than its number of symbols
warrants. Missing and surplus bytes always raise `EntropyError`. So does most other damage, because
the end is not as above, but not all: a flipped bit of an escape's distance, for one, merely
changes that symbol. Then the symbols are wrong and it takes a checksum around the stream, which
the container has, to know.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from lichen import caches
from lichen.network.description import EntropyTables

PRECISION = 16
STATE_MIN = 1 << 32
"""The state at the encoder's start, and the least at rest."""

WORD_BITS = 32
BUCKET_BITS = 8
"""Bits of a table's slot that the search for its entry starts from."""

_FAILURES = {
    1: "it ends too early",
    2: "it holds an impossible escape",
    3: "it does not end where it should",
}


class EntropyError(ValueError):
    """Coded data that no encoder made with these tables and indices."""


@functools.cache
def _compiled() -> SimpleNamespace:
    """The loops, compiled on first use and kept in numba's cache."""
    from numba.extending import register_jitable

    jit = caches.jit(nogil=True)
    # numba makes a float of an unsigned and a signed integer, so every constant here is unsigned
    one, sixteen, word = np.uint64(1), np.uint64(16), np.uint64(WORD_BITS)
    state_min = np.uint64(STATE_MIN)
    low_word, low_slot = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)
    bucket_shift = np.uint64(PRECISION - BUCKET_BITS)

    @register_jitable
    def log2(v):
        """floor(log2 v) of v >= 1"""
        n = 0
        while v > 1:
            v >>= 1
            n += 1
        return n

    @register_jitable
    def push(x, words, at, start, frequency, bits):
        """One step of the encoder; words are filled from their end, ``at`` is the first one."""
        if x >= frequency << (np.uint64(64) - bits):
            at -= 1
            words[at] = np.uint32(x & low_word)
            x >>= word
        quotient = x // frequency
        return (quotient << bits) + (x - quotient * frequency) + start, at

    @register_jitable
    def push_bits(x, words, at, value, bits):
        """A step with 2**bits uniform entries, bits <= 16"""
        if x >> (np.uint64(64) - bits):
            at -= 1
            words[at] = np.uint32(x & low_word)
            x >>= word
        return (x << bits) + value, at

    @register_jitable
    def pop_bits(x, words, at, bits):
        """The inverse of push_bits; at is -1 when there is no word left."""
        value = x & ((one << bits) - one)
        x >>= bits
        if x < state_min:
            if at >= len(words):
                return x, np.int64(-1), value
            x = (x << word) | np.uint64(words[at])
            at += 1
        return x, at, value

    @jit
    def bits_bound(symbols, indices, lengths, offsets):
        """Most bits that the symbols can take, 0 if an index is out of range."""
        total = np.int64(0)
        for i in range(len(symbols)):
            t = np.int64(indices[i])
            if t < 0 or t >= len(lengths):
                return np.int64(0)
            value = np.int64(symbols[i]) - offsets[t]
            top = lengths[t] - 3
            total += 17  # 16, and the floors of the arithmetic
            if value < 0:
                total += 2 * log2(-value) + 2
            elif value > top:
                total += 2 * log2(value - top) + 2
        return total

    @jit
    def encode(symbols, indices, cdf, lengths, offsets, words):
        """Fill words from their end; returns the state and the first word used."""
        x = state_min
        at = len(words)
        for i in range(len(symbols) - 1, -1, -1):
            t = np.int64(indices[i])
            value = np.int64(symbols[i]) - offsets[t]
            escape = lengths[t] - 2
            if value < 0 or value >= escape:
                above = value >= escape
                v = value - escape + 1 if above else -value
                value = escape
                n = log2(v)
                rest = np.uint64(v) & ((one << np.uint64(n)) - one)
                if n > 16:
                    lower = np.uint64(n - 16)
                    x, at = push_bits(x, words, at, rest & ((one << lower) - one), lower)
                    x, at = push_bits(x, words, at, rest >> lower, sixteen)
                elif n > 0:
                    x, at = push_bits(x, words, at, rest, np.uint64(n))
                x, at = push_bits(x, words, at, one, one)
                for _ in range(n):
                    x, at = push_bits(x, words, at, np.uint64(0), one)
                x, at = push_bits(x, words, at, np.uint64(1 if above else 0), one)
            start = np.uint64(cdf[t, value])
            x, at = push(x, words, at, start, np.uint64(cdf[t, value + 1]) - start, sixteen)
        return x, at

    @jit
    def decode(words, indices, cdf, lengths, offsets, buckets, symbols):
        """Fill symbols; returns 0 or a key of _FAILURES."""
        x = np.uint64(words[0]) | (np.uint64(words[1]) << word)
        if x < state_min:
            return 3
        at = np.int64(2)
        for i in range(len(indices)):
            t = np.int64(indices[i])
            slot = x & low_slot
            value = np.int64(buckets[t, slot >> bucket_shift])
            while np.uint64(cdf[t, value + 1]) <= slot:
                value += 1
            start = np.uint64(cdf[t, value])
            x = (np.uint64(cdf[t, value + 1]) - start) * (x >> sixteen) + slot - start
            if x < state_min:
                if at >= len(words):
                    return 1
                x = (x << word) | np.uint64(words[at])
                at += 1
            escape = lengths[t] - 2
            if value == escape:
                x, at, above = pop_bits(x, words, at, one)
                if at < 0:
                    return 1
                n = 0
                while True:
                    x, at, bit = pop_bits(x, words, at, one)
                    if at < 0:
                        return 1
                    if bit:
                        break
                    n += 1
                    if n > 31:
                        return 2
                v = one
                if n > 0:
                    upper = np.uint64(min(n, 16))
                    x, at, bits = pop_bits(x, words, at, upper)
                    if at < 0:
                        return 1
                    v = (v << upper) | bits
                if n > 16:
                    lower = np.uint64(n - 16)
                    x, at, bits = pop_bits(x, words, at, lower)
                    if at < 0:
                        return 1
                    v = (v << lower) | bits
                value = np.int64(v) + escape - 1 if above else -np.int64(v)
            value += offsets[t]
            if value < -(1 << 31) or value >= 1 << 31:
                return 2
            symbols[i] = value
        if x != state_min or at != len(words):
            return 3
        return 0

    return SimpleNamespace(bits_bound=bits_bound, encode=encode, decode=decode)


def bucket_starts(
    cdf: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint16]:
    """The entry that each bucket of a table's slots begins in, (tables, 2**BUCKET_BITS)."""
    slots = np.arange(1 << BUCKET_BITS) << (PRECISION - BUCKET_BITS)
    found = [
        np.searchsorted(row[:length], slots, side="right") - 1
        for row, length in zip(cdf, lengths, strict=True)
    ]
    return np.array(found, np.uint16).reshape(-1, 1 << BUCKET_BITS)


class EntropyCoder:
    """Tables made ready for any number of streams; its methods may run in parallel threads.

    Parameters
    ----------
    tables : EntropyTables

    Raises ValueError for offsets beyond 32 bits.
    """

    def __init__(self, tables: EntropyTables):
        limits = np.iinfo(np.int32)
        if tables.offsets.size and (
            int(tables.offsets.min()) < limits.min or int(tables.offsets.max()) > limits.max
        ):
            raise ValueError("the offsets of entropy tables must fit 32 bits")
        self.cdf = np.ascontiguousarray(tables.cdf, np.int32)
        self.lengths = np.ascontiguousarray(tables.lengths, np.int64)
        self.offsets = np.ascontiguousarray(tables.offsets, np.int64)
        self.buckets = bucket_starts(self.cdf, self.lengths)

    def encode(self, symbols: npt.ArrayLike, indices: npt.ArrayLike) -> bytes:
        """See `encode`."""
        values = np.asarray(symbols)
        if not np.issubdtype(values.dtype, np.integer) and values.size:
            raise ValueError(f"symbols must be integers, not {values.dtype}")
        limits = np.iinfo(np.int32)
        if values.size and (values.min() < limits.min or values.max() > limits.max):
            raise ValueError("symbols must fit 32 bits")
        flat = np.ascontiguousarray(values, np.int32).reshape(-1)
        rows = self._rows(np.broadcast_to(np.asarray(indices), values.shape))
        if not flat.size:
            return b""
        loops = _compiled()
        bits = loops.bits_bound(flat, rows, self.lengths, self.offsets)
        words = np.zeros(bits // WORD_BITS + 4, np.uint32)
        state, first = loops.encode(flat, rows, self.cdf, self.lengths, self.offsets, words)
        return int(state).to_bytes(8, "little") + words[first:].astype("<u4").tobytes()

    def decode(self, data: bytes, indices: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """See `decode`."""
        shape = np.shape(indices)
        rows = self._rows(np.asarray(indices))
        symbols = np.zeros(rows.size, np.int32)
        if not rows.size:
            if data:
                raise EntropyError("the coded data are damaged: there should be none")
            return symbols.reshape(shape)
        if len(data) < 8 or len(data) % 4:
            raise EntropyError(f"the coded data are damaged: they cannot be {len(data)} bytes")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        failure = _compiled().decode(
            words, rows, self.cdf, self.lengths, self.offsets, self.buckets, symbols
        )
        if failure:
            raise EntropyError(f"the coded data are damaged: {_FAILURES[failure]}")
        return symbols.reshape(shape)

    def _rows(self, indices: npt.NDArray) -> npt.NDArray[np.int32]:
        """Checked table numbers, flat."""
        if not np.issubdtype(indices.dtype, np.integer) and indices.size:
            raise ValueError(f"indices must be integers, not {indices.dtype}")
        if indices.size and (indices.min() < 0 or indices.max() >= len(self.lengths)):
            raise ValueError(
                f"indices must lie in 0 .. {len(self.lengths) - 1}, "
                f"but span {indices.min()} .. {indices.max()}"
            )
        return np.ascontiguousarray(indices, np.int32).reshape(-1)


def encode(symbols: npt.ArrayLike, indices: npt.ArrayLike, tables: EntropyTables) -> bytes:
    """Code symbols, each with a table of its own choice.

    Parameters
    ----------
    symbols : int array of any shape
        Within 32 bits, signed; what its table lacks is coded as an escape.
    indices : int array that broadcasts to the symbols' shape
        The table of each symbol; ``np.arange(channels)`` for latents (h, w, channels) with a
        table per channel.
    tables : EntropyTables

    Returns
    -------
    bytes
        Of a length that is a multiple of 4; within 8 bytes and 0.01 % of the symbols' information.

    Raises ValueError for symbols beyond 32 bits and indices without a table.
    """
    return EntropyCoder(tables).encode(symbols, indices)


def decode(data: bytes, indices: npt.ArrayLike, tables: EntropyTables) -> npt.NDArray[np.int32]:
    """The symbols that `encode` coded.

    Parameters
    ----------
    data : bytes
    indices : int array
        Of the symbols' full shape, for example
        ``np.broadcast_to(np.arange(channels), (h, w, channels))``.
    tables : EntropyTables

    Returns
    -------
    int32 array of the shape of ``indices``

    Raises EntropyError (a ValueError) for data that are damaged, as far as that shows (see the
    head of this module), and ValueError for indices without a table.
    """
    return EntropyCoder(tables).decode(data, indices)
