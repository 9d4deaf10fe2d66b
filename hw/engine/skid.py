"""A skid buffer: a stream cut by registers in both directions."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware


class Skid(Gateware):
    """Two places of a queue, so that neither ``ready`` nor ``valid`` has a path through it.

    Passes an item per cycle, each a cycle late.

    Parameters
    ----------
    shape : ShapeLike
        Item.

    Members
    -------
    i : In(stream)
    o : Out(stream)
    empty : Out(1)
        Both places are.
    """

    places = 2

    def __init__(self, *, shape: object):
        self.shape = shape
        payload = stream.Signature(shape)
        super().__init__(wiring.Signature({"i": In(payload), "o": Out(payload), "empty": Out(1)}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = Shape.cast(self.shape).width
        front, back = (Signal(width, name=n, reset_less=True) for n in ("front", "back"))
        full = Signal()  # front is
        waiting = Signal()  # back is as well
        moves = Signal()  # front takes an item, if there is one
        item = Value.cast(self.i.payload)
        m.d.comb += [
            self.i.ready.eq(~waiting),
            self.o.valid.eq(full),
            self.empty.eq(~full),
            Value.cast(self.o.payload).eq(front),
            moves.eq(~full | self.o.ready),
        ]
        m.d.sync += [
            full.eq(~moves | waiting | self.i.valid),
            waiting.eq(~moves & (waiting | self.i.valid)),
        ]
        with m.If(moves):
            m.d.sync += front.eq(Mux(waiting, back, item))
        with m.If(~waiting):  # whatever it is: nobody looks before `waiting` says so
            m.d.sync += back.eq(item)
        return m

    def resources(self, device: Device) -> Resources:
        return skid_resources(Shape.cast(self.shape).width)


def skid_resources(width: int) -> Resources:
    """What a `Skid` of items of ``width`` bits takes."""
    return Resources(lut=width + 4)


__all__ = ["Skid", "skid_resources"]
