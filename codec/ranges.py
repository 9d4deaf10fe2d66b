"""A range coder whose streams are written forwards and end as early as they can.

Arithmetic coding with bytes and carries (Martin, "Range encoding: an algorithm for removing
redundancy from a digitised message", 1979) in 32 bits. The encoder needs one multiplication and
no division a symbol, writes its bytes in order and, against the rANS of version 1, spends one
byte on its end and not six: streams as short as a row of latents would feel that.

The stream
----------
A stream is a number ``0 <= V < 1`` in base 256, most significant digit first, without trailing
zeros: what lies behind its end reads as 0. Coding keeps an interval ``low .. low + range - 1`` of
a 32-bit window into that number, at first ``low = 0`` and ``range = 2**32 - 1``. A step that
chooses the entries ``start .. start + f - 1`` of ``2**k``:

    r = range >> k;  low += r * start;  range = r * f
    while range < 2**24:  the window moves on by a byte; low, range are multiplied by 256

In the end V is the number of the interval with the most trailing zero bits in its window, of
those multiples of ``2**32`` and, failing that, of ``2**24`` that there are the least one.

The decoder follows ``code = V's window - low``: the entry is ``code // r``. At its end it knows V
and low, so it finds whether V is what the encoder would have taken: streams are canonical, what
decodes at all is what encoding makes of the symbols it gives.

The steps below are compiled into the loops of `lichen.codec.context`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

RANGE_MIN = 1 << 24

ENDS_WRONG = 3
IMPOSSIBLE = 2


def steps(inline: Callable[..., Any]) -> SimpleNamespace:
    """The steps for compiled loops: functions that these inline, on state arrays of uint64.

    An encoder's state is ``[low, range, cache, pending, length]``, a decoder's
    ``[code, range, position]``. ``inline`` is what `lichen.native.load` gives.
    """
    zero, one, eight = np.uint64(0), np.uint64(1), np.uint64(8)
    window, byte = np.uint64(0xFFFFFFFF), np.uint64(0xFF)
    carry, range_min = np.uint64(1 << 32), np.uint64(RANGE_MIN)
    top, rest = np.uint64(0xFF000000), np.uint64(0x00FFFFFF)
    high = np.uint64(24)

    @inline
    def put(out, state, value):
        # the first byte of all is the integer part, 0
        if state[4] > zero:
            out[state[4] - one] = np.uint8(value & byte)
        state[4] += one

    @inline
    def shift(out, state):
        """Moves the window by a byte, and passes on what no carry can reach any more."""
        low = state[0]
        if low < top or low >= carry:
            over = low >> np.uint64(32)
            put(out, state, state[2] + over)
            while state[3] > zero:
                put(out, state, byte + over)
                state[3] -= one
            state[2] = (low >> high) & byte
        else:
            state[3] += one
        state[0] = (low & rest) << eight

    @inline
    def encode(out, state, start, frequency, bits):
        r = state[1] >> bits
        state[0] += r * start
        state[1] = r * frequency
        while state[1] < range_min:
            state[1] <<= eight
            shift(out, state)

    @inline
    def finish(out, state):
        """Writes the end; returns the stream's length."""
        place = state[0] & window
        if place == zero or place + state[1] > carry:
            state[0] += (carry - place) & window
        else:
            state[0] += (top - place) & rest
        for _ in range(5):
            shift(out, state)
        length = np.int64(state[4] - one)
        while length > 0 and out[length - 1] == 0:
            length -= 1
        return length

    @inline
    def begin_decoding(data, state):
        code = zero
        for i in range(4):
            code = code << eight | (np.uint64(data[i]) if i < len(data) else zero)
        state[0], state[1], state[2] = code, window, np.uint64(4)

    @inline
    def slot(state, bits):
        """The entry's place, 2**bits or more where no encoder wrote this."""
        return state[0] // (state[1] >> bits)

    @inline
    def consume(data, state, start, frequency, bits):
        r = state[1] >> bits
        state[0] -= r * start
        state[1] = r * frequency
        while state[1] < range_min:
            at = np.int64(state[2])
            state[0] = state[0] << eight | (np.uint64(data[at]) if at < len(data) else zero)
            state[1] <<= eight
            state[2] += one

    @inline
    def ends_right(data, state):
        length, at = len(data), np.int64(state[2])
        if length > at or (length > 0 and data[length - 1] == 0):
            return False
        value = zero
        for i in range(at - 4, at):
            value = value << eight | (np.uint64(data[i]) if i < length else zero)
        low = (value - state[0]) & window
        if low == zero or low + state[1] > carry:
            return value == zero
        return value == (low + rest) & top

    return SimpleNamespace(
        encode=encode, finish=finish, begin_decoding=begin_decoding, slot=slot, consume=consume,
        ends_right=ends_right,
    )  # fmt: skip
