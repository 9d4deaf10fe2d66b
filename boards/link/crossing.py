"""Items of a stream from one clock to another."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware


class Crossing(Gateware):
    """Passes one item at a time: it is held while a bit tells the other side, and is told back.

    An item takes a few cycles of both clocks, which may have any frequency. Nothing may be on its
    way when either side is reset.

    Parameters
    ----------
    shape : ShapeLike
        Item.
    source, target : str
        Clock domains.

    Members
    -------
    i : In(stream), in ``source``
    o : Out(stream), in ``target``
    """

    def __init__(self, *, shape: object, source: str, target: str):
        self.source, self.target = source, target
        payload = stream.Signature(shape)
        self.width = Shape.cast(shape).width
        super().__init__(wiring.Signature({"i": In(payload), "o": Out(payload)}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal(self.width)
        given = Signal()  # toggles with every item, as does
        taken = Signal()
        told = Signal()
        heard = Signal()
        m.submodules.told = FFSynchronizer(given, told, o_domain=self.target)
        m.submodules.heard = FFSynchronizer(taken, heard, o_domain=self.source)
        m.d.comb += [
            self.i.ready.eq(given == heard),
            Value.cast(self.o.payload).eq(held),
            self.o.valid.eq(told != taken),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d[self.source] += [held.eq(Value.cast(self.i.payload)), given.eq(~given)]
        with m.If(self.o.valid & self.o.ready):
            m.d[self.target] += taken.eq(~taken)
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=6)
