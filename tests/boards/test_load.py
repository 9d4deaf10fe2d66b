# amaranth: UnusedElaboratable=no
"""Cores that are filled at run time: one core, several networks."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lichen.boards.core.axi import AXICore, registers_of
from lichen.boards.core.loader import Loader, StreamCore
from lichen.boards.design import Design
from lichen.boards.generate import generate
from lichen.boards.port.fill import checksum
from lichen.hw.stage.loaded import templates
from lichen.network import file
from lichen.network.description import Activation, Network
from lichen.network.random import StageShape, random_transform
from tests.boards.test_core import FOLDING, lichen, lint, run_bench
from tests.hw.netlist import synthesize

WIDE, NARROW = (4, 6), (3, 5)
"""Output channels of the two stages."""


def network(seed: int, channels: tuple[int, int] = WIDE, weight_bits: int = 8) -> Network:
    shapes = [
        StageShape(out_channels=channels[0], kernel=3, activation=Activation.GDN),
        StageShape(out_channels=channels[1], kernel=3, output_bits=9),
    ]
    shapes = [replace(shape, weight_bits=weight_bits) for shape in shapes]
    made = random_transform(np.random.default_rng(seed), shapes)
    return Network(name=f"net{seed}", architecture="custom", n=4, m=6, transforms={"g_a": made})


def design(seed: int = 5) -> Design:
    own = network(seed)
    return Design.make(own, "g_a", FOLDING, templates(own.transform("g_a")))


def make(folder: Path, target: str = "portable", bus: str = "stream") -> Path:
    generate(design(), None, folder, target=target, bus=bus, top="family")
    return folder


def saved(folder: Path, *arguments: Any) -> Path:
    path = folder / "other.lichen"
    file.save(network(*arguments), path)
    return path


@pytest.mark.parametrize("target", ["portable", "ecp5"])
@pytest.mark.parametrize("bus", ["stream", "axi"])
def test_verilog_lints_without_a_word(tmp_path, target, bus) -> None:
    assert lint(make(tmp_path / "core", target, bus), "family") == ""


@pytest.mark.parametrize(
    ("target", "bus", "simulator"),
    [
        ("ecp5", "stream", "icarus"),
        pytest.param("portable", "stream", "verilator", marks=pytest.mark.slow),
        pytest.param("portable", "axi", "icarus", marks=pytest.mark.slow),
        pytest.param("ecp5", "axi", "verilator", marks=pytest.mark.slow),
    ],
)
def test_a_core_takes_three_networks(tmp_path, target, bus, simulator) -> None:
    """Its own, the one that comes with the bench, and one with fewer channels."""
    folder = make(tmp_path / "core", target, bus)
    other = saved(tmp_path, 6, NARROW)
    arguments = ["weights", other, "--core", folder, "-o", tmp_path / "other.hex"]
    assert lichen(*arguments, "--bench") == 0
    assert len(list((folder / "test").glob("*.hex"))) == 3
    status, text = run_bench(folder, simulator)
    assert status == 0, text
    assert "1 passed" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widest", "others"),
    [
        ("small-q2", ["small-q3"]),
        ("small-opt-q2", ["small-opt-q1", "small-opt-q3", "small-opt-q4"]),
    ],
)
def test_one_core_is_a_family_that_ships(tmp_path, monkeypatch, widest, others) -> None:
    """One network after another, in Verilator: every stage bit for bit, in as many cycles."""
    folder = tmp_path / "family"
    plan = ["--target", "portable", "--max-width", "64", "--multipliers", "64"]
    assert lichen("generate", widest, *plan, "--weights", "load", "-o", folder) == 0
    (folder / "test" / "mirrored.hex").unlink()
    for other in others:
        out = tmp_path / f"{other}.hex"
        assert lichen("weights", other, "--core", folder, "-o", out, "--bench") == 0
    assert len(list((folder / "test").glob("*.hex"))) == 1 + len(others)
    # the smallest frame is enough: seconds each, where all of them take minutes
    path = folder / "interface.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "golden": description["golden"][:1]}))
    monkeypatch.setenv("COCOTB_TEST_FILTER", "frames_one_by_one|other_networks")
    status, text = run_bench(folder, "verilator", cpu_s=7200)
    assert status == 0, text
    results = (folder / "test" / "build" / "verilator" / "results.xml").read_text()
    assert results.count("<testcase ") == 2
    assert "<failure" not in results and "<skipped" not in results


def test_the_file_is_what_goes_in(tmp_path, capsys) -> None:
    """Words in the order of the map, and their checksum; the same for AXI as register writes."""
    folder = make(tmp_path / "core")
    path = saved(tmp_path, 6)
    assert lichen("weights", path, "--core", folder, "-o", tmp_path / "w.hex", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    text = (tmp_path / "w.hex").read_text()
    words = [int(line, 16) for line in text.splitlines() if not line.startswith("//")]
    data = b"".join(word.to_bytes(8, "little") for word in words)
    assert f"{zlib.crc32(data):08x}" == told["crc"] and f"// crc {told['crc']}\n" in text
    assert checksum(words) == zlib.crc32(data)
    load = json.loads((folder / "interface.json").read_text())["load"]
    assert (len(words), told["map"]) == (load["words"], load["map"])
    places = {
        m["base"] + (chunk << m["word_bits"]) + word
        for m in load["memories"]
        for chunk in range(m["chunks"])
        for word in range(m["depth"])
    }
    assert {word >> 40 for word in words} == places

    axi = make(tmp_path / "axi", bus="axi")
    assert lichen("weights", path, "--core", axi, "-o", tmp_path / "a.hex") == 0
    names = {r.address: r.name for r in registers_of(True)}
    address = high = 0
    played = []
    for line in (tmp_path / "a.hex").read_text().splitlines():
        if line.startswith("//"):
            continue
        where, value = (int(part, 16) for part in line.split())
        if names[where] == "load_address":
            address = value
        elif names[where] == "load_high":
            high = value
        elif names[where] == "load_data":
            played.append(address << 40 | high << 32 | value)
            address += 1
    assert played == words


def test_equal_shapes_give_equal_gateware(tmp_path) -> None:
    """Nothing of the network's own numbers is in the Verilog."""
    one = make(tmp_path / "one")
    own = network(6)
    same = Design.make(own, "g_a", FOLDING, design().templates)
    generate(same, None, tmp_path / "two", target="portable", bus="stream", top="family")

    def modules(folder: Path) -> dict[str, str]:
        texts = {path.name: path.read_text() for path in folder.glob("*.v")}
        return {name: text.split("module ", 1)[1] for name, text in texts.items()}

    assert modules(one) == modules(tmp_path / "two")


