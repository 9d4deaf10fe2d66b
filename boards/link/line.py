# amaranth: UnusedElaboratable=no
"""The serial line of a board: bytes of the system's clock, symbols of the oscillator's.

The line keeps its rate whatever clock a build turns out to be fast enough for.
"""

from __future__ import annotations

from amaranth.hdl import DomainRenamer, Module, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lichen.boards.link.crossing import Crossing
from lichen.boards.link.protocol import RATIO_CYCLES
from lichen.boards.link.uart import Receiver, Transmitter
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

DOMAIN = "line"
"""The clock domain of the oscillator."""

HEARD = data.StructLayout({"byte": 8, "whole": 1, "bad": 1})
"""A byte, that a byte was lost, or both."""


class SerialLine(Gateware):
    """Receiver and transmitter in a clock domain of their own.

    Parameters
    ----------
    oscillator_hz : float
        Frequency of the domain `DOMAIN`.
    baud : int
        Symbols per second.

    Members
    -------
    rx : In(1)
    tx : Out(1)
    hold : In(1)
        Everything stays in its initial state.
    i : In(stream of 8)
        What is sent.
    o : Out(stream of 8)
        What was received; always taken.
    bad : Out(1)
        A pulse: a byte was lost before the one that comes next.
    ratio : Out(16)
        Cycles in `protocol.RATIO_CYCLES` of the oscillator.
    """

    def __init__(self, *, oscillator_hz: float, baud: int):
        self._receiver = Receiver(clock_hz=oscillator_hz, baud=baud)
        self._transmitter = Transmitter(clock_hz=oscillator_hz, baud=baud)
        self._heard = Crossing(shape=HEARD, source=DOMAIN, target="sync")
        self._said = Crossing(shape=8, source="sync", target=DOMAIN)
        byte = stream.Signature(8)
        ports = {"rx": In(1, init=1), "tx": Out(1, init=1), "hold": In(1)}
        ports |= {"i": In(byte), "o": Out(byte), "bad": Out(1), "ratio": Out(16)}
        super().__init__(wiring.Signature(ports))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        receiver, transmitter = self._receiver, self._transmitter
        heard, said = self._heard, self._said
        hold = Signal(init=1)
        m.submodules.hold = FFSynchronizer(self.hold, hold, o_domain=DOMAIN, init=1)
        both = ResetInserter({"sync": self.hold, DOMAIN: hold})
        for name, part in (("receiver", receiver), ("transmitter", transmitter)):
            m.submodules[name] = both(DomainRenamer(DOMAIN)(part))
        m.submodules.heard = both(heard)
        m.submodules.said = both(said)
        wiring.connect(m, wiring.flipped(self.i), said.i)
        wiring.connect(m, said.o, transmitter.i)
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx)]

        lost, pending = Signal(), Signal()
        m.d.comb += [
            lost.eq(receiver.framing | receiver.overrun | receiver.break_),
            heard.i.payload.byte.eq(receiver.o.payload),
            heard.i.payload.whole.eq(receiver.o.valid),
            heard.i.payload.bad.eq(pending),
            heard.i.valid.eq(receiver.o.valid | pending),
            receiver.o.ready.eq(heard.i.ready),
            heard.o.ready.eq(1),
            self.o.payload.eq(heard.o.payload.byte),
            self.o.valid.eq(heard.o.valid & heard.o.payload.whole),
            self.bad.eq(heard.o.valid & heard.o.payload.bad),
        ]
        m.d[DOMAIN] += pending.eq((lost | pending & ~heard.i.ready) & ~hold)

        elapsed = Signal(exact_log2(RATIO_CYCLES) + 1)
        gate, before = Signal(), Signal()
        m.d[DOMAIN] += elapsed.eq(elapsed + 1)
        m.submodules.gate = FFSynchronizer(elapsed[-1], gate)
        own = Signal(16)
        m.d.sync += [before.eq(gate), own.eq(own + 1)]
        with m.If(gate != before):
            m.d.sync += [self.ratio.eq(own), own.eq(1)]
        return m

    def resources(self, device: Device) -> Resources:
        parts = (self._receiver, self._transmitter, self._heard, self._said)
        return Resources.total(part.resources(device) for part in parts) + Resources(lut=45)
