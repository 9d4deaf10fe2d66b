# amaranth: UnusedElaboratable=no
"""The systolic array and the core around it: sums, their order, their times, and no lost cycle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Shape, Value, signed, unsigned

from lichen.hw.engine.array import SystolicArray
from lichen.hw.engine.core import Core, CoreShape
from lichen.hw.engine.element import Backend
from lichen.hw.engine.feed import FEED_LATENCY, Phases
from lichen.network.arithmetic import ceil_div
from tests.hw.streams import SEED, Agent, Pauses, lanes, simulate, unlanes

ACCUMULATOR = signed(20)


@dataclass(frozen=True)
class Layer:
    """Weights, and groups of operands to multiply with them."""

    channels: int
    steps: int
    pixels: int
    chains: int
    chain_length: int
    lanes: int
    backend: Backend = Backend.PORTABLE
    a_shape: Shape = signed(6)  # noqa: RUF009
    w_shape: Shape = signed(5)  # noqa: RUF009
    groups: int = 7

    @cached_property
    def weights(self) -> np.ndarray:
        """(channels, steps, lanes), never the most negative code."""
        rng = np.random.default_rng([SEED, self.channels])
        most = (1 << (self.w_shape.width - 1)) - 1
        return rng.integers(-most, most + 1, (self.channels, self.steps, self.lanes))

    @cached_property
    def operands(self) -> np.ndarray:
        """(groups, steps, pixels, lanes)."""
        rng = np.random.default_rng([SEED, self.steps])
        lo = -(1 << (self.a_shape.width - 1)) if self.a_shape.signed else 0
        hi = (1 << (self.a_shape.width - self.a_shape.signed)) - 1
        return rng.integers(lo, hi + 1, (self.groups, self.steps, self.pixels, self.lanes))

    @cached_property
    def sums(self) -> np.ndarray:
        """(groups, pixels, channels)."""
        return np.einsum("gspl,csl->gpc", self.operands, self.weights)

    @cached_property
    def counts(self) -> list[int]:
        """Valid pixels of the groups."""
        return np.random.default_rng(SEED).integers(1, self.pixels + 1, self.groups).tolist()

    def operand_word(self, group: int, step: int) -> int:
        return lanes(self.operands[group, step].ravel(), self.a_shape.width)

    def core(self) -> Core:
        return Core(
            weights=self.weights,
            weight_shape=self.w_shape,
            a_shape=self.a_shape,
            accumulator_shape=ACCUMULATOR,
            pixels=self.pixels,
            chains=self.chains,
            chain_length=self.chain_length,
            backend=self.backend,
        )

    def array(self) -> SystolicArray:
        return SystolicArray(
            pixels=self.pixels,
            chains=self.chains,
            chain_length=self.chain_length,
            lanes=self.lanes,
            a_shape=self.a_shape,
            w_shape=self.w_shape,
            accumulator_shape=ACCUMULATOR,
            backend=self.backend,
        )


class ArrayAgent(Agent):
    """Passes of one group each, at the least distance; sums must come when `latency` says."""

    def __init__(self, array: SystolicArray, layer: Layer):
        self.array, self.layer = array, layer
        self.apart = max(layer.steps, layer.chain_length)
        order, late = array.channel_order(), array.lateness()
        encoded = layer.weights[order].reshape(-1, array.ways, layer.steps, layer.lanes)
        encoded = array.element.encode(encoded.swapaxes(1, 2)).swapaxes(1, 2)
        self.encoded = encoded.reshape(layer.channels, layer.steps, layer.lanes)
        self.late = late
        self.sums: dict[tuple[int, int], list[int]] = {}
        """By cycle and pixel, the sums due at the chains."""
        for group in range(layer.groups):
            last = group * self.apart + layer.steps - 1
            for p in range(layer.pixels):
                for k in range(layer.chain_length):
                    due = last + array.latency + p + k
                    first = k * layer.chains
                    sums = layer.sums[group, p, first : first + layer.chains]
                    self.sums[due, p] = sums.tolist()

    def at(self, t: int) -> tuple[int, int] | None:
        """The group and step whose operands come at t."""
        group, step = divmod(t, self.apart)
        inside = 0 <= group < self.layer.groups and step < self.layer.steps
        return (group, step) if inside else None

    def drive(self, ctx: Any, t: int) -> None:
        array, layer, now = self.array, self.layer, self.at(t)
        word = layer.operand_word(*now) if now else 0
        ctx.set(Value.cast(array.a), word)
        ctx.set(array.first, now is not None and now[1] == 0)
        ctx.set(array.last, now is not None and now[1] == layer.steps - 1)
        bits = layer.w_shape.width
        for i, late in enumerate(self.late):
            place = self.at(t - late)
            weights = self.encoded[i, place[1]] if place else [0] * layer.lanes
            ctx.set(Value.cast(array.w[i]), lanes(weights, bits))

    def look(self, ctx: Any, t: int) -> None:
        for p in range(self.layer.pixels):
            sums = self.sums.pop((t, p), None)
            valid = ctx.get(self.array.o_valid) >> p & 1
            assert valid == (sums is not None), f"SystolicArray: o_valid of pixel {p} at {t}"
            if sums is None:
                continue
            word = ctx.get(Value.cast(self.array.o[p]))
            got = unlanes(word, ACCUMULATOR.width, len(sums), signed=True)
            assert got == sums, f"SystolicArray: pixel {p} at {t} has {got} instead of {sums}"

    @property
    def done(self) -> bool:
        return not self.sums


ARRAYS = {
    "portable": Layer(6, 9, 2, 2, 3, 2),
    "dsp, a long chain": Layer(6, 3, 1, 1, 6, 1, Backend.DSP),
    "packed": Layer(8, 7, 3, 2, 4, 3, Backend.PACKED),
    "lut": Layer(4, 6, 2, 1, 4, 3, Backend.LUT),
    "one of everything": Layer(1, 1, 1, 1, 1, 1),
}


class TestSystolicArray:
    @pytest.mark.parametrize("name", ARRAYS)
    def test_sums_and_their_times(self, name: str) -> None:
        layer = ARRAYS[name]
        array = layer.array()
        simulate(array, [ArrayAgent(array, layer)], limit=400)

    def test_every_channel_has_one_place(self) -> None:
        array = ARRAYS["packed"].array()
        assert sorted(array.channel_order()) == list(range(8))
        assert array.lateness() == [0, 0, 1, 1] * 2

    @pytest.mark.parametrize("field", ["pixels", "chains", "chain_length", "lanes"])
    def test_parameters(self, field: str) -> None:
        right = {"pixels": 1, "chains": 1, "chain_length": 2, "lanes": 1}
        shapes = {"a_shape": signed(8), "w_shape": signed(4), "accumulator_shape": signed(20)}
        with pytest.raises(TypeError, match=f"{field} must be a positive integer, not 0"):
            SystolicArray(**shapes, **(right | {field: 0}))
        message = "chain_length must be a multiple of 2, the channels of an element of the packed"
        with pytest.raises(ValueError, match=message):
            SystolicArray(**shapes, **(right | {"chain_length": 3}), backend=Backend.PACKED)


class Feeder(Agent):
    """Starts a group whenever a bank is free, and pauses between groups at random."""

    def __init__(self, core: Core, layer: Layer, pauses: float):
        self.core, self.layer = core, layer
        self.pauses = Pauses(pauses, 6, hold=8, burst=8)
        self.starts: list[int] = []
        self.steps: dict[int, tuple[int, int]] = {}
        """By cycle: group, and cycle within the group."""

    def drive(self, ctx: Any, t: int) -> None:
        core, layer, feed = self.core, self.layer, self.core.feed
        shape = core.shape
        idle = not self.starts or t - self.starts[-1] >= shape.group_cycles[0]
        number = len(self.starts)
        wanted = number < layer.groups and idle and not self.pauses()
        start = bool(wanted and ctx.get(feed.bank_free))
        ctx.set(feed.start, start)
        ctx.set(feed.count, layer.counts[number] if start else 0)
        if start:
            self.starts.append(t)
            for cycle in range(shape.group_cycles[0]):
                self.steps[t + 1 + cycle] = number, cycle
        place = self.step_at(t)
        ctx.set(feed.step, place is not None)
        ctx.set(feed.group_first, place is not None and place[1] == 0 and place[2] == 0)
        place = self.step_at(t - FEED_LATENCY)
        step = place[2] if place else 0
        ctx.set(feed.first, place is not None and step == 0)
        ctx.set(feed.last, place is not None and step == layer.steps - 1)
        ctx.set(Value.cast(feed.a), layer.operand_word(place[0], step) if place else 0)

    def step_at(self, t: int) -> tuple[int, int, int] | None:
        """Group, pass and step."""
        if t not in self.steps:
            return None
        group, cycle = self.steps[t]
        number, step = divmod(cycle, self.core.shape.pass_cycles(self.layer.steps))
        return (group, number, step) if step < self.layer.steps else None

    @property
    def done(self) -> bool:
        return len(self.starts) == self.layer.groups


class Drain(Agent):
    """Gives credit at random, and compares what comes."""

    def __init__(self, core: Core, layer: Layer, feeder: Feeder, pauses: float):
        self.core, self.layer, self.feeder = core, layer, feeder
        self.pauses = Pauses(pauses, 7, hold=32, burst=32)
        beats = core.shape.beats
        self.expected = [
            (beat, layer.sums[g, p, beat * layer.chains : (beat + 1) * layer.chains].tolist())
            for g in range(layer.groups)
            for p in range(layer.counts[g])
            for beat in range(beats)
        ]
        self.due: dict[int, list[int]] = {}
        self.issued = 0

    def drive(self, ctx: Any, t: int) -> None:
        self.credit = not self.pauses()
        ctx.set(self.core.credit, self.credit)

    def look(self, ctx: Any, t: int) -> None:
        core, layer = self.core, self.layer
        if ctx.get(core.o_issue):
            assert self.credit, f"Core issues a beat without a credit at {t}"
            assert self.issued < len(self.expected), "Core issues a beat too many"
            beat, sums = self.expected[self.issued]
            assert ctx.get(core.o_beat) == beat, f"Core: o_beat is wrong at {t}"
            self.due[t + Core.latency] = sums + [0] * (layer.chains - len(sums))
            self.issued += 1
        sums = self.due.pop(t, None)
        if sums is not None:
            word = ctx.get(Value.cast(core.o))
            got = unlanes(word, ACCUMULATOR.width, layer.chains, signed=True)
            assert got == sums, f"Core: {got} instead of {sums} at {t}"
        started = [s for s in self.feeder.starts if s < t - 1]
        through = sum(layer.counts[: len(started)]) * core.shape.beats
        if not self.feeder.starts or self.feeder.starts[-1] < t - 1:
            here = self.issued - bool(ctx.get(core.o_issue))
            assert ctx.get(core.empty) == (here == through), f"Core: empty is wrong at {t}"

    @property
    def done(self) -> bool:
        return self.issued == len(self.expected) and not self.due


CORES = {
    "two passes": Layer(7, 6, 2, 2, 2, 2),
    "a chain longer than a pass": Layer(8, 3, 2, 1, 8, 1),
    "three pixels, packed": Layer(9, 4, 3, 3, 2, 1, Backend.PACKED),
    "groups of two cycles": Layer(2, 2, 1, 1, 2, 1, groups=30),
    "groups of a cycle": Layer(1, 1, 1, 1, 1, 1, groups=40),
}


class TestCore:
    @pytest.mark.parametrize("name", CORES)
    @pytest.mark.parametrize(
        ("idle", "backpressure"),
        [(0.0, 0.0), (0.5, 0.0), (0.0, 0.9), (0.3, 0.5)],
        ids=["full rate", "idle", "long backpressure", "idle and backpressure"],
    )
    def test_sums(self, name: str, idle: float, backpressure: float) -> None:
        layer = CORES[name]
        core = layer.core()
        feeder = Feeder(core, layer, idle)
        drain = Drain(core, layer, feeder, backpressure)
        simulate(core, [feeder, drain], limit=3000)
        if idle == backpressure == 0:
            (apart,) = core.shape.group_cycles
            slow = [b - a for a, b in zip(feeder.starts, feeder.starts[1:], strict=False)]
            assert set(slow) == {apart}, f"Core has too few drain banks: groups {slow} apart"

    @pytest.mark.parametrize("name", CORES)
    def test_no_bank_is_taken_twice(self, name: str) -> None:
        """Without credit, as many groups start as there are banks."""
        layer = CORES[name]
        core = layer.core()
        feeder = Feeder(core, layer, 0.0)

        class NoCredit(Agent):
            def drive(self, ctx: Any, t: int) -> None:
                ctx.set(core.credit, 0)

        simulate(core, [feeder, NoCredit()], limit=150, linger=150) if (
            layer.groups <= core.shape.banks
        ) else self._starve(core, feeder, NoCredit())
        assert len(feeder.starts) == min(layer.groups, core.shape.banks), "Core"

    @staticmethod
    def _starve(core: Core, feeder: Feeder, credit: Agent) -> None:
        with pytest.raises(AssertionError, match="Core: Feeder still waiting"):
            simulate(core, [feeder, credit], limit=150)

    def test_the_shape_counts(self) -> None:
        phases = Phases.one(3)
        shape = CoreShape(channels=10, phases=phases, pixels=2, chains=2, chain_length=4)
        assert (shape.passes, shape.pass_cycles(3), shape.group_cycles) == (2, 4, (8,))
        assert (shape.beats, shape.rom_depth) == (5, 6)
        assert shape.frame_cycles(3, 5) == 3 * ceil_div(5, 2) * max(8, 2 * 5)

    def test_parameters(self) -> None:
        right: dict[str, Any] = {
            **{"weights": np.ones((4, 2, 1), int), "weight_shape": signed(4)},
            **{"a_shape": unsigned(4), "accumulator_shape": signed(12)},
            **{"pixels": 1, "chains": 2, "chain_length": 2},
        }
        for field in ("pixels", "chains", "chain_length"):
            with pytest.raises(TypeError, match=f"{field} must be a positive integer, not 0"):
                Core(**(right | {field: 0}))
        with pytest.raises(ValueError, match="weights must have three dimensions, not 2"):
            Core(**(right | {"weights": np.ones((4, 2))}))
        with pytest.raises(ValueError, match="must not exceed the 4 channels, not be 2 x 3"):
            Core(**(right | {"chain_length": 3}))
