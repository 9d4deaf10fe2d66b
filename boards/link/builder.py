# amaranth: UnusedElaboratable=no
"""From the content of a packet to what goes over the line."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.crc import CRC_BITS, advanced
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware
from lichen.hw.engine.skid import Skid

CONTENT = data.StructLayout({"byte": 8, "last": 1})


class PacketBuilder(Gateware):
    """Adds the checksum and stuffs a packet, in a memory that it writes a byte a cycle.

    A zero is not written itself: what is written is the distance to it, in the place of the zero
    before.

    Members
    -------
    i : In(stream of CONTENT)
        Kind, number and payload of one packet after another.
    seed : In(32)
        What the packet's checksum begins with: the session, or 0. Read in the cycle in which its
        first byte is given, or a cycle before ``done`` of the packet before where that is later.
    w_en, w_addr, w_data : Out
        Of the memory; addresses count from 0 in every packet.
    done : Out(1)
        A pulse: the packet is complete in memory.
    length : Out(8)
        Of the packet on the line, without the delimiter; with ``done``, and until the next begins.
    """

    def __init__(self) -> None:
        self._skid = Skid(shape=CONTENT)  # from whatever makes a byte to its checksum
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(CONTENT)),
                    "seed": In(32),
                    "w_en": Out(1),
                    "w_addr": Out(8),
                    "w_data": Out(8),
                    "done": Out(1),
                    "length": Out(8),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.skid = skid = self._skid
        wiring.connect(m, wiring.flipped(self.i), skid.i)
        place = Signal(8, init=1)  # of the next byte
        mark = Signal(8)  # of the last zero
        register = Signal(CRC_BITS)
        inside = Signal()
        value = Signal(8)
        takes = Signal()
        ends = Signal()
        with m.FSM():
            with m.State("CONTENT"):
                m.d.comb += [
                    skid.o.ready.eq(1),
                    takes.eq(skid.o.valid),
                    value.eq(skid.o.payload.byte),
                ]
                with m.If(takes):
                    m.d.sync += [inside.eq(1), register.eq(advanced(register, value))]
                    with m.If(skid.o.payload.last):
                        m.next = "CHECKSUM_0"
                with m.Elif(~inside):  # laid ready: the checksum is deep enough without a choice
                    m.d.sync += register.eq(~self.seed)
            for i in range(protocol.CRC_BYTES):
                with m.State(f"CHECKSUM_{i}"):
                    m.d.comb += [takes.eq(1), value.eq(~register[8 * i : 8 * i + 8])]
                    last = i == protocol.CRC_BYTES - 1
                    m.next = "END" if last else f"CHECKSUM_{i + 1}"
            with m.State("END"):
                m.d.comb += ends.eq(1)
                m.d.sync += [inside.eq(0), register.eq(~self.seed)]
                m.next = "CONTENT"
        zero = Signal()
        m.d.comb += zero.eq(ends | (value == 0))
        m.d.sync += [
            # A register before the memory; so ``done`` comes when all is in it.
            self.w_en.eq(takes | ends),
            self.w_addr.eq(Mux(zero, mark, place)),
            self.w_data.eq(Mux(zero, place - mark, value)),
            self.done.eq(ends),
        ]
        with m.If(takes):
            m.d.sync += place.eq(place + 1)
            with m.If(zero):
                m.d.sync += mark.eq(place)
        with m.If(ends):
            m.d.sync += [self.length.eq(place), place.eq(1), mark.eq(0)]
        return m

    def resources(self, device: Device) -> Resources:
        return self._skid.resources(device) + Resources(lut=200)
