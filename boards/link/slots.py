# amaranth: UnusedElaboratable=no
"""Bytes of a packet out of a memory, as a stream."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed
from lichen.hw.device.memory import CreditFifo, Ram

SLOT_BYTES = 256
"""Room for a packet: a power of two."""

ITEM = data.StructLayout({"byte": 8, "last": 1})

QUEUE = 16
"""What may be on its way out of the memory."""


class Slots(Gateware):
    """A memory for packets in sequence: written at any place, read as streams.

    Parameters
    ----------
    count : int
        Packets, a power of two of 2 or more.

    Members
    -------
    w_en, w_addr, w_data : In
        Addresses are those of a packet's slot and of a byte in it, the slot's bits above.
    start : In(1)
        Begin to read; only while ``idle``.
    slot, first, length : In
        With ``start``: the packet, its first byte, and how many, 1 or more.
    o : Out(stream of ITEM)
    idle : Out(1)
        All bytes asked for have left.
    """

    def __init__(self, *, count: int):
        check_positive(count=count)
        if count < 2 or count & (count - 1):
            raise ValueError(f"count must be a power of two from 2, not {count!r}")
        self.count = count
        self._memory = Ram(depth=count * SLOT_BYTES, width=8)
        self._queue = CreditFifo(shape=ITEM, depth=QUEUE)
        super().__init__(
            wiring.Signature(
                {
                    "w_en": In(1),
                    "w_addr": In(range(count * SLOT_BYTES)),
                    "w_data": In(8),
                    "start": In(1),
                    "slot": In(range(count)),
                    "first": In(8),
                    "length": In(8),
                    "o": Out(stream.Signature(ITEM)),
                    "idle": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = self._memory
        m.submodules.queue = queue = self._queue
        slot = Signal.like(self.slot)
        offset = Signal(8)
        left = Signal(8)
        asks = Signal()
        m.d.comb += [
            memory.w_en.eq(self.w_en),
            memory.w_addr.eq(self.w_addr),
            memory.w_data.eq(self.w_data),
            memory.r_addr.eq(Cat(offset, slot)),
            asks.eq((left != 0) & queue.credit),
            queue.take.eq(asks),
            queue.push.eq(delayed(m, asks, memory.latency, "asked")),
            queue.i.byte.eq(memory.r_data),
            queue.i.last.eq(delayed(m, left == 1, memory.latency, "last")),
            self.idle.eq((left == 0) & queue.empty),
        ]
        wiring.connect(m, queue.o, wiring.flipped(self.o))
        with m.If(self.start):
            m.d.sync += [slot.eq(self.slot), offset.eq(self.first), left.eq(self.length)]
        with m.Elif(asks):
            m.d.sync += [offset.eq(offset + 1), left.eq(left - 1)]
        return m

    def resources(self, device: Device) -> Resources:
        parts = (self._memory, self._queue)
        return Resources.total(part.resources(device) for part in parts) + Resources(lut=40)
