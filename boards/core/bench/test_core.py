"""The core's tests: what comes out of every stage equals the golden model's, bit for bit."""

from __future__ import annotations

from typing import Any

import cocotb
from cocotb.triggers import RisingEdge
from golden import INTERFACE, frames, stream_format
from port import Bench
from share import SHARE
from streams import Gate, sometimes


@cocotb.test(skip=SHARE == "ports")
async def frames_one_by_one(dut: Any) -> None:
    """Every frame alone is right, and takes exactly the cycles that interface.json says."""
    bench = Bench(dut)
    await bench.reset()
    for frame in frames() if SHARE == "all" else frames()[:1]:
        taken = await bench.alone(frame)
        assert taken == frame.cycles, f"{frame.name}: {taken} cycles, not {frame.cycles}"


@cocotb.test(skip=SHARE != "all")
async def frames_back_to_back(dut: Any) -> None:
    """Frames of changing sizes follow each other without a pause."""
    bench = Bench(dut)
    await bench.reset()
    several = [*frames(), frames()[0]]
    for frame in several:
        await bench.send(frame)
    await bench.check(several)


@cocotb.test(skip=SHARE != "all")
async def random_pauses(dut: Any) -> None:
    """Input that pauses and output that is not always taken change nothing."""
    bench = Bench(dut, sometimes(seed=1), sometimes(seed=2))
    await bench.reset()
    several = frames()[:2]
    for frame in several:
        await bench.send(frame)
    await bench.check(several)


@cocotb.test(skip=SHARE != "all")
async def reset_in_mid_frame(dut: Any) -> None:
    """A reset drops what is on its way; the next frame is right."""
    bench = Bench(dut)
    await bench.reset()
    first, other, *_ = frames()
    sending = cocotb.start_soon(bench.send(first))
    for _ in range(first.cycles // 3):
        await RisingEdge(dut.clk)
    sending.cancel()
    bench.stop()
    await bench.reset()
    await bench.send(other)
    await bench.check([other])


@cocotb.test(skip=SHARE != "all")
async def every_queue_fills_to_its_depth(dut: Any) -> None:
    """While nothing is taken, frames go in until all queues are full; nothing is lost."""
    gate = Gate()
    bench = Bench(dut, backpressure=gate)
    await bench.reset()
    bench.stuck = lambda: f"{bench.shortfall()} when nothing moves"
    frame = frames()[0]
    beats = len(stream_format(INTERFACE["streams"]["i"]).pack(frame.tensor))
    sent = 0

    async def feed() -> None:
        nonlocal sent
        while gate.closed:
            sent += 1
            await bench.send(frame)
            while len(bench.input.beats) < sent * beats:
                await RisingEdge(dut.clk)

    feeding = cocotb.start_soon(feed())
    while bench.shortfall():
        await RisingEdge(dut.clk)
    for _ in range(100):  # one that holds more would go on
        await RisingEdge(dut.clk)
    assert not bench.shortfall(), f"{bench.shortfall()} and takes more"
    gate.closed = False
    await feeding
    await bench.check([frame] * sent)


@cocotb.test()
async def ports_are_as_described(dut: Any) -> None:
    """interface.json has the ports' widths."""
    for port in INTERFACE["ports"]:
        assert len(getattr(dut, port["name"])) == port["width"], port["name"]
