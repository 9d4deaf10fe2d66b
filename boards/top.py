# amaranth: UnusedElaboratable=no
"""The pipeline behind a serial line: what a bitstream holds, whatever the board."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, ResetInserter, Shape, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link.device import RESET_CYCLES, Link
from lichen.boards.link.uart import Receiver, Transmitter
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

TIMEOUT_SECONDS = 2
"""How long nothing may move while a frame is in flight."""


class UARTTop(Gateware):
    """Receiver, link, pipeline and transmitter; see `lichen.boards.link.protocol`.

    Parameters
    ----------
    pipeline : wiring.Component
        With streams ``i`` (lanes of unsigned(8)) and ``o`` (lanes of latents), ports ``width``
        and ``height``, perhaps ``restart``, the attribute ``transform``, and ``resources()``.
    max_width : int
        Widest frame the pipeline was generated for.
    clock_hz : float
        Frequency of the ``sync`` domain.
    baud : int
        Symbols per second of the serial line.
    digest : bytes
        SHA-256 of the network file; its first 4 bytes go into the status packet.
    timeout : int or None
        Cycles until the watchdog barks; 2 seconds if None.

    Members
    -------
    rx : In(1)
    tx : Out(1)
    hold : In(1)
        Everything stays in its initial state.
    lamps : Out(3)
        Bit 0: a frame is in flight. Bit 1: an error has stopped the device. Bit 2: the line
        is idle high, so a host is there.
    """

    def __init__(
        self,
        *,
        pipeline: Any,
        max_width: int,
        clock_hz: float,
        baud: int,
        digest: bytes,
        timeout: int | None = None,
    ):
        self.pipeline = pipeline
        self._receiver = Receiver(clock_hz=clock_hz, baud=baud)
        self._transmitter = Transmitter(clock_hz=clock_hz, baud=baud)
        pixels, latents = pipeline.i.payload.shape(), pipeline.o.payload.shape()
        if Shape.cast(pixels.elem_shape) != Shape(8, False):
            raise ValueError(
                f"the pipeline must take pixels of 8 unsigned bits, not {pixels.elem_shape!r}"
            )
        self._link = Link(
            in_channels=pipeline.transform.in_channels,
            out_channels=pipeline.transform.out_channels,
            in_lanes=pixels.length,
            out_lanes=latents.length,
            latent_shape=latents.elem_shape,
            max_width=max_width,
            timeout=round(clock_hz * TIMEOUT_SECONDS) if timeout is None else timeout,
            digest=digest[:4],
        )
        super().__init__(
            wiring.Signature(
                {"rx": In(1, init=1), "tx": Out(1, init=1), "hold": In(1), "lamps": Out(3)}
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        receiver, transmitter, link = self._receiver, self._transmitter, self._link
        pipeline = self.pipeline
        hold = ResetInserter(self.hold)
        m.submodules.receiver = hold(receiver)
        m.submodules.transmitter = hold(transmitter)
        m.submodules.link = hold(link)
        # A register of its own: the net is the largest of all, and nothing waits for it.
        restart = Signal(init=1)
        m.d.sync += restart.eq(link.reset | self.hold)
        if "restart" in pipeline.signature.members:
            assert pipeline.restart_cycles <= RESET_CYCLES
            m.submodules.pipeline = pipeline
            m.d.comb += pipeline.restart.eq(restart)
        else:
            m.submodules.pipeline = ResetInserter(restart)(pipeline)

        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            self.lamps.eq(link.busy | (link.failed << 1) | (self.rx << 2)),
            link.overrun.eq(receiver.overrun),
            link.framing.eq(receiver.framing),
            link.break_.eq(receiver.break_),
            pipeline.width.eq(link.width),
            pipeline.height.eq(link.height),
        ]
        wiring.connect(m, receiver.o, link.rx)
        wiring.connect(m, link.tx, transmitter.i)
        wiring.connect(m, link.pixels, pipeline.i)
        wiring.connect(m, pipeline.o, link.latents)
        return m

    def resources(self, device: Device) -> Resources:
        """The link's share and the pipeline's."""
        return self.link_resources(device) + self.pipeline_resources(device)

    def link_resources(self, device: Device) -> Resources:
        """What the top adds to the pipeline: no multiplier and no block RAM."""
        parts = (self._receiver, self._transmitter, self._link)
        return Resources.total(part.resources(device) for part in parts)

    def pipeline_resources(self, device: Device) -> Resources:
        """The pipeline's own answer."""
        own = self.pipeline.resources(device)
        return Resources(dsp=own.dsp, bram=own.bram, lut=own.lut)
