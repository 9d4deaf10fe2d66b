# amaranth: UnusedElaboratable=no
"""The serial line of a board: bytes of the system's clock, symbols of the oscillator's.

The line keeps its rate whatever clock a build turns out to be fast enough for.
"""

from __future__ import annotations

from amaranth.hdl import DomainRenamer, Module, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from lichen.boards.link.crossing import Crossing
from lichen.boards.link.ratio import DOMAIN, Ratio
from lichen.boards.link.uart import Receiver, Transmitter
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

HEARD = data.StructLayout({"byte": 8, "whole": 1, "bad": 1})
"""A byte, that a byte was lost, or both."""


class SerialLine(Gateware):
    """Receiver and transmitter in the clock domain of the oscillator, `DOMAIN`.

    Parameters
    ----------
    oscillator_hz : float
        Its frequency.
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
        See `Ratio`.
    """

    def __init__(self, *, oscillator_hz: float, baud: int):
        self._receiver = Receiver(clock_hz=oscillator_hz, baud=baud)
        self._transmitter = Transmitter(clock_hz=oscillator_hz, baud=baud)
        self._heard = Crossing(shape=HEARD, source=DOMAIN, target="sync")
        self._said = Crossing(shape=8, source="sync", target=DOMAIN)
        self._ratio = Ratio()
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

        lost = Signal()
        pending = Signal()
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
        m.submodules.ratio = ratio = self._ratio
        m.d.comb += self.ratio.eq(ratio.ratio)
        return m

    def resources(self, device: Device) -> Resources:
        parts = (self._receiver, self._transmitter, self._heard, self._said, self._ratio)
        return Resources.total(part.resources(device) for part in parts) + Resources(lut=10)
