"""From bytes to the beats of a pipeline's input."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.port.format import value_bytes, value_shape
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, lanes_of


class Packer(Gateware):
    """Gathers bytes into values and values into beats of several lanes; each position begins a
    new beat.

    Takes one byte a cycle. Lanes beyond the last channel of a position hold stale values.

    Parameters
    ----------
    channels : int
        Values per position.
    lanes : int
        Values per beat.
    shape : Shape
        Of a value, 1 to 16 bits. Bits of a byte that it lacks do not matter.

    Members
    -------
    i : In(stream of 8)
        Values in whole bytes, least significant first.
    o : Out(stream of lanes x shape)
    """

    def __init__(self, *, channels: int, lanes: int, shape: Shape):
        check_positive(channels=channels, lanes=lanes)
        shape = value_shape(shape)
        self.channels, self.lanes, self.shape = channels, lanes, shape
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(8)),
                    "o": Out(stream.Signature(lanes_of(shape, lanes))),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        per_value = value_bytes(self.shape.width)
        count, slots = self.channels * per_value, self.lanes * per_value
        byte = Signal(range(max(2, count)))
        slot = Signal(range(max(2, slots)))
        last = byte == count - 1
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            for i in range(slots):
                lane, start = divmod(i, per_value)
                bits = self.o.payload.as_value()[
                    lane * self.shape.width + 8 * start : lane * self.shape.width
                    + min(self.shape.width, 8 * start + 8)
                ]
                with m.If(slot == i):
                    m.d.sync += bits.eq(self.i.payload)
            m.d.sync += [byte.eq(byte + 1), slot.eq(slot + 1)]
            with m.If(last | (slot == slots - 1)):
                m.d.sync += [slot.eq(0), self.o.valid.eq(1)]
            with m.If(last):
                m.d.sync += byte.eq(0)
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=8 + 4 * self.lanes * value_bytes(self.shape.width))
