"""Drivers and monitors of valid/ready streams, as the core has them.

A beat moves on a rising edge of the clock at which both valid and ready are high. Signals are
driven after a rising edge and looked at on the falling edge, when everything has settled: that is
the same on every simulator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from cocotb.triggers import FallingEdge, RisingEdge


def never() -> Iterator[bool]:
    """No pause at all."""
    while True:
        yield False


class Gate:
    """Pauses for as long as it is closed."""

    def __init__(self) -> None:
        self.closed = True

    def __iter__(self) -> Gate:
        return self

    def __next__(self) -> bool:
        return self.closed


def sometimes(seed: int, probability: float = 0.4, longest: int = 8) -> Iterator[bool]:
    """Pauses of random lengths at random moments."""
    rng = random.Random(seed)
    while True:
        pausing = rng.random() < probability
        for _ in range(rng.randint(1, longest)):
            yield pausing


def bits_of(signal: Any, width: int) -> str:
    """What a signal holds, highest bit first; unknown bits are no digits."""
    text = str(signal.value)
    return text.rjust(width, "0")


class Source:
    """Offers beats, each until it is taken.

    Parameters
    ----------
    clock, payload, valid, ready : signals
    pauses : iterator of bool
        One value for every cycle in which the source could begin to offer a beat: True waits.
    """

    def __init__(self, clock: Any, payload: Any, valid: Any, ready: Any, pauses: Iterator[bool]):
        self.clock, self.payload, self.valid, self.ready = clock, payload, valid, ready
        self.pauses = pauses
        self.sent = 0
        valid.value = 0

    async def send(self, beats: Sequence[int], beside: Sequence[dict[Any, int]] = ()) -> None:
        """Send beats; ``beside`` has values of other signals that go with each of them."""
        for k, beat in enumerate(beats):
            while next(self.pauses):
                self.valid.value = 0
                await RisingEdge(self.clock)
            self.payload.value = beat
            for signal, value in (beside[k] if beside else {}).items():
                signal.value = value
            self.valid.value = 1
            taken = False
            while not taken:
                await FallingEdge(self.clock)
                taken = self.ready.value == 1
                await RisingEdge(self.clock)
            self.sent += 1
        self.valid.value = 0


class Monitor:
    """Sees the beats that move on a stream, and whether the stream keeps the rules.

    Attributes
    ----------
    beats : list of str
        What has moved, in binary, highest bit first.
    cycles : list of int
        When, counted by `tick`.
    """

    def __init__(self, name: str, payload: Any, valid: Any, ready: Any):
        self.name, self.payload, self.valid, self.ready = name, payload, valid, ready
        self.width = len(payload)
        self.beats: list[str] = []
        self.cycles: list[int] = []
        self._waiting: str | None = None

    def look(self, cycle: int) -> bool:
        """Look at the stream on a falling edge; whether a beat moves on the next rising one."""
        offered = self.valid.value == 1
        now = bits_of(self.payload, self.width) if offered else None
        if self._waiting is not None:
            assert now == self._waiting, (
                f"{self.name}: a beat that had been offered changed or went away before it was "
                f"taken, cycle {cycle}"
            )
        self._waiting = None
        if not offered:
            return False
        if self.ready.value != 1:
            self._waiting = now
            return False
        assert now is not None
        self.beats.append(now)
        self.cycles.append(cycle)
        return True

    def forget(self) -> None:
        """After a reset: begin anew."""
        self.beats, self.cycles, self._waiting = [], [], None

    def state(self) -> str:
        """A few words for a report of a hang."""
        now = f"valid {self.valid.value} ready {self.ready.value}"
        return f"{self.name}: {len(self.beats)} beats, {now}"


class Sink:
    """Takes beats as they come, with pauses."""

    def __init__(self, clock: Any, ready: Any, pauses: Iterator[bool]):
        self.clock, self.ready, self.pauses = clock, ready, pauses
        ready.value = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            self.ready.value = not next(self.pauses)
            await RisingEdge(self.clock)
