# amaranth: UnusedElaboratable=no
"""What all window buffers share: rows of a stream kept in block RAM, and read back by taps.

Rows live in a ring of row slots. P banks each hold every P-th position, so that the P neighbouring
positions of a step always lie in different banks. Writing and reading overlap pixel by pixel: a
pixel may be overwritten as soon as no output needs it, and a group starts as soon as its last pixel
has arrived. Zero padding is not stored: positions outside the image read as 0.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Array, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of, last_of
from lichen.hw.device.memory import Ram
from lichen.hw.engine.feed import (
    FEED_LATENCY,
    LEAST_GROUP,
    FeedSignature,
    PhaseSequencer,
    Sequencer,
)
from lichen.hw.engine.window_shape import WindowShape
from lichen.network.geometry import Geometry

SIZE_BITS = 16
"""Width of the run-time frame size."""

WRITE_DELAY = 1
"""Extra cycles between accepting a beat and writing it, so that the last reads of a window
that has been released are over."""

SIZE_LATENCY = 3
"""Cycles from a new size to the last register that a frame's first beat may meet; the output's size
takes one. What a group's start reads takes two more, and no group starts earlier after a beat."""

HEIGHT_BITS = SIZE_BITS + 2
"""Bits of padded rows, and of their sums with the kernel size. Columns have
`WindowShape.column_bits`, for the widest input is known."""


@dataclass(frozen=True)
class Frame:
    """What follows from the frame size.

    Attributes
    ----------
    out_width : Signal
    right, bottom : Signal
        The first column and row behind the image, as the read side counts.
    x_end, before_end, y_end : Signal
        The last column, the one before, and the last row of the image, as the write side does.
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
class Pointers:
    """Where both sides are.

    Attributes
    ----------
    wx, wy : Signal
        The pixel that is written next.
    written : Signal
        All of the frame has arrived.
    free_row, free_before : Signal
        What is no longer needed: what only output rows before ``free_row`` read, and columns
        before what the next group of it reads. One less than its column is kept, which is compared
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

    @classmethod
    def at(cls, origin: int, column_bits: int) -> Pointers:
        """At the beginning of a frame."""
        wx = Signal(column_bits, init=origin)
        wy = Signal(HEIGHT_BITS, init=origin)
        written = Signal()
        free_row = Signal(HEIGHT_BITS)
        free_before = Signal(column_bits)
        finished = Signal()
        return cls(wx, wy, written, free_row, free_before, finished)


@dataclass(frozen=True)
class RowCount:
    """How far the groups of a row are.

    Attributes
    ----------
    begun : Signal
        A group of the row has started.
    ends : Signal
        The next group is the row's last.
    count : Signal
        Output pixels up to its last valid one.
    """

    begun: Signal
    ends: Signal
    count: Signal


@dataclass(frozen=True)
class Groups:
    """The read side's groups.

    Attributes
    ----------
    sequencer : Sequencer or PhaseSequencer
    next : View
        Where the next group reads: ``x``, ``y`` (as the read side counts), ``base`` (ring address
        of the row), ``offset`` (in the row, of the position's first word), and what the window
        wants beside.
    fresh : list of Signal
        What every frame begins with afresh.
    column, next_column : Value
        Phase of the column being read, and by the next pass of the same group.
    """

    sequencer: Sequencer | PhaseSequencer
    next: data.View
    fresh: list[Signal]
    column: Value
    next_column: Value


@dataclass(frozen=True)
class Reading:
    """The tap being read: column and row, ring address of the row, offset in it, and by how many
    banks the pixels are turned."""

    x: Signal
    y: Signal
    base: Signal
    offset: Signal
    rotation: Signal


