"""The real tools on a PLL alone: what nextpnr writes of it is what a clock is changed in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal

from lichen.boards.board import find
from lichen.boards.ecp5.pll import drive_clock, drive_usb_clocks, retune
from lichen.boards.ecp5.toolchain import NEXTPNR_ECP5, YOSYS

BOARD = find("ulx3s-25f")
PLL = BOARD.pll()


class Clocked(Elaboratable):
    """A register in every domain, and the PLLs that drive them."""

    def __init__(self, *, usb: bool) -> None:
        self.usb = usb
        self.clock, self.o = Signal(name="clock"), Signal(3, name="o")

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = sync = ClockDomain(reset_less=True)
        domains = {"sync": sync}
        hold = drive_clock(m, pll=PLL, clock_in=self.clock, domain=domains["sync"])
        if self.usb:
            for name in ("usb_io", "usb"):
                domains[name] = ClockDomain(name, reset_less=True)
                m.domains += domains[name]
            drive_usb_clocks(
                m,
                clock_in=self.clock,
                clock_in_hz=BOARD.oscillator_hz,
                fast=domains["usb_io"],
                slow=domains["usb"],
            )
        for i, name in enumerate(domains):
            m.d[name] += self.o[i].eq(~self.o[i] ^ hold)
        return m


def routed(folder: Path, *, usb: bool) -> str:
    """nextpnr's configuration."""
    design = Clocked(usb=usb)
    text = verilog.convert(design, ports=[design.clock, design.o], emit_src=False)
    (folder / "top.v").write_text(text)
    script = "read_verilog top.v; synth_ecp5 -top top -json top.json"
    subprocess.run([YOSYS.find(), "-q", "-p", script], cwd=folder, check=True)
    place = [NEXTPNR_ECP5.find(), "-q", "--25k", "--package", "CABGA381", "--json", "top.json"]
    place += ["--textcfg", "top.config", "--lpf-allow-unconstrained", "--timing-allow-fail"]
    subprocess.run(place, cwd=folder, check=True)
    return (folder / "top.config").read_text()


@pytest.mark.parametrize("usb", [False, True], ids=["alone", "beside USB's"])
def test_the_clock_of_what_nextpnr_routed_changes(tmp_path, usb):
    config = routed(tmp_path, usb=usb)
    assert config.count("enum: MODE EHXPLLL") == 1 + usb
    after = BOARD.pll(110)
    changed = retune(config, PLL, after)
    differ = [
        (a.split()[1], b.split()[1])
        for a, b in zip(config.splitlines(), changed.splitlines(), strict=True)
        if a != b
    ]
    assert differ and all(a == b for a, b in differ)
    assert {a[:5] for a, _ in differ} <= {"CLKI_", "CLKOP", "CLKOS"}
    assert not any("CLKOS2" in a for a, _ in differ)
    assert retune(changed, after, PLL) == config
