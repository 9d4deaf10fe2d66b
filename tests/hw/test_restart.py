"""A pipeline that is restarted in the middle of a frame does the next frame as if it were the
first."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.sim import Simulator

from lichen.hw.device.device import Resources
from lichen.hw.plan import planner
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import Activation
from lichen.network.random import StageShape, random_transform
from lichen.sim.golden import run_transform


class _Top(Elaboratable):
    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.pipeline = self.pipeline
        return m


@pytest.mark.parametrize("beats_before", [1, 100, 256])
def test_restart_in_the_middle_of_a_frame(beats_before: int) -> None:
    rng = np.random.default_rng(beats_before)
    shapes = [
        StageShape(out_channels=4, kernel=3, activation=Activation.GDN),
        StageShape(out_channels=4, kernel=3),
    ]
    transform = random_transform(rng, shapes)
    budget = Resources(dsp=60, bram=30, lut=20_000)
    folding = planner.plan(transform, budget, max_width=16).folding
    pipeline = Pipeline(transform, folding, restartable=True)
    images = [rng.integers(0, 256, (16, 16, 3)) for _ in range(2)]
    expected = run_transform(transform, images[1]).reshape(-1, 4)
    lanes, latents = pipeline.in_lanes, []
    beats = [
        [pixel[c : c + lanes] for pixel in image.reshape(-1, 3) for c in range(0, 3, lanes)]
        for image in images
    ]
    cycles = pipeline.predicted_cycles(16, 16) + 50

    async def send(ctx, wanted) -> None:
        for beat in wanted:
            for lane, value in enumerate(beat):
                ctx.set(pipeline.i.payload[lane], int(value))
            ctx.set(pipeline.i.valid, 1)
            await ctx.tick().until(pipeline.i.ready)
        ctx.set(pipeline.i.valid, 0)

    async def source(ctx) -> None:
        ctx.set(pipeline.width, 16)
        ctx.set(pipeline.height, 16)
        await ctx.tick().repeat(5)
        await send(ctx, beats[0][:beats_before])
        await ctx.tick().repeat(int(rng.integers(1, 300)))
        ctx.set(pipeline.restart, 1)
        await ctx.tick().repeat(pipeline.restart_cycles)
        ctx.set(pipeline.restart, 0)
        await ctx.tick().repeat(5)  # the last unit is reset a cycle after its register
        latents.clear()
        await send(ctx, beats[1])
        await ctx.tick().repeat(cycles)

    async def sink(ctx) -> None:
        ctx.set(pipeline.o.ready, 1)
        async for _, _, valid, payload in ctx.tick().sample(pipeline.o.valid, pipeline.o.payload):
            if valid:
                latents.append([payload[lane] for lane in range(pipeline.out_lanes)])

    simulator = Simulator(_Top(pipeline))
    simulator.add_clock(1e-6)
    simulator.add_testbench(source)
    simulator.add_testbench(sink, background=True)
    simulator.run()
    assert np.array_equal(np.array(latents).reshape(-1, 4), expected)
