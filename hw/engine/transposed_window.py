# amaranth: UnusedElaboratable=no
"""The window buffer of transposed convolutions: rows in block RAM, read back phase by phase.

Along one axis, output ``o`` with ``o + padding = q * stride + r`` sums input ``q - j`` times tap
``r + j * stride``, for all j that the kernel has: the *phase* r decides which taps. No zero is
ever inserted, and none multiplied.

Output leaves in raster order without a buffer for it: for every output row the window sweeps
once over the input columns q, each of which has one output pixel a phase.
"""

from __future__ import annotations

from amaranth.hdl import Array, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import data

from lichen.hw.device.gateware import last_of
from lichen.hw.engine.feed import PhaseSequencer
from lichen.hw.engine.row_buffer import (
    HEIGHT_BITS,
    Frame,
    Groups,
    Pointers,
    Reading,
    RowBuffer,
)


class TransposedWindow(RowBuffer):
    """Feeds a transposed convolution: every step reads one tap's lanes for P input columns.

    ``width`` and ``height`` are those of the input as of every window.
    """

    def _made_of(self, size: Value) -> Value:
        geometry = self.shape.geometry
        return _times(size, geometry.stride) + (geometry.output_size(1) - geometry.stride)

    def _groups(self, m: Module, frame: Frame, at: Pointers) -> Groups:
        shape, pixels, stride = self.shape, self.shape.pixels, self.shape.geometry.stride
        skip, first = shape.phases.skip, shape.first
        # Of the position q of the group's first column and row, and of output row and phase.
        group = data.StructLayout(
            {
                "row": HEIGHT_BITS,
                "phase": Shape.cast(range(max(2, stride))),  # a bit at least, for Verilog
                "x": shape.column_bits,
                "y": HEIGHT_BITS,
                "base": shape.row_bits,  # ring address of row q
                "offset": shape.row_bits,  # of column q in a row
            }
        )
        start_of_row = {"x": first + shape.border, "offset": first // pixels * shape.beats}
        first_row = {
            "phase": skip,
            "y": first + shape.border,
            "base": first % shape.rows * shape.row_words,
        }
        nxt = Signal(group, init=start_of_row | first_row)
        seq = PhaseSequencer(
            m,
            passes=self.passes,
            phases=shape.phases,
            least_pass=self.least_pass,
            feed=self.feed,
            row=nxt.phase,
        )
        need_x = Signal(shape.column_bits, init=first + pixels - 1)
        need_y = Signal(HEIGHT_BITS, init=first)
        exhausted = Signal()  # the last group of the frame has started
        # Groups start `LEAST_GROUP` cycles apart, so all this may come some cycles late.
        # Any group, the last one of a row, and that of the last output row of a row of positions.
        started = Signal()
        row_started = Signal()
        last_row_started = Signal()
        bottom_end = Signal(reset_less=True)
        head = Signal(reset_less=True)
        row = self._row_count(m, frame.out_width, skip, started, row_started)
        last_phase = nxt.phase == stride - 1
        m.d.sync += [
            started.eq(seq.start),
            row_started.eq(seq.start & row.ends),
            last_row_started.eq(seq.start & row.ends & last_phase),
            bottom_end.eq(nxt.row == frame.last_row),
            head.eq(~row.begun),
        ]
        m.d.comb += [self.feed.count.eq(row.count), self.feed.head.eq(head)]
        available = Signal()
        arrived = at.written | (at.wy > need_y) | ((at.wy == need_y) & (at.wx > need_x))
        m.d.sync += available.eq(~started & ~exhausted & arrived)
        m.d.comb += seq.ready.eq(available)
        last_base = shape.bank_words - shape.row_words
        with m.If(started):
            m.d.sync += [
                nxt.x.eq(nxt.x + pixels),
                need_x.eq(need_x + pixels),
                nxt.offset.eq(nxt.offset + shape.beats),
            ]
        with m.If(row_started):
            m.d.sync += [
                *(nxt[name].eq(value) for name, value in start_of_row.items()),
                need_x.eq(need_x.init),
                nxt.row.eq(nxt.row + 1),
                nxt.phase.eq(Mux(last_phase, 0, nxt.phase + 1)),
                exhausted.eq(bottom_end),
            ]
        with m.If(last_row_started):
            m.d.sync += [
                nxt.y.eq(nxt.y + 1),
                need_y.eq(need_y + 1),
                nxt.base.eq(Mux(nxt.base == last_base, 0, nxt.base + shape.row_words)),
            ]
        unread = shape.border + shape.reach  # columns from which on none is free
        with m.If(seq.done):
            m.d.sync += [
                at.free_row.eq(nxt.row),
                at.free_before.eq(Mux(nxt.x < unread, 0, nxt.x - unread)),
                at.finished.eq(exhausted),
            ]
        fresh = [need_x, need_y, row.begun, exhausted, available, nxt.as_value()]
        return Groups(seq, nxt, fresh, column=seq.column, next_column=seq.next_column)

    def _taps(self, m: Module, groups: Groups) -> Reading:
        """Which word and which tap every step reads: from column and row q backwards."""
        seq, nxt, shape, pixels = groups.sequencer, groups.next, self.shape, self.shape.pixels
        beats = shape.beats
        now = Signal(nxt.shape(), reset_less=True)
        last_taps = Array(Const(max(0, n - 1), range(shape.reach)) for n in shape.taps)
        last_tap = last_taps[groups.column]
        first_rotation = shape.first % pixels
        beat = Signal(range(beats))
        tap = Signal(range(shape.reach))
        rotation = Signal(range(pixels), init=first_rotation)
        offset = Signal(shape.row_bits, reset_less=True)
        base = Signal(shape.row_bits, reset_less=True)
        x = Signal(shape.column_bits, reset_less=True)
        y = Signal(HEIGHT_BITS, reset_less=True)
        # Whether they are the last ones, and the last step of a row of taps, found a step ahead.
        last_beat = Signal(init=beats == 1)
        at_last_tap = Signal(reset_less=True)
        row_done = at_last_tap if beats == 1 else Signal()
        last_base = shape.bank_words - shape.row_words
        with m.If(seq.step):
            m.d.sync += [beat.eq(beat + 1), offset.eq(offset + 1)]
            m.d.sync += last_beat.eq(last_of(beats, beat))
            if beats > 1:
                m.d.sync += row_done.eq((beat == beats - 2) & at_last_tap)
            with m.If(last_beat):
                m.d.sync += [
                    *(beat.eq(0), tap.eq(tap + 1), x.eq(x - 1), rotation.eq(rotation - 1)),
                    *(last_beat.eq(beats == 1), at_last_tap.eq(tap + 1 == last_tap)),
                    offset.eq(offset - (beats - 1)),  # the same words of the bank before
                ]
                with m.If(rotation == 0):
                    m.d.sync += [rotation.eq(pixels - 1), offset.eq(offset - (2 * beats - 1))]
                with m.If(row_done):
                    m.d.sync += [
                        *(tap.eq(0), at_last_tap.eq(last_tap == 0)),
                        *(x.eq(now.x), rotation.eq(first_rotation), offset.eq(now.offset)),
                        y.eq(y - 1),
                        # Not "the last or the one before": see `Window`.
                        base.eq(base + Mux(base == 0, last_base, -shape.row_words)),
                    ]
                    with m.If(seq.last_step):
                        m.d.sync += [
                            *(y.eq(now.y), base.eq(now.base)),
                            at_last_tap.eq(last_taps[groups.next_column] == 0),
                        ]
            if 0 in shape.taps:  # a phase without taps has a step, but no row of taps
                with m.If(seq.last_step):
                    m.d.sync += [
                        *(beat.eq(0), last_beat.eq(beats == 1), tap.eq(0)),
                        at_last_tap.eq(last_taps[groups.next_column] == 0),
                        *(x.eq(now.x), rotation.eq(first_rotation), offset.eq(now.offset)),
                        *(y.eq(now.y), base.eq(now.base)),
                    ]
                    if beats > 1:
                        m.d.sync += row_done.eq(0)
        with m.If(seq.free):  # a start finds all of it there
            m.d.sync += [now.eq(nxt), offset.eq(nxt.offset), base.eq(nxt.base)]
            m.d.sync += [x.eq(nxt.x), y.eq(nxt.y), at_last_tap.eq(last_taps[0] == 0)]
        return Reading(x, y, base, offset, rotation)


def _times(value: Value, factor: int) -> Value:
    """``value * factor`` for ``factor`` 1 .. 4, without a multiplier."""
    return {1: value, 2: value << 1, 3: (value << 1) + value, 4: value << 2}[factor]
