"""The core on a bench: its streams, those between its stages, and what to compare them with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import Event, FallingEdge, RisingEdge
from golden import FOLDER, INTERFACE, Format, Frame, difference, stream_format
from streams import Monitor, never

HELD = [""]
"""Which network the core holds, where it is filled at run time: a reset leaves it in."""


class Bench:
    """A core under test, whatever its bus is: `port.py` has the rest.

    Parameters
    ----------
    dut : the core
    idle, backpressure : iterators of bool
        When the input pauses, and when the output is not taken; see `streams.sometimes`.
    """

    def __init__(
        self,
        dut: Any,
        idle: Iterator[bool] | None = None,
        backpressure: Iterator[bool] | None = None,
    ):
        self.dut = dut
        self.cycle = 0
        self.moved = 0  # when a beat last moved anywhere
        self.expecting = False  # whether beats have to move
        self.filled: Event | None = None  # while the core is filled, no beat can move
        self.dropping = False  # whether a restart may take back what was offered
        # A core in which nothing moves for as long as the longest frame takes hangs.
        self.patience = max(frame["cycles"] for frame in INTERFACE["golden"]) + 1000
        cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
        self.connect(idle or never(), backpressure or never())
        self.stuck = self.hang  # says what is wrong when nothing moves
        self.formats: dict[str, Format] = {}
        self.taps: list[Monitor] = []
        for stage in INTERFACE["stages"]:
            place = self._below(stage["path"])
            self.taps.append(
                Monitor(stage["name"], place.o__payload, place.o__valid, place.o__ready)
            )
            self.formats[stage["name"]] = stream_format(stage)
        self.queues = {q["name"]: (self._below(q["path"]), q["depth"]) for q in INTERFACE["queues"]}
        self.streams = [self.input, *self.taps, self.output]
        cocotb.start_soon(self._watch())

    def _below(self, path: Sequence[str]) -> Any:
        """An instance inside the core."""
        place = self.dut
        for name in path:
            place = getattr(place, name)
        return place

    def connect(self, idle: Iterator[bool], backpressure: Iterator[bool]) -> None:
        """Drive the core's ports; sets ``input`` and ``output``, monitors of its two streams."""
        raise NotImplementedError

    async def drive(self, frame: Frame) -> None:
        """Put a frame into the core's input."""
        raise NotImplementedError

    async def send(self, frame: Frame) -> None:
        """Send a frame."""
        self.moved = self.cycle
        self.expecting = True
        await self.drive(frame)

    def forget(self) -> None:
        """Whatever the monitors have seen so far is over."""
        for stream in self.streams:
            stream.forget()

    async def alone(self, frame: Frame) -> int:
        """Send one frame and check it.

        Returns the cycles from the first beat of its input to the last of its output.
        """
        self.forget()
        await self.send(frame)
        await self.check([frame])
        return self.output.cycles[-1] - self.input.cycles[0] + 1

    async def _watch(self) -> None:
        while True:
            await FallingEdge(self.dut.clk)
            self.cycle += 1
            if self.filled is not None:
                await self.filled.wait()
                continue
            if self.dropping or self.dut.rst.value == 1:  # a reset takes back what was offered
                self.forget()
                continue
            for stream in self.streams:
                if stream.look(self.cycle):
                    self.moved = self.cycle
            if self.expecting and self.cycle - self.moved > self.patience:
                raise AssertionError(self.stuck())

    async def reset(self) -> None:
        """Hold the reset as long as the core wants: what is on its way drains meanwhile."""
        self.dut.rst.value = 1
        for _ in range(INTERFACE["reset"]["cycles"]):
            await RisingEdge(self.dut.clk)
        self.dut.rst.value = 0
        self.expecting = False
        self.forget()
        if "load" in INTERFACE and HELD[0] != "own":
            await self.fill("own")

    async def fill(self, network: str) -> None:
        """Fill the core with a network, from the file of that name."""
        text = (FOLDER / f"{network}.hex").read_text(encoding="utf-8")
        lines = text.splitlines()
        wanted = next(line.split()[-1] for line in lines if line.startswith("// crc "))
        self.filled = Event()
        HELD[0] = network
        await self.clear_crc()
        await self.put([line for line in lines if not line.startswith("//")])
        self.filled.set()
        self.filled = None
        crc = await self.crc()
        assert crc == int(wanted, 16), f"the core took {network} with CRC {crc:08x}, not {wanted}"

    async def put(self, lines: Sequence[str]) -> None:
        """What lines of such a file say."""
        raise NotImplementedError

    async def clear_crc(self) -> None:
        """Begin the checksum of what is put in anew."""
        raise NotImplementedError

    async def crc(self) -> int:
        """That checksum."""
        raise NotImplementedError

    async def check(self, frames: Sequence[Frame]) -> None:
        """Wait until all outputs of frames have come, and compare those of every stage."""
        form = stream_format(INTERFACE["streams"]["o"])
        last = list(frames[-1].stages)[-1]
        wanted = sum(f.stages[last].shape[0] * f.stages[last].shape[1] for f in frames)
        self.moved = self.cycle
        self.expecting = True
        while len(self.output.beats) < wanted * form.beats:
            await RisingEdge(self.dut.clk)
        self.expecting = False
        for _ in range(50):  # what should not come would come now
            await RisingEdge(self.dut.clk)
        self.compare(frames)

    def compare(self, frames: Sequence[Frame]) -> None:
        """Compare what has come of every stage; fails at the first one that is wrong."""
        for tap in self.taps:
            wanted = [frame.stages[tap.name] for frame in frames]
            problem = difference(tap.name, wanted, tap.beats, self.formats[tap.name])
            assert not problem, problem
        form = stream_format(INTERFACE["streams"]["o"])
        wanted = [frame.stages[self.taps[-1].name] for frame in frames]
        problem = difference("o", wanted, self.output.beats, form)
        assert not problem, problem

    def shortfall(self) -> str:
        """Which queue is not exactly full, or nothing."""
        for name, (queue, depth) in self.queues.items():
            level = int(queue.level.value)
            if level != depth:
                return f"the output queue of {name} holds {level} beats of {depth}"
        return ""

    def hang(self) -> str:
        """Which stage is stuck, and what all streams do."""
        first = next(
            (s for s in self.streams[:-1] if s.valid.value == 1 and s.ready.value != 1), None
        )
        waits = "no stage is offered anything"
        if first is not None:
            behind = self.streams[self.streams.index(first) + 1]
            waits = f"stage {behind.name} does not take what {first.name} offers"
        states = "; ".join(stream.state() for stream in self.streams)
        return f"the core hangs: nothing has moved for {self.patience} cycles; {waits} ({states})"
