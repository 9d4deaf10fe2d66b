"""From the bytes of the host to the pixel stream of the pipeline."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive


class PixelPacker(Gateware):
    """Gathers channel bytes into beats of several lanes; each pixel begins a new beat.

    Takes one byte a cycle. Lanes beyond the last channel of a pixel hold stale values.

    Parameters
    ----------
    channels : int
        Bytes per pixel.
    lanes : int
        Channels per beat.

    Members
    -------
    i : In(stream of 8)
    o : Out(stream of lanes x unsigned(8))
    pixel : Out(1)
        The byte taken in this cycle completes a pixel.
    """

    def __init__(self, *, channels: int, lanes: int):
        check_positive(channels=channels, lanes=lanes)
        self.channels, self.lanes = channels, lanes
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(8)),
                    "o": Out(stream.Signature(data.ArrayLayout(unsigned(8), lanes))),
                    "pixel": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        channel, lane = Signal(range(self.channels)), Signal(range(self.lanes))
        last = channel == self.channels - 1
        m.d.comb += [
            self.i.ready.eq(~self.o.valid | self.o.ready),
            self.pixel.eq(self.i.valid & self.i.ready & last),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            for i in range(self.lanes):
                with m.If(lane == i):
                    m.d.sync += self.o.payload[i].eq(self.i.payload)
            m.d.sync += [channel.eq(channel + 1), lane.eq(lane + 1)]
            with m.If(last | (lane == self.lanes - 1)):
                m.d.sync += [lane.eq(0), self.o.valid.eq(1)]
            with m.If(last):
                m.d.sync += channel.eq(0)
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=8 + 4 * self.lanes)
