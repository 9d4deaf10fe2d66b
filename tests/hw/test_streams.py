# amaranth: UnusedElaboratable=no
"""The small units between two streams: skid buffer, regrouper, credit queue, frame gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from lichen.hw.device.gateware import delayed
from lichen.hw.device.memory import CreditFifo, fifo_depth
from lichen.hw.engine.gate import FrameGate
from lichen.hw.engine.regroup import Regroup
from lichen.hw.engine.skid import Skid
from lichen.network.arithmetic import ceil_div
from tests.hw.streams import SEED, Agent, Pauses, SizedSource, StreamUnitTest, lanes, simulate

BITS = 5


def words(count: int, bits: int) -> list[int]:
    return np.random.default_rng(SEED).integers(0, 1 << bits, count).tolist()


class TestSkid(StreamUnitTest):
    def unit(self) -> Skid:
        return Skid(shape=9)

    def items(self) -> list[int]:
        return words(60, 9)

    def golden(self, items: list[int]) -> list[int]:
        return items

    def full_rate_cycles(self, items: list[int]) -> int:
        return len(items) + 1

    def test_nothing_passes_within_a_cycle(self) -> None:
        """Neither side's offer of a cycle shows on the other, and never more wait than places."""
        rng, skid = np.random.default_rng(SEED), self.unit()
        inside: list[int] = []

        async def bench(ctx: Any) -> None:
            for item in range(400):
                before = ctx.get(skid.i.ready), ctx.get(skid.o.valid)
                offered, taken = (bool(rng.integers(2)) for _ in range(2))
                ctx.set(skid.i.valid, offered)
                ctx.set(skid.i.payload, item)
                ctx.set(skid.o.ready, taken)
                assert (ctx.get(skid.i.ready), ctx.get(skid.o.valid)) == before, "Skid"
                if before[1] and taken:
                    assert ctx.get(skid.o.payload) == inside.pop(0), "Skid"
                if before[0] and offered:
                    inside.append(item)
                assert len(inside) <= Skid.places, "Skid"
                await ctx.tick()

        simulator = Simulator(skid)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


class _Regroup(StreamUnitTest):
    """Seven pixels of ``channels`` channels."""

    channels: int
    i_lanes: int
    o_lanes: int

    def unit(self) -> Regroup:
        return Regroup(
            shape=unsigned(BITS),
            channels=self.channels,
            i_lanes=self.i_lanes,
            o_lanes=self.o_lanes,
        )

    def pixels(self) -> np.ndarray:
        return np.random.default_rng(SEED).integers(1, 1 << BITS, (7, self.channels))

    def beats(self, width: int) -> list[int]:
        starts = range(0, self.channels, width)
        return [lanes(pixel[s : s + width], BITS) for pixel in self.pixels() for s in starts]

    def items(self) -> list[int]:
        return self.beats(self.i_lanes)

    def golden(self, items: list[int]) -> list[int]:
        return self.beats(self.o_lanes)

    def mask(self, k: int) -> int:
        """Lanes past the last channel are undefined."""
        beat = k % ceil_div(self.channels, self.o_lanes)
        return (1 << BITS * min(self.o_lanes, self.channels - beat * self.o_lanes)) - 1

    def full_rate_cycles(self, items: list[int]) -> int:
        if self.i_lanes == self.o_lanes:
            return len(items)
        # Collecting, the output follows the beat that completes it; splitting, it is the rate.
        return 1 + max(len(items), len(self.golden(items)))


class TestRegroupCollects(_Regroup):
    channels, i_lanes, o_lanes = 7, 2, 6


class TestRegroupCollectsWholePixels(_Regroup):
    channels, i_lanes, o_lanes = 4, 1, 4


class TestRegroupSplits(_Regroup):
    channels, i_lanes, o_lanes = 7, 6, 2


class TestRegroupPasses(_Regroup):
    channels, i_lanes, o_lanes = 5, 3, 3


LATENCY = 19


