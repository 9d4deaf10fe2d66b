"""Placed units on record against what their plan says now."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from lichen.boards.build.report import LUT_PROMISE
from lichen.hw.device.ecp5 import ECP5

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "units.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("units", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plans_of_units_are_what_was_placed(benchmark: ModuleType) -> None:
    """Multipliers and block RAMs exactly, lookup tables as well as promised."""
    planned = benchmark.design().pipeline().stage_resources(ECP5)
    for unit in benchmark.UNITS:
        placed = json.loads((benchmark.BASELINES / f"{unit}.json").read_text())
        assert (planned[unit].dsp, planned[unit].bram) == (placed["dsp"], placed["bram"]), unit
        assert abs(placed["lut"] - planned[unit].lut) <= LUT_PROMISE * planned[unit].lut, unit
