"""The bench of a core with AXI4-Stream and AXI4-Lite, driven by cocotbext-axi."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import bench
import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)
from golden import INTERFACE, Format, Frame, stream_format
from streams import Monitor

REGISTERS = {r["name"]: r["address"] for r in INTERFACE["registers"]}
RUN, RESTART = 1, 2  # bits of `control`
IDLE = 2  # bit of `status`


class Bench(bench.Bench):
    """Sends frames to `s_axis`, takes those of `m_axis`, writes and reads registers."""

    def connect(self, idle: Iterator[bool], backpressure: Iterator[bool]) -> None:
        dut = self.dut
        self.size: tuple[int, int] | None = None
        self.source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), dut.clk, dut.rst)
        self.sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), dut.clk, dut.rst)
        self.lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.source.set_pause_generator(idle)
        self.sink.set_pause_generator(backpressure)
        self.input = Monitor("i", dut.s_axis_tdata, dut.s_axis_tvalid, dut.s_axis_tready)
        self.output = Monitor("o", dut.m_axis_tdata, dut.m_axis_tvalid, dut.m_axis_tready)

    async def reset(self) -> None:
        await super().reset()
        self.size = None
        await self.write("control", RUN)

    async def write(self, name: str, value: int) -> None:
        """Write a register."""
        await self.lite.write_dword(REGISTERS[name], value)

    async def read(self, name: str) -> int:
        """Read a register."""
        return await self.lite.read_dword(REGISTERS[name])

    async def drive(self, frame: Frame) -> None:
        """Send a frame. The register `size` is for frames that begin after it is written, so the
        frames before have to be in."""
        if frame.size != self.size:
            await self.source.wait()
            while await self.read("status") & 1:
                pass
            width, height = frame.size
            await self.write("size", width | height << 16)
            self.size = frame.size
        await self.source.send(axi_frame(frame, stream_format(INTERFACE["streams"]["i"])))

    async def put(self, lines: Sequence[str]) -> None:
        """Writes of registers: address and value."""
        for line in lines:
            address, value = (int(word, 16) for word in line.split())
            await self.lite.write_dword(address, value)

    async def clear_crc(self) -> None:
        await self.write("load_crc", 0)

    async def crc(self) -> int:
        return await self.read("load_crc")

    def stop(self) -> None:
        """After a frame was given up in its middle."""
        self.source.clear()


def axi_frame(frame: Frame, form: Format, **marks: Any) -> AxiStreamFrame:
    """A frame as cocotbext-axi wants it: bytes, and for each its beat's `tuser`."""
    size = form.lanes * form.container // 8
    beats = form.pack(frame.tensor)
    data = b"".join(beat.to_bytes(size, "little") for beat in beats)
    users = marks.get("tuser", [1] + [0] * (len(beats) - 1))
    return AxiStreamFrame(data, tuser=[user for user in users for _ in range(size)])


async def idle(bench: Bench) -> None:
    """Wait until nothing is on its way."""
    while not await bench.read("status") & IDLE:
        await RisingEdge(bench.dut.clk)


__all__ = ["IDLE", "REGISTERS", "RESTART", "RUN", "Bench", "axi_frame", "cocotb", "idle"]