class _CreditPipeline(wiring.Component):
    """A free-running pipeline of `LATENCY` registers that ends in a `CreditFifo`."""

    def __init__(self) -> None:
        self.fifo = CreditFifo(shape=unsigned(9), depth=fifo_depth(LATENCY))
        item = stream.Signature(9)
        super().__init__({"i": In(item), "o": Out(item), "empty": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = self.fifo
        m.d.comb += [
            self.i.ready.eq(fifo.credit),
            fifo.take.eq(self.i.valid & fifo.credit),
            fifo.push.eq(delayed(m, fifo.take, LATENCY, "push")),
            fifo.i.eq(delayed(m, self.i.payload, LATENCY, "item")),
            self.o.payload.eq(fifo.o.payload),
            self.o.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.o.ready),
            self.empty.eq(fifo.empty),
        ]
        return m


class TestCreditFifo(StreamUnitTest):
    """At the depth that `fifo_depth` says keeps a pipeline busy: an item a cycle."""

    def unit(self) -> _CreditPipeline:
        return _CreditPipeline()

    def items(self) -> list[int]:
        return words(120, 9)

    def golden(self, items: list[int]) -> list[int]:
        return items

    def full_rate_cycles(self, items: list[int]) -> int:
        return len(items) + LATENCY + 1

    @pytest.mark.parametrize("latency", [0, 1, 14, 15, 30, 31])
    def test_depth_covers_the_latency(self, latency: int) -> None:
        """An item passes the queue in a cycle, and its credit comes back a cycle later."""
        depth = fifo_depth(latency)
        assert depth >= latency + 2, f"fifo_depth({latency}) is {depth}"
        assert depth == 16 or depth // 2 < latency + 2, f"fifo_depth({latency}) wastes a half"

    @pytest.mark.parametrize("depth", [16, 32])
    def test_credits_are_as_many_as_places(self, depth: int) -> None:
        """Nothing leaves: exactly ``depth`` credits are given, and nothing is overwritten."""
        fifo = CreditFifo(shape=unsigned(9), depth=depth)
        items = words(depth, 9)

        class Greedy(Agent):
            """Takes and uses every credit there is."""

            given = 0

            def drive(self, ctx: Any, t: int) -> None:
                credit = ctx.get(fifo.credit)
                assert ctx.get(fifo.empty) == (self.given == 0), "CreditFifo: empty is wrong"
                assert self.given < depth or not credit, "CreditFifo gives credits without places"
                for port in (fifo.take, fifo.push):
                    ctx.set(port, credit)
                ctx.set(fifo.i, items[self.given % depth])
                self.given += credit

        greedy = Greedy()
        simulate(fifo, [greedy], limit=2 * depth, linger=2 * depth)
        assert greedy.given == depth, "CreditFifo has places that no credit stands for"

    @pytest.mark.parametrize("depth", [0, 8, 24, 17])
    def test_depth_is_a_power_of_two(self, depth: int) -> None:
        kind = TypeError if depth == 0 else ValueError
        with pytest.raises(kind, match=rf"depth must be .*, not {depth}"):
            CreditFifo(shape=3, depth=depth)


FRAMES = [(3, 2), (3, 2), (1, 1), (1, 1), (1, 2), (4, 3), (3, 4)]
"""Widths and heights."""


class _Behind(Agent):
    """What stands behind a gate: it takes beats, and is empty some time after a frame's last."""

    def __init__(self, gate: FrameGate, beats: int, backpressure: float):
        self.gate, self.beats = gate, beats
        self.pauses = Pauses(backpressure, 3)
        self.frames = [list(range(w * h * beats)) for w, h in FRAMES]
        self.seen: list[tuple[int, tuple[int, int]]] = []
        self.busy = 0
        self.walk = [0, 0, 0]  # `drain` on its way through units

    def drive(self, ctx: Any, t: int) -> None:
        self.ready = not self.pauses()
        ctx.set(self.gate.o.ready, self.ready)
        ctx.set(self.gate.empty, self.walk[-1])

    def look(self, ctx: Any, t: int) -> None:
        gate = self.gate
        self.walk = [ctx.get(gate.drain) and self.busy == 0, *self.walk[:-1]]
        size = ctx.get(gate.frame_width), ctx.get(gate.frame_height)
        assert self.busy == 0 or size == self.size, "FrameGate changed the size of a busy pipeline"
        self.busy = max(0, self.busy - 1)
        if ctx.get(gate.o.valid) and self.ready:
            assert not ctx.get(gate.drain), "FrameGate lets a beat through while it drains"
            self.seen.append((ctx.get(gate.o.payload), size))
            self.busy, self.size = 9, size

    @property
    def done(self) -> bool:
        return len(self.seen) == sum(len(f) for f in self.frames)


def _sized(gate: FrameGate, beats: int, idle: float) -> SizedSource:
    items = words(sum(w * h for w, h in FRAMES) * beats, 6)
    return SizedSource(gate, [(w, h, w * h * beats) for w, h in FRAMES], items, idle)


class TestFrameGate:
    @pytest.mark.parametrize("beats", [1, 2])
    @pytest.mark.parametrize(("idle", "backpressure"), [(0, 0), (0.5, 0), (0, 0.5), (0.4, 0.4)])
    def test_a_size_comes_with_its_frame(
        self, beats: int, idle: float, backpressure: float
    ) -> None:
        gate = FrameGate(shape=6, beats=beats, settle=3)
        source, behind = _sized(gate, beats, idle), _Behind(gate, beats, backpressure)
        simulate(gate, [source, behind], limit=2000)
        sizes = [size for w, h in FRAMES for size in [(w, h)] * (w * h * beats)]
        assert behind.seen == list(zip(source.items, sizes, strict=True)), "FrameGate"

    def test_frames_of_one_size_lose_a_cycle_between_them(self) -> None:
        gate = FrameGate(shape=6, beats=2, settle=2)
        source, behind = _sized(gate, 2, 0.0), _Behind(gate, 2, 0.0)
        simulate(gate, [source, behind], limit=2000)
        first = 3 * 2 * 2
        taken = np.diff(source.taken[: 2 * first])
        assert taken.tolist() == [1] * (first - 1) + [2] + [1] * (first - 1), "FrameGate"

    @pytest.mark.parametrize("settle", [1, 4, 9])
    def test_another_size_settles(self, settle: int) -> None:
        """Between the new size and the first beat of it at least ``settle`` cycles pass."""
        gate = FrameGate(shape=6, beats=1, settle=settle)
        changes, beats = [(0, (0, 0))], []

        class Watch(Agent):
            def look(self, ctx: Any, t: int) -> None:
                size = ctx.get(gate.frame_width), ctx.get(gate.frame_height)
                if changes[-1][1] != size:
                    changes.append((t, size))
                if ctx.get(gate.o.valid):
                    beats.append(t)

        source, behind = _sized(gate, 1, 0.0), _Behind(gate, 1, 0.0)
        simulate(gate, [source, behind, Watch()], limit=2000)
        waits = [min(t for t in beats if t >= at) - at for at, _ in changes[1:]]
        assert len(waits) == 5 and min(waits) >= settle, f"FrameGate waits {waits} cycles"

    @pytest.mark.parametrize("name", ["beats", "settle"])
    def test_parameters_are_positive(self, name: str) -> None:
        with pytest.raises(TypeError, match=f"{name} must be a positive integer, not 0"):
            FrameGate(shape=3, **({"beats": 1, "settle": 1} | {name: 0}))


def test_regroup_refuses_lanes_that_do_not_divide() -> None:
    with pytest.raises(
        ValueError, match="one of i_lanes and o_lanes must divide the other, not 4, 6"
    ):
        Regroup(shape=3, channels=12, i_lanes=4, o_lanes=6)
    with pytest.raises(TypeError, match="channels must be a positive integer, not 0"):
        Regroup(shape=3, channels=0, i_lanes=1, o_lanes=1)
