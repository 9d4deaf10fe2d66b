# amaranth: UnusedElaboratable=no
"""The base of the unit tests: what drives a unit, what watches it, and what is asked of each.

A unit runs in Amaranth's own simulator, where small ones take less time than any compiler does to
start. Its *agents* drive and watch one port each: in every cycle all of them drive, then all of
them look, and then the clock ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, Elaboratable, Module, Value
from amaranth.sim import Simulator

SEED = 20240229

TRAFFIC = {
    "full rate": (0.0, 0.0),
    "idle": (0.5, 0.0),
    "backpressure": (0.0, 0.5),
    "idle and backpressure": (0.3, 0.4),
    "long backpressure": (0.0, 0.9),
}
"""Probabilities that the source pauses and that the sink is not ready, by their name."""


class Agent:
    """Drives or watches one port."""

    def drive(self, ctx: Any, t: int) -> None:
        """Set inputs of cycle t."""

    def look(self, ctx: Any, t: int) -> None:
        """Read outputs of cycle t."""

    @property
    def done(self) -> bool:
        """Whether it has nothing more to wait for."""
        return True


class Pauses:
    """Whether a cycle is a pause: with probability ``share``, in runs of ``1 .. hold`` cycles.

    What is no pause lasts ``1 .. burst`` cycles.
    """

    def __init__(self, share: float, seed: int, hold: int = 1, burst: int = 1):
        self._rng, self._share = np.random.default_rng([SEED, seed]), share
        self._hold, self._burst = hold, burst
        self._left, self._pause = 0, False

    def __call__(self) -> bool:
        if self._left == 0:
            self._pause = bool(self._rng.random() < self._share)
            most = self._hold if self._pause else self._burst
            self._left = int(self._rng.integers(1, most + 1))
        self._left -= 1
        return self._pause


class Source(Agent):
    """Offers items (payloads as bits) on a stream; an item once offered stays."""

    def __init__(self, stream: Any, items: Sequence[int], pauses: float = 0.0, hold: int = 1):
        self.stream, self.items = stream, list(items)
        self.pauses = Pauses(pauses, 1, hold)
        self.taken: list[int] = []
        """The cycles in which items were taken."""
        self._offered = False

    def drive(self, ctx: Any, t: int) -> None:
        waiting = len(self.taken) < len(self.items)
        self._offered = waiting and (self._offered or not self.pauses())
        ctx.set(self.stream.valid, self._offered)
        if self._offered:
            ctx.set(Value.cast(self.stream.payload), self.items[len(self.taken)])

    def look(self, ctx: Any, t: int) -> None:
        if self._offered and ctx.get(self.stream.ready):
            self.taken.append(t)
            self._offered = False

    @property
    def done(self) -> bool:
        return len(self.taken) == len(self.items)


class SizedSource(Source):
    """Offers frames of (width, height, items); their size stands with their first item alone."""

    def __init__(
        self,
        unit: Any,
        frames: Sequence[tuple[int, int, int]],
        items: Sequence[int],
        pauses: float = 0.0,
        hold: int = 1,
    ):
        super().__init__(unit.i, items, pauses, hold)
        self.unit, self.sizes, start = unit, {}, 0
        for width, height, count in frames:
            self.sizes[start] = width, height
            start += count

    def drive(self, ctx: Any, t: int) -> None:
        super().drive(ctx, t)
        size = self.sizes.get(len(self.taken)) if self._offered else None
        width, height = size or (1 + t % 5, 3)
        ctx.set(self.unit.width, width)
        ctx.set(self.unit.height, height)


class Sink(Agent):
    """Takes ``count`` items from a stream and holds it to the rules."""

    def __init__(self, name: str, stream: Any, count: int, pauses: float = 0.0, hold: int = 1):
        self.name, self.stream, self.count = name, stream, count
        self.pauses = Pauses(pauses, 2, hold)
        self.items: list[int] = []
        self.cycles: list[int] = []
        """The cycles in which the items came."""
        self._stalled: int | None = None

    def drive(self, ctx: Any, t: int) -> None:
        self._ready = not self.pauses()
        ctx.set(self.stream.ready, self._ready)

    def look(self, ctx: Any, t: int) -> None:
        valid = ctx.get(self.stream.valid)
        item = ctx.get(Value.cast(self.stream.payload)) if valid else None
        if self._stalled is not None:
            assert item == self._stalled, f"{self.name} withdrew or changed a waiting item at {t}"
        self._stalled = None
        if valid and self._ready:
            self.items.append(item)
            self.cycles.append(t)
        elif valid:
            self._stalled = item

    @property
    def done(self) -> bool:
        return len(self.items) >= self.count


class _Top(Elaboratable):
    def __init__(self, unit: Any):
        self.unit = unit

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = ClockDomain()  # where a unit has no register of its own
        m.submodules.unit = self.unit
        return m


def simulate(
    unit: Any,
    agents: Sequence[Agent],
    *,
    limit: int,
    linger: int = 8,
    setup: Callable[[Any], None] | None = None,
    settle: int = 0,
) -> int:
    """Run a unit until all agents are done, and ``linger`` cycles more in which nothing is due.

    ``setup`` sets what stays as it is, ``settle`` cycles before the agents begin. Fails, naming
    the unit, when they are not done within ``limit`` cycles. Returns the cycles.
    """
    cycles = 0

    async def bench(ctx: Any) -> None:
        nonlocal cycles
        if setup is not None:
            setup(ctx)
        for _ in range(settle):
            await ctx.tick()
        left = linger
        for t in range(limit + linger):
            for agent in agents:
                agent.drive(ctx, t)
            for agent in agents:
                agent.look(ctx, t)
            await ctx.tick()
            if all(agent.done for agent in agents):
                cycles = cycles or t + 1
                left -= 1
                if left <= 0:
                    return

    simulator = Simulator(_Top(unit))
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    name = type(unit).__name__
    late = [type(agent).__name__ for agent in agents if not agent.done]
    assert not late, f"{name}: {', '.join(late)} still waiting after {limit} cycles"
    return cycles


def lanes(values: Sequence[int], bits: int) -> int:
    """Values of so many bits as one payload, the first lowest."""
    mask = (1 << bits) - 1
    return sum((int(v) & mask) << (i * bits) for i, v in enumerate(values))


def unlanes(word: int, bits: int, count: int, signed: bool = False) -> list[int]:
    """The values of a payload."""
    values = [word >> (i * bits) & ((1 << bits) - 1) for i in range(count)]
    return [v - (1 << bits) if signed and v >> (bits - 1) else v for v in values]


def traffic(function: Callable) -> Callable:
    """Run a test under every kind of traffic: arguments ``idle`` and ``backpressure``."""
    return pytest.mark.parametrize(("idle", "backpressure"), TRAFFIC.values(), ids=list(TRAFFIC))(
        function
    )


class StreamUnitTest:
    """What every unit between two streams is asked for. Subclasses say what it is.

    Without pauses it takes `full_rate_cycles`, no more and no less; with any, the same items
    come in the same order, an item offered stays, none comes too many, and ``empty``, where there
    is such a port, is up exactly when no item is inside.
    """

    def unit(self) -> Any:
        """A fresh unit."""
        raise NotImplementedError

    def items(self) -> list[int]:
        """What it is fed with."""
        raise NotImplementedError

    def golden(self, items: list[int]) -> list[int]:
        """What it should make of that."""
        raise NotImplementedError

    def mask(self, k: int) -> int:
        """The bits of output item k that are defined."""
        return -1

    def full_rate_cycles(self, items: list[int]) -> int:
        """Cycles from the first item taken to the last one out, both included."""
        raise NotImplementedError

    def setup(self, ctx: Any, unit: Any) -> None:
        """Set inputs that stay as they are."""

    def check_rate(self, name: str, items: list[int], took: int) -> None:
        """Whether it took the right number of cycles at full rate."""
        right = self.full_rate_cycles(items)
        assert took == right, f"{name} takes {took} cycles instead of {right}"

    @traffic
    def test_items_and_rate(self, idle: float, backpressure: float) -> None:
        unit, items = self.unit(), self.items()
        name, expected = type(unit).__name__, self.golden(items)
        source = Source(unit.i, items, idle)
        sink = Sink(name, unit.o, len(expected), backpressure)
        simulate(
            unit,
            [source, sink],
            limit=40 * (len(items) + len(expected)) + 200,
            setup=lambda ctx: self.setup(ctx, unit),
            settle=4,
        )
        assert len(sink.items) == len(expected), f"{name} gave items too many"
        for k, (got, want) in enumerate(zip(sink.items, expected, strict=True)):
            mask = self.mask(k)
            assert got & mask == want & mask, f"{name}: item {k} is {got:#x} instead of {want:#x}"
        if idle == backpressure == 0:
            self.check_rate(name, items, sink.cycles[-1] - source.taken[0] + 1)
