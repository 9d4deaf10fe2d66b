# amaranth: UnusedElaboratable=no
"""The entrance of a pipeline: frames of one size pass, another size waits until all is empty."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive
from lichen.hw.engine.row_buffer import SIZE_BITS

GATE_RESOURCES = Resources(lut=150)
"""What a `FrameGate` takes: three counters of 16 bits and their comparisons."""


class _Phase(enum.Enum):
    NEXT = 0  # between frames
    COMPARE = 1  # a first beat waits, and its size has been compared
    FRAME = 2
    EMPTYING = 3
    SETTLING = 4


class FrameGate(Gateware):
    """Gives the units of a pipeline one frame size at a time.

    The size belongs to the first beat of a frame, as if it were part of its payload: so nobody
    outside has to know when a pipeline is empty. Frames of one size follow each other; before
    another size everything behind the gate must have run empty, rows that no output needs
    included, and the new size then has ``settle`` cycles to spread.

    Beats pass within their cycle. Between two frames one cycle is lost, in which the window
    behind takes nothing anyway.

    Parameters
    ----------
    shape : ShapeLike
        Payload.
    beats : int
        Beats per pixel.
    settle : int
        Cycles from a new ``frame_width`` to the last register that depends on it.

    Members
    -------
    i : In(stream)
    width, height : In(16)
        Of the frame whose first beat ``i`` offers, 1 or more; they do not matter for others.
    o : Out(stream)
    frame_width, frame_height : Out(16)
        Of all that is behind the gate.
    drain : Out(1)
        The gate is closed and waits for ``empty``.
    empty : In(1)
        As long as ``drain``: everything behind the gate is empty. May come any number of cycles
        late, but then must fall after ``drain`` has, before the gate opens.
    """

    def __init__(self, *, shape: object, beats: int, settle: int):
        check_positive(beats=beats, settle=settle)
        self.beats, self.settle = beats, settle
        payload = stream.Signature(shape)
        super().__init__(
            wiring.Signature(
                {
                    "i": In(payload),
                    "width": In(SIZE_BITS),
                    "height": In(SIZE_BITS),
                    "o": Out(payload),
                    "frame_width": Out(SIZE_BITS),
                    "frame_height": Out(SIZE_BITS),
                    "drain": Out(1),
                    "empty": In(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        phase = Signal(_Phase)
        same = Signal()
        open_ = Signal()
        accept = Signal()
        m.d.sync += same.eq((self.width == self.frame_width) & (self.height == self.frame_height))
        m.d.comb += [
            open_.eq((phase == _Phase.FRAME) | ((phase == _Phase.COMPARE) & same)),
            Value.cast(self.o.payload).eq(Value.cast(self.i.payload)),
            self.o.valid.eq(self.i.valid & open_),
            self.i.ready.eq(self.o.ready & open_),
            accept.eq(self.i.valid & self.i.ready),
            self.drain.eq(phase == _Phase.EMPTYING),
        ]
        frame_end = self._count(m, accept)
        left = Signal(range(self.settle))
        with m.Switch(phase):
            with m.Case(_Phase.NEXT):
                with m.If(self.i.valid):
                    m.d.sync += phase.eq(_Phase.COMPARE)
            with m.Case(_Phase.COMPARE):
                with m.If(~same):
                    m.d.sync += phase.eq(_Phase.EMPTYING)
                with m.Elif(accept):
                    m.d.sync += phase.eq(Mux(frame_end, _Phase.NEXT, _Phase.FRAME))
            with m.Case(_Phase.FRAME):
                with m.If(accept & frame_end):
                    m.d.sync += phase.eq(_Phase.NEXT)
            with m.Case(_Phase.EMPTYING):
                with m.If(self.empty):
                    m.d.sync += [
                        self.frame_width.eq(self.width),
                        self.frame_height.eq(self.height),
                        left.eq(self.settle - 1),
                        phase.eq(_Phase.SETTLING),
                    ]
            with m.Case(_Phase.SETTLING):
                m.d.sync += left.eq(Mux(left == 0, 0, left - 1))
                with m.If((left == 0) & ~self.empty):
                    m.d.sync += phase.eq(_Phase.NEXT)
        return m

    def _count(self, m: Module, accept: Signal) -> Value:
        """Count what is accepted; whether the beat offered is the last of its frame."""
        beat = Signal(range(self.beats))
        column = Signal(SIZE_BITS, init=1)
        row = Signal(SIZE_BITS, init=1)
        beat_last, column_last, row_last = (
            Signal(name=n) for n in ("beat_last", "column_last", "row_last")
        )
        m.d.comb += [
            beat_last.eq(beat == self.beats - 1),
            column_last.eq(column == self.frame_width),
            row_last.eq(row == self.frame_height),
        ]
        with m.If(accept):
            m.d.sync += beat.eq(Mux(beat_last, 0, beat + 1))
            with m.If(beat_last):
                m.d.sync += column.eq(Mux(column_last, 1, column + 1))
                with m.If(column_last):
                    m.d.sync += row.eq(Mux(row_last, 1, row + 1))
        return beat_last & column_last & row_last

    def resources(self, device: Device) -> Resources:
        return GATE_RESOURCES


__all__ = ["GATE_RESOURCES", "FrameGate"]
