# amaranth: UnusedElaboratable=no
"""The window buffer: rows of a stream kept in block RAM and read back as convolution windows."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Array, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of
from lichen.hw.device.memory import Ram, ram_resources
from lichen.hw.engine import cycles
from lichen.hw.engine.division import divide_by_stride
from lichen.hw.engine.feed import FEED_LATENCY, FeedSignature, Sequencer
from lichen.network.arithmetic import ceil_div

SIZE_BITS = 16
"""Width of the run-time frame size."""

WRITE_DELAY = 1
"""Extra cycles between accepting a beat and writing it, so that the last reads of a window
that has been released are over."""

SIZE_LATENCY = 3
"""Cycles from a new size to the last register that follows from it; the output's size takes one."""


COORDINATE = SIZE_BITS + 2
"""Bits of padded coordinates, and of their sums with the kernel size."""


@dataclass(frozen=True)
class _Frame:
    """What follows from the frame size, in padded coordinates.

    Attributes
    ----------
    out_width : Signal
    right, bottom : Signal
        The first column and row behind the image.
    x_end, before_end, y_end : Signal
        The last column, the one before, and the last row of the image.
    last_row : Signal
        Of the output.
    """

    out_width: Signal
    right: Signal
    bottom: Signal
    x_end: Signal
    before_end: Signal
    y_end: Signal
    last_row: Signal


@dataclass(frozen=True)
class _Pointers:
    """Where both sides are, in padded coordinates.

    Attributes
    ----------
    wx, wy : Signal
        The pixel that is written next.
    written : Signal
        All of the frame has arrived.
    free_row, free_before : Signal
        What is no longer needed: what only output rows before ``free_row`` read, and columns that
        start before the next group of it. One less than its column is kept, which is compared
        without an addition.
    finished : Signal
        All of the frame has been read.
    """

    wx: Signal
    wy: Signal
    written: Signal
    free_row: Signal
    free_before: Signal
    finished: Signal


@dataclass(frozen=True)
class _Step:
    """The tap being read: padded column and row, ring address of the row, offset in it, and by how
    many banks the pixels are turned."""

    x: Signal
    y: Signal
    base: Signal
    offset: Signal
    rotation: Signal


