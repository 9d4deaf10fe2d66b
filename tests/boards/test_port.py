# amaranth: UnusedElaboratable=no
"""What lies between a pipeline and its bytes keeps both ends apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from lichen.boards.port.port import TransformPort


class Hollow(wiring.Component):
    """A pipeline of nothing: a test is its inside, by the ports with a mark."""

    transform = SimpleNamespace(in_channels=3, out_channels=4)

    def __init__(self) -> None:
        source = stream.Signature(data.ArrayLayout(unsigned(8), 3))
        target = stream.Signature(data.ArrayLayout(signed(8), 4))
        ports = {"i": In(source), "o": Out(target), "width": In(16), "height": In(16)}
        ports |= {"takes": In(1), "gives": In(1)}
        super().__init__(wiring.Signature(ports))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [self.i.ready.eq(self.takes), self.o.valid.eq(self.gives)]
        return m


@pytest.mark.parametrize("before", range(1, 10))
def test_nothing_passes_a_port_within_a_cycle(before):
    """However full it is: what the pipeline says shows outside a cycle later, and the reverse."""
    pipeline = Hollow()
    port = TransformPort(name="g_a", pipeline=pipeline, max_width=64)
    outside = [port.i.ready, port.o.valid, port.o.payload]
    inside = [pipeline.i.valid, pipeline.i.payload.as_value(), pipeline.o.ready, pipeline.width]

    async def testbench(ctx: Any) -> None:
        def values(signals: list[Any]) -> list[int]:
            return [ctx.get(signal) for signal in signals]

        await ctx.tick().repeat(4)
        ctx.set(port.i.valid, 1)
        ctx.set(pipeline.gives, 1)
        await ctx.tick().repeat(before)
        seen = values(outside)
        for takes, gives in ((1, 0), (1, 1), (0, 0)):
            ctx.set(pipeline.takes, takes)
            ctx.set(pipeline.gives, gives)
            await ctx.delay(1e-8)
            assert values(outside) == seen
        seen = values(inside)
        for number in range(1, 4):
            ctx.set(port.i.payload, number)
            ctx.set(port.i.valid, number % 2)
            ctx.set(port.o.ready, number % 2)
            ctx.set(port.width, number)
            await ctx.delay(1e-8)
            assert values(inside) == seen

    sim = Simulator(port)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run()
