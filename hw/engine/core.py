# amaranth: UnusedElaboratable=no
"""An array with its weights and its drain: from a feed to sums in raster and channel order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Array, Module, Mux, Shape, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.memory import FastRom, Ram, bit_information, ram_resources
from lichen.hw.device.unit import Resources, Unit, check_positive, delayed, lanes_of
from lichen.hw.engine.array import SystolicArray, array_resources
from lichen.hw.engine.element import Backend, Element
from lichen.hw.engine.feed import FEED_LATENCY, FeedSignature
from lichen.network.arithmetic import ceil_div


@dataclass(frozen=True, kw_only=True)
class CoreShape:
    """The dimensions of a core and the cycle counts that follow from them.

    Attributes
    ----------
    channels : int
        Output channels of the layer.
    steps : int
        Reduction steps per pass.
    pixels, chains, chain_length : int
        P, and the Q = chains x chain_length channels computed together.
    array_latency : int
        `SystolicArray.latency`.
    """

    channels: int
    steps: int
    pixels: int
    chains: int
    chain_length: int
    array_latency: int = 0

    @property
    def passes(self) -> int:
        """Passes per group."""
        return ceil_div(self.channels, self.chains * self.chain_length)

    @property
    def pass_cycles(self) -> int:
        """Cycles per pass: a drain chain may need more than a pass has steps."""
        return max(self.steps, self.chain_length)

    @property
    def group_cycles(self) -> int:
        """Cycles a group keeps the array."""
        return self.passes * self.pass_cycles

    @property
    def beats(self) -> int:
        """Output beats per pixel."""
        return ceil_div(self.channels, self.chains)

    @property
    def fill_latency(self) -> int:
        """Cycles from a group's last cycle on the sequencer to its bank counting as full."""
        # The last pass's last step precedes the group's end where passes have idle cycles.
        gap = self.pass_cycles - self.steps
        first_sum = FEED_LATENCY + self.array_latency
        return first_sum + self.chain_length - 1 + self.pixels - 1 + 1 - gap

    @property
    def banks(self) -> int:
        """Drain banks, so many that draining one group never delays the next.

        A bank is taken when its group starts and comes back when its last beat is issued.
        """
        drained = self.fill_latency + self.pixels * self.beats + 4
        return 1 + max(1, ceil_div(drained, self.group_cycles))

    @property
    def rom_depth(self) -> int:
        """Words of the weight memory."""
        return self.passes * self.steps

    @property
    def drain_depth(self) -> int:
        """Words of a pixel's drain memory: all its banks."""
        return self.banks * self.passes * self.chain_length

    def frame_cycles(self, height: int, width: int) -> int:
        """Least cycles for all groups of a frame: the array's, or the drain's if it is slower."""
        groups = height * ceil_div(width, self.pixels)
        return groups * max(self.group_cycles, self.pixels * self.beats)


