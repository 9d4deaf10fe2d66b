# amaranth: UnusedElaboratable=no
"""Packets in sequence from the host: kept in their order, and given to whom they are for."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lichen.boards.link import protocol
from lichen.boards.link.slots import Slots
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

HEADER_BITS = 8 * protocol.FRAME.size
assert protocol.LOAD.size == protocol.FRAME.size  # one register holds either
PAYLOAD_PLACE = 2
"""Of a packet's payload in its slot, behind kind and number."""


class Intake(Gateware):
    """A window of packets that may come, and the queue of those that have.

    Parameters
    ----------
    slots : int
        Packets that there is room for, a power of two.

    Members
    -------
    w_en, w_data, offset, begins : In
        Bytes of the packet that is coming; see `PacketReceiver`.
    arrived : In(1)
        A pulse: the packet is one in sequence.
    is_frame, is_load, number, length : In
        Of that packet: whether it is a FRAME or a LOAD, its number (some cycles before), and the
        length of its payload.
    accepted : Out(1)
        In the same cycle: it is the one that was due, and is kept.
    gap : Out(1)
        In the same cycle: another one is due before it.
    expected, limit : Out(8)
        Numbers of the packet that is due, and of the first one that there is no room for.
    freed : Out(1)
        A pulse: all of a packet has been taken.
    header : Out
        Payload of a FRAME or a LOAD, while ``header_valid``; it goes with ``header_taken``.
    header_fits, header_is_load : Out(1)
        It has the right length; it is a LOAD.
    o : Out(stream of 8)
        Payload of INPUT packets.
    """

    def __init__(self, *, slots: int):
        self._slots = Slots(count=slots)
        ports = {"w_en": In(1), "w_data": In(8), "offset": In(8), "begins": In(1)}
        ports |= {"arrived": In(1), "is_frame": In(1), "is_load": In(1)}
        ports |= {"number": In(8), "length": In(8), "header_is_load": Out(1)}
        ports |= {"accepted": Out(1), "gap": Out(1), "expected": Out(8), "limit": Out(8)}
        ports |= {"freed": Out(1), "header": Out(HEADER_BITS), "header_valid": Out(1)}
        ports |= {"header_taken": In(1), "header_fits": Out(1), "o": Out(stream.Signature(8))}
        super().__init__(wiring.Signature(ports))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.slots = slots = self._slots
        bits = exact_log2(slots.count)
        consumed = Signal(8)
        # Decided with the first byte of a packet: room that comes later is for the next. It lies
        # in a register, and so does whether there is room for one more. Room that was freed may be
        # known late, but not that it was taken.
        room = Signal()
        room_for_two = Signal()
        stored = Signal()
        m.d.comb += self.limit.eq(consumed + slots.count)
        m.d.sync += [
            room_for_two.eq(self.expected + 1 != self.limit),
            room.eq(Mux(self.accepted, room_for_two, self.expected != self.limit)),
            # The memory is far from the receiver; nobody reads before the packet has arrived.
            slots.w_en.eq(self.w_en & Mux(self.begins, room, stored)),
            slots.w_addr.eq(Cat(self.offset, self.expected[:bits])),
            slots.w_data.eq(self.w_data),
        ]
        with m.If(self.begins):
            m.d.sync += stored.eq(room)
        # Compared while the packet comes, for its number is the second of its bytes.
        distance = Signal(8)
        is_due = Signal()
        is_ahead = Signal()
        m.d.comb += distance.eq(self.number - self.expected)
        m.d.sync += [is_due.eq(distance == 0), is_ahead.eq((distance != 0) & ~distance[7])]
        m.d.comb += [
            self.accepted.eq(self.arrived & is_due & stored),
            self.gap.eq(self.arrived & is_ahead),
        ]
        with m.If(self.accepted):
            m.d.sync += [self.expected.eq(self.expected + 1), stored.eq(0)]

        m.submodules.entries = entries = Memory(
            shape=unsigned(10), depth=slots.count, init=[], attrs={"ram_style": "distributed"}
        )
        write = entries.write_port()
        read = entries.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(self.accepted),
            write.addr.eq(self.expected[:bits]),
            write.data.eq(Cat(self.length, self.is_frame, self.is_load)),
            read.addr.eq(consumed[:bits]),
        ]
        # A register between the memory of what came and all that depends on it.
        length = Signal(8)
        is_frame = Signal()
        is_load = Signal()
        m.d.sync += Cat(length, is_frame, is_load).eq(read.data)
        m.d.comb += [
            slots.slot.eq(consumed[:bits]),
            slots.first.eq(PAYLOAD_PLACE),
            slots.length.eq(length),
        ]
        with m.FSM():
            with m.State("WAIT"), m.If(consumed != self.expected):
                m.next = "START"
            with m.State("START"):
                m.d.comb += slots.start.eq(1)
                m.d.sync += [
                    self.header_fits.eq(length == protocol.FRAME.size),
                    self.header_is_load.eq(is_load),
                ]
                m.next = "READ"
                with m.If(length == 0):
                    m.next = "FREE"
            with m.State("READ"):
                last = slots.o.payload.last
                with m.If(is_frame | is_load):
                    m.d.comb += slots.o.ready.eq(1)
                    with m.If(slots.o.valid):
                        m.d.sync += self.header.eq(Cat(self.header[8:], slots.o.payload.byte))
                        with m.If(last):
                            m.next = "HEADER"
                with m.Else():
                    m.d.comb += [
                        self.o.payload.eq(slots.o.payload.byte),
                        self.o.valid.eq(slots.o.valid),
                        slots.o.ready.eq(self.o.ready),
                    ]
                    with m.If(slots.o.valid & slots.o.ready & last):
                        m.next = "FREE"
            with m.State("HEADER"):
                m.d.comb += self.header_valid.eq(1)
                with m.If(self.header_taken):
                    m.next = "FREE"
            with m.State("FREE"):
                m.d.comb += self.freed.eq(1)
                m.d.sync += consumed.eq(consumed + 1)
                m.next = "WAIT"
        return m

    def resources(self, device: Device) -> Resources:
        return self._slots.resources(device) + Resources(lut=160)
