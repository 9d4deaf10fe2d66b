# amaranth: UnusedElaboratable=no
"""Verilog of the project's own writer: lints without a word, and does what the netlist says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lichen.hw.device.ecp5 import Target, cell_models
from lichen.hw.rtl.design import from_rtlil, modules
from lichen.sim.golden import run_stages
from lichen.sim.harness import TOP
from lichen.sim.runner import Simulator
from lichen.sim.verilator import verilator_root
from tests.hw.cases import Case, random_case, random_upsampling

TARGETS = {"portable": None, "ecp5": Target()}
MAKERS = (random_case, random_upsampling)


def lint(texts: dict[str, str], folder: Path) -> str:
    """What Verilator says of modules, each in a file of its own."""
    for name, text in texts.items():
        (folder / f"{name}.v").write_text(text)
    command = [
        verilator_root() / "bin" / "verilator_bin",
        "--lint-only",
        "--quiet",
        "-Wall",
        "-y",
        ".",
    ]
    command += ["--top-module", next(iter(texts)), f"{next(iter(texts))}.v"]
    environment = {"VERILATOR_ROOT": str(verilator_root())}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


def simulate(case: Case, texts: dict[str, str], cache: Path) -> list[str]:
    """What is wrong with the modules, run on the case's image in Icarus."""
    pipeline = case.pipeline()
    simulator = Simulator(
        pipeline, simulator="icarus", taps=True, verilog="\n".join(texts.values()), cache=cache
    )
    stages = run_stages(case.transform, case.image)
    taps = {s.name: [stages[k]] for k, s in enumerate(case.transform.stages)}
    result = simulator.run([case.image], [stages[-1]], expected_taps=taps, drain=True)
    predicted = [pipeline.predicted_cycles(*case.image.shape[:2])]
    return result.faults + ([] if result.frame_cycles == predicted else ["other cycles"])


SEEDS = [(target, make, seed) for target in TARGETS for make in MAKERS for seed in range(1, 8)]
DEFAULT = [("ecp5", random_case, 1), ("portable", random_upsampling, 2)]


@pytest.mark.parametrize(
    ("target", "make", "seed"),
    DEFAULT + [pytest.param(*c, marks=pytest.mark.slow) for c in SEEDS if c not in DEFAULT],
)
def test_random_pipelines_lint_and_run(tmp_path, target, make, seed) -> None:
    case = make(seed)
    texts = modules(case.pipeline(), TOP, TARGETS[target])
    if target == "ecp5":
        texts |= cell_models()
    assert lint(texts, tmp_path) == ""
    assert simulate(case, texts, tmp_path / "cache") == []


@pytest.mark.parametrize("make", MAKERS)
def test_every_signal_has_the_name_it_has_in_the_source(make) -> None:
    """Amaranth finds no name for the first of `a, b = Signal(), Signal()`."""
    text = rtlil.convert(make(1).pipeline(), name="pipeline", emit_src=False)
    nameless = re.findall(r"^ *wire .*\\\$(?:signal|signature)\S*$", text, re.M)
    assert nameless == []


def test_equal_modules_are_written_once_and_depend_on_nothing_else() -> None:
    case = random_case(1)
    one, other = (modules(case.pipeline(), "it", Target()) for _ in range(2))
    assert one == other
    assert next(iter(one)) == "it" and all(name.startswith("it_") for name in list(one)[1:])
    bodies = [text.split("(", 1)[1] for text in one.values()]
    assert len(set(bodies)) == len(bodies)
    renamed = modules(case.pipeline(), "its_name", Target())
    assert [text.replace("its_name", "it") for text in renamed.values()] == list(one.values())


