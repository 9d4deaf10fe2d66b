"""From the bytes of the line to the packets of the host."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.crc import CRC_BITS, advanced
from lichen.boards.link.protocol import Kind
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

HEAD = data.StructLayout({"kind": 8, "number": 8, "start": 32})
"""What is kept of every packet: its kind, its number, and the first bytes of its payload."""


class PacketReceiver(Gateware):
    """Takes packets apart and checks them; never stalls the line.

    Members
    -------
    i : In(stream of 8)
        Bytes of the line. ``ready`` is always high.
    bad : In(1)
        A pulse: a byte was lost. Whatever it belongs to is no packet any more.
    session : In(32)
        Whose packets are taken.
    arrived : Out(1)
        A pulse: a packet is whole and its checksum right; ``head`` and ``length`` are its.
    broken : Out(1)
        A pulse: what ends here is no packet of this session.
    head : Out(HEAD)
        Bytes that a packet does not have are those of its checksum, or of earlier packets.
    length : Out(8)
        Of the payload.
    offset : Out(8)
        Of the byte that ``w_en`` offers, from the packet's kind at 0 to its checksum.
    w_en, w_data : Out
        A byte of a packet that may yet turn out to be none.
    begins : Out(1)
        That byte is the first.
    """

    def __init__(self) -> None:
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(8)),
                    "bad": In(1),
                    "session": In(32),
                    "arrived": Out(1),
                    "broken": Out(1),
                    "head": Out(HEAD),
                    "length": Out(8),
                    "offset": Out(8),
                    "w_en": Out(1),
                    "w_data": Out(8),
                    "begins": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        byte = self.i.payload
        inside = Signal()  # a code byte has come
        damaged = Signal()
        left = Signal(8)  # bytes until the next code byte
        register = Signal(CRC_BITS)
        delimiter = Signal()
        coded = Signal()
        emits = Signal()
        m.d.comb += [
            self.i.ready.eq(1),
            delimiter.eq(self.i.valid & (byte == protocol.DELIMITER)),
            coded.eq(~inside | (left == 0)),
            # A code byte stands for a zero, but for the first.
            emits.eq(self.i.valid & ~delimiter & (inside | ~coded)),
        ]
        with m.If(self.i.valid & ~delimiter):
            m.d.sync += [inside.eq(1), left.eq(Mux(coded, byte, left) - 1)]

        # A register on the way to the checksum and the memory.
        value = Signal(8)
        taken = Signal()
        ends = Signal()
        whole = Signal()
        sessionless = Signal()
        known = [byte == kind for kind in Kind if kind.sessionless]
        m.d.sync += [
            value.eq(Mux(coded, 0, byte)),
            sessionless.eq(~coded & Cat(*known).any()),
            taken.eq(emits),
            ends.eq(delimiter & inside),
            whole.eq(left == 0),
        ]
        with m.If(delimiter):
            m.d.sync += inside.eq(0)

        first = Signal()
        full = Signal()
        count = self.offset
        seed = ~Mux(sessionless, 0, self.session)
        m.d.comb += [
            first.eq(count == 0),
            full.eq(count == protocol.PACKET_BYTES),
            self.w_en.eq(taken & ~full),
            self.w_data.eq(value),
            self.begins.eq(self.w_en & first),
        ]
        with m.If(taken):
            m.d.sync += register.eq(advanced(Mux(first, seed, register), value))
            with m.If(full):
                m.d.sync += damaged.eq(1)
            with m.Else():
                m.d.sync += count.eq(count + 1)
                with m.Switch(count):
                    for i in range(len(self.head.as_value()) // 8):
                        with m.Case(i):
                            m.d.sync += self.head.as_value()[8 * i : 8 * i + 8].eq(value)
        with m.If(self.bad):
            m.d.sync += damaged.eq(1)
        good = Signal()
        m.d.comb += good.eq(
            whole
            & ~damaged
            & ~self.bad
            & (count >= protocol.OVERHEAD_BYTES)
            & (register == protocol.CRC_RESIDUE)
        )
        m.d.sync += [self.arrived.eq(ends & good), self.broken.eq(ends & ~good)]
        with m.If(ends):
            m.d.sync += [
                self.length.eq(count - protocol.OVERHEAD_BYTES),
                count.eq(0),
                damaged.eq(0),
            ]
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=300)
