"""The cocotb test: starts the bench, sleeps until it is done, compares what it left.

It runs inside the simulator's process, in the working directory that `lichen.sim.runner` filled;
between ``start`` and ``done`` no Python runs.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import cocotb
from cocotb.triggers import RisingEdge, Timer

from lichen.sim.report import REPORT, STARTED, examine


@cocotb.test()
async def streams_match(dut) -> None:  # type: ignore[no-untyped-def]
    """Every observed stream carries exactly the expected beats."""
    await Timer(1, "step")
    Path(STARTED).touch()
    began = time.perf_counter()
    dut.start.value = 1
    await RisingEdge(dut.done)
    seconds = time.perf_counter() - began
    folder = Path.cwd()
    report = examine(
        folder,
        clocks=int(dut.cycle.value),
        stuck=bool(int(dut.deadlock.value)),
        endless=bool(int(dut.endless.value)),
        seconds=seconds,
    )
    (folder / REPORT).write_text(json.dumps(report), encoding="utf-8")
    assert not report["faults"], "; ".join(report["faults"])
