"""The user's own test of `thumbnail.v`, with the drivers and golden frames that came with the core.

``pytest`` runs it on Icarus, once ``core/`` has been generated (see README.md).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, ReadOnly, RisingEdge, Timer
from cocotb_tools.runner import get_runner

HERE = Path(__file__).resolve().parent
CORE = HERE / "core"
sys.path.insert(0, str(CORE / "test"))


@cocotb.test()
async def latents_are_golden(dut: Any) -> None:
    from golden import INTERFACE, frames, stream_format
    from streams import Source, sometimes

    frame = frames()[0]
    assert frame.size == (16, 16)
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    source = Source(dut.clk, dut.byte_in, dut.byte_valid, dut.byte_ready, sometimes(seed=3))
    dut.rst.value = 1
    await ClockCycles(dut.clk, INTERFACE["reset"]["cycles"])
    dut.rst.value = 0
    await source.send(stream_format(INTERFACE["streams"]["i"]).pack(frame.tensor))
    for _ in range(2 * frame.cycles):
        await RisingEdge(dut.clk)
        if dut.done.value == 1:
            break
    wanted = list(frame.stages.values())[-1].reshape(-1).tolist()
    found = []
    for k in range(len(wanted)):
        dut.address.value = k
        await ReadOnly()
        found.append(dut.latent.value.to_signed())
        await Timer(1, "ns")
    assert found == wanted


def test_thumbnail() -> None:
    runner = get_runner("icarus")
    runner.build(
        sources=[HERE / "thumbnail.v", *sorted(CORE.glob("*.v"))],
        hdl_toplevel="thumbnail",
        build_dir=HERE / "build",
        timescale=("1ns", "1ps"),
        always=True,
    )
    runner.test(
        hdl_toplevel="thumbnail",
        test_module="test_thumbnail",
        build_dir=HERE / "build",
        test_dir=HERE,
    )
