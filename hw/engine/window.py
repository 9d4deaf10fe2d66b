# amaranth: UnusedElaboratable=no
"""The window buffer of plain convolutions."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import data

from lichen.hw.device.gateware import last_of
from lichen.hw.engine.division import divide_by_stride
from lichen.hw.engine.feed import Sequencer
from lichen.hw.engine.row_buffer import (
    HEIGHT_BITS,
    Frame,
    Groups,
    Pointers,
    Reading,
    RowBuffer,
)


class Window(RowBuffer):
    """Feeds a convolution: every step reads one tap's lanes for P neighbouring output pixels,
    which are a stride apart."""

    def _made_of(self, size: Value) -> Value:
        geometry = self.shape.geometry
        return divide_by_stride(size + 2 * geometry.padding - geometry.kernel, geometry.stride) + 1

    def _groups(self, m: Module, frame: Frame, at: Pointers) -> Groups:
        shape, pixels = self.shape, self.shape.pixels
        k, st, pad = shape.geometry.kernel, shape.geometry.stride, shape.geometry.padding
        steps = shape.phases.total
        seq = Sequencer(
            m,
            passes=self.passes,
            steps=steps,
            pass_cycles=max(steps, self.least_pass),
            feed=self.feed,
        )
        slot0 = -pad % shape.rows * shape.row_words
        group = data.StructLayout(
            {
                "row": HEIGHT_BITS,  # output row
                "x": shape.column_bits,  # padded column of its first tap
                "y": HEIGHT_BITS,  # padded row of its first tap
                "base": shape.row_bits,  # ring address of that row
                "offset": shape.row_bits,  # within a row, the word of the first tap
            }
        )
        nxt = Signal(group, init={"base": slot0})
        need_x = Signal(shape.column_bits, init=(pixels - 1) * st + k - 1)
        need_y = Signal(HEIGHT_BITS, init=k - 1)
        exhausted = Signal()  # the last group of the frame has started
        # Groups start `LEAST_GROUP` cycles apart, so all this may come some cycles late.
        started = Signal()  # any group
        row_started = Signal()  # the last one of a row
        bottom_end = Signal(reset_less=True)
        row = self._row_count(m, frame.out_width, 0, started, row_started)
        m.d.sync += [
            started.eq(seq.start),
            row_started.eq(seq.start & row.ends),
            bottom_end.eq(nxt.row == frame.last_row),
        ]
        m.d.comb += self.feed.count.eq(row.count)
        available = Signal()
        m.d.sync += available.eq(
            ~started
            & ~exhausted
            & (at.written | (at.wy > need_y) | ((at.wy == need_y) & (at.wx > need_x)))
        )
        m.d.comb += seq.ready.eq(available)
        next_base = Signal(shape.row_bits)
        wrap = shape.bank_words - st * shape.row_words
        m.d.comb += next_base.eq(
            Mux(nxt.base >= wrap, nxt.base - wrap, nxt.base + st * shape.row_words)
        )
        with m.If(started):
            m.d.sync += [
                nxt.x.eq(nxt.x + pixels * st),
                need_x.eq(need_x + pixels * st),
                nxt.offset.eq(nxt.offset + shape.position_words),
            ]
        with m.If(row_started):
            m.d.sync += [
                nxt.x.eq(0),
                need_x.eq(need_x.init),
                nxt.offset.eq(0),
                nxt.row.eq(nxt.row + 1),
                nxt.y.eq(nxt.y + st),
                need_y.eq(need_y + st),
                nxt.base.eq(next_base),
                exhausted.eq(bottom_end),
            ]
        with m.If(seq.done):
            m.d.sync += [
                at.free_row.eq(nxt.row),
                at.free_before.eq(Mux(nxt.x == 0, 0, nxt.x - 1)),
                at.finished.eq(exhausted),
            ]
        fresh = [need_x, need_y, row.begun, exhausted, available, nxt.as_value()]
        return Groups(seq, nxt, fresh, column=Const(0), next_column=Const(0))

    def _taps(self, m: Module, groups: Groups) -> Reading:
        seq, nxt, shape = groups.sequencer, groups.next, self.shape
        k, st, pixels = shape.geometry.kernel, shape.geometry.stride, shape.pixels
        now = Signal(nxt.shape(), reset_less=True)
        beat = Signal(range(shape.beats))
        kx = Signal(range(k))
        ky = Signal(range(k))
        sub = Signal(range(st))
        rotation = Signal(range(pixels))
        offset = Signal(shape.row_bits, reset_less=True)
        base = Signal(shape.row_bits, reset_less=True)
        x = Signal(shape.column_bits, reset_less=True)
        y = Signal(HEIGHT_BITS, reset_less=True)
        # Whether they are the last ones, found a step ahead.
        last_beat = Signal(init=shape.beats == 1)
        last_kx = Signal(init=k == 1)
        last_ky = Signal(init=k == 1)
        wrap = shape.row_words - shape.bank_words
        with m.If(seq.step):
            m.d.sync += [beat.eq(beat + 1), offset.eq(offset + 1)]
            m.d.sync += last_beat.eq(last_of(shape.beats, beat))
            with m.If(last_beat):
                m.d.sync += [beat.eq(0), kx.eq(kx + 1), x.eq(x + 1), sub.eq(sub + 1)]
                m.d.sync += last_kx.eq(last_of(k, kx))
                with m.If(sub == st - 1):
                    m.d.sync += [sub.eq(0), rotation.eq(rotation + 1)]
                    with m.If(rotation == pixels - 1):
                        m.d.sync += rotation.eq(0)
                    with m.Else():  # the same words of the next bank
                        m.d.sync += offset.eq(offset - (shape.position_words - 1))
                with m.If(last_kx):
                    m.d.sync += last_ky.eq(last_of(k, ky))
                    m.d.sync += [
                        kx.eq(0),
                        sub.eq(0),
                        rotation.eq(0),
                        offset.eq(now.offset),
                        x.eq(now.x),
                        ky.eq(ky + 1),
                        y.eq(y + 1),
                        # Not "0 or the next": synthesis would make a reset of that, fed by itself.
                        base.eq(base + Mux(base == -wrap, wrap, shape.row_words)),
                    ]
                    with m.If(last_ky):
                        m.d.sync += [ky.eq(0), y.eq(now.y), base.eq(now.base)]
        with m.If(seq.free):  # a start finds all of it there
            m.d.sync += [now.eq(nxt), offset.eq(nxt.offset), base.eq(nxt.base)]
            m.d.sync += [x.eq(nxt.x), y.eq(nxt.y)]
        return Reading(x, y, base, offset, rotation)
