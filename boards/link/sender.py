"""Packets to the host: those out of sequence first, the others as often as they are asked for."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.slots import ITEM
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware


class PacketSender(Gateware):
    """Sends one packet at a time; a packet that has begun is always completed.

    A packet in sequence is kept until the host has acknowledged it, and goes once more when it
    asks for it.

    Members
    -------
    ready : In(1)
        A packet out of sequence waits; hold until ``taken``.
    taken : Out(1)
        It is on the line.
    single : In(stream of ITEM)
        Its bytes.
    made : In(8)
        Number of the next packet in sequence that will be made; those before it wait.
    acked : In(8)
        Number of the first one that the host has not acknowledged.
    moves : In(1)
        A pulse: ``acked`` is another one from the next cycle on.
    again : In(1)
        A pulse: send from ``acked`` on.
    pause : In(1)
        Begin nothing.
    sent : Out(8)
        Number of the next packet in sequence to be sent.
    start : Out(1)
        Asks for the bytes of packet ``sent``.
    packet : In(stream of ITEM)
        Its bytes.
    idle : Out(1)
        No packet is being sent, nor begins in this cycle.
    o : Out(stream of 8)
    """

    def __init__(self) -> None:
        items, bytes_ = stream.Signature(ITEM), stream.Signature(8)
        super().__init__(
            wiring.Signature(
                {
                    "ready": In(1),
                    "taken": Out(1),
                    "single": In(items),
                    "made": In(8),
                    "acked": In(8),
                    "moves": In(1),
                    "again": In(1),
                    "pause": In(1),
                    "sent": Out(8),
                    "start": Out(1),
                    "packet": In(items),
                    "idle": Out(1),
                    "o": Out(bytes_),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rewind = Signal()
        is_single = Signal()
        behind = Signal(8)  # how far the host's acknowledgement is ahead of what was sent
        # What the choice of a packet depends on lies in registers, for it reaches far. They are
        # right in a cycle before which neither `sent` nor `acked` has changed.
        overtaken = Signal()
        waits = Signal()
        moved = Signal()
        m.d.comb += behind.eq(self.acked - self.sent)
        m.d.sync += [
            overtaken.eq((behind != 0) & ~behind[7]),
            waits.eq(self.sent != self.made),
            moved.eq(self.moves),
        ]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.pause):
                    m.d.comb += self.idle.eq(1)
                with m.Elif(self.ready):
                    m.d.sync += is_single.eq(1)
                    m.next = "BYTES"
                with m.Elif(rewind | overtaken):
                    m.d.comb += self.idle.eq(1)
                    m.d.sync += [self.sent.eq(self.acked), rewind.eq(0)]
                    m.next = "SETTLE"
                with m.Elif(waits & ~moved):
                    m.d.comb += self.start.eq(1)
                    m.d.sync += is_single.eq(0)
                    m.next = "BYTES"
                with m.Else():
                    m.d.comb += self.idle.eq(1)
            with m.State("BYTES"):
                source = Mux(
                    is_single, self.single.payload.as_value(), self.packet.payload.as_value()
                )
                valid = Mux(is_single, self.single.valid, self.packet.valid)
                m.d.comb += [
                    self.o.payload.eq(source[:8]),
                    self.o.valid.eq(valid),
                    self.single.ready.eq(self.o.ready & is_single),
                    self.packet.ready.eq(self.o.ready & ~is_single),
                ]
                with m.If(valid & self.o.ready & source[8]):
                    m.next = "DELIMITER"
            with m.State("DELIMITER"):
                m.d.comb += [self.o.payload.eq(protocol.DELIMITER), self.o.valid.eq(1)]
                with m.If(self.o.ready):
                    m.d.comb += self.taken.eq(is_single)
                    with m.If(~is_single):
                        m.d.sync += self.sent.eq(self.sent + 1)
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.comb += self.idle.eq(1)
                m.next = "IDLE"
        with m.If(self.again):
            m.d.sync += rewind.eq(1)
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=90)
