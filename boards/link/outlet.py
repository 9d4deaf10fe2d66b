# amaranth: UnusedElaboratable=no
"""Output of a frame to packets in sequence, and all packets to the line."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lichen.boards.link import protocol
from lichen.boards.link.builder import PacketBuilder
from lichen.boards.link.protocol import Kind
from lichen.boards.link.sender import PacketSender
from lichen.boards.link.slots import ITEM, Slots
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware


class Outlet(Gateware):
    """Makes packets of a frame's output, keeps them until they are acknowledged, and sends.

    Parameters
    ----------
    slots : int
        Packets that are kept, a power of two.

    Members
    -------
    session : In(32)
    begin : In(1)
        A pulse: a frame begins, of ``expected`` bytes of output.
    expected, none : In
        With ``begin``: how many bytes, or that there are none.
    i : In(stream of 8)
        Its output; not taken beyond those bytes.
    more : Out(1)
        Some of them have not come.
    ends : In(1)
        All of the frame's input was taken: when all of its output has, too, it is done.
    cycles : In(32)
        What the frame's DONE packet says; read after its last byte.
    complete : Out(1)
        A pulse: the DONE packet is among those to be sent.
    ack, ack_again : In(1)
        Pulses: the host has all packets before ``ack_number``; it wants the others again.
    ack_number : In(8)
        From some cycles before these pulses on.
    sent : Out(8)
        Number of the next packet to be sent.
    ready, taken, single
        See `PacketSender`.
    pause : In(1)
        Begin to send nothing.
    idle : Out(1)
    o : Out(stream of 8)
    """

    def __init__(self, *, slots: int):
        self._slots = Slots(count=slots)
        self._builder = PacketBuilder()
        self._sender = PacketSender()
        byte = stream.Signature(8)
        ports = {"session": In(32), "begin": In(1), "expected": In(32), "none": In(1)}
        ports |= {
            "i": In(byte),
            "more": Out(1),
            "ends": In(1),
            "cycles": In(32),
            "complete": Out(1),
        }
        ports |= {"ack": In(1), "ack_again": In(1), "ack_number": In(8), "sent": Out(8)}
        ports |= {"ready": In(1), "taken": Out(1), "single": In(stream.Signature(ITEM))}
        ports |= {"pause": In(1), "idle": Out(1), "o": Out(byte)}
        super().__init__(wiring.Signature(ports))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.slots = slots = self._slots
        m.submodules.builder = builder = self._builder
        m.submodules.sender = sender = self._sender
        bits = exact_log2(slots.count)
        made = Signal(8)
        acked = Signal(8)
        m.submodules.lengths = lengths = Memory(
            shape=unsigned(8), depth=slots.count, init=[], attrs={"ram_style": "distributed"}
        )
        write = lengths.write_port()
        read = lengths.read_port(domain="comb")
        m.d.comb += [
            slots.w_en.eq(builder.w_en),
            slots.w_addr.eq(Cat(builder.w_addr, made[:bits])),
            slots.w_data.eq(builder.w_data),
            write.en.eq(builder.done),
            write.addr.eq(made[:bits]),
            write.data.eq(builder.length),
            read.addr.eq(sender.sent[:bits]),
            slots.start.eq(sender.start),
            slots.slot.eq(sender.sent[:bits]),
            slots.first.eq(0),
            slots.length.eq(read.data),
            sender.made.eq(made),
            sender.acked.eq(acked),
            sender.ready.eq(self.ready),
            self.taken.eq(sender.taken),
            sender.pause.eq(self.pause),
            self.sent.eq(sender.sent),
            self.idle.eq(sender.idle),
            builder.seed.eq(self.session),
        ]
        wiring.connect(m, wiring.flipped(self.single), sender.single)
        wiring.connect(m, slots.o, sender.packet)
        wiring.connect(m, sender.o, wiring.flipped(self.o))

        # Only what was made can be acknowledged; compared while the packet comes.
        progress = Signal(8)
        kept = Signal(8)
        is_made = Signal()
        m.d.comb += [progress.eq(self.ack_number - acked), kept.eq(made - acked)]
        m.d.sync += is_made.eq(progress <= kept)
        with m.If(self.ack & is_made):
            m.d.comb += [sender.again.eq(self.ack_again), sender.moves.eq(1)]
            m.d.sync += acked.eq(self.ack_number)

        self._make(m, made, kept)
        return m

    def _make(self, m: Module, made: Signal, kept: Signal) -> None:
        """Packets of output, and at the end of the frame its DONE."""
        builder = self._builder
        is_done = Signal()
        done_due = Signal()
        left = Signal(32)  # bytes of the frame that have not come
        count = Signal(range(protocol.PAYLOAD_BYTES + 1))
        # What ends a packet lies in registers, and so does whether another has room: these choose
        # a state that hundreds of registers wait for.
        last_left = Signal()  # `left` is 1
        last_of_payload = Signal()
        last_of_done = Signal()
        room = Signal()
        m.d.sync += room.eq(kept != self._slots.count)
        shift = Signal(8 * protocol.DONE.size)
        content = builder.i
        with m.FSM():
            with m.State("WAIT"):
                m.d.sync += [count.eq(0), last_of_payload.eq(0), last_of_done.eq(0)]
                with m.If(room & self.more & self.i.valid):
                    m.d.sync += is_done.eq(0)
                    m.next = "KIND"
                with m.Elif(room & ~self.more & done_due & self.ends):
                    m.d.sync += [is_done.eq(1), shift.eq(self.cycles)]
                    m.next = "KIND"
            with m.State("KIND"):
                m.d.comb += [
                    content.payload.byte.eq(Mux(is_done, Kind.DONE, Kind.OUTPUT)),
                    content.valid.eq(1),
                ]
                with m.If(content.ready):
                    m.next = "NUMBER"
            with m.State("NUMBER"):
                m.d.comb += [content.payload.byte.eq(made), content.valid.eq(1)]
                with m.If(content.ready):
                    m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                ends = Mux(is_done, last_of_done, last_of_payload | last_left)
                m.d.comb += [
                    content.payload.byte.eq(Mux(is_done, shift[:8], self.i.payload)),
                    content.payload.last.eq(ends),
                    content.valid.eq(is_done | self.i.valid),
                    self.i.ready.eq(content.ready & ~is_done),
                ]
                with m.If(content.valid & content.ready):
                    m.d.sync += [
                        *(count.eq(count + 1), shift.eq(shift >> 8)),
                        last_of_payload.eq(count == protocol.PAYLOAD_BYTES - 2),
                        last_of_done.eq(count == protocol.DONE.size - 2),
                    ]
                    with m.If(~is_done):
                        m.d.sync += [left.eq(left - 1), last_left.eq(left == 2)]
                        m.d.sync += self.more.eq(~last_left)
                    with m.If(ends):
                        m.next = "STUFF"
            with m.State("STUFF"), m.If(builder.done):
                m.d.sync += made.eq(made + 1)
                m.d.comb += self.complete.eq(is_done)
                with m.If(is_done):
                    m.d.sync += done_due.eq(0)
                m.next = "SETTLE"
            with m.State("SETTLE"):  # `room` follows what was made
                m.next = "WAIT"
        with m.If(self.begin):
            m.d.sync += [left.eq(self.expected), self.more.eq(~self.none), done_due.eq(1)]
            m.d.sync += last_left.eq(self.expected == 1)

    def resources(self, device: Device) -> Resources:
        parts = (self._slots, self._builder, self._sender)
        return Resources.total(part.resources(device) for part in parts) + Resources(lut=230)
