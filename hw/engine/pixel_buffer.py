# amaranth: UnusedElaboratable=no
"""The feeder of normalizations: groups of whole pixels, read once per pass."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Shape, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of, last_of
from lichen.hw.device.memory import Ram, ram_resources
from lichen.hw.engine import cycles
from lichen.hw.engine.feed import FEED_LATENCY, FeedSignature, Sequencer
from lichen.hw.engine.row_buffer import SIZE_BITS, WRITE_DELAY
from lichen.network.arithmetic import ceil_div


class PixelBuffer(Gateware):
    """Feeds a matrix-vector product over the channels of P pixels at a time (a 1x1 window).

    Two banks: one fills while the other is read. Groups do not cross the end of a row.

    Parameters
    ----------
    channels, lanes, pixels, passes, pass_cycles : int
        As for a `lichen.hw.engine.row_buffer.RowBuffer`; ``pass_cycles`` are the core's.
    shape : Shape
        One value.

    Members
    -------
    i : In(stream)
    feed : Out(FeedSignature)
    width : In(16)
        Pixels per row.
    empty : Out(1)
        Every group that has come was read.
    """

    banks = 2

    def __init__(
        self,
        *,
        channels: int,
        shape: Shape,
        lanes: int,
        pixels: int,
        passes: int,
        pass_cycles: int,
    ):
        check_positive(
            channels=channels, lanes=lanes, pixels=pixels, passes=passes, pass_cycles=pass_cycles
        )
        self.channels, self.shape, self.lanes = channels, Shape.cast(shape), lanes
        self.pixels, self.passes, self.pass_cycles = pixels, passes, pass_cycles
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(lanes_of(self.shape, lanes))),
                    "feed": Out(FeedSignature(shape=self.shape, pixels=pixels, lanes=lanes)),
                    "width": In(SIZE_BITS),
                    "empty": Out(1),
                }
            )
        )
        self.rams = [
            Ram(depth=self.banks * self.steps, width=lanes * self.shape.width)
            for _ in range(pixels)
        ]

    @property
    def steps(self) -> int:
        """Steps per pass, and beats per pixel."""
        return ceil_div(self.channels, self.lanes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        steps, pixels = self.steps, self.pixels
        queued = Signal(range(self.banks + 1))  # full, not yet started
        used = Signal(range(self.banks + 1))  # full, or being read
        seq = Sequencer(
            m, passes=self.passes, steps=steps, pass_cycles=self.pass_cycles, feed=self.feed
        )

        # Write side.
        accept = Signal()
        complete = Signal()
        room = Signal(init=1)
        any_queued = Signal()
        w_bank = Signal()
        w_beat = Signal(range(steps))
        w_pixel = Signal(range(pixels))
        x = Signal(SIZE_BITS, init=1)
        counts = Array(Signal(range(pixels + 1), name=f"count_{b}") for b in range(self.banks))
        # Whether they are the last ones, found a beat or a pixel ahead.
        beat_last = Signal(init=steps == 1)
        x_last = Signal()
        before_end = Signal(SIZE_BITS)
        one_column = Signal()
        m.d.sync += [before_end.eq(self.width - 1), one_column.eq(self.width == 1)]
        m.d.comb += [
            self.i.ready.eq(room),
            self.empty.eq(used == 0),
            accept.eq(self.i.valid & self.i.ready),
            complete.eq(accept & beat_last & ((w_pixel == pixels - 1) | x_last)),
        ]
        with m.If(accept):
            m.d.sync += w_beat.eq(Mux(beat_last, 0, w_beat + 1))
            m.d.sync += beat_last.eq(last_of(steps, w_beat))
            with m.If(beat_last):
                m.d.sync += [
                    w_pixel.eq(Mux(complete, 0, w_pixel + 1)),
                    x.eq(Mux(x_last, 1, x + 1)),
                ]
        with m.If(accept & beat_last):
            m.d.sync += x_last.eq(Mux(x_last, one_column, x == before_end))
        with m.Else():
            m.d.sync += x_last.eq(x == self.width)
        with m.If(complete):
            m.d.sync += [counts[w_bank].eq(w_pixel + 1), w_bank.eq(~w_bank)]
        w_enable = delayed(m, accept, 1 + WRITE_DELAY, "w_enable")
        w_address = Signal(range(self.banks * steps))
        m.d.comb += w_address.eq(Mux(w_bank, steps, 0) + w_beat)
        w_address = delayed(m, w_address, 1 + WRITE_DELAY, "w_address")
        w_target = delayed(m, w_pixel, 1 + WRITE_DELAY, "w_target")
        w_data = delayed(m, self.i.payload.as_value(), 1 + WRITE_DELAY, "w_data")
        for p, ram in enumerate(self.rams):
            m.submodules[f"pixel_{p}"] = ram
            m.d.comb += [
                ram.w_en.eq(w_enable & (w_target == p)),
                ram.w_addr.eq(w_address),
                ram.w_data.eq(w_data),
            ]

        # Read side.
        start_bank = Signal()
        bank = Signal()
        beat = Signal(range(steps))
        m.d.comb += [seq.ready.eq(any_queued), self.feed.count.eq(counts[start_bank])]
        # Whether there is room or a full bank is found a cycle ahead, without the adders.
        full = self.banks
        m.d.sync += [
            queued.eq(queued + complete - seq.start),
            any_queued.eq((queued > 1) | ((queued == 1) & ~seq.start) | complete),
            used.eq(used + complete - seq.done),
            room.eq((used < full - 1) | ((used == full - 1) & ~complete) | seq.done),
        ]
        with m.If(seq.start):
            m.d.sync += [bank.eq(start_bank), start_bank.eq(~start_bank)]
        with m.If(seq.step):
            m.d.sync += beat.eq(Mux(seq.last_step, 0, beat + 1))
        address = Signal(range(self.banks * steps))
        m.d.comb += address.eq(Mux(bank, steps, 0) + beat)
        r_addr = delayed(m, address, FEED_LATENCY - 2 - Ram.latency, "r_addr")
        # The other way round, for it resets registers, which takes no table then.
        idle = Signal(init=1)
        m.d.sync += idle.eq(~delayed(m, seq.step, FEED_LATENCY - 3, "valid"))
        for p, ram in enumerate(self.rams):
            m.d.comb += ram.r_addr.eq(r_addr)
            value = Signal(lanes_of(self.shape, self.lanes), name=f"value_{p}", reset_less=True)
            m.d.sync += value.as_value().eq(Mux(idle, 0, ram.r_data))
            # Once more, for the memory may be far from the array.
            m.d.comb += self.feed.a[p].as_value().eq(delayed(m, value.as_value(), 1, f"a_{p}"))
        return m

    def timing(self, height: int, width: int) -> dict[str, int]:
        """What the cycle model asks of it for an input of this size, by `cycles.UNIT`'s names."""
        assert self.banks == 2
        return {
            "feeder": cycles.PIXELS,
            "beats_in": self.steps,
            "pixels": self.pixels,
            "width": width,
        }

    def resources(self, device: Device) -> Resources:
        return pixel_buffer_resources(
            device, self.channels, lanes=self.lanes, bits=self.shape.width, pixels=self.pixels
        )


def pixel_buffer_resources(
    device: Device, channels: int, *, lanes: int, bits: int, pixels: int
) -> Resources:
    """What a `PixelBuffer` takes."""
    word = lanes * bits
    depth = PixelBuffer.banks * ceil_div(channels, lanes)
    return ram_resources(device, depth, word, writable=True) * pixels + Resources(
        lut=50 + pixels * word
    )
