# amaranth: UnusedElaboratable=no
"""An array with its weights and its drain: from a feed to sums in raster and channel order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Array, Cat, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of, last_of
from lichen.hw.device.load import LoadSignature
from lichen.hw.device.memory import FastRom, Ram, bit_information, ram_resources
from lichen.hw.engine.array import SystolicArray, array_resources
from lichen.hw.engine.element import Backend, Element
from lichen.hw.engine.feed import FEED_LATENCY, FeedSignature, Phases
from lichen.network.arithmetic import ceil_div


@dataclass(frozen=True, kw_only=True)
class CoreShape:
    """The dimensions of a core and the cycle counts that follow from them.

    Attributes
    ----------
    channels : int
        Output channels of the layer.
    phases : Phases
        Reduction steps per pass.
    pixels, chains, chain_length : int
        P, and the Q = chains x chain_length channels computed together.
    array_latency : int
        `SystolicArray.latency`.
    least_group : int
        Cycles that what feeds it wants a group to take at least.
    """

    channels: int
    phases: Phases
    pixels: int
    chains: int
    chain_length: int
    array_latency: int = 0
    least_group: int = 1

    @property
    def passes(self) -> int:
        """Passes per group."""
        return ceil_div(self.channels, self.chains * self.chain_length)

    @property
    def least_pass(self) -> int:
        """Cycles per pass at least: a drain chain may need more than a pass has steps."""
        return max(self.chain_length, ceil_div(self.least_group, self.passes))

    def pass_cycles(self, steps: int) -> int:
        """Cycles per pass of so many steps."""
        return max(steps, self.least_pass)

    @property
    def group_cycles(self) -> tuple[int, ...]:
        """Cycles a group keeps the array, by the phase of its row."""
        return tuple(
            self.passes * sum(self.pass_cycles(steps) for steps in row) for row in self.phases.steps
        )

    @property
    def beats(self) -> int:
        """Output beats per output pixel."""
        return ceil_div(self.channels, self.chains)

    @property
    def group_pixels(self) -> int:
        """Output pixels of a group, valid or not."""
        return self.pixels * self.phases.columns

    @property
    def fill_latency(self) -> int:
        """Cycles from a group's last cycle on the sequencer to its bank counting as full."""
        first_sum = FEED_LATENCY + self.array_latency
        last_sum = first_sum + self.chain_length - 1 + self.pixels - 1 + 1
        steps = self.phases.steps[-1][-1]
        gap = 0 if self.phases.wait_first else self.pass_cycles(steps) - steps
        return last_sum - gap

    @property
    def banks(self) -> int:
        """Drain banks, so many that draining one group never delays the next.

        A bank is taken when its group starts and comes back when its last beat is issued.
        """
        drained = self.fill_latency + self.group_pixels * self.beats + 4
        return 1 + max(1, ceil_div(drained, min(self.group_cycles)))

    @property
    def rom_depth(self) -> int:
        """Words of the weight memory."""
        return self.passes * self.phases.total

    @property
    def bank_words(self) -> int:
        """Words of a position in a drain bank: of all its phases."""
        return self.phases.columns * self.passes * self.chain_length

    @property
    def drain_depth(self) -> int:
        """Words of a position's drain memory: all its banks."""
        return self.banks * self.bank_words

    def timing(self) -> dict[str, int | tuple[int, ...]]:
        """What the cycle model asks of a core, by `cycles.UNIT`'s names."""
        return {
            "group_cycles": self.group_cycles,
            "fill_latency": self.fill_latency,
            "banks": self.banks,
            "beats_out": self.beats,
        }

    def frame_cycles(self, height: int, width: int) -> int:
        """Least cycles for all groups of a frame: the array's, or the drain's if it is slower.

        ``height`` and ``width`` in output pixels, borders of phases that are cut left out.
        """
        columns = ceil_div(ceil_div(width, self.phases.columns), self.pixels)
        drain = self.group_pixels * self.beats
        rows = self.phases.rows
        return height * columns * max(sum(self.group_cycles), rows * drain) // rows


