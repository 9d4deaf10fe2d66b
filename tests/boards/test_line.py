# amaranth: UnusedElaboratable=no
"""The serial line between two clocks, and items that cross from one to another."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from lichen.boards.link.crossing import Crossing
from lichen.boards.link.line import SerialLine
from lichen.boards.link.protocol import RATIO_CYCLES

LINE_HZ = 25e6
BAUD = 3_000_000
CLOCKS = [25e6, 98.9e6, 6.25e6]


def simulate(dut, clock_hz: float, *testbenches) -> None:
    sim = Simulator(dut)
    sim.add_clock(1 / clock_hz)
    sim.add_clock(1 / LINE_HZ, domain="line")
    *others, last = testbenches
    for testbench in others:
        sim.add_testbench(testbench, background=True)
    sim.add_testbench(last)
    sim.run()


@pytest.mark.parametrize("clock_hz", CLOCKS)
@pytest.mark.parametrize(("source", "target"), [("sync", "line"), ("line", "sync")])
def test_items_cross_in_order(clock_hz, source, target):
    dut = Crossing(shape=9, source=source, target=target)
    rng = random.Random(1)
    sent = [rng.randrange(512) for _ in range(50)]
    got: list[int] = []

    async def give(ctx):
        for item in sent:
            await ctx.tick(source).repeat(1 + rng.randrange(5))
            ctx.set(dut.i.payload, item)
            ctx.set(dut.i.valid, 1)
            await ctx.tick(source).until(dut.i.ready)
            ctx.set(dut.i.valid, 0)

    async def take(ctx):
        for _ in sent:
            await ctx.tick(target).repeat(1 + rng.randrange(5))
            ctx.set(dut.o.ready, 1)
            (item,) = await ctx.tick(target).sample(dut.o.payload).until(dut.o.valid)
            ctx.set(dut.o.ready, 0)
            got.append(item)

    simulate(dut, clock_hz, give, take)
    assert got == sent


@pytest.mark.parametrize("clock_hz", CLOCKS)
def test_bytes_pass_whatever_the_systems_clock(clock_hz):
    """Out of the line and back into it, at its full rate."""
    dut = SerialLine(oscillator_hz=LINE_HZ, baud=BAUD)
    sent = [0, 255, 0x55, 1, 128, 77]
    got: list[int] = []
    ratios: list[int] = []

    async def loop(ctx):
        while True:
            ctx.set(dut.rx, ctx.get(dut.tx))
            await ctx.tick("line")

    async def take(ctx):
        async for _, _, valid, payload, bad in ctx.tick().sample(
            dut.o.valid, dut.o.payload, dut.bad
        ):
            assert not bad
            if valid:
                got.append(payload)

    async def give(ctx):
        await ctx.tick().repeat(4)
        for byte in sent:
            ctx.set(dut.i.payload, byte)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)
        await ctx.delay(25 / BAUD)
        assert got == sent, "after the time of two bytes more"
        await ctx.delay(3 * RATIO_CYCLES / LINE_HZ)
        ratios.append(ctx.get(dut.ratio))

    simulate(dut, clock_hz, loop, take, give)
    assert ratios[0] == pytest.approx(RATIO_CYCLES * clock_hz / LINE_HZ, abs=1.01)


def test_lost_bytes_are_told(clock_hz=98.9e6):
    """One without its stop bit, and a break; what follows is heard."""
    dut = SerialLine(oscillator_hz=LINE_HZ, baud=BAUD)
    told: list[object] = []

    async def watch(ctx):
        async for _, _, valid, payload, bad in ctx.tick().sample(
            dut.o.valid, dut.o.payload, dut.bad
        ):
            if bad:
                told.append("bad")
            if valid:
                told.append(payload)

    async def drive(ctx):
        async def level(value, symbols):
            ctx.set(dut.rx, value)
            await ctx.delay(symbols / BAUD)

        async def byte(value):
            for bit in (0, *((value >> i) & 1 for i in range(8)), 1):
                await level(bit, 1)

        await level(1, 3)
        await byte(0x42)
        await level(0, 11)
        await level(1, 2)
        await byte(0x43)
        await level(0, 30)
        await level(1, 2)
        await byte(0x44)
        await level(1, 3)

    simulate(dut, clock_hz, watch, drive)
    assert told == [0x42, "bad", 0x43, "bad", 0x44]
