"""From the beats of a pipeline's output to bytes."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.port.format import value_bytes, value_shape
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive


class Serializer(Gateware):
    """Cuts beats of several values into bytes, least significant first.

    Values are extended to whole bytes. Of the last beat of a position only the lanes that
    hold a channel are sent.

    Parameters
    ----------
    channels : int
        Values per position.
    lanes : int
        Values per beat.
    shape : Shape
        Of a value, 1 to 16 bits.

    Members
    -------
    i : In(stream of lanes x shape)
    o : Out(stream of 8)
    """

    def __init__(self, *, channels: int, lanes: int, shape: Shape):
        check_positive(channels=channels, lanes=lanes)
        shape = value_shape(shape)
        self.channels, self.lanes, self.shape = channels, lanes, shape
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(data.ArrayLayout(shape, lanes))),
                    "o": Out(stream.Signature(8)),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        per_value = value_bytes(self.shape.width)
        beats = -(-self.channels // self.lanes)
        full, rest = self.lanes * per_value, (self.channels - (beats - 1) * self.lanes) * per_value

        extended = [
            Signal(Shape(8 * per_value, self.shape.signed), name=f"value_{i}")
            for i in range(self.lanes)
        ]
        for i, value in enumerate(extended):
            m.d.comb += value.eq(self.i.payload[i])

        shift = Signal(8 * full)
        left = Signal(range(full + 1))
        beat = Signal(range(beats))
        m.d.comb += [
            self.o.payload.eq(shift[:8]),
            self.o.valid.eq(left != 0),
            self.i.ready.eq(left == 0),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [shift.eq(shift[8:]), left.eq(left - 1)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += shift.eq(Cat(*extended))
            with m.If(beat == beats - 1):
                m.d.sync += [left.eq(rest), beat.eq(0)]
            with m.Else():
                m.d.sync += [left.eq(full), beat.eq(beat + 1)]
        return m

    def resources(self, device: Device) -> Resources:
        bits = 8 * self.lanes * value_bytes(self.shape.width)
        return Resources(lut=12 if bits == 8 else 4 * bits)
