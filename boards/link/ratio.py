# amaranth: UnusedElaboratable=no
"""The system's clock, measured against the oscillator's."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import Out
from amaranth.utils import exact_log2

from lichen.boards.link.protocol import RATIO_CYCLES
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

DOMAIN = "line"
"""The clock domain of the oscillator."""


class Ratio(Gateware):
    """Counts.

    Members
    -------
    ratio : Out(16)
        Cycles of ``sync`` in `protocol.RATIO_CYCLES` of `DOMAIN`; 0 before the first are over.
    """

    def __init__(self) -> None:
        super().__init__(wiring.Signature({"ratio": Out(16)}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        elapsed = Signal(exact_log2(RATIO_CYCLES) + 1)
        gate = Signal()
        before = Signal()
        m.d[DOMAIN] += elapsed.eq(elapsed + 1)
        m.submodules.gate = FFSynchronizer(elapsed[-1], gate)
        own = Signal(16)
        m.d.sync += [before.eq(gate), own.eq(own + 1)]
        with m.If(gate != before):
            m.d.sync += [self.ratio.eq(own), own.eq(1)]
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=35)