def test_what_cannot_be_filled_in_is_said(tmp_path, capsys) -> None:
    folder, fixed = make(tmp_path / "core"), tmp_path / "fixed"
    own = network(5)
    generate(Design.make(own, "g_a", FOLDING), None, fixed, target="portable", top="family")
    path, out = saved(tmp_path, 6), tmp_path / "w.hex"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    description = json.loads((folder / "interface.json").read_text())
    description["load"]["stages"][0]["kernel"] = "wide"
    (damaged / "interface.json").write_text(json.dumps(description))
    older = tmp_path / "older"
    older.mkdir()
    description = json.loads((folder / "interface.json").read_text())
    description["load"]["map"] = "00" * 32
    (older / "interface.json").write_text(json.dumps(description))
    for place, sentence in (
        (fixed, "stand in its Verilog; generate it with --weights load"),
        (tmp_path, "holds no core"),
        (damaged, "interface.json is damaged"),
        (older, "was generated by another Lichen"),
    ):
        assert lichen("weights", path, "--core", place, "-o", out) == 2
        assert sentence in capsys.readouterr().err and not out.exists()
    file.save(network(6, WIDE, 7), path)
    assert lichen("weights", path, "--core", folder, "-o", out) == 2
    assert "does not fit the core" in (err := capsys.readouterr().err)
    assert "stage conv1 has weight_bits 7 where the core has 8" in err


def test_plan_says_what_it_costs(capsys) -> None:
    where = ["plan", "tiny", "--board", "ulx3s-85f", "--transform", "g_a", "--multipliers", "16"]
    assert lichen(*where, "--max-width", "64", "--weights", "load", "--json", "-") == 0
    out, err = capsys.readouterr()
    more = json.loads(out)["weights_load"]
    assert more["dsp"] == 0 and more["lut"] > 0
    assert f"about {more['lut']:+d} LUTs" in err


@pytest.mark.slow
def test_a_loader_takes_what_it_says(tmp_path) -> None:
    """Its lookup tables in a netlist, and its share of what loading costs."""
    netlist = synthesize(Loader(), "loader", tmp_path)
    tables = len(re.findall(r"^  LUT4 ", netlist, re.M))
    assert tables == pytest.approx(Loader.resources().lut, rel=0.1)


def test_only_what_loads_has_a_loader() -> None:
    with pytest.raises(ValueError, match="nothing of the pipeline is filled"):
        StreamCore(pipeline=Design.make(network(5), "g_a", FOLDING).pipeline())
    core = AXICore(pipeline=design().pipeline(restartable=True), digest=bytes(32))
    assert core.loader is not None