class Window(Gateware):
    """Feeds a convolution: every step reads one tap's lanes for P neighbouring output pixels.

    Rows live in a ring of ``rows`` slots. P banks each hold every P-th pixel position (in
    units of the stride), so that the P pixels of a step, which are a stride apart, always lie
    in different banks. Writing and reading overlap pixel by pixel: a pixel may be overwritten
    as soon as no window needs it, and a group starts as soon as its last pixel has arrived.

    Zero padding is not stored: positions outside the image read as 0.

    Parameters
    ----------
    kernel, stride, padding : int
    channels : int
        Channels of the input.
    shape : Shape
        One input value.
    lanes : int
        S, channels per step and per beat of the input.
    pixels : int
        P.
    passes, pass_cycles : int
        As the core needs them.
    max_width : int
        Widest input, in pixels.
    rows : int or None
        Row slots; default kernel + 1, the least that lets writing overlap with reading.

    Members
    -------
    i : In(stream)
    feed : Out(FeedSignature)
    width, height : In(16)
        Size of the input; may change only while everything behind is `empty` as well, and
        `SIZE_LATENCY` cycles before a frame's first beat at the latest.
    out_width, out_height : Out(16)
        Size of what the convolution makes of it.
    empty : Out(1)
        Between two frames: nothing has come of the next, and all of the last one has come, rows
        that no output needs included, and was read.
    """

    def __init__(
        self,
        *,
        kernel: int,
        stride: int,
        padding: int,
        channels: int,
        shape: Shape,
        lanes: int,
        pixels: int,
        passes: int,
        pass_cycles: int,
        max_width: int,
        rows: int | None = None,
    ):
        check_positive(
            kernel=kernel,
            stride=stride,
            channels=channels,
            lanes=lanes,
            pixels=pixels,
            passes=passes,
            pass_cycles=pass_cycles,
            max_width=max_width,
        )
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.channels, self.shape, self.lanes = channels, Shape.cast(shape), lanes
        self.pixels, self.passes, self.pass_cycles = pixels, passes, pass_cycles
        self.max_width = max_width
        self.rows = window_rows(kernel, stride) if rows is None else rows
        if self.rows <= max(kernel, stride):
            raise ValueError(f"rows must exceed kernel and stride, not be {rows!r}")
        if max_width >= 1 << SIZE_BITS:
            raise ValueError(f"max_width must fit {SIZE_BITS} bits, not be {max_width!r}")
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(lanes_of(self.shape, lanes))),
                    "feed": Out(FeedSignature(shape=self.shape, pixels=pixels, lanes=lanes)),
                    "width": In(SIZE_BITS),
                    "height": In(SIZE_BITS),
                    "out_width": Out(SIZE_BITS),
                    "out_height": Out(SIZE_BITS),
                    "empty": Out(1, init=1),
                }
            )
        )
        self.banks = [
            Ram(depth=self.rows * self.row_words, width=lanes * self.shape.width)
            for _ in range(pixels)
        ]

    @property
    def beats_per_pixel(self) -> int:
        """Beats per input pixel."""
        return ceil_div(self.channels, self.lanes)

    @property
    def steps(self) -> int:
        """Steps per pass."""
        return self.kernel**2 * self.beats_per_pixel

    @property
    def word_words(self) -> int:
        """Memory words of one bank per position: ``stride`` pixels."""
        return self.stride * self.beats_per_pixel

    @property
    def row_words(self) -> int:
        """Memory words of one bank per row."""
        return window_row_words(
            max_width=self.max_width,
            padding=self.padding,
            stride=self.stride,
            beats=self.beats_per_pixel,
            pixels=self.pixels,
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        frame = self._frame(m)
        at = self._pointers()
        over = Signal()  # between two frames: all begins afresh
        m.d.comb += over.eq(at.written & at.finished)
        fresh = [*vars(at).values()]
        fresh += self._write(m, frame, at)
        seq = Sequencer(
            m, passes=self.passes, steps=self.steps, pass_cycles=self.pass_cycles, feed=self.feed
        )
        group, of_group = self._next_group(m, frame, at, seq)
        fresh += of_group
        self._read(m, frame, self._steps(m, group, seq), seq)
        with m.If(over):
            m.d.sync += self.empty.eq(1)
            m.d.sync += [signal.eq(signal.init) for signal in fresh]
        return m

    @property
    def _ring(self) -> int:
        """Words of a bank."""
        return self.rows * self.row_words

    @property
    def _row_bits(self) -> int:
        """Of an address in it."""
        return Shape.cast(range(self._ring)).width

    def _frame(self, m: Module) -> _Frame:
        """Everything that depends on the frame size only."""
        k, st, pad = self.kernel, self.stride, self.padding
        out_width, out_height = Signal(SIZE_BITS), Signal(SIZE_BITS)
        right, bottom = Signal(COORDINATE), Signal(COORDINATE)
        x_end, y_end, last_row = Signal(COORDINATE), Signal(COORDINATE), Signal(COORDINATE)
        before_end = Signal(COORDINATE)
        m.d.comb += [self.out_width.eq(out_width), self.out_height.eq(out_height)]
        m.d.sync += [
            out_width.eq(divide_by_stride(self.width + 2 * pad - k, st) + 1),
            out_height.eq(divide_by_stride(self.height + 2 * pad - k, st) + 1),
            right.eq(self.width + pad),
            bottom.eq(self.height + pad),
            x_end.eq(self.width + pad - 1),
            before_end.eq(self.width + pad - 2),
            y_end.eq(self.height + pad - 1),
            last_row.eq(out_height - 1),
        ]

        return _Frame(out_width, right, bottom, x_end, before_end, y_end, last_row)

    def _pointers(self) -> _Pointers:
        """What the write and the read side know of each other."""
        pad = self.padding
        wx, wy = Signal(COORDINATE, init=pad), Signal(COORDINATE, init=pad)
        written = Signal()
        free_row, free_before = Signal(COORDINATE), Signal(COORDINATE)
        finished = Signal()
        return _Pointers(wx, wy, written, free_row, free_before, finished)

    def _write(self, m: Module, frame: _Frame, at: _Pointers) -> list[Signal]:
        """The write side: beats into their places. Returns what every frame begins with afresh."""
        st, pad, ring = self.stride, self.padding, self._ring
        cg, pixels, row_bits = self.beats_per_pixel, self.pixels, self._row_bits
        accept, beat_last, sub_last, bank_last, x_last = (
            Signal(name=n) for n in ("accept", "beat_last", "sub_last", "bank_last", "x_last")
        )
        w_beat = Signal(range(cg))
        w_sub = Signal(range(st), init=pad % st)
        w_bank = Signal(range(pixels), init=pad // st % pixels)
        first_word = pad // st // pixels * self.word_words
        w_word = Signal(row_bits, init=first_word)
        w_offset = Signal(row_bits, init=first_word + pad % st * cg)
        w_row = Signal(row_bits)
        # The row this one overwrites was last needed by output row `w_last_user`.
        w_lead = Signal(range(self.rows + 1), init=self.rows)
        w_last_user = Signal(COORDINATE, init=pad // st)
        w_user_sub = Signal(range(st), init=pad % st)
        # Whether the next beat may be at.written, found a cycle ahead: it holds for the pixel after
        # the present one as well, and a new row is looked at afresh.
        room = Signal(init=1)
        m.d.sync += room.eq(
            ~(accept & beat_last & x_last)
            & ~at.written
            & (
                (w_lead != 0)
                | at.finished
                | (at.free_row > w_last_user)
                | ((at.free_row == w_last_user) & (at.wx < at.free_before))
            )
        )
        m.d.comb += [
            self.i.ready.eq(room),
            accept.eq(self.i.valid & self.i.ready),
            beat_last.eq(w_beat == cg - 1),
            sub_last.eq(w_sub == st - 1),
            bank_last.eq(w_bank == pixels - 1),
        ]
        # Whether this is the row's last pixel, found a cycle ahead as well.
        one_column = Signal()
        m.d.sync += one_column.eq(frame.x_end == pad)
        with m.If(accept & beat_last):
            m.d.sync += x_last.eq(Mux(x_last, one_column, at.wx == frame.before_end))
        with m.Else():
            m.d.sync += x_last.eq(at.wx == frame.x_end)
        with m.If(accept):
            m.d.sync += self.empty.eq(0)
            m.d.sync += [w_beat.eq(w_beat + 1), w_offset.eq(w_offset + 1)]
            with m.If(beat_last):
                m.d.sync += [w_beat.eq(0), at.wx.eq(at.wx + 1), w_sub.eq(w_sub + 1)]
                with m.If(sub_last):
                    m.d.sync += [w_sub.eq(0), w_bank.eq(w_bank + 1)]
                    with m.If(bank_last):
                        m.d.sync += [w_bank.eq(0), w_word.eq(w_word + self.word_words)]
                    with m.Else():
                        m.d.sync += w_offset.eq(w_word)
                with m.If(x_last):
                    m.d.sync += [
                        *(s.eq(s.init) for s in (at.wx, w_sub, w_bank, w_word, w_offset)),
                        at.wy.eq(at.wy + 1),
                        w_row.eq(Mux(w_row == ring - self.row_words, 0, w_row + self.row_words)),
                        at.written.eq(at.wy == frame.y_end),
                    ]
                    with m.If(w_lead != 0):
                        m.d.sync += w_lead.eq(w_lead - 1)
                    with m.Else():  # the row overwritten advances with the row at.written
                        m.d.sync += w_user_sub.eq(w_user_sub + 1)
                        with m.If(w_user_sub == st - 1):
                            m.d.sync += [w_user_sub.eq(0), w_last_user.eq(w_last_user + 1)]
        self._write_ports(m, accept, w_bank, w_row + w_offset)
        fresh = [w_beat, w_sub, w_bank, w_word, w_offset, w_row, w_lead, w_last_user, w_user_sub]
        return [*fresh, room]

    def _write_ports(self, m: Module, accept: Signal, target: Signal, address: Value) -> None:
        """The banks' write ports, `WRITE_DELAY` cycles and one behind a beat."""
        w_enable, w_target = Signal(), Signal(target.shape(), reset_less=True)
        w_address = Signal(range(self._ring), reset_less=True)
        w_data = Signal(lanes_of(self.shape, self.lanes), reset_less=True)
        m.d.sync += [
            w_enable.eq(accept),
            w_target.eq(target),
            w_address.eq(address),
            w_data.as_value().eq(self.i.payload.as_value()),
        ]
        w_enable = delayed(m, w_enable, WRITE_DELAY, "w_enable")
        w_target = delayed(m, w_target, WRITE_DELAY, "w_target")
        w_address = delayed(m, w_address, WRITE_DELAY, "w_address")
        w_value = delayed(m, w_data.as_value(), WRITE_DELAY, "w_data")
        for b, bank in enumerate(self.banks):
            m.submodules[f"bank_{b}"] = bank
            m.d.comb += [
                bank.w_en.eq(w_enable & (w_target == b)),
                bank.w_addr.eq(w_address),
                bank.w_data.eq(w_value),
            ]

    def _next_group(
        self, m: Module, frame: _Frame, at: _Pointers, seq: Sequencer
    ) -> tuple[data.View, list[Signal]]:
        """The read side's next group, and whether its pixels have come.

        Returns the group and what every frame begins with afresh.
        """
        k, st, pad, pixels = self.kernel, self.stride, self.padding, self.pixels
        size, ring, row_bits = COORDINATE, self._ring, self._row_bits
        slot0 = -pad % self.rows * self.row_words
        group = data.StructLayout(
            {
                "row": size,  # output row
                "x": size,  # padded column of its first tap
                "y": size,  # padded row of its first tap
                "base": row_bits,  # ring address of that row
                "offset": row_bits,  # within a row, the word of the first tap
            }
        )
        nxt = Signal(group, init={"base": slot0})
        left = Signal(SIZE_BITS)  # pixels left in the row
        left_valid = Signal()  # `left` follows the frame size until a frame starts
        remaining = Signal(SIZE_BITS)
        m.d.comb += remaining.eq(Mux(left_valid, left, frame.out_width))
        need_x = Signal(size, init=(pixels - 1) * st + k - 1)
        need_y = Signal(size, init=k - 1)
        exhausted = Signal()  # the last group of the frame has started
        # Groups start two cycles apart at least (`available`), so these may come a cycle late.
        row_end, bottom_end = Signal(reset_less=True), Signal(reset_less=True)
        count = Signal.like(self.feed.count, reset_less=True)
        few = remaining <= pixels
        m.d.sync += [
            row_end.eq(few),
            bottom_end.eq(nxt.row == frame.last_row),
            count.eq(Mux(few, remaining, pixels)),
        ]
        m.d.comb += self.feed.count.eq(count)
        available = Signal()
        m.d.sync += available.eq(
            ~seq.start
            & ~exhausted
            & (at.written | (at.wy > need_y) | ((at.wy == need_y) & (at.wx > need_x)))
        )
        m.d.comb += seq.ready.eq(available)
        next_base = Signal(row_bits)
        wrap = ring - st * self.row_words
        m.d.comb += next_base.eq(
            Mux(nxt.base >= wrap, nxt.base - wrap, nxt.base + st * self.row_words)
        )
        with m.If(seq.start):
            m.d.sync += [
                left_valid.eq(1),
                left.eq(remaining - pixels),
                nxt.x.eq(nxt.x + pixels * st),
                need_x.eq(need_x + pixels * st),
                nxt.offset.eq(nxt.offset + self.word_words),
            ]
            with m.If(row_end):
                m.d.sync += [
                    left_valid.eq(0),
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

        fresh = [need_x, need_y, left_valid, exhausted, available, nxt.as_value()]
        return nxt, fresh

    def _steps(self, m: Module, nxt: data.View, seq: Sequencer) -> _Step:
        """Walk through the taps of the group being read."""
        k, st, cg, pixels = self.kernel, self.stride, self.beats_per_pixel, self.pixels
        size, ring, row_bits = COORDINATE, self._ring, self._row_bits
        now = Signal(nxt.shape(), reset_less=True)
        beat, kx, ky = Signal(range(cg)), Signal(range(k)), Signal(range(k))
        sub, rotation = Signal(range(st)), Signal(range(pixels))
        offset, base = Signal(row_bits, reset_less=True), Signal(row_bits, reset_less=True)
        x, y = Signal(size, reset_less=True), Signal(size, reset_less=True)
        with m.If(seq.step):
            m.d.sync += [beat.eq(beat + 1), offset.eq(offset + 1)]
            with m.If(beat == cg - 1):
                m.d.sync += [beat.eq(0), kx.eq(kx + 1), x.eq(x + 1), sub.eq(sub + 1)]
                with m.If(sub == st - 1):
                    m.d.sync += [sub.eq(0), rotation.eq(rotation + 1)]
                    with m.If(rotation == pixels - 1):
                        m.d.sync += rotation.eq(0)
                    with m.Else():  # the same words of the next bank
                        m.d.sync += offset.eq(offset - (self.word_words - 1))
                with m.If(kx == k - 1):
                    m.d.sync += [
                        kx.eq(0),
                        sub.eq(0),
                        rotation.eq(0),
                        offset.eq(now.offset),
                        x.eq(now.x),
                        ky.eq(ky + 1),
                        y.eq(y + 1),
                        # Not "0 or the next": synthesis would make a reset of that, fed by itself.
                        base.eq(
                            base
                            + Mux(
                                base == ring - self.row_words,
                                self.row_words - ring,
                                self.row_words,
                            )
                        ),
                    ]
                    with m.If(ky == k - 1):
                        m.d.sync += [ky.eq(0), y.eq(now.y), base.eq(now.base)]
        with m.If(seq.start):
            m.d.sync += [
                now.eq(nxt),
                offset.eq(nxt.offset),
                base.eq(nxt.base),
                x.eq(nxt.x),
                y.eq(nxt.y),
            ]

        return _Step(x, y, base, offset, rotation)

    def _read(self, m: Module, frame: _Frame, step: _Step, seq: Sequencer) -> None:
        """Address, memory, rotation: from a step to its operands, `FEED_LATENCY` cycles."""
        st, pad, pixels = self.stride, self.padding, self.pixels
        address = Signal(range(self._ring), reset_less=True)
        m.d.sync += address.eq(step.base + step.offset)
        turn = delayed(m, step.rotation, 1, "turn")
        for b, bank in enumerate(self.banks):
            r_addr = Signal(range(self._ring), name=f"r_addr_{b}", reset_less=True)
            # Banks before the rotation hold the pixel one position further on.
            m.d.sync += r_addr.eq(
                Mux(b < turn, address + self.word_words, address) if pixels > 1 else address
            )
            m.d.comb += bank.r_addr.eq(r_addr)
        turn = delayed(m, turn, 1 + Ram.latency, "rotation")
        inside_y = Signal()
        m.d.comb += inside_y.eq(seq.step & (step.y >= pad) & (step.y < frame.bottom))
        words = Array(bank.r_data for bank in self.banks)
        for p in range(pixels):
            inside = Signal(name=f"inside_{p}", reset_less=True)
            limit = Signal(COORDINATE, name=f"limit_{p}", reset_less=True)
            m.d.sync += limit.eq(frame.right - p * st)
            least = max(0, pad - p * st)
            m.d.sync += inside.eq(inside_y & (step.x >= least) & (step.x < limit))
            inside = delayed(m, inside, FEED_LATENCY - 3, f"inside_{p}")
            word = (
                words[p]
                if pixels == 1
                else Array(words[(p + t) % pixels] for t in range(pixels))[turn]
            )
            value = Signal(lanes_of(self.shape, self.lanes), name=f"value_{p}", reset_less=True)
            m.d.sync += value.as_value().eq(Mux(inside, word, 0))
            # Once more, for the memory may be far from the array.
            m.d.comb += self.feed.a[p].as_value().eq(delayed(m, value.as_value(), 1, f"a_{p}"))

    def timing(self, height: int, width: int) -> dict[str, int]:
        """What the cycle model asks of it for an input of this size, by `cycles.UNIT`'s names."""
        k, st, pad = self.kernel, self.stride, self.padding
        return {
            "feeder": cycles.ROWS,
            "beats_in": self.beats_per_pixel,
            "pixels": self.pixels,
            "first_x": pad,
            "first_y": pad,
            "end_x": width + pad,
            "end_y": height + pad,
            "slots": self.rows,
            "last_user": pad // st,
            "user_sub": pad % st,
            "users": 1,
            "users_of": st,
            "stride": st,
            "span_x": (self.pixels - 1) * st + k - 1,
            "span_y": k - 1,
            "row_phases": 1,
            "column_phases": 1,
        }

    def resources(self, device: Device) -> Resources:
        return window_resources(
            device,
            self.rows * self.row_words,
            lanes=self.lanes,
            bits=self.shape.width,
            pixels=self.pixels,
        )


def window_resources(
    device: Device, bank_words: int, *, lanes: int, bits: int, pixels: int
) -> Resources:
    """What a `Window` takes whose banks have so many words of ``lanes`` values."""
    word = lanes * bits
    control = Resources(lut=880 + 170 * ceil_log2(pixels + 1))
    rotate = Resources(lut=pixels * word * (1 + ceil_log2(pixels)))
    return ram_resources(device, bank_words, word, writable=True) * pixels + control + rotate


def window_rows(kernel: int, stride: int) -> int:
    """Row slots of a window buffer, the least that lets writing overlap with reading."""
    return max(kernel, stride) + 1


def window_row_words(*, max_width: int, padding: int, stride: int, beats: int, pixels: int) -> int:
    """Memory words of one bank per row: every ``pixels``-th position of ``stride`` pixels, each
    of ``beats`` words."""
    positions = ceil_div(max_width + padding, stride)
    return ceil_div(positions, pixels) * stride * beats


__all__ = ["SIZE_BITS", "WRITE_DELAY", "Window"]
