"""The bench of a core with plain valid/ready streams."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import bench
import cocotb
from cocotb.triggers import FallingEdge, RisingEdge
from golden import INTERFACE, Frame, stream_format
from streams import Monitor, Sink, Source


class Bench(bench.Bench):
    """Drives `i`, takes `o`, sets `width` and `height`."""

    def connect(self, idle: Iterator[bool], backpressure: Iterator[bool]) -> None:
        dut = self.dut
        self.rng = random.Random(1)
        self.source = Source(dut.clk, dut.i__payload, dut.i__valid, dut.i__ready, idle)
        self.input = Monitor("i", dut.i__payload, dut.i__valid, dut.i__ready)
        self.output = Monitor("o", dut.o__payload, dut.o__valid, dut.o__ready)
        cocotb.start_soon(Sink(dut.clk, dut.o__ready, backpressure).run())
        if "load" in INTERFACE:
            dut.load__valid.value = 0
            dut.load_clear.value = 0

    async def drive(self, frame: Frame) -> None:
        """Send a frame. Its size stands beside its first beat; with the others it is ignored."""
        beats = stream_format(INTERFACE["streams"]["i"]).pack(frame.tensor)
        width, height = frame.size
        beside = [{self.dut.width: width, self.dut.height: height}]
        for _ in beats[1:]:
            size = (self.rng.randrange(65536) for _ in range(2))
            beside.append(dict(zip((self.dut.width, self.dut.height), size, strict=True)))
        await self.source.send(beats, beside)

    async def put(self, lines: Sequence[str]) -> None:
        """Words for the stream `load`, each as soon as the one before is taken: its ready falls."""
        for line in lines:
            self.dut.load__payload.value = int(line, 16)
            self.dut.load__valid.value = 1
            await FallingEdge(self.dut.load__ready)
        self.dut.load__valid.value = 0

    async def _taken(self) -> None:
        """Wait until the last word is in."""
        await FallingEdge(self.dut.clk)
        while self.dut.load__ready.value != 1:
            await FallingEdge(self.dut.clk)

    async def clear_crc(self) -> None:
        await self._taken()
        self.dut.load_clear.value = 1
        await FallingEdge(self.dut.clk)
        self.dut.load_clear.value = 0
        await RisingEdge(self.dut.clk)

    async def crc(self) -> int:
        await self._taken()
        return int(self.dut.load_crc.value)

    def stop(self) -> None:
        """After a frame was given up in its middle."""
        self.dut.i__valid.value = 0
