# amaranth: UnusedElaboratable=no
"""The small queue: order, capacity, full throughput."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from lichen.boards.link.fifo import Fifo


@pytest.mark.parametrize(("push", "pull"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_everything_comes_out_in_order(push, pull):
    dut = Fifo(shape=8, depth=16)
    rng = random.Random(1)
    sent = [rng.randrange(256) for _ in range(200)]
    got: list[int] = []
    cycles = 0

    async def testbench(ctx):
        nonlocal cycles
        waiting = list(sent)
        while len(got) < len(sent):
            ctx.set(dut.i.valid, bool(waiting) and rng.random() < push)
            ctx.set(dut.i.payload, waiting[0] if waiting else 0)
            ctx.set(dut.o.ready, rng.random() < pull)
            assert ctx.get(dut.level) == len(sent) - len(waiting) - len(got) <= 16
            if ctx.get(dut.i.valid) and ctx.get(dut.i.ready):
                waiting.pop(0)
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                got.append(ctx.get(dut.o.payload))
            await ctx.tick()
            cycles += 1

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()
    assert got == sent
    if push == pull == 1:
        assert cycles == len(sent) + 2


def test_capacity():
    dut = Fifo(shape=8, depth=16)

    async def testbench(ctx):
        ctx.set(dut.i.valid, 1)
        for _ in range(16):
            assert ctx.get(dut.i.ready)
            await ctx.tick()
        assert not ctx.get(dut.i.ready)
        assert ctx.get(dut.level) == 16

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()


@pytest.mark.parametrize("depth", [8, 17, 0, "x"])
def test_depth_is_checked(depth):
    with pytest.raises(ValueError, match=r"depth must be a power of two from 16, not "):
        Fifo(shape=8, depth=depth)