@dataclass(frozen=True)
class _Banks:
    """Drain banks as their reader sees them.

    Attributes
    ----------
    full : Signal
        Whether any is.
    count : Signal
        Output pixels of the group in the bank read next, up to the last valid one.
    head : Value
        Whether that is the first group of a row, where that matters.
    """

    full: Signal
    count: Signal
    head: Value


def _queue(m: Module, item: Value, *, push: Value, pop: Value, free: Value, places: int) -> Signal:
    """The first item of a queue of which ``free`` of all ``places`` are: a register, with no
    multiplexer behind it that all places go through."""
    stored = [Signal(len(item), name=f"queued_{i}", reset_less=True) for i in range(places)]
    for i, (here, behind) in enumerate(itertools.pairwise([*stored, Const(0, len(item))])):
        # What is pushed comes behind what is left.
        at, at_popped = free == places - i, free == places - i - 1
        with m.If(pop):
            m.d.sync += here.eq(Mux(push & at_popped, item, behind))
        with m.Elif(push & at):
            m.d.sync += here.eq(item)
    return stored[0]


class Core(Gateware):
    """Multiply-accumulate core: weight memory, systolic array, drain banks.

    Parameters
    ----------
    weights : int array (channels, steps, lanes)
        Every channel's weights in the order in which the feeder streams the reduction; with
        phases, first those of the first row, of its first column.
    weight_shape, a_shape, accumulator_shape : Shape
    pixels : int
        P, output pixels computed together.
    chains, chain_length : int
        The Q = chains x chain_length channels computed together. ``chains`` is also the number
        of channels per beat of the output.
    backend : Backend
        What multiplies.
    phases : Phases or None
        How the steps are parted; None for a convolution without phases.
    least_group : int
        As of a `CoreShape`.
    loads : bool
        Whether the weights are filled at run time.

    Members
    -------
    load : In(LoadSignature), only when ``loads``
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
        phases: Phases | None = None,
        least_group: int = 1,
        loads: bool = False,
    ):
        check_positive(pixels=pixels, chains=chains, chain_length=chain_length)
        if weights.ndim != 3:
            raise ValueError(f"weights must have three dimensions, not {weights.ndim}")
        self.weights = weights
        self.channels, steps, self.lanes = weights.shape
        phases = Phases.one(steps) if phases is None else phases
        if phases.total != steps:
            raise ValueError(
                f"weights must have the {phases.total} steps of all phases, not {steps}"
            )
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
            phases=phases,
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            array_latency=self.array.latency,
            least_group=least_group,
        )
        super().__init__(
            wiring.Signature(
                {
                    "feed": In(
                        FeedSignature(
                            shape=self.a_shape, pixels=pixels, lanes=self.lanes, phases=phases
                        )
                    ),
                    "credit": In(1),
                    "o_issue": Out(1),
                    "o_beat": Out(range(shape.beats)),
                    "o": Out(lanes_of(self.accumulator_shape, chains)),
                    "empty": Out(1),
                    **({"load": In(LoadSignature())} if loads else {}),
                }
            )
        )
        self.rom = FastRom(
            depth=shape.rom_depth,
            width=chains * chain_length * self.lanes * self.weight_shape.width,
            init=self._rom_words,
            late=self.array.lateness(),
            loads=loads,
        )
        self.drains = [
            Ram(
                depth=shape.drain_depth,
                width=chains * self.accumulator_shape.width,
            )
            for _ in range(pixels)
        ]

    @property
    def _phase_starts(self) -> list[int]:
        """The first step of every phase, and the end."""
        steps = itertools.chain.from_iterable(self.shape.phases.steps)
        return list(itertools.accumulate(steps, initial=0))

    def _rom_words(self) -> list[int]:
        """Weight words in the order of the steps; weights past the last channel are 0."""
        q = self.shape.chains * self.shape.chain_length
        steps = self.weights.shape[1]
        padded = np.zeros((self.shape.passes * q, steps, self.lanes), dtype=np.int64)
        padded[: self.channels] = self.weights
        order = np.array(self.array.channel_order())
        width = self.weight_shape.width
        mask = (1 << width) - 1
        words = []
        for begin, end in itertools.pairwise(self._phase_starts):
            for n in range(self.shape.passes):
                block = padded[n * q + order, begin:end]
                block = block.reshape(-1, self.array.ways, end - begin, self.lanes)
                block = self.array.element.encode(block.swapaxes(1, 2)).swapaxes(1, 2)
                block = block.reshape(q, end - begin, self.lanes)
                for step in range(end - begin):
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
        if self.rom.loads:
            connect(m, flipped(self.load), self.rom.load)
        self._weights_in_step(m)
        m.d.comb += [
            array.a.as_value().eq(feed.a.as_value()),
            array.first.eq(feed.first),
            array.last.eq(feed.last),
        ]
        freed = Signal()
        banks = self._banks(m, full_now=self._fill(m), freed=freed)
        self._drain(m, banks, freed)
        return m

    def _weights_in_step(self, m: Module) -> None:
        """Weights run in step with the operands, and with their element's place in the chain: a
        cycle from the feeder's distant window, one to the memory, three through it, and a last
        register on the long way from its blocks to the array."""
        feed, phases = self.feed, self.shape.phases
        step, group_first = (delayed(m, s, 1, s.name) for s in (feed.step, feed.group_first))
        address = Signal(range(self.rom.depth))
        here = Signal.like(address)
        starts = self._phase_starts[: -1 : phases.columns]
        row = delayed(m, feed.row, 1, "row")
        first = Array(Const(self.shape.passes * s, len(address)) for s in starts)[row]
        m.d.comb += here.eq(Mux(group_first, first, address))
        with m.If(step):
            m.d.sync += address.eq(here + 1)
        m.d.comb += self.rom.r_addr.eq(
            delayed(m, here, FEED_LATENCY - FastRom.latency - 2, "rom_addr")
        )
        m.d.comb += self.array.w.as_value().eq(delayed(m, self.rom.r_data, 1, "weights"))

    def _fill(self, m: Module) -> Signal:
        """Pixel p writes its sums p cycles after pixel 0, at the same addresses.

        Returns whether a bank is full now.
        """
        array, words, depth = self.array, self.shape.bank_words, self.shape.drain_depth
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
        last_valid = array.o_valid[self.shape.pixels - 1]
        m.d.comb += full_now.eq(last_valid & (written == words - 1))
        with m.If(last_valid):
            m.d.sync += written.eq(Mux(full_now, 0, written + 1))
        return full_now

    def _banks(self, m: Module, *, full_now: Signal, freed: Signal) -> _Banks:
        """Banks are taken at a group's start, full when written, free again when read."""
        feed, banks = self.feed, self.shape.banks
        free = Signal(range(banks + 1), init=banks)
        full = Signal(range(banks + 1))
        any_full = Signal()
        # The feeder's window is far away: its strobe is looked at a cycle late, and counted
        # meanwhile.
        started = delayed(m, feed.start, 1, "started")
        count = delayed(m, feed.count, 1, "count")
        # Whether a bank is free is found a cycle ahead, since a start waits for nothing else;
        # without an adder, for what frees one comes late.
        bank_free = Signal(init=1)

        def one_left(change: int) -> Value:
            """Whether ``free + change`` are enough, should a group start now."""
            return (free > 1 - change) | ((free == 1 - change) & ~feed.start)

        m.d.comb += [feed.bank_free.eq(bank_free), self.empty.eq(free == banks)]
        m.d.sync += [
            bank_free.eq(
                Mux(
                    freed,
                    Mux(started, one_left(0), one_left(1)),
                    Mux(started, one_left(-1), one_left(0)),
                )
            ),
            free.eq(free - started + freed),
            full.eq(full + full_now - freed),
            any_full.eq((full > 1) | ((full == 1) & ~freed) | full_now),
        ]
        queued: list[Value] = [count]
        if self.shape.phases.skip:
            queued.append(delayed(m, feed.head, 1, "head"))
        first = _queue(m, Cat(*queued), push=started, pop=freed, free=free, places=banks)
        return _Banks(
            any_full, first[: len(count)], first[len(count)] if len(queued) > 1 else Const(0)
        )

    def _drain(self, m: Module, banks: _Banks, freed: Signal) -> None:
        """Full banks are read pixel by pixel, beat by beat, as the consumer has credits."""
        shape, words = self.shape, self.shape.bank_words
        bank = Signal(range(shape.banks))
        base = Signal(range(shape.drain_depth))
        pixel = Signal(range(shape.pixels))
        beat = Signal(range(shape.beats))
        last_beat = Signal(init=shape.beats == 1)  # found a beat ahead
        last_pixel = Signal()
        moves = Signal()
        m.d.comb += [
            self.o_issue.eq(banks.full & self.credit),
            self.o_beat.eq(beat),
            moves.eq(self.o_issue & last_beat),
            freed.eq(moves & last_pixel),
        ]
        with m.If(self.o_issue):
            m.d.sync += beat.eq(Mux(last_beat, 0, beat + 1))
            m.d.sync += last_beat.eq(last_of(shape.beats, beat))
        within: Value = beat
        if shape.phases.columns == 1:
            m.d.comb += last_pixel.eq(pixel + 1 == banks.count)
            with m.If(moves):
                m.d.sync += pixel.eq(Mux(last_pixel, 0, pixel + 1))
        else:
            within = beat + self._column_phases(
                m, moves=moves, banks=banks, pixel=pixel, last_pixel=last_pixel
            )
        with m.If(freed):
            m.d.sync += [
                bank.eq(Mux(bank == shape.banks - 1, 0, bank + 1)),
                base.eq(Mux(bank == shape.banks - 1, 0, base + words)),
            ]
        for drain in self.drains:
            m.d.comb += drain.r_addr.eq(base + within)
        source = delayed(m, pixel, Ram.latency, "source")
        out = Signal(len(self.o.as_value()), reset_less=True)
        m.d.sync += out.eq(Array(d.r_data for d in self.drains)[source])
        m.d.comb += self.o.as_value().eq(out)

    def _column_phases(
        self, m: Module, *, moves: Value, banks: _Banks, pixel: Signal, last_pixel: Signal
    ) -> Value:
        """Read banks whose positions have phases: so many output pixels, less those skipped.

        Returns the word, within a position's share of a bank, at which the present phase begins.
        """
        phases = self.shape.phases
        words = self.shape.bank_words // phases.columns
        column = Signal(range(phases.columns))
        served = Signal(range(self.shape.group_pixels))
        word = Signal(range(self.shape.bank_words))
        fresh = Signal(init=1)  # at the first pixel of a bank
        skips = fresh & banks.head
        column_now = Mux(skips, phases.skip, column)
        served_now = Mux(skips, phases.skip, served)
        word_now = Mux(skips, phases.skip * words, word)
        m.d.comb += last_pixel.eq(served_now + 1 == banks.count)
        with m.If(moves):
            m.d.sync += [
                fresh.eq(last_pixel),
                served.eq(served_now + 1),
                column.eq(column_now + 1),
                word.eq(word_now + words),
            ]
            with m.If(column_now == phases.columns - 1):
                m.d.sync += [column.eq(0), word.eq(0), pixel.eq(pixel + 1)]
            with m.If(last_pixel):
                m.d.sync += [served.eq(0), column.eq(0), word.eq(0), pixel.eq(0)]
        return word_now

    def resources(self, device: Device) -> Resources:
        return core_resources(
            device,
            self.shape,
            self.array.element,
            accumulator_bits=self.accumulator_shape.width,
            information=bit_information(self.weights, self.weight_shape.width),
            loads=self.rom.loads,
        )


def core_resources(
    device: Device,
    shape: CoreShape,
    element: Element,
    *,
    accumulator_bits: int,
    information: float,
    loads: bool = False,
) -> Resources:
    """What a `Core` of this shape takes; ``information`` is `bit_information` of its weights."""
    bits = shape.chains * accumulator_bits
    rom = ram_resources(
        device,
        shape.rom_depth,
        shape.chains * shape.chain_length * element.lanes * element.w_shape.width,
        writable=False,
        information=information,
        fast=True,
        loads=loads,
    )
    drain = ram_resources(device, shape.drain_depth, bits, writable=True)
    array = array_resources(
        device,
        element,
        pixels=shape.pixels,
        chains=shape.chains,
        chain_length=shape.chain_length,
        bits=accumulator_bits,
    )
    control = Resources(lut=90 + shape.pixels // 2 * bits)
    return rom + drain * shape.pixels + array + control
