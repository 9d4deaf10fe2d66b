"""A queue in lookup tables, read through a register."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, ShapeLike, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware


class Fifo(Gateware):
    """Holds up to ``depth`` payloads; a payload takes two cycles to come through.

    `amaranth.lib.fifo` cannot say what its memory is made of, and synthesis likes to turn one
    with a register behind it into block RAM, which the plan counts.

    Parameters
    ----------
    shape : ShapeLike
        Of a payload.
    depth : int
        A power of two from 16.

    Members
    -------
    i : In(stream)
    o : Out(stream)
    level : Out
        Payloads inside.
    """

    def __init__(self, *, shape: ShapeLike, depth: int):
        if not isinstance(depth, int) or depth < 16 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 16, not {depth!r}")
        self.depth = depth
        self._width = Shape.cast(shape).width
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(shape)),
                    "o": Out(stream.Signature(shape)),
                    "level": Out(range(depth + 1)),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(
            shape=unsigned(self._width),
            depth=self.depth,
            init=[],
            attrs={"ram_style": "distributed"},
        )
        write = memory.write_port()
        read = memory.read_port(domain="comb")
        written = Signal(range(self.depth))
        taken = Signal(range(self.depth))
        stored = Signal(range(self.depth + 1))  # in the memory; the register holds one more

        push = Signal()
        fill = Signal()
        pop = Signal()
        m.d.comb += [
            self.i.ready.eq(self.level != self.depth),
            push.eq(self.i.valid & self.i.ready),
            pop.eq(self.o.valid & self.o.ready),
            fill.eq((stored != 0) & (~self.o.valid | pop)),
            write.addr.eq(written),
            write.data.eq(self.i.payload),
            write.en.eq(push),
            read.addr.eq(taken),
        ]
        m.d.sync += [
            stored.eq(stored + push - fill),
            self.level.eq(self.level + push - pop),
            written.eq(written + push),
            taken.eq(taken + fill),
            self.o.valid.eq(fill | (self.o.valid & ~pop)),
        ]
        with m.If(fill):
            m.d.sync += self.o.payload.eq(read.data)
        return m

    def resources(self, device: Device) -> Resources:
        cells = -(-self.depth // 16) * -(-self._width // 4)
        # A memory cell takes 6 lookup tables; choosing among them one per 2 and bit.
        return Resources(lut=6 * cells + self._width * self.depth // 32 + 50)
