# amaranth: UnusedElaboratable=no
"""Generated folders: they lint, their own bench passes, and it finds what is broken on purpose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lichen.boards.build.tools import YOSYS
from lichen.boards.core.axi import AXICore
from lichen.boards.core.core import Core
from lichen.boards.core.interface import bench
from lichen.boards.design import Design
from lichen.boards.generate import generate
from lichen.cli import main
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.network.description import Activation, Network
from lichen.network.random import StageShape, random_hyperprior, random_transform
from lichen.sim.verilator import verilator_root
from tests.limits import run_bounded

FOLDING = Folding(
    max_width=24,
    stages=[
        StageFolding(
            chains=1,
            convolution=ArrayFolding(chain_length=2, lanes=1),
            normalization=ArrayFolding(chain_length=2, lanes=1),
        ),
        StageFolding(chains=2, convolution=ArrayFolding(chain_length=1, lanes=1)),
    ],
)


NUMBER = r"(?P<number>(?P<width>\d+)'(?P<base>[dh])(?P<value>\w+))"
"""A constant of Verilog."""


def design(seed: int = 5) -> Design:
    """A convolution with GDN and one without, 9 bits in the end."""
    shapes = [
        StageShape(out_channels=4, kernel=3, activation=Activation.GDN),
        StageShape(out_channels=6, kernel=3, output_bits=9),
    ]
    transform = random_transform(np.random.default_rng(seed), shapes)
    network = Network(
        name=f"net{seed}", architecture="custom", n=4, m=6, transforms={"g_a": transform}
    )
    return Design.make(network, "g_a", FOLDING)


def make(folder: Path, target: str = "portable", bus: str = "stream", seed: int = 5) -> Path:
    generate(design(seed), None, folder, target=target, bus=bus, top=f"net{seed}")
    return folder


def lichen(*arguments: object) -> int:
    """Exit status of the command line."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def run_bench(folder: Path, simulator: str, cpu_s: int = 1800) -> tuple[int, str]:
    """Exit status and output of a folder's own bench."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command += ["test_runner.py", "-k", simulator]
    done = run_bounded(command, cpu_s, cwd=folder / "test", env=environment)
    return done.returncode, done.stdout + done.stderr


def lint(folder: Path, top: str, *more: Path) -> str:
    """What Verilator's lint says of folders with -Wall."""
    root = verilator_root()
    files = [f for place in (folder, *more) for f in [*place.glob("*.v"), *place.glob("sim/*.v")]]
    unique = {file.name: str(file) for file in files}
    done = subprocess.run(
        [root / "bin" / "verilator_bin", "--lint-only", "--quiet", "-Wall",
         "--top-module", top, *sorted(unique.values())],
        env={"VERILATOR_ROOT": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("target", ["portable", "ecp5"])
@pytest.mark.parametrize("bus", ["stream", "axi"])
def test_verilog_lints_without_a_word(tmp_path, target, bus) -> None:
    assert lint(make(tmp_path / "core", target, bus), "net5") == ""


@pytest.mark.parametrize(
    ("target", "bus", "simulator"),
    [
        ("ecp5", "stream", "icarus"),
        ("portable", "axi", "icarus"),
        pytest.param("portable", "stream", "icarus", marks=pytest.mark.slow),
        pytest.param("portable", "stream", "verilator", marks=pytest.mark.slow),
        pytest.param("ecp5", "axi", "verilator", marks=pytest.mark.slow),
    ],
)
def test_a_folders_own_bench_passes(tmp_path, target, bus, simulator) -> None:
    status, text = run_bench(make(tmp_path / "core", target, bus), simulator)
    assert status == 0, text
    assert "1 passed" in text


def test_simulate_runs_a_folders_bench(tmp_path, capsys) -> None:
    folder = make(tmp_path / "core")
    where = ["simulate", "--bench", str(folder), "--simulator", "icarus", "--json", "-"]

    def simulate() -> tuple[int, dict[str, Any], str]:
        status = lichen(*where)
        out, err = capsys.readouterr()
        return status, json.loads(out), err

    status, report, err = simulate()
    assert (status, report["top"], report["simulator"]) == (0, "net5", "icarus")
    assert (report["passed"], report["failed"], report["problem"]) == (6, {}, None)
    assert (report["skipped"], err) == ([], "ok: 6 tests of net5 passed on icarus\n")
    description = json.loads((folder / "interface.json").read_text())
    assert description["bench"]["icarus"] == "all"
    description["bench"]["icarus"] = "smallest"
    (folder / "interface.json").write_text(json.dumps(description))
    status, report, err = simulate()
    assert (status, report["passed"], len(report["skipped"])) == (0, 2, 4)
    assert err.endswith("passed on icarus; 4 are left out of it, test/share.py says why\n")
    change(folder / "net5_conv2_core_rom.v", rf"\[17\] = {NUMBER};", flipped)
    status, report, err = simulate()
    assert status == 1 and "test_core.frames_one_by_one" in report["failed"]
    place = r"stage conv2, frame \d, row \d+, column \d+, channel \d+: "
    assert re.match(rf"FAIL: test_core.frames_one_by_one: {place}", err)
    (folder / "net5.v").write_text("this is no Verilog")
    status, report, err = simulate()
    assert status == 1 and report["passed"] == 0 and report["problem"]


def test_icarus_runs_less_of_larger_cores() -> None:
    """`tiny` on a ULX3S has 52 142 lookup tables and 3932 cycles; one frame is what it can do."""
    shares = {5000 * 400: "all", 52142 * 3932: "smallest", 60000 * 20000: "ports"}
    assert {work: bench(work, 1)["icarus"] for work in shares} == shares
    assert bench(52142, 3932)["work"] == 52142 * 3932


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give NET and --image, or a generated folder"),
        (("tiny", "--bench", "."), "leave NET and --image out"),
        (("--bench", "."), "holds no core with a test bench"),
    ],
)
def test_simulate_says_what_a_bench_wants(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert lichen("simulate", *arguments) == 2
    assert sentence in capsys.readouterr().err


def change(path: Path, pattern: str, new: Callable[[re.Match[str]], str], count: int = 1) -> None:
    """Change the first so many places of a module; they have to be there."""
    text, found = re.subn(pattern, new, path.read_text(), count=count)
    assert found == count, path.read_text()
    path.write_text(text)


def first_failure(text: str) -> str:
    """The sentence of the first assertion that failed."""
    return next(line for line in text.splitlines() if "AssertionError: " in line)


def flipped(match: re.Match[str]) -> str:
    """A constant of Verilog, ``WIDTH'BASE`` and ``VALUE``, with one of its high bits flipped."""
    value = int(match["value"], 16 if match["base"] == "h" else 10)
    value ^= 1 << (int(match["width"]) - 2)
    return match[0].replace(match["number"], f"{match['width']}'d{value}")


@pytest.mark.slow
def test_a_wrong_rounding_is_found_where_it_is(tmp_path) -> None:
    """Half of what the last shift drops, in the requantizer, left out."""
    folder = make(tmp_path / "core")
    path = folder / "net5_conv1_post.v"
    change(path, r"(assign sum_3 = .* \+ )\d+'[dh]\w+;", lambda m: f"{m[1]}36'd0;")
    status, output = run_bench(folder, "icarus")
    assert status != 0
    assert "stage conv1, frame 0" in first_failure(output)


@pytest.mark.slow
def test_a_queue_without_places_is_told_as_a_hang(tmp_path) -> None:
    folder = make(tmp_path / "core")
    credits = rf"credits (=|<=) {NUMBER};"
    change(folder / "net5_conv1_fifo.v", credits, lambda m: m[0].replace(m["number"], "6'd0"), 2)
    status, output = run_bench(folder, "icarus")
    assert status != 0
    sentence = "the core hangs: nothing has moved for .*; stage conv1 does not take what i offers"
    assert re.search(sentence, first_failure(output))


@pytest.mark.slow
@pytest.mark.parametrize("more", [-1, 1])
def test_a_queue_of_another_depth_is_found(tmp_path, more) -> None:
    """One place too few, and one more than its memory has: frames need neither."""
    folder = make(tmp_path / "core")
    queues = json.loads((folder / "interface.json").read_text())["queues"]
    depth = next(queue["depth"] for queue in queues if queue["name"] == "conv1")
    credits = rf"credits (=|<=|==) {NUMBER};"
    new = f"{depth.bit_length()}'d{depth + more}"
    change(folder / "net5_conv1_fifo.v", credits, lambda m: m[0].replace(m["number"], new), 3)
    status, output = run_bench(folder, "icarus")
    assert status != 0
    held = f"the output queue of conv1 holds {depth + more} beats of {depth}"
    assert f"AssertionError: {held}" in output, output[-3000:]


def test_two_cores_of_different_networks_lint_in_one_design(tmp_path) -> None:
    one, other = (make(tmp_path / f"core{seed}", seed=seed) for seed in (5, 6))
    (tmp_path / "both.v").write_text(both(one, other))
    assert lint(tmp_path, "both", one, other) == ""


@pytest.mark.slow
def test_requirements_alone_are_enough(tmp_path) -> None:
    """`tiny`, in a fresh environment that knows nothing of Lichen, on both simulators."""
    folder = tmp_path / "core"
    assert lichen("generate", "tiny", "--board", "ulx3s-85f", "-o", folder) == 0
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    requirements = folder / "test" / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert "lichen" not in installed and "amaranth" not in installed
    done = subprocess.run(
        ["make", "-C", folder / "test", f"PYTHON={python}"],
        env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "2 passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("bus", ["stream", "axi"])
def test_a_netlist_has_what_the_interface_says(tmp_path, bus) -> None:
    folder = tmp_path / "core"
    assert lichen("generate", "tiny", "--board", "ulx3s-85f", "--bus", bus, "-o", folder) == 0
    description = json.loads((folder / "interface.json").read_text())
    assert lint(folder, description["top"]) == ""
    script = f"read_verilog *.v; synth_ecp5 -top {description['top']}; write_json netlist.json"
    subprocess.run([YOSYS.find(), "-q", "-p", script], cwd=folder, check=True)
    netlist = json.loads((folder / "netlist.json").read_text())
    cells = Counter(
        cell["type"] for cell in netlist["modules"][description["top"]]["cells"].values()
    )
    wanted = description["resources"]
    assert (cells["MULT18X18D"], cells["DP16KD"]) == (wanted["dsp"], wanted["bram"])


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["synth_xilinx", "synth_ice40", "synth_ecp5"])
def test_other_flows_take_the_portable_verilog(tmp_path, flow) -> None:
    folder = make(tmp_path / "core", "portable", "axi")
    script = f"read_verilog *.v; {flow} -top net5; check -assert"
    subprocess.run([YOSYS.find(), "-q", "-p", script], cwd=folder, check=True)


def test_axi_cores_say_what_they_want() -> None:
    pipeline = design().pipeline()
    with pytest.raises(ValueError, match="must be restartable"):
        AXICore(pipeline=pipeline, digest=bytes(32))
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        AXICore(pipeline=design().pipeline(restartable=True), digest=bytes(31))


def test_names_are_made_of_networks_and_transforms() -> None:
    assert Core.make(design(), "portable").top == "net5_g_a"


@pytest.mark.parametrize(
    "name", ["h_s", *(pytest.param(n, marks=pytest.mark.slow) for n in ("g_a", "g_s", "h_a"))]
)
def test_every_transform_makes_a_core(tmp_path, name) -> None:
    """Its Verilog lints, and its bench passes."""
    network = random_hyperprior(1, n=2, m=3)
    array = ArrayFolding(chain_length=1, lanes=1)
    stages = [
        StageFolding(
            chains=1,
            convolution=array,
            normalization=None if stage.normalization is None else array,
        )
        for stage in network.transform(name).stages
    ]
    fold = Folding(max_width=64, stages=stages)
    folder = tmp_path / "core"
    generate(Design.make(network, name, fold), None, folder, target="portable", top="it")
    assert lint(folder, "it") == ""
    description = json.loads((folder / "interface.json").read_text())
    simulator = "icarus" if description["bench"]["icarus"] == "all" else "verilator"
    status, text = run_bench(folder, simulator)
    assert status == 0, text


BOTH = """
import sys
from pathlib import Path

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "one" / "test"))
import json

from golden import difference, stream_format
from streams import Monitor, Sink, Source, never, sometimes


async def run(dut, folder, top, seed):
    interface = json.loads((folder / "interface.json").read_text())
    vectors = np.load(folder / "test" / "vectors.npz")
    last = interface["stages"][-1]["name"]
    port = lambda name: getattr(dut, f"{top}_{name}")
    source = Source(dut.clk, port("i__payload"), port("i__valid"), port("i__ready"), never())
    monitor = Monitor(top, port("o__payload"), port("o__valid"), port("o__ready"))
    cocotb.start_soon(Sink(dut.clk, port("o__ready"), sometimes(seed)).run())

    async def watch():
        while True:
            await FallingEdge(dut.clk)
            monitor.look(0)

    cocotb.start_soon(watch())
    await ClockCycles(dut.clk, interface["reset"]["cycles"])
    dut.rst.value = 0
    wanted = []
    for frame in interface["golden"]:
        tensor = vectors[frame["name"] + "_input"]
        size = {port("width"): tensor.shape[1], port("height"): tensor.shape[0]}
        beats = stream_format(interface["streams"]["i"]).pack(tensor)
        await source.send(beats, [size] * len(beats))
        wanted.append(vectors[f"{frame['name']}_{last}"])
    form = stream_format(interface["streams"]["o"])
    beats = sum(t.shape[0] * t.shape[1] for t in wanted) * form.beats
    while len(monitor.beats) < beats:
        await RisingEdge(dut.clk)
    assert not difference(top, wanted, monitor.beats, form)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def both_are_right(dut):
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    dut.rst.value = 1
    one = cocotb.start_soon(run(dut, HERE / "one", "net5", 1))
    await run(dut, HERE / "other", "net6", 2)
    await one


def test_both():
    from cocotb_tools.runner import get_runner

    runner = get_runner("icarus")
    sources = [HERE / "both.v", *HERE.glob("one/*.v"), *HERE.glob("other/*.v")]
    scale = ("1ns", "1ps")
    runner.build(
        sources=sources, hdl_toplevel="both", build_dir=HERE / "build", timescale=scale
    )
    runner.test(
        hdl_toplevel="both", test_module="test_both", build_dir=HERE / "build", test_dir=HERE
    )
"""


def both(one: Path, other: Path) -> str:
    """A module with both cores, their ports side by side."""
    heads, cores = [], []
    for folder, name in ((one, "net5"), (other, "net6")):
        links = []
        text = (folder / f"{name}.v").read_text()
        for way, size, port in re.findall(
            r"^    (input|output) wire (\[\d+:0\] )?(\w+),?$", text, re.M
        ):
            own = port if port in ("clk", "rst") else f"{name}_{port}"
            links.append(f".{port}({own})")
            if own != port:
                heads.append(f"{way} wire {size}{own}")
        cores.append(f"  {name} {name}_core ({', '.join(links)});\n")
    ports = ", ".join(["input wire clk", "input wire rst", *heads])
    return f"module both ({ports});\n{''.join(cores)}endmodule\n"


@pytest.mark.slow
def test_two_cores_of_different_networks_run_side_by_side(tmp_path) -> None:
    one, other = make(tmp_path / "one", seed=5), make(tmp_path / "other", seed=6)
    (tmp_path / "both.v").write_text(both(one, other))
    (tmp_path / "test_both.py").write_text(BOTH)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_both.py"]
    done = run_bounded(command, 900, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
