# amaranth: UnusedElaboratable=no
"""The skid buffer: nothing lost, nothing slowed down, nothing passed within a cycle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from lichen.hw.engine.skid import Skid


@pytest.mark.parametrize(("offers", "takes"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.6, 0.5)])
def test_items_leave_in_order_and_at_full_rate(offers: float, takes: float) -> None:
    rng = np.random.default_rng(int(10 * offers + takes))
    cycles = 400
    skid = Skid(shape=9)
    sent: list[int] = []
    got: list[int] = []

    async def bench(ctx: Any) -> None:
        item: int | None = None
        for t in range(cycles):
            if item is None and rng.random() < offers:
                item = t
                ctx.set(skid.i.payload, item)
            ctx.set(skid.i.valid, item is not None)
            before = ctx.get(skid.i.ready), ctx.get(skid.o.valid)
            take = rng.random() < takes
            ctx.set(skid.o.ready, take)
            # Neither side's offer of this cycle shows on the other.
            assert (ctx.get(skid.i.ready), ctx.get(skid.o.valid)) == before
            if take and before[1]:
                got.append(ctx.get(skid.o.payload))
            if item is not None and before[0]:
                sent.append(item)
                item = None
            await ctx.tick()

    simulator = Simulator(skid)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert got == sent[: len(got)]
    assert 0 <= len(sent) - len(got) <= Skid.places
    if offers == takes == 1:
        assert len(got) == cycles - 1
    else:
        assert len(got) > 0.3 * cycles
