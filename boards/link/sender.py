"""Packets to the host: status before credits before latents."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware


class PacketSender(Gateware):
    """Sends one packet at a time; a packet that has begun is always completed.

    Parameters
    ----------
    status : protocol.Status
        The fields of the status packet that never change.

    Members
    -------
    latents : In(stream of 8)
        Must hold at least ``level`` bytes from the cycle in which ``idle`` falls.
    level : In
        How many bytes of latents wait, at most `protocol.LATENT_PACKET_BYTES`.
    status, credit : In(1)
        Ask for a packet; hold until the answer.
    status_taken, credit_taken : Out(1)
        The packet asked for begins in this cycle.
    state, errors, stuck : In(8)
        Fields of the status packet, read when ``status_taken``.
    idle : Out(1)
        No packet is being sent, nor begins in this cycle.
    o : Out(stream of 8)
    """

    def __init__(self, *, status: protocol.Status):
        self._status = status
        super().__init__(
            wiring.Signature(
                {
                    "latents": In(stream.Signature(8)),
                    "level": In(range(protocol.LATENT_PACKET_BYTES + 1)),
                    "status": In(1),
                    "credit": In(1),
                    "status_taken": Out(1),
                    "credit_taken": Out(1),
                    "state": In(8),
                    "errors": In(8),
                    "stuck": In(8),
                    "idle": Out(1),
                    "o": Out(stream.Signature(8)),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        kind = Signal(8)
        left = Signal(range(protocol.LATENT_PACKET_BYTES + 1))
        fields = [Signal(8, name=name) for name in ("state", "errors", "stuck")]
        constant = self._status.pack()
        offset = Signal(range(protocol.STATUS_BYTES))
        status_byte = Signal(8)
        with m.Switch(offset):
            for i in range(protocol.STATUS_BYTES):
                with m.Case(i):
                    m.d.comb += status_byte.eq(fields[i - 1] if 1 <= i <= 3 else constant[i])
        is_status = kind == protocol.KIND_STATUS

        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.status):
                    m.d.comb += self.status_taken.eq(1)
                    m.d.sync += [
                        kind.eq(protocol.KIND_STATUS),
                        left.eq(protocol.STATUS_BYTES),
                        offset.eq(0),
                        fields[0].eq(self.state),
                        fields[1].eq(self.errors),
                        fields[2].eq(self.stuck),
                    ]
                    m.next = "KIND"
                with m.Elif(self.credit):
                    m.d.comb += self.credit_taken.eq(1)
                    m.d.sync += [kind.eq(protocol.KIND_CREDIT), left.eq(0)]
                    m.next = "KIND"
                with m.Elif(self.level != 0):
                    m.d.sync += [kind.eq(protocol.KIND_LATENTS), left.eq(self.level)]
                    m.next = "KIND"
                with m.Else():
                    m.d.comb += self.idle.eq(1)
            with m.State("KIND"):
                m.d.comb += [self.o.payload.eq(kind), self.o.valid.eq(1)]
                with m.If(self.o.ready):
                    m.next = "LENGTH"
            with m.State("LENGTH"):
                m.d.comb += [self.o.payload.eq(left), self.o.valid.eq(1)]
                with m.If(self.o.ready):
                    m.next = "PAYLOAD"
                    with m.If(left == 0):
                        m.next = "IDLE"
            with m.State("PAYLOAD"):
                m.d.comb += [
                    self.o.payload.eq(Mux(is_status, status_byte, self.latents.payload)),
                    self.o.valid.eq(is_status | self.latents.valid),
                    self.latents.ready.eq(self.o.ready & ~is_status),
                ]
                with m.If(self.o.valid & self.o.ready):
                    m.d.sync += [left.eq(left - 1), offset.eq(offset + 1)]
                    with m.If(left == 1):
                        m.next = "IDLE"
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=145)
