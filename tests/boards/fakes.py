"""Stand-ins for the external programs and the platform, for tests of what surrounds them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from amaranth.build.run import BuildPlan

from lichen.boards.board import ULX3S_85F, Board

BIT_HEADER = b"\xff\x00Part: LFE5U-85F-6CABGA381\x00\xff"

YOSYS = """
import json, pathlib
cells = {"MULT18X18D": %(dsp)d, "DP16KD": %(bram)d, "LUT4": 7}
text = json.dumps({"design": {"num_cells_by_type": cells}})
pathlib.Path("logs/yosys.json").write_text("\\n" + text)
module = {"ports": {}, "cells": {}}
pathlib.Path("top.json").write_text(json.dumps({"modules": {"top": module}}))
"""
"""Of the netlist it writes only the statistics have any cells."""
CONFIG = """.device LFE5U-85F

.tile R2C3:PLC2
arc: A1 F1

.tile_group MIB_R4C0:PLL0_UL MIB_R5C0:PLL1_UL
word: CLKI_DIV 0000000
word: CLKFB_DIV 0000000
word: CLKOP_DIV 0001011
word: CLKOP_CPHASE 0000110
word: CLKOS_DIV 0010111
word: CLKOS_CPHASE 0001100
word: CLKOS2_DIV 0000111
enum: MODE EHXPLLL
enum: CLKOP_ENABLE ENABLED
enum: CLKOS_ENABLE ENABLED
enum: CLKOS2_ENABLE DISABLED
enum: CLKOS3_ENABLE DISABLED

"""
"""What nextpnr writes, its PLL set to the board's default."""

NEXTPNR = f"""
import pathlib, sys
if "--textcfg" in sys.argv:
    pathlib.Path(sys.argv[sys.argv.index("--textcfg") + 1]).write_text({CONFIG!r})
"""
NEXTPNR += """
import json, pathlib, sys
report = sys.argv[sys.argv.index("--report") + 1]
used = {"MULT18X18D": %(dsp)d, "DP16KD": %(bram)d, "TRELLIS_COMB": 1234, "TRELLIS_FF": 567}
pathlib.Path(report).write_text(json.dumps({
    "fmax": {"$glbnet$clk": {"achieved": %(fmax)f, "constraint": 55.0}},
    "utilization": {name: {"used": count, "available": 9999} for name, count in used.items()},
}))
"""
STUCK = """
import sys, time
if sys.argv[sys.argv.index("--seed") + 1] in %(seeds)r:
    for i in range(1, 201):
        print(f"Info:     iter={i} wires=1028578 overused={max(1, 40 - i)} overuse=1 archfail=NA")
    sys.stdout.flush()
    time.sleep(600)
"""
"""Before `NEXTPNR`: with these seeds the router goes on for ever."""

ECPPACK = f"""
import pathlib, sys
pathlib.Path(sys.argv[sys.argv.index("--bit") + 1]).write_bytes({BIT_HEADER!r})
"""


def program(path: Path, body: str) -> Path:
    """An executable that runs ``body`` as Python and knows its version."""
    path.write_text(
        f"#!{sys.executable}\nimport sys\nif sys.argv[1:] == ['--version']:\n"
        f"    print('{path.name} 1.2.3')\n    sys.exit()\n{body}"
    )
    path.chmod(0o755)
    return path


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dsp: int,
    bram: int,
    fmax: float = 80.0,
    **bodies: str,
) -> None:
    """Put fakes of yosys, nextpnr and ecppack in place; ``bodies`` replaces one's body."""
    values = {"dsp": dsp, "bram": bram, "fmax": fmax}
    default = {"yosys": YOSYS % values, "nextpnr_ecp5": NEXTPNR % values, "ecppack": ECPPACK}
    folder.mkdir(exist_ok=True)
    for name, body in (default | bodies).items():
        path = program(folder / name.replace("_", "-"), body)
        monkeypatch.setenv(name.upper(), str(path))


class LightPlatform:
    """A platform whose build plan holds no design, but what it is made for."""

    def __init__(self, pll: object):
        self.pll = pll

    def prepare(self, elaboratable: object, name: str, **overrides: object) -> BuildPlan:
        plan = BuildPlan(script=f"build_{name}")
        options = [str(option) for option in overrides["nextpnr_opts"]]
        commands = [
            ["yosys", f"{name}.ys"],
            ["nextpnr-ecp5", *options, "--json", f"{name}.json", "--textcfg", f"{name}.config"],
            ["ecppack", "--bit", f"{name}.bit"],
        ]
        plan.add_file(f"build_{name}.json", json.dumps({"commands": commands}))
        told = json.dumps([str(self.pll), {key: str(overrides[key]) for key in sorted(overrides)}])
        for suffix in ("v", "lpf", "ys", "il"):
            plan.add_file(f"{name}.{suffix}", f"{suffix} of {name}: {told}\n")
        return plan


def make(*, device: str, link: object, host: object, pll: object) -> tuple[LightPlatform, object]:
    """The entry of `LIGHT_BOARD`."""
    return LightPlatform(pll), link


LIGHT_BOARD: Board = dataclasses.replace(
    ULX3S_85F, entry=f"{__name__}:make", aim_mhz=ULX3S_85F.clock_mhz
)