class Everything(wiring.Component):
    """Every operator, a table, slices, registers with and without a reset, memories."""

    def __init__(self) -> None:
        super().__init__(
            wiring.Signature(
                {"a": In(5), "b": In(signed(4)), "n": In(3), "go": In(1)}
                | {f"o{i}": Out(12) for i in range(24)}
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b, n = self.a, self.b, self.n
        values = [
            a + b, a - b, a * b, (a * a)[3:9], -b, ~a, a & b, a | b, a ^ b, Mux(self.go, a, b),
            Cat(a == b, a != b, a < b, b <= a, a > n, b >= n),
            Cat(a.any(), a.all(), a.xor(), a.bool()),
            a << n, a >> n, b >> n, a.bit_select(n, 2), a.word_select(n[0], 2),
            Array([a, b, n, 7])[n[:2]], a.shift_right(2), b.shift_right(1), b.rotate_left(1),
        ]  # fmt: skip
        for i, value in enumerate(values):
            m.d.comb += getattr(self, f"o{i}").eq(value)
        state, free = Signal(4, init=5), Signal(7, init=66, reset_less=True)
        with m.If(self.go):
            m.d.sync += state.eq(state + n)
        with m.Switch(n):
            with m.Case("1--"):
                m.d.sync += free[2:5].eq(a)
            with m.Case(1, 2):
                m.d.sync += free.eq(b)
        m.d.comb += [self.o21.eq(state), self.o22.eq(free)]
        m.submodules.memory = memory = Memory(shape=6, depth=8, init=[1, 2, 3, 60])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.addr.eq(n), write.data.eq(a), write.en.eq(self.go),
            read.addr.eq(a), read.en.eq(1), self.o23.eq(read.data),
        ]  # fmt: skip
        return m


def test_every_operator_equals_amaranths_own_verilog(tmp_path) -> None:
    """Both texts in one simulation, on random values, with a reset in the middle."""
    from lichen.hw.verilog import emit

    texts = modules(Everything(), "mine")
    assert lint(texts, tmp_path) == ""
    outputs = [f"o{i}" for i in range(24)]
    ports = ["clk", "rst", "a", "b", "n", "go"]

    def instance(name: str) -> str:
        links = [f".{p}({p})" for p in ports] + [f".{o}({name}_{o})" for o in outputs]
        return f"{name} {name}_i ({', '.join(links)});\n"

    wires = "".join(f"wire [11:0] mine_{o}, theirs_{o};\n" for o in outputs)
    checks = "".join(
        f'if (mine_{o} !== theirs_{o}) $display("{o} %h %h", mine_{o}, theirs_{o});\n'
        for o in outputs
    )
    bench = f"""
module bench;
  reg clk = 0, rst = 1, go = 0; reg [4:0] a = 0; reg [3:0] b = 0; reg [2:0] n = 0;
  integer i;
  {wires}{instance("mine")}{instance("theirs")}
  initial begin
    for (i = 0; i < 2000; i = i + 1) begin
      #5 clk = 1; #1 a = $random; b = $random; n = $random; go = $random;
      rst = i < 3 || i == 1000;
      #4 clk = 0;
      if (i > 4) begin {checks} end
    end
    $display("done");
  end
endmodule
"""
    theirs = emit(Everything(), "theirs")
    (tmp_path / "all.v").write_text("\n".join([*texts.values(), theirs, bench]))
    subprocess.run(["iverilog", "-g2012", "-o", "all", "all.v"], cwd=tmp_path, check=True)
    done = subprocess.run(["vvp", "-n", "all"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "done\n"


def test_what_the_writer_does_not_know_is_refused() -> None:
    netlist = """
module \\top
  wire width 4 input 0 \\a
  wire width 4 output 1 \\o
  cell $divfloor $1
    parameter \\A_SIGNED 0
    parameter \\B_SIGNED 0
    parameter \\A_WIDTH 4
    parameter \\B_WIDTH 4
    parameter \\Y_WIDTH 4
    connect \\A \\a [3:0]
    connect \\B \\a [3:0]
    connect \\Y \\o
  end
end
"""
    with pytest.raises(NotImplementedError, match="divfloor"):
        from_rtlil(netlist, "it")
