"""Change the number of channels a stream carries per beat."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, lanes_of
from lichen.hw.engine import cycles
from lichen.network.arithmetic import ceil_div


class Regroup(Gateware):
    """From ``i_lanes`` to ``o_lanes`` channels per beat; one must divide the other.

    Every pixel starts a new beat on both sides. Lanes past the last channel are undefined.

    Parameters
    ----------
    shape : ShapeLike
        One channel's value.
    channels : int
        Channels per pixel.
    i_lanes, o_lanes : int

    Members
    -------
    i : In(stream), ``ceil(channels / i_lanes)`` beats per pixel
    o : Out(stream), ``ceil(channels / o_lanes)`` beats per pixel
    empty : Out(1)
        Everything that has come has left.
    """

    def __init__(self, *, shape: object, channels: int, i_lanes: int, o_lanes: int):
        check_positive(channels=channels, i_lanes=i_lanes, o_lanes=o_lanes)
        if i_lanes % o_lanes and o_lanes % i_lanes:
            raise ValueError(
                f"one of i_lanes and o_lanes must divide the other, not {i_lanes!r}, {o_lanes!r}"
            )
        self.shape, self.channels, self.i_lanes, self.o_lanes = shape, channels, i_lanes, o_lanes
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(lanes_of(shape, i_lanes))),
                    "o": Out(stream.Signature(lanes_of(shape, o_lanes))),
                    "empty": Out(1),
                }
            )
        )

    @property
    def i_beats(self) -> int:
        """Input beats per pixel."""
        return ceil_div(self.channels, self.i_lanes)

    @property
    def o_beats(self) -> int:
        """Output beats per pixel."""
        return ceil_div(self.channels, self.o_lanes)

    @property
    def ratio(self) -> int:
        """Narrow beats per wide beat."""
        return max(self.i_lanes, self.o_lanes) // min(self.i_lanes, self.o_lanes)

    def elaborate(self, platform: object) -> Module:
        if self.i_lanes == self.o_lanes:
            m = Module()
            m.d.comb += [
                self.o.payload.eq(self.i.payload),
                self.o.valid.eq(self.i.valid),
                self.i.ready.eq(self.o.ready),
                self.empty.eq(1),
            ]
            return m
        return self._collect() if self.i_lanes < self.o_lanes else self._split()

    def _collect(self) -> Module:
        m = Module()
        full = Signal()
        slot = Signal(range(self.ratio))
        beat = Signal(range(self.i_beats))
        word = Signal(lanes_of(lanes_of(self.shape, self.i_lanes), self.ratio), reset_less=True)
        m.d.comb += [
            self.i.ready.eq(~full | self.o.ready),
            self.o.valid.eq(full),
            self.empty.eq(~full & (beat == 0)),
            self.o.payload.as_value().eq(word.as_value()),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += full.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [slot.eq(slot + 1), beat.eq(beat + 1)]
            with m.If(slot == self.ratio - 1):
                m.d.sync += [full.eq(1), slot.eq(0)]
            with m.If(beat == self.i_beats - 1):
                m.d.sync += [full.eq(1), slot.eq(0), beat.eq(0)]
        # The slot takes whatever is there until its beat has come. A word that waits stands at its
        # first slot, so of a wide word only that one's enable hangs on what is far away.
        for number in range(self.ratio):
            free = self.i.ready if number == 0 else 1
            with m.If((slot == number) & free):
                m.d.sync += word[number].eq(self.i.payload)
        return m

    def _split(self) -> Module:
        m = Module()
        full = Signal()
        slot = Signal(range(self.ratio))
        beat = Signal(range(self.o_beats))
        word = Signal(lanes_of(lanes_of(self.shape, self.o_lanes), self.ratio), reset_less=True)
        last = Signal()
        m.d.comb += [
            last.eq((slot == self.ratio - 1) | (beat == self.o_beats - 1)),
            self.i.ready.eq(~full | (self.o.ready & last)),
            self.o.valid.eq(full),
            self.empty.eq(~full),
            self.o.payload.eq(word[slot]),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [slot.eq(slot + 1), beat.eq(beat + 1)]
            with m.If(last):
                m.d.sync += [slot.eq(0), full.eq(0)]
            with m.If(beat == self.o_beats - 1):
                m.d.sync += beat.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [word.as_value().eq(self.i.payload.as_value()), full.eq(1)]
        return m

    def timing(self) -> dict[str, int]:
        """What the cycle model asks of it, by `cycles.UNIT`'s names."""
        if self.i_lanes == self.o_lanes:
            return {"regroup": cycles.PASS_ON}
        collects = self.i_lanes < self.o_lanes
        return {
            "regroup": cycles.COLLECT if collects else cycles.SPLIT,
            "ratio": self.ratio,
            "regroup_beats": self.i_beats if collects else self.o_beats,
        }

    def resources(self, device: Device) -> Resources:
        return regroup_resources(self.i_lanes, self.o_lanes)


def regroup_resources(i_lanes: int, o_lanes: int) -> Resources:
    """What a `Regroup` takes."""
    if i_lanes == o_lanes:
        return Resources()
    if i_lanes < o_lanes:  # registers with enables
        return Resources(lut=24)
    return Resources(lut=20 + 8 * max(i_lanes, o_lanes))
