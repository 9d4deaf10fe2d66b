"""A line that loses, repeats and changes bytes, hosts that die, boards that start anew: no wrong
result, and a link that works afterwards.

The number of frames is `FRAMES`; the slow test takes it from the environment::

    LICHEN_FAULT_FRAMES=10000 pytest -m slow tests/boards/test_faults.py
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from lichen.boards.host import connection
from lichen.boards.host.connection import Connection
from lichen.boards.host.serial import SerialLine
from lichen.boards.host.session import Session
from lichen.boards.simulated.board import SimulatedBoard
from lichen.errors import UserError

from . import simulation
from .simulation import QUARTER, Job, job

FRAMES, SLOW_FRAMES = 40, int(os.environ.get("LICHEN_FAULT_FRAMES", "1000"))
SEED = 20240229
BURST = 40
"""Bytes that one fault may take, at most."""


class FaultyLine:
    """A line between a host and another one, that does to bytes what lines do.

    ``rate`` is how many bytes go by from one fault to the next, on average; None for none.
    ``die_after`` is how many bytes go to the board until the host is gone.
    """

    def __init__(self, line: SerialLine, rng: random.Random, done: Counter[str]):
        self._line, self._rng, self._done = line, rng, done
        self.name = line.name
        self.rate: float | None = None
        self.die_after: int | None = None

    def write(self, data: bytes) -> None:
        if self.die_after is not None:
            if len(data) >= self.die_after:
                self._line.write(data[: self.die_after])
                raise KilledError
            self.die_after -= len(data)
        self._line.write(self._spoil(data))

    def read(self, seconds: float) -> bytes:
        return self._spoil(self._line.read(seconds))

    def close(self) -> None:
        self._line.close()

    def _spoil(self, data: bytes) -> bytes:
        if self.rate is None:
            return data
        rng, out, at = self._rng, bytearray(), 0
        while True:
            good = int(rng.expovariate(1 / self.rate))
            out += data[at : at + good]
            at += good
            if at >= len(data):
                return bytes(out)
            size = 1 if rng.random() < 0.6 else rng.randrange(1, BURST)
            part = bytearray(data[at : at + size])
            kind = rng.choice(("drop", "repeat", "bits", "noise", "insert"))
            self._done[kind] += 1
            if kind == "repeat":
                out += part + part
            elif kind == "bits":
                for _ in range(rng.randrange(1, 4)):
                    part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
                out += part
            elif kind == "noise":
                out += rng.randbytes(len(part))
            elif kind == "insert":
                out += rng.randbytes(rng.randrange(1, 5)) + part
            at += size


class KilledError(Exception):
    """The host was killed."""


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    with simulation.running() as found:
        yield found


JOBS: list[Job] = [job(seed, seed % 2, *size) for seed, size in enumerate([(16, 16), (7, 9)] * 3)]


class Trial:
    """Frames through a faulty line, and what came of them."""

    def __init__(self, board: SimulatedBoard, seed: int):
        self.board = board
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.line = FaultyLine(SerialLine(board.port, QUARTER.uart.baud), self.rng, self.done)
        self.host = Connection(self.line)

    def frame(self, number: int) -> None:
        """One frame, with one kind of trouble or another."""
        rng, line, host = self.rng, self.line, self.host
        one = JOBS[number % len(JOBS)]
        kind = rng.choice(("line", "line", "line", "reset", "kill", "other host", "nothing"))
        line.rate = rng.choice((200, 1000, 5000)) if kind == "line" else None
        if kind == "kill":
            line.die_after = rng.randrange(1, 400)
            self.done["kill"] += 1
        try:
            result = host.run(one.frame, lambda arrived: self._meanwhile(kind, arrived))
            assert result == one.golden, f"frame {number} of seed {SEED} is wrong after {kind}"
            self.done["right"] += 1
        except KilledError:
            pass
        except UserError as error:
            # A sentence is as good as a retry: but only where nothing else could be done.
            assert kind in ("line", "other host"), str(error)
            self.done["sentence"] += 1
        self._acting = False
        line.rate = line.die_after = None
        if kind in ("kill", "other host"):
            host.session = Session()

    _acting = False

    def _meanwhile(self, kind: str, arrived: int) -> None:
        """Trouble in mid-frame, once."""
        if self._acting or not arrived:
            return
        if kind == "reset":
            self._acting = True
            self.done["reset"] += 1
            self.board.brown_out()
        elif kind == "other host":
            self._acting = True
            self.done["other host"] += 1
            other = Session()
            other.heartbeat = self.host.identity.heartbeat
            other.begin()
            self.line.write(other.send())

    def check(self) -> None:
        """Without any fault, frames go through at the first attempt."""
        before = self.host.repeated
        for one in JOBS[:2]:
            assert self.host.run(one.frame) == one.golden
        assert self.host.repeated == before


def run(board: SimulatedBoard, frames: int, seed: int) -> Counter[str]:
    trial = Trial(board, seed)
    try:
        for number in range(frames):
            trial.frame(number)
            if number % 10 == 9:
                trial.check()
        trial.check()
    finally:
        trial.host.close()
    return trial.done


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The board is close by: silence is noticed soon."""
    monkeypatch.setattr(connection, "SILENCE_S", 0.5)
    monkeypatch.setattr(connection, "SILENCE_BEATS", 5)
    # Yet a board that gets no share of a busy processor is not gone.
    monkeypatch.setattr(connection, "ANSWER_S", 300.0)


def test_no_frame_of_some_dozens_is_wrong(board: SimulatedBoard) -> None:
    done = run(board, FRAMES, SEED)
    assert done["right"] >= FRAMES // 2
    assert min(done[kind] for kind in ("drop", "repeat", "bits", "noise", "insert")) > 0
    assert min(done[kind] for kind in ("reset", "kill", "other host")) > 0


@pytest.mark.slow
def test_no_frame_of_many_is_wrong(board: SimulatedBoard, record_property: Any) -> None:
    total: Counter[str] = Counter()
    for first in range(0, SLOW_FRAMES, 100):
        total += run(board, min(100, SLOW_FRAMES - first), SEED + 1 + first)
        print(f"{first + 100} frames: {dict(total)}", flush=True)
    assert total["right"] >= SLOW_FRAMES // 2