class RowBuffer(Gateware):
    """A window buffer: feeds a convolution one tap's lanes for P neighbouring positions a step.

    Parameters
    ----------
    geometry : Geometry
        Of the convolution.
    channels : int
        Channels of the input.
    a_shape : Shape
        One input value.
    lanes : int
        S, channels per step and per beat of the input.
    pixels : int
        P.
    passes, least_pass : int
        As the core has them; a group takes `LEAST_GROUP` cycles at least.
    max_width : int
        Widest input, in pixels.
    rows : int or None
        Row slots; default `WindowShape.enough_rows`.

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
        geometry: Geometry,
        channels: int,
        a_shape: Shape,
        lanes: int,
        pixels: int,
        passes: int,
        least_pass: int,
        max_width: int,
        rows: int | None = None,
    ):
        check_positive(kernel=geometry.kernel, stride=geometry.stride, channels=channels)
        check_positive(lanes=lanes, pixels=pixels, passes=passes, least_pass=least_pass)
        check_positive(max_width=max_width)
        self.shape = shape = WindowShape(
            geometry=geometry,
            channels=channels,
            lanes=lanes,
            pixels=pixels,
            max_width=max_width,
            slots=rows,
        )
        self.a_shape, self.passes, self.least_pass = Shape.cast(a_shape), passes, least_pass
        if shape.rows < shape.least_rows:
            raise ValueError(f"rows must be at least {shape.least_rows}, not {rows!r}")
        passes_of_rows = (sum(max(n, least_pass) for n in row) for row in shape.phases.steps)
        if passes * min(passes_of_rows) < LEAST_GROUP:
            raise ValueError(f"a group must take at least {LEAST_GROUP} cycles; raise least_pass")
        if max_width >= 1 << SIZE_BITS:
            raise ValueError(f"max_width must fit {SIZE_BITS} bits, not be {max_width!r}")
        feed = FeedSignature(shape=self.a_shape, pixels=pixels, lanes=lanes, phases=shape.phases)
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(lanes_of(self.a_shape, lanes))),
                    "feed": Out(feed),
                    "width": In(SIZE_BITS),
                    "height": In(SIZE_BITS),
                    "out_width": Out(SIZE_BITS),
                    "out_height": Out(SIZE_BITS),
                    "empty": Out(1, init=1),
                }
            )
        )
        self.rams = [
            Ram(depth=shape.bank_words, width=lanes * self.a_shape.width) for _ in range(pixels)
        ]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        frame, at = self._frame(m), Pointers.at(self.shape.origin, self.shape.column_bits)
        over = Signal()  # between two frames: all begins afresh, a cycle later for it goes to all
        m.d.sync += over.eq(at.written & at.finished & ~over)
        writing = self._write(m, frame, at)
        groups = self._groups(m, frame, at)
        self._read(m, frame, groups.sequencer, self._taps(m, groups))
        with m.If(over):
            m.d.sync += self.empty.eq(1)
            m.d.sync += [s.eq(s.init) for s in (*vars(at).values(), *writing, *groups.fresh)]
        return m

    @abstractmethod
    def _made_of(self, size: Value) -> Value:
        """What the convolution makes of so many columns (or rows)."""

    @abstractmethod
    def _groups(self, m: Module, frame: Frame, at: Pointers) -> Groups:
        """The read side's next group: when it may start, and where it reads."""

    @abstractmethod
    def _taps(self, m: Module, groups: Groups) -> Reading:
        """Walk through the taps of the group being read."""

    def _frame(self, m: Module) -> Frame:
        """Everything that depends on the frame size only."""
        origin, border = self.shape.origin, self.shape.border
        out_width = Signal(SIZE_BITS)
        out_height = Signal(SIZE_BITS)
        columns = self.shape.column_bits
        right = Signal(columns)
        bottom = Signal(HEIGHT_BITS)
        x_end = Signal(columns)
        before_end = Signal(columns)
        y_end = Signal(HEIGHT_BITS)
        last_row = Signal(HEIGHT_BITS)
        m.d.comb += [self.out_width.eq(out_width), self.out_height.eq(out_height)]
        m.d.sync += [
            out_width.eq(self._made_of(self.width)),
            out_height.eq(self._made_of(self.height)),
            right.eq(self.width + border),
            bottom.eq(self.height + border),
            x_end.eq(self.width + (origin - 1)),
            before_end.eq(self.width + (origin - 2)),
            y_end.eq(self.height + (origin - 1)),
            last_row.eq(out_height - 1),
        ]
        return Frame(out_width, right, bottom, x_end, before_end, y_end, last_row)

    def _row_count(
        self, m: Module, width: Value, skip: int, started: Signal, row_started: Signal
    ) -> RowCount:
        """Count a row's pixels down, ``width`` and ``skip`` together.

        ``started`` follows a group's start by a cycle and ``row_started`` that of a row's last
        group. What the next group reads is there two cycles later, when it may start at the
        earliest (`LEAST_GROUP`), with one addition or comparison between any two registers.
        """
        most = self.shape.pixels * self.shape.phases.columns
        begun = Signal(name="row_begun")
        total = width
        if skip:
            total = Signal(self.shape.out_bits, name="row_total", reset_less=True)
            m.d.sync += total.eq(width + skip)
        left = Signal(self.shape.out_bits, name="row_left", reset_less=True)
        ends = Signal(name="row_ends", reset_less=True)
        one_group = Signal(name="row_of_one_group", reset_less=True)
        two_groups = Signal(name="row_of_two_groups", reset_less=True)
        count = Signal.like(self.feed.count, name="row_count", reset_less=True)
        m.d.sync += [
            one_group.eq(width <= most - skip),
            two_groups.eq(left <= 2 * most),
            count.eq(Mux(ends, left, most)),
        ]
        with m.If(started):
            m.d.sync += [begun.eq(1), left.eq(left - most), ends.eq(two_groups)]
        with m.If(row_started | (~begun & ~started)):  # the frame's size may still change
            m.d.sync += [begun.eq(0), left.eq(total), ends.eq(one_group)]
        return RowCount(begun, ends, count)

    def _write(self, m: Module, frame: Frame, at: Pointers) -> list[Signal]:
        """The write side: beats into their places. Returns what every frame begins with afresh."""
        shape = self.shape
        beats, spread, pixels, row_bits = shape.beats, shape.spread, shape.pixels, shape.row_bits
        accept, sub_last, bank_last, x_last = (
            Signal(name=n) for n in ("accept", "sub_last", "bank_last", "x_last")
        )
        beat_last = Signal(init=beats == 1)  # found a beat ahead
        position, sub = divmod(shape.origin, spread)
        first_word = position // pixels * shape.position_words
        w_beat = Signal(range(beats))
        w_sub = Signal(range(spread), init=sub)
        w_bank = Signal(range(pixels), init=position % pixels)
        w_word = Signal(row_bits, init=first_word)
        w_offset = Signal(row_bits, init=first_word + sub * beats)
        w_row = Signal(row_bits)
        # The row this one overwrites was last needed by output row `w_last_user`.
        last_user, user_sub = shape.last_user
        w_lead = Signal(range(shape.rows + 1), init=shape.rows)
        w_last_user = Signal(HEIGHT_BITS, init=last_user)
        w_user_sub = Signal(range(shape.users_of), init=user_sub)
        # Whether the next beat may be written, found a cycle ahead: it holds for the pixel after
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
            sub_last.eq(w_sub == spread - 1),
            bank_last.eq(w_bank == pixels - 1),
        ]
        # Whether this is the row's last pixel, found a cycle ahead as well.
        one_column = Signal()
        m.d.sync += one_column.eq(frame.x_end == shape.origin)
        with m.If(accept & beat_last):
            m.d.sync += x_last.eq(Mux(x_last, one_column, at.wx == frame.before_end))
        with m.Else():
            m.d.sync += x_last.eq(at.wx == frame.x_end)
        next_row = Mux(w_row == shape.bank_words - shape.row_words, 0, w_row + shape.row_words)
        with m.If(accept):
            m.d.sync += self.empty.eq(0)
            m.d.sync += [w_beat.eq(w_beat + 1), w_offset.eq(w_offset + 1)]
            m.d.sync += beat_last.eq(last_of(beats, w_beat))
            with m.If(beat_last):
                m.d.sync += [w_beat.eq(0), at.wx.eq(at.wx + 1), w_sub.eq(w_sub + 1)]
                with m.If(sub_last):
                    m.d.sync += [w_sub.eq(0), w_bank.eq(w_bank + 1)]
                    with m.If(bank_last):
                        m.d.sync += [w_bank.eq(0), w_word.eq(w_word + shape.position_words)]
                    with m.Else():  # the same words of the next bank
                        m.d.sync += w_offset.eq(w_word)
                with m.If(x_last):
                    m.d.sync += [
                        *(s.eq(s.init) for s in (at.wx, w_sub, w_bank, w_word, w_offset)),
                        *(at.wy.eq(at.wy + 1), w_row.eq(next_row)),
                        at.written.eq(at.wy == frame.y_end),
                    ]
                    with m.If(w_lead != 0):
                        m.d.sync += w_lead.eq(w_lead - 1)
                    with m.Else():  # the row overwritten advances with the row written
                        m.d.sync += w_user_sub.eq(w_user_sub + 1)
                        with m.If(w_user_sub == shape.users_of - 1):
                            m.d.sync += w_user_sub.eq(0)
                            m.d.sync += w_last_user.eq(w_last_user + shape.users)
        self._write_ports(m, accept, w_bank, w_row + w_offset)
        fresh = [w_beat, w_sub, w_bank, w_word, w_offset, w_row, w_lead, w_last_user, w_user_sub]
        return [*fresh, beat_last, room]

    def _write_ports(self, m: Module, accept: Signal, target: Signal, address: Value) -> None:
        """The banks' write ports, `WRITE_DELAY` cycles and one behind a beat."""
        w_enable = Signal()
        w_target = Signal(target.shape(), reset_less=True)
        w_address = Signal(range(self.shape.bank_words), reset_less=True)
        w_data = Signal(lanes_of(self.a_shape, self.shape.lanes), reset_less=True)
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
        for b, bank in enumerate(self.rams):
            m.submodules[f"bank_{b}"] = bank
            m.d.comb += [
                bank.w_en.eq(w_enable & (w_target == b)),
                bank.w_addr.eq(w_address),
                bank.w_data.eq(w_value),
            ]

    def _read(
        self, m: Module, frame: Frame, seq: Sequencer | PhaseSequencer, reading: Reading
    ) -> None:
        """Address, memory, rotation: from a step to its operands, `FEED_LATENCY` cycles."""
        shape, pixels = self.shape, self.shape.pixels
        address = Signal(range(shape.bank_words), reset_less=True)
        m.d.sync += address.eq(reading.base + reading.offset)
        turn = delayed(m, reading.rotation, 1, "turn")
        further = address + shape.position_words
        for b, bank in enumerate(self.rams):
            r_addr = Signal(range(shape.bank_words), name=f"r_addr_{b}", reset_less=True)
            # Banks before the rotation hold the pixel one position further on.
            m.d.sync += r_addr.eq(Mux(b < turn, further, address) if pixels > 1 else address)
            m.d.comb += bank.r_addr.eq(r_addr)
        turn = delayed(m, turn, 1 + Ram.latency, "rotation")
        inside_y = Signal()
        m.d.comb += inside_y.eq(seq.step & (reading.y >= shape.border) & (reading.y < frame.bottom))
        words = Array(bank.r_data for bank in self.rams)
        for p in range(pixels):
            apart = p * shape.spread
            inside = Signal(name=f"inside_{p}", reset_less=True)
            # Never below 0 for a position that has an output.
            limit = Signal(shape.column_bits, name=f"limit_{p}", reset_less=True)
            m.d.sync += limit.eq(frame.right - apart)
            least = max(0, shape.border - apart)
            m.d.sync += inside.eq(inside_y & (reading.x >= least) & (reading.x < limit))
            inside = delayed(m, inside, FEED_LATENCY - 3, f"inside_{p}")
            word: Any = words[p]
            if pixels > 1:
                word = Array(words[(p + t) % pixels] for t in range(pixels))[turn]
            value = Signal(lanes_of(self.a_shape, shape.lanes), name=f"value_{p}", reset_less=True)
            # Gated, not reset: a reset of so many registers takes long ways, and tables have room.
            gates = inside.replicate(len(value.as_value()))
            m.d.sync += value.as_value().eq(Value.cast(word) & gates)
            # Once more, for the memory may be far from the array.
            m.d.comb += self.feed.a[p].as_value().eq(delayed(m, value.as_value(), 1, f"a_{p}"))

    def timing(self, height: int, width: int) -> dict[str, int]:
        """What the cycle model asks of it for an input of this size, by `cycles.UNIT`'s names."""
        return self.shape.timing(height, width)

    def resources(self, device: Device) -> Resources:
        return self.shape.resources(device, self.a_shape.width)
