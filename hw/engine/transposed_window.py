# amaranth: UnusedElaboratable=no
"""The window buffer of transposed convolutions: rows in block RAM, read back phase by phase.

Along one axis, output ``o`` with ``o + padding = q * stride + r`` sums input ``q - j`` times tap
``r + j * stride``, for all j that the kernel has: the *phase* r decides which taps. No zero is
ever inserted, and none multiplied.

Output leaves in raster order without a buffer for it: for every output row the window sweeps
once over the input columns q, each of which has one output pixel a phase.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Array, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of
from lichen.hw.device.memory import Ram, ram_resources
from lichen.hw.engine import cycles
from lichen.hw.engine.feed import FEED_LATENCY, FeedSignature, Phases, PhaseSequencer
from lichen.hw.engine.window import SIZE_BITS, WRITE_DELAY
from lichen.network.arithmetic import ceil_div


@dataclass(frozen=True, kw_only=True)
class Upsampling:
    """The geometry of a transposed convolution, as its window needs it.

    Attributes
    ----------
    kernel, stride, padding, output_padding : int
    """

    kernel: int
    stride: int
    padding: int
    output_padding: int

    @property
    def taps(self) -> tuple[int, ...]:
        """Taps of every phase; none where the kernel is smaller than the stride."""
        return tuple(len(range(r, self.kernel, self.stride)) for r in range(self.stride))

    @property
    def reach(self) -> int:
        """Inputs that the taps of an output span at most."""
        return self.taps[0]

    @property
    def first(self) -> int:
        """The input column (or row) q of the first output."""
        return self.padding // self.stride

    @property
    def skip(self) -> int:
        """The phase of the first output."""
        return self.padding % self.stride

    def phases(self, beats: int) -> Phases:
        """Steps of a pass over ``beats`` beats a pixel.

        A phase without taps has a step all the same, for its bias is an output.
        """
        steps = tuple(tuple(max(1, ky * kx * beats) for kx in self.taps) for ky in self.taps)
        return Phases(steps, skip=self.skip, wait_first=True)

    @property
    def rows(self) -> int:
        """Row slots that let writing overlap with reading.

        With R slots a row of input may arrive during R stride - kernel + 1 rows of output, of
        which the first frees it column by column.
        """
        enough = self.reach * self.stride - self.kernel + 1 >= self.stride
        return max(2, self.reach + (not enough))


class TransposedWindow(Gateware):
    """Feeds a transposed convolution: every step reads one tap's lanes for P input columns.

    Rows live in a ring of ``rows`` slots. P banks each hold every P-th column, so that the P
    neighbouring columns of a step always lie in different banks. Writing and reading overlap
    pixel by pixel: a pixel may be overwritten as soon as no output needs it, and a group starts
    as soon as its last pixel has arrived.

    Positions outside the image read as 0.

    Parameters
    ----------
    upsampling : Upsampling
    channels : int
        Channels of the input.
    shape : Shape
        One input value.
    lanes : int
        S, channels per step and per beat of the input.
    pixels : int
        P.
    passes, chain_length : int
        As the core has them.
    max_width : int
        Widest input, in pixels.
    rows : int or None
        Row slots; default `Upsampling.rows`.

    Members
    -------
    i : In(stream)
    feed : Out(FeedSignature)
    width, height : In(16)
        Size of the input; may change only while everything behind is `empty` as well, and
        `lichen.hw.engine.window.SIZE_LATENCY` cycles before a frame's first beat at the latest.
    out_width, out_height : Out(16)
        Size of what the convolution makes of it.
    empty : Out(1)
        Between two frames: nothing has come of the next, and all of the last one was read.
    """

    def __init__(
        self,
        *,
        upsampling: Upsampling,
        channels: int,
        shape: Shape,
        lanes: int,
        pixels: int,
        passes: int,
        chain_length: int,
        max_width: int,
        rows: int | None = None,
    ):
        check_positive(
            channels=channels,
            lanes=lanes,
            pixels=pixels,
            passes=passes,
            chain_length=chain_length,
            max_width=max_width,
        )
        self.upsampling = upsampling
        self.channels, self.shape, self.lanes = channels, Shape.cast(shape), lanes
        self.pixels, self.passes, self.chain_length = pixels, passes, chain_length
        self.max_width = max_width
        self.rows = upsampling.rows if rows is None else rows
        if self.rows < upsampling.reach:
            raise ValueError(f"rows must be at least {upsampling.reach}, not {rows!r}")
        if max_width >= 1 << SIZE_BITS:
            raise ValueError(f"max_width must fit {SIZE_BITS} bits, not be {max_width!r}")
        self.phases = upsampling.phases(self.beats_per_pixel)
        feed = FeedSignature(shape=self.shape, pixels=pixels, lanes=lanes, phases=self.phases)
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(lanes_of(self.shape, lanes))),
                    "feed": Out(feed),
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
        """Beats, and memory words, per input pixel."""
        return ceil_div(self.channels, self.lanes)

    @property
    def row_words(self) -> int:
        """Memory words of one bank per row."""
        return transposed_row_words(
            max_width=self.max_width, beats=self.beats_per_pixel, pixels=self.pixels
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._frame(m)
        self._write(m)
        self._groups(m)
        self._steps(m)
        self._read(m)
        return m

    def _frame(self, m: Module) -> None:
        """What depends on the frame size only, and the pointers that both sides share."""
        up, size = self.upsampling, SIZE_BITS + 2
        grown = up.kernel - 2 * up.padding + up.output_padding - up.stride
        self._out_width, self._out_height = Signal(SIZE_BITS), Signal(SIZE_BITS)
        self._x_end, self._y_end = Signal(size), Signal(size)
        self._before_end, self._last_row = Signal(size), Signal(size)
        # Columns and rows are counted from the first one that a tap may read, left of the image.
        self._left = up.reach - 1
        self._right, self._bottom = Signal(size), Signal(size)
        m.d.comb += [self.out_width.eq(self._out_width), self.out_height.eq(self._out_height)]
        m.d.sync += [
            self._out_width.eq(_times(self.width, up.stride) + grown),
            self._out_height.eq(_times(self.height, up.stride) + grown),
            self._x_end.eq(self.width - 1),
            self._before_end.eq(self.width - 2),
            self._y_end.eq(self.height - 1),
            self._last_row.eq(self._out_height - 1),
            self._right.eq(self.width + self._left),
            self._bottom.eq(self.height + self._left),
        ]
        self._wx, self._wy = Signal(size), Signal(size)
        self._written = Signal()  # all of the frame has arrived
        # What is no longer needed: what only output rows before `free_row` read, and columns
        # left of what the next group of it reads. One less than its column is kept, which is
        # compared without an addition.
        self._free_row, self._free_before = Signal(size), Signal(size)
        self._finished = Signal()  # all of the frame has been read
        self._over = Signal()
        m.d.comb += self._over.eq(self._written & self._finished)

    def _write(self, m: Module) -> None:
        """From the stream into the banks."""
        up, cg, size = self.upsampling, self.beats_per_pixel, SIZE_BITS + 2
        ring = self.rows * self.row_words
        row_bits = Shape.cast(range(ring)).width
        wx, wy = self._wx, self._wy
        accept, beat_last, bank_last, x_last = (
            Signal(name=n) for n in ("accept", "beat_last", "bank_last", "x_last")
        )
        w_beat, w_bank = Signal(range(cg)), Signal(range(self.pixels))
        w_word, w_offset, w_row = Signal(row_bits), Signal(row_bits), Signal(row_bits)
        # The row this one overwrites was last needed by output row `w_last_user`.
        w_lead = Signal(range(self.rows + 1), init=self.rows)
        w_last_user = Signal(size, init=up.kernel - 1 - up.padding)
        # Whether the next beat may be written, found a cycle ahead: it holds for the pixel after
        # the present one as well, and a new row is looked at afresh.
        room = Signal(init=1)
        m.d.sync += room.eq(
            ~(accept & beat_last & x_last)
            & ~self._written
            & (
                (w_lead != 0)
                | self._finished
                | (self._free_row > w_last_user)
                | ((self._free_row == w_last_user) & (wx < self._free_before))
            )
        )
        m.d.comb += [
            self.i.ready.eq(room),
            accept.eq(self.i.valid & self.i.ready),
            beat_last.eq(w_beat == cg - 1),
            bank_last.eq(w_bank == self.pixels - 1),
        ]
        # Whether this is the row's last pixel, found a cycle ahead as well.
        one_column = Signal()
        m.d.sync += one_column.eq(self._x_end == 0)
        with m.If(accept & beat_last):
            m.d.sync += x_last.eq(Mux(x_last, one_column, wx == self._before_end))
        with m.Else():
            m.d.sync += x_last.eq(wx == self._x_end)
        with m.If(accept):
            m.d.sync += self.empty.eq(0)
            m.d.sync += [w_beat.eq(w_beat + 1), w_offset.eq(w_offset + 1)]
            with m.If(beat_last):
                m.d.sync += [w_beat.eq(0), wx.eq(wx + 1), w_bank.eq(w_bank + 1)]
                with m.If(bank_last):
                    m.d.sync += [w_bank.eq(0), w_word.eq(w_word + cg)]
                with m.Else():  # the same words of the next bank
                    m.d.sync += w_offset.eq(w_word)
                with m.If(x_last):
                    m.d.sync += [
                        *(s.eq(0) for s in (wx, w_bank, w_word, w_offset)),
                        wy.eq(wy + 1),
                        w_row.eq(Mux(w_row == ring - self.row_words, 0, w_row + self.row_words)),
                        self._written.eq(wy == self._y_end),
                    ]
                    with m.If(w_lead != 0):
                        m.d.sync += w_lead.eq(w_lead - 1)
                    with m.Else():  # the row overwritten advances with the row written
                        m.d.sync += w_last_user.eq(w_last_user + up.stride)
        w_enable, w_target = Signal(), Signal(range(self.pixels), reset_less=True)
        w_address = Signal(range(ring), reset_less=True)
        w_data = Signal(lanes_of(self.shape, self.lanes), reset_less=True)
        m.d.sync += [
            w_enable.eq(accept),
            w_target.eq(w_bank),
            w_address.eq(w_row + w_offset),
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
        with m.If(self._over):
            m.d.sync += self.empty.eq(1)
            m.d.sync += [
                s.eq(s.init)
                for s in (
                    *(wx, wy, self._written, room, w_beat, w_bank, w_word, w_offset, w_row),
                    *(w_lead, w_last_user),
                )
            ]

    def _groups(self, m: Module) -> None:
        """The next group: when it may start, and where it reads."""
        up, cg, pixels, size = self.upsampling, self.beats_per_pixel, self.pixels, SIZE_BITS + 2
        ring = self.rows * self.row_words
        row_bits = Shape.cast(range(ring)).width
        first_word = up.first // pixels * cg
        # Of the position q of the group's first column and row, and of output row and phase.
        self._group = data.StructLayout(
            {
                "row": size,
                "phase": Shape.cast(range(max(2, up.stride))),  # a bit at least, for Verilog
                "x": size,
                "y": size,
                "base": row_bits,  # ring address of row q
                "offset": row_bits,  # of column q in a row
            }
        )
        start_of_row = {"x": up.first + self._left, "offset": first_word}
        first_row = {
            "phase": up.skip,
            "y": up.first + self._left,
            "base": up.first % self.rows * self.row_words,
        }
        nxt = self._next = Signal(self._group, init=start_of_row | first_row)
        self._seq = seq = PhaseSequencer(
            m,
            passes=self.passes,
            phases=self.phases,
            chain_length=self.chain_length,
            feed=self.feed,
            row=nxt.phase,
        )
        width = SIZE_BITS + 3
        left, left_valid = Signal(width), Signal()  # follows the frame size until a row starts
        remaining = Signal(width)  # output pixels left in the row, those to skip included
        m.d.comb += remaining.eq(Mux(left_valid, left, self._out_width + up.skip))
        need_x = Signal(size, init=up.first + pixels - 1)
        need_y = Signal(size, init=up.first)
        exhausted = Signal()  # the last group of the frame has started
        # Groups start two cycles apart at least (`available`), so these may come a cycle late.
        row_end, bottom_end = Signal(reset_less=True), Signal(reset_less=True)
        count, head = Signal.like(self.feed.count, reset_less=True), Signal(reset_less=True)
        most = pixels * up.stride
        few = remaining <= most
        m.d.sync += [
            row_end.eq(few),
            bottom_end.eq(nxt.row == self._last_row),
            count.eq(Mux(few, remaining, most)),
            head.eq(~left_valid),
        ]
        m.d.comb += [self.feed.count.eq(count), self.feed.head.eq(head)]
        available = Signal()
        wx, wy = self._wx, self._wy
        arrived = self._written | (wy > need_y) | ((wy == need_y) & (wx > need_x))
        m.d.sync += available.eq(~seq.start & ~exhausted & arrived)
        m.d.comb += seq.ready.eq(available)
        last_phase = nxt.phase == up.stride - 1
        with m.If(seq.start):
            m.d.sync += [
                left_valid.eq(1),
                left.eq(remaining - most),
                nxt.x.eq(nxt.x + pixels),
                need_x.eq(need_x + pixels),
                nxt.offset.eq(nxt.offset + cg),
            ]
            with m.If(row_end):
                m.d.sync += [
                    left_valid.eq(0),
                    *(nxt[name].eq(value) for name, value in start_of_row.items()),
                    need_x.eq(need_x.init),
                    nxt.row.eq(nxt.row + 1),
                    nxt.phase.eq(Mux(last_phase, 0, nxt.phase + 1)),
                    exhausted.eq(bottom_end),
                ]
                with m.If(last_phase):
                    m.d.sync += [
                        nxt.y.eq(nxt.y + 1),
                        need_y.eq(need_y + 1),
                        nxt.base.eq(
                            Mux(
                                nxt.base == ring - self.row_words,
                                0,
                                nxt.base + self.row_words,
                            )
                        ),
                    ]
        unread = self._left + up.reach  # columns from which on none is free
        with m.If(seq.done):
            m.d.sync += [
                self._free_row.eq(nxt.row),
                self._free_before.eq(Mux(nxt.x < unread, 0, nxt.x - unread)),
                self._finished.eq(exhausted),
            ]
        with m.If(self._over):
            m.d.sync += [
                s.eq(s.init)
                for s in (
                    *(self._free_row, self._free_before, self._finished),
                    *(need_x, need_y, left_valid, exhausted, available),
                )
            ]
            m.d.sync += nxt.as_value().eq(nxt.as_value().init)

    def _steps(self, m: Module) -> None:
        """Which word and which tap every step reads: from column and row q backwards."""
        up, cg, pixels, size = self.upsampling, self.beats_per_pixel, self.pixels, SIZE_BITS + 2
        ring = self.rows * self.row_words
        seq, nxt = self._seq, self._next
        now = Signal(self._group, reset_less=True)
        last_tap = Array(Const(max(0, n - 1), range(up.reach)) for n in up.taps)[seq.column]
        first_rotation = up.first % pixels
        beat, tap = Signal(range(cg)), Signal(range(up.reach))
        self._rotation = rotation = Signal(range(pixels), init=first_rotation)
        self._offset = offset = Signal(len(nxt.offset), reset_less=True)
        self._base = base = Signal(len(nxt.base), reset_less=True)
        self._x, self._y = x, y = (
            Signal(size, name="x", reset_less=True),
            Signal(size, name="y", reset_less=True),
        )
        with m.If(seq.step):
            m.d.sync += [beat.eq(beat + 1), offset.eq(offset + 1)]
            with m.If(beat == cg - 1):
                m.d.sync += [
                    *(beat.eq(0), tap.eq(tap + 1), x.eq(x - 1), rotation.eq(rotation - 1)),
                    offset.eq(offset - (cg - 1)),  # the same words of the bank before
                ]
                with m.If(rotation == 0):
                    m.d.sync += [rotation.eq(pixels - 1), offset.eq(offset - (2 * cg - 1))]
                with m.If(tap == last_tap):
                    m.d.sync += [
                        *(tap.eq(0), x.eq(now.x), rotation.eq(first_rotation)),
                        *(offset.eq(now.offset), y.eq(y - 1)),
                        # Not "the last or the one before": see `Window`.
                        base.eq(base + Mux(base == 0, ring - self.row_words, -self.row_words)),
                    ]
            with m.If(seq.last_step):
                m.d.sync += [
                    *(beat.eq(0), tap.eq(0), x.eq(now.x), rotation.eq(first_rotation)),
                    *(offset.eq(now.offset), y.eq(now.y), base.eq(now.base)),
                ]
        with m.If(seq.start):
            m.d.sync += [now.eq(nxt), offset.eq(nxt.offset), base.eq(nxt.base)]
            m.d.sync += [x.eq(nxt.x), y.eq(nxt.y)]

    def _read(self, m: Module) -> None:
        """Address, memory, rotation: FEED_LATENCY cycles."""
        pixels, cg, size = self.pixels, self.beats_per_pixel, SIZE_BITS + 2
        ring = self.rows * self.row_words
        x, y = self._x, self._y
        address = Signal(range(ring), reset_less=True)
        m.d.sync += address.eq(self._base + self._offset)
        turn = delayed(m, self._rotation, 1, "turn")
        for b, bank in enumerate(self.banks):
            r_addr = Signal(range(ring), name=f"r_addr_{b}", reset_less=True)
            # Banks before the rotation hold the column one position further on.
            m.d.sync += r_addr.eq(Mux(b < turn, address + cg, address) if pixels > 1 else address)
            m.d.comb += bank.r_addr.eq(r_addr)
        turn = delayed(m, turn, 1 + Ram.latency, "rotation")
        inside_y = Signal()
        m.d.comb += inside_y.eq(self._seq.step & (y >= self._left) & (y < self._bottom))
        words = Array(bank.r_data for bank in self.banks)
        for p in range(pixels):
            inside = Signal(name=f"inside_{p}", reset_less=True)
            limit = Signal(size, name=f"limit_{p}", reset_less=True)
            # Never below 0 for a position that has an output.
            m.d.sync += limit.eq(self._right - p)
            m.d.sync += inside.eq(inside_y & (x >= max(0, self._left - p)) & (x < limit))
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
        up = self.upsampling
        return {
            "feeder": cycles.ROWS,
            "beats_in": self.beats_per_pixel,
            "pixels": self.pixels,
            "end_x": width,
            "end_y": height,
            "slots": self.rows,
            "last_user": up.kernel - 1 - up.padding,
            "users": up.stride,
            "users_of": 1,
            "read_x": up.first,
            "read_y": up.first,
            "stride": 1,
            "span_x": self.pixels - 1,
            "behind": up.reach - 1,
            "row_phases": up.stride,
            "column_phases": up.stride,
            "row_phase": up.skip,
            "skip": up.skip,
        }

    def resources(self, device: Device) -> Resources:
        return transposed_window_resources(
            device,
            self.upsampling,
            self.rows * self.row_words,
            lanes=self.lanes,
            bits=self.shape.width,
            pixels=self.pixels,
        )


def transposed_row_words(*, max_width: int, beats: int, pixels: int) -> int:
    """Memory words of one bank per row: every ``pixels``-th column, of ``beats`` words."""
    return ceil_div(max_width, pixels) * beats


def transposed_window_resources(
    device: Device, upsampling: Upsampling, bank_words: int, *, lanes: int, bits: int, pixels: int
) -> Resources:
    """What a `TransposedWindow` takes whose banks have so many words of ``lanes`` values."""
    word = lanes * bits
    control = Resources(lut=880 + 170 * ceil_log2(pixels + 1))
    rotate = Resources(lut=pixels * word * (1 + ceil_log2(pixels)))
    return ram_resources(device, bank_words, word, writable=True) * pixels + control + rotate


def _times(value: Value, factor: int) -> Value:
    """``value * factor`` for ``factor`` 1 .. 4, without a multiplier."""
    return {1: value, 2: value << 1, 3: (value << 1) + value, 4: value << 2}[factor]
