# amaranth: UnusedElaboratable=no
"""Pipelines behind a link: what a bitstream holds, whatever the board.

Between the link and the pipelines there is one port for each transform
(`lichen.boards.port.port.PortSignature`): bytes in, bytes out, the size of the input, a reset.
What the bytes are follows from the formats of the network (`PortFormat`): pixels in and latents
out of g_a, latents in and pixels out of g_s. Another link needs no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link.device import Link
from lichen.boards.port.port import TransformPort
from lichen.boards.record import HostLink
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

TIMEOUT_SECONDS = 2
"""How long a transform that could move may stand still while a frame is in flight."""


class Top(Gateware):
    """Line, link and pipelines; see `lichen.boards.link.protocol`.

    Parameters
    ----------
    ports : sequence of TransformPort
        One or more; frames name them by their place.
    link : HostLink
        What leads to the host.
    clock_hz : float
        Frequency of the ``sync`` domain.
    oscillator_hz : int
        Frequency of the domain ``line``.
    digest : bytes
        SHA-256 of the network file; zeros where constants are filled at run time.
    timeout : int or None
        Cycles until the watchdog barks; 2 seconds if None.

    Members
    -------
    rx : In(1), tx : Out(1)
        Of a serial line; or
    pads
        of USB, see `lichen.boards.link.usb.PADS`.
    hold : In(1)
        Everything stays in its initial state.
    lamps : Out(3)
        Bit 0: a frame is in flight. Bit 1: an error has stopped the device. Bit 2: a host has
        opened a session.
    """

    def __init__(
        self,
        *,
        ports: Sequence[TransformPort],
        link: HostLink,
        clock_hz: float,
        oscillator_hz: int,
        digest: bytes,
        timeout: int | None = None,
    ):
        self.ports = tuple(ports)
        self._wires = link.wires
        self._line = link.line(oscillator_hz)
        self._link = Link(
            formats=[port.format for port in self.ports],
            timeout=round(clock_hz * TIMEOUT_SECONDS) if timeout is None else timeout,
            digest=digest,
            fills=[port.fill for port in self.ports if port.fill is not None],
            oscillator_hz=oscillator_hz,
            line_hz=link.line_hz,
            clock_hz=clock_hz,
            heartbeat_s=link.heartbeat_s,
            input_slots=link.slots,
            output_slots=link.slots,
        )
        outside = {name: self._line.signature.members[name] for name in self._wires}
        super().__init__(wiring.Signature({**outside, "hold": In(1), "lamps": Out(3)}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line, link = self._line, self._link
        m.submodules.line = line
        m.submodules.link = link
        m.d.comb += [
            line.hold.eq(self.hold),
            link.hold.eq(self.hold),
            self.lamps.eq(link.busy | (link.failed << 1) | (link.open << 2)),
            link.bad.eq(line.bad),
            link.ratio.eq(line.ratio),
        ]
        for name in self._wires:
            own, its = getattr(self, name), getattr(line, name)
            member = self.signature.members[name]
            if member.is_signature:
                wiring.connect(m, wiring.flipped(own), its)
            else:
                m.d.comb += its.eq(own) if member.flow == In else own.eq(its)
        wiring.connect(m, line.o, link.rx)
        wiring.connect(m, link.tx, line.i)
        for port, end in zip(self.ports, link.ports, strict=True):
            m.submodules[port.format.name] = port
            m.d.comb += [
                port.width.eq(end.width),
                port.height.eq(end.height),
                port.reset.eq(end.reset | self.hold),
            ]
            if port.fill is not None:
                wiring.connect(m, end.load, port.load)
            wiring.connect(m, end.i, port.i)
            wiring.connect(m, port.o, end.o)
        return m

    def resources(self, device: Device) -> Resources:
        """The link's share and the pipelines'."""
        return self.link_resources(device) + self.pipeline_resources(device)

    def link_resources(self, device: Device) -> Resources:
        """What the top adds to the pipelines: no multiplier, and block RAMs for packets."""
        own = [part.resources(device) for part in (self._line, self._link)]
        return Resources.total([*own, *(port.byte_resources(device) for port in self.ports)])

    def pipeline_resources(self, device: Device) -> Resources:
        """The pipelines' own answers."""
        return Resources.total(port.pipeline_resources(device) for port in self.ports)
