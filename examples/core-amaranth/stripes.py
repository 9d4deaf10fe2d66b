"""A small Amaranth design around a pipeline: a test pattern goes in, the latents' energy comes out.

``python stripes.py`` simulates one frame and prints the energy; ``python stripes.py FILE.v`` writes
the design as Verilog.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from lichen.hw.rtl.design import modules
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import Activation, Transform
from lichen.network.random import StageShape, random_transform

SIZE = 8


def transform() -> Transform:
    """A small one with GDN; `lichen.models.load_network("tiny").transform("g_a")` is a real one."""
    shapes = [
        StageShape(out_channels=4, kernel=3, activation=Activation.GDN),
        StageShape(out_channels=6, kernel=3),
    ]
    return random_transform(np.random.default_rng(1), shapes)


def pipeline() -> Pipeline:
    """The transform folded by hand; `lichen.hw.plan.planner.plan` chooses one for a budget."""
    array = ArrayFolding(chain_length=2, lanes=1)
    folding = Folding(
        max_width=SIZE,
        stages=[
            StageFolding(chains=1, convolution=array, normalization=array),
            StageFolding(chains=1, convolution=array),
        ],
    )
    return Pipeline(transform(), folding)


class Stripes(wiring.Component):
    """Sends one frame of stripes through a pipeline.

    Members
    -------
    start : In(1)
    done : Out(1)
    energy : Out(24)
        Sum of the latents' squares.
    """

    def __init__(self, core: Pipeline):
        self.core = core
        super().__init__({"start": In(1), "done": Out(1), "energy": Out(24)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.core = core = self.core
        latents = np.prod(core.units[-1].output_size(*core.units[0].output_size(SIZE, SIZE)))
        total = int(latents) * core.transform.out_channels
        sent = Signal(range(3 * SIZE * SIZE + 1))
        received = Signal(range(total + 1))
        running = Signal()
        channels = core.transform.in_channels
        m.d.comb += [
            core.width.eq(SIZE),
            core.height.eq(SIZE),
            core.i.valid.eq(running & (sent != channels * SIZE * SIZE)),
            core.i.payload[0].eq(pattern(sent)),
            core.o.ready.eq(1),
            self.done.eq(received == total),
        ]
        with m.If(self.start):
            m.d.sync += running.eq(1)
        with m.If(core.i.valid & core.i.ready):
            m.d.sync += sent.eq(sent + 1)
        latent = core.o.payload[0]
        with m.If(core.o.valid):
            m.d.sync += [received.eq(received + 1), self.energy.eq(self.energy + latent * latent)]
        return m


def pattern(number):  # type: ignore[no-untyped-def]
    """The value with a number, of a signal or of an integer: 0 to 255, over and over."""
    return (number * 37)[:8] if isinstance(number, Signal) else number * 37 % 256


def image() -> np.ndarray:
    """The same frame in NumPy."""
    count = 3 * SIZE * SIZE
    return np.array([pattern(k) for k in range(count)]).reshape(SIZE, SIZE, 3)


def simulate() -> int:
    """The energy that the design finds."""
    dut = Stripes(pipeline())
    found = 0

    async def bench(context) -> None:  # type: ignore[no-untyped-def]
        nonlocal found
        context.set(dut.start, 1)
        await context.tick().until(dut.done)
        found = context.get(dut.energy)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text("\n".join(modules(Stripes(pipeline()), "stripes").values()))
    else:
        print(simulate())