class Core(Unit):
    """Multiply-accumulate core: weight memory, systolic array, drain banks.

    Parameters
    ----------
    weights : int array (channels, steps, lanes)
        Every channel's weights in the order in which the feeder streams the reduction.
    weight_shape, a_shape, accumulator_shape : Shape
    pixels : int
        P, output pixels computed together.
    chains, chain_length : int
        The Q = chains x chain_length channels computed together. ``chains`` is also the number
        of channels per beat of the output.
    backend : Backend
        What multiplies.

    Members
    -------
    feed : In(FeedSignature)
    credit : In(1)
        The consumer takes another beat.
    o_issue : Out(1)
        A beat is on its way: ``o`` holds it `Core.latency` cycles later.
    o_beat : Out
        With ``o_issue``: index of the beat within its pixel.
    o : Out (chains)
        Sums of channels ``beat * chains ...``; those past the last channel are 0.
    empty : Out(1)
        Of every group that has started all beats are issued.
    """

    latency = Ram.latency + 1
    """Cycles from ``o_issue`` to ``o``."""

    def __init__(
        self,
        *,
        weights: npt.NDArray[np.integer],
        weight_shape: Shape,
        a_shape: Shape,
        accumulator_shape: Shape,
        pixels: int,
        chains: int,
        chain_length: int,
        backend: Backend = Backend.PORTABLE,
    ):
        check_positive(pixels=pixels, chains=chains, chain_length=chain_length)
        if weights.ndim != 3:
            raise ValueError(f"weights must have three dimensions, not {weights.ndim}")
        self.weights = weights
        self.channels, self.steps, self.lanes = weights.shape
        if chains * chain_length > ceil_div(self.channels, chains) * chains:
            raise ValueError(
                f"chains x chain_length must not exceed the {self.channels} channels, "
                f"not be {chains} x {chain_length}"
            )
        self.weight_shape, self.a_shape = Shape.cast(weight_shape), Shape.cast(a_shape)
        self.accumulator_shape = Shape.cast(accumulator_shape)
        self.array = SystolicArray(
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            lanes=self.lanes,
            a_shape=self.a_shape,
            w_shape=self.weight_shape,
            accumulator_shape=self.accumulator_shape,
            backend=backend,
        )
        self.shape = shape = CoreShape(
            channels=self.channels,
            steps=self.steps,
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            array_latency=self.array.latency,
        )
        super().__init__(
            wiring.Signature(
                {
                    "feed": In(FeedSignature(shape=self.a_shape, pixels=pixels, lanes=self.lanes)),
                    "credit": In(1),
                    "o_issue": Out(1),
                    "o_beat": Out(range(shape.beats)),
                    "o": Out(lanes_of(self.accumulator_shape, chains)),
                    "empty": Out(1),
                }
            )
        )
        self.rom = FastRom(
            depth=shape.rom_depth,
            width=chains * chain_length * self.lanes * self.weight_shape.width,
            init=self._rom_words,
            late=self.array.lateness(),
        )
        self.drains = [
            Ram(
                depth=shape.drain_depth,
                width=chains * self.accumulator_shape.width,
            )
            for _ in range(pixels)
        ]

    def _rom_words(self) -> list[int]:
        """Weight words in the order of the steps; weights past the last channel are 0."""
        q = self.shape.chains * self.shape.chain_length
        padded = np.zeros((self.shape.passes * q, self.steps, self.lanes), dtype=np.int64)
        padded[: self.channels] = self.weights
        order = np.array(self.array.channel_order())
        width = self.weight_shape.width
        mask = (1 << width) - 1
        words = []
        for n in range(self.shape.passes):
            block = padded[n * q + order].reshape(-1, self.array.ways, self.steps, self.lanes)
            block = self.array.element.encode(block.swapaxes(1, 2)).swapaxes(1, 2)
            block = block.reshape(q, self.steps, self.lanes)
            for step in range(self.steps):
                word = 0
                for shift, value in enumerate(block[:, step, :].reshape(-1).tolist()):
                    word |= (value & mask) << (shift * width)
                words.append(word)
        return words

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.rom = self.rom
        m.submodules.array = array = self.array
        feed = self.feed

        # Weights run in step with the operands, and with their element's place in the chain: a
        # cycle from the feeder's distant window, one to the memory, three through it, and a last
        # register on the long way from its blocks to the array.
        step, restart = (delayed(m, s, 1, s.name) for s in (feed.step, feed.restart))
        address = Signal(range(self.rom.depth))
        here = Signal.like(address)
        m.d.comb += here.eq(Mux(restart, 0, address))
        with m.If(step):
            m.d.sync += address.eq(here + 1)
        m.d.comb += self.rom.r_addr.eq(
            delayed(m, here, FEED_LATENCY - FastRom.latency - 2, "rom_addr")
        )
        m.d.comb += array.w.as_value().eq(delayed(m, self.rom.r_data, 1, "weights"))
        m.d.comb += [
            array.a.as_value().eq(feed.a.as_value()),
            array.first.eq(feed.first),
            array.last.eq(feed.last),
        ]

        # Drain: pixel p writes its sums p cycles after pixel 0, at the same addresses.
        words = self.shape.passes * self.shape.chain_length
        depth = self.shape.banks * words
        place = Signal(range(depth))
        with m.If(array.o_valid[0]):
            m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
        for p, drain in enumerate(self.drains):
            m.submodules[f"drain_{p}"] = drain
            m.d.comb += [
                drain.w_en.eq(array.o_valid[p]),
                drain.w_addr.eq(delayed(m, place, p, f"place_{p}")),
                drain.w_data.eq(array.o[p].as_value()),
            ]
        written = Signal(range(words))
        full_now = Signal()
        m.d.comb += full_now.eq(array.o_valid[self.shape.pixels - 1] & (written == words - 1))
        with m.If(array.o_valid[self.shape.pixels - 1]):
            m.d.sync += written.eq(Mux(full_now, 0, written + 1))

        # Banks: taken at a group's start, full when written, free again when read.
        taken = Signal(range(self.shape.banks))
        counts = Array(
            Signal(range(self.shape.pixels + 1), name=f"count_{b}") for b in range(self.shape.banks)
        )
        free = Signal(range(self.shape.banks + 1), init=self.shape.banks)
        full = Signal(range(self.shape.banks + 1))
        freed = Signal()
        # The feeder's window is far away: its strobe is looked at a cycle late, and counted
        # meanwhile.
        started = delayed(m, feed.start, 1, "started")
        count = delayed(m, feed.count, 1, "count")
        # Whether a bank is free is found a cycle ahead, since a start waits for nothing else.
        next_free = Signal.like(free)
        bank_free = Signal(init=1)
        m.d.comb += [
            next_free.eq(free - started + freed),
            feed.bank_free.eq(bank_free),
            self.empty.eq(free == self.shape.banks),
        ]
        m.d.sync += bank_free.eq((next_free > 1) | ((next_free == 1) & ~feed.start))
        with m.If(started):
            m.d.sync += [
                counts[taken].eq(count),
                taken.eq(Mux(taken == self.shape.banks - 1, 0, taken + 1)),
            ]
        m.d.sync += [free.eq(next_free), full.eq(full + full_now - freed)]

        bank, base = Signal(range(self.shape.banks)), Signal(range(depth))
        pixel, beat = Signal(range(self.shape.pixels)), Signal(range(self.shape.beats))
        last_beat, last_pixel = Signal(), Signal()
        m.d.comb += [
            self.o_issue.eq((full != 0) & self.credit),
            self.o_beat.eq(beat),
            last_beat.eq(beat == self.shape.beats - 1),
            last_pixel.eq(pixel + 1 == counts[bank]),
            freed.eq(self.o_issue & last_beat & last_pixel),
        ]
        with m.If(self.o_issue):
            m.d.sync += beat.eq(Mux(last_beat, 0, beat + 1))
            with m.If(last_beat):
                m.d.sync += pixel.eq(Mux(last_pixel, 0, pixel + 1))
        with m.If(freed):
            m.d.sync += [
                bank.eq(Mux(bank == self.shape.banks - 1, 0, bank + 1)),
                base.eq(Mux(bank == self.shape.banks - 1, 0, base + words)),
            ]
        for drain in self.drains:
            m.d.comb += drain.r_addr.eq(base + beat)
        source = delayed(m, pixel, Ram.latency, "source")
        out = Signal(len(self.o.as_value()), reset_less=True)
        m.d.sync += out.eq(Array(d.r_data for d in self.drains)[source])
        m.d.comb += self.o.as_value().eq(out)
        return m

    def resources(self) -> Resources:
        return core_resources(
            self.shape,
            self.array.element,
            accumulator_bits=self.accumulator_shape.width,
            information=bit_information(self.weights, self.weight_shape.width),
        )


def core_resources(
    shape: CoreShape, element: Element, *, accumulator_bits: int, information: float
) -> Resources:
    """What a `Core` of this shape takes; ``information`` is `bit_information` of its weights."""
    bits = shape.chains * accumulator_bits
    rom = ram_resources(
        shape.rom_depth,
        shape.chains * shape.chain_length * element.lanes * element.w_shape.width,
        writable=False,
        information=information,
        fast=True,
    )
    drain = ram_resources(shape.drain_depth, bits, writable=True)
    array = array_resources(
        element,
        pixels=shape.pixels,
        chains=shape.chains,
        chain_length=shape.chain_length,
        bits=accumulator_bits,
    )
    control = Resources(lut=90 + shape.pixels // 2 * bits)
    return rom + drain * shape.pixels + array + control
