# amaranth: UnusedElaboratable=no
"""How memories are cut into blocks, and that they read back what was stored."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Const, Elaboratable, Module, Signal
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen.hw.device import ecp5, memory
from lichen.hw.device.device import Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.device.memory import FastRom, Ram, pieces
from lichen.hw.plan import planner
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.hw.verilog import emit
from lichen.network.random import StageShape, random_transform


@settings(deadline=None)
@given(st.integers(1, 40_000), st.integers(1, 800), st.booleans())
def test_pieces_cover_every_word_once(depth, width, writable):
    position, before = 0, 1 << 20
    for piece in pieces(ECP5, depth, width, writable):
        assert piece.start == position
        # Low address bits select within a piece only if it starts at a multiple of its depth.
        assert piece.start % piece.depth == 0
        assert piece.words <= piece.depth <= before
        assert not piece.block or (piece.depth, piece.width) in ECP5.block.shapes
        position, before = position + piece.words, piece.depth
    assert position == depth


def test_weights_of_1600_words_fill_their_blocks():
    memory = Ram(depth=1600, width=384, init=[0], writable=False)
    # 1024 and 512 words in whole blocks; one shape for all takes 43.
    assert memory.resources(ECP5).bram == 33


REGISTERED = functools.partial(Ram, registered=True)


@pytest.mark.parametrize(
    ("depth", "width", "writable", "kind"),
    [
        *((1, 3, False, REGISTERED), (33, 7, False, REGISTERED), (100, 40, False, REGISTERED)),
        *((90, 10, True, REGISTERED), (2100, 5, True, REGISTERED)),
        *((1, 3, False, Ram), (100, 40, False, Ram), (1600, 384, False, Ram)),
        *((700, 10, True, Ram), (2100, 5, True, Ram)),
        *((1, 3, False, FastRom), (32, 7, False, FastRom), (100, 40, False, FastRom)),
        *((512, 72, False, FastRom), (1600, 384, False, FastRom)),
    ],
)
def test_reads_follow_after_the_latency(depth, width, writable, kind):
    rng = np.random.default_rng(depth)
    words = [
        int.from_bytes(rng.bytes(-(-width // 8)), "little") >> (-width % 8) for _ in range(depth)
    ]
    if kind is FastRom:
        ram: Ram = FastRom(depth=depth, width=width, init=words)
    else:
        ram = kind(depth=depth, width=width, init=None if writable else words, writable=writable)
    addresses = [*rng.integers(0, depth, 300).tolist(), 0, depth - 1, depth - 1]
    read: list[int] = []

    async def bench(ctx):
        if writable:
            ctx.set(ram.w_en, 1)
            for address, word in enumerate(words):
                ctx.set(ram.w_addr, address)
                ctx.set(ram.w_data, word)
                await ctx.tick()
            ctx.set(ram.w_en, 0)
        for address in addresses:
            ctx.set(ram.r_addr, address)
            await ctx.tick()
            read.append(ctx.get(ram.r_data))

    class Top(Elaboratable):
        def elaborate(self, platform):
            m = Module()
            m.submodules.ram = ram
            return m

    simulator = Simulator(Top())
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert read[ram.latency - 1 :] == [words[a] for a in addresses[: -(ram.latency - 1)]]


@pytest.mark.parametrize("depth", [20, 100, 600])
def test_fields_of_a_word_come_as_late_as_was_asked(depth):
    rng = np.random.default_rng(depth)
    late, bits = (0, 1, 1, 3, 0, 2), 16
    fields = rng.integers(0, 1 << bits, (depth, len(late)))
    words = [sum(int(v) << (k * bits) for k, v in enumerate(row)) for row in fields]
    rom = FastRom(depth=depth, width=bits * len(late), init=words, late=late)
    addresses = rng.integers(0, depth, 100)
    read: list[int] = []

    async def bench(ctx):
        for address in addresses.tolist():
            ctx.set(rom.r_addr, address)
            await ctx.tick()
            read.append(ctx.get(rom.r_data))

    simulator = Simulator(rom)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    for k, cycles in enumerate(late):
        wait = rom.latency - 1 + cycles
        got = [word >> (k * bits) & ((1 << bits) - 1) for word in read[wait:]]
        assert got == fields[addresses[: len(addresses) - wait], k].tolist()


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(("registered", "expected"), [(False, 1), (True, 4)])
def test_a_register_lies_in_front_of_tables_or_behind_them(writable, registered, expected):
    """Behind them where the address comes out of one: 100 words are four tables of 32."""
    ram = Ram(
        depth=100, width=8, init=None if writable else range(100), writable=writable,
        registered=registered,
    )  # fmt: skip
    text = rtlil.convert(ram, ports=[ram.r_addr, ram.r_data])
    assert text.count("cell $memrd_v2") == expected


def test_a_word_must_divide_into_its_fields():
    with pytest.raises(ValueError, match="multiple of the 3 fields"):
        FastRom(depth=4, width=7, init=[0], late=(0, 1, 2))


def test_parameters_of_a_memory():
    with pytest.raises(TypeError, match="depth must be a positive integer, not 0"):
        Ram(depth=0, width=1)
    with pytest.raises(TypeError, match="width must be a positive integer, not -1"):
        Ram(depth=1, width=-1)
    with pytest.raises(ValueError, match="a memory that cannot be written must have init"):
        Ram(depth=4, width=4, writable=False)
    with pytest.raises(ValueError, match="init must have at most 2 words, not 3"):
        rtlil.convert(Ram(depth=2, width=4, init=[1, 2, 3], writable=False))


SHAPES = [
    *((depth, width, True) for depth, width in ((600, 36), (1000, 18), (2000, 9), (3000, 7))),
    *((depth, width, True) for depth, width in ((5000, 2), (9000, 1), (4000, 4), (300, 80))),
    *((depth, width, False) for depth, width in ((1600, 54), (500, 36), (4100, 4), (2300, 11))),
]


def _bench(ram: Ram, platform: object, folder: Path, steps: list[tuple[int, ...]]) -> list[str]:
    """What Icarus reads from a memory: steps are (address, enable, address, data)."""
    folder.mkdir()
    (folder / "ram.v").write_text(emit(ram, "ram", platform))
    address, width = max(1, (ram.depth - 1).bit_length()), ram.width
    total = 2 * address + width + 1
    rows = [
        read | enable << address | target << address + 1 | word << 2 * address + 1
        for read, enable, target, word in steps
    ]
    (folder / "steps.hex").write_text("".join(f"{row:x}\n" for row in rows))
    writes = (
        f", .w_en(now[{address}]), .w_addr(now[{2 * address}:{address + 1}]), "
        f".w_data(now[{total - 1}:{2 * address + 1}])"
        if ram.writable
        else ""
    )
    (folder / "bench.v").write_text(f"""
module bench;
    reg clk = 0;
    reg [{total - 1}:0] steps [0:{len(rows) - 1}], now = 0;
    wire [{width - 1}:0] data;
    integer i;
    ram dut (.clk(clk), .rst(1'b0), .r_addr(now[{address - 1}:0]), .r_data(data){writes});
    initial begin
        $readmemh("steps.hex", steps);
        for (i = 0; i < {len(rows)}; i = i + 1) begin
            now = steps[i];
            #4 clk = 1;
            #5 clk = 0;
            #1 $display("%h", data);
        end
        $finish(0);
    end
endmodule
""")
    files = ["ram.v", "bench.v"]
    if platform is not None:
        (folder / "cells.v").write_text("\n".join(ecp5.cell_models().values()))
        files.append("cells.v")
    subprocess.run(
        ["iverilog", "-g2012", "-s", "bench", "-o", "bench.vvp", *files], cwd=folder, check=True
    )
    done = subprocess.run(
        ["vvp", "-n", "bench.vvp"], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(("depth", "width", "writable"), SHAPES)
def test_block_ram_cells_and_their_twin_read_the_same(depth, width, writable, tmp_path):
    """Both against what was stored, while other words are being written."""
    rng = np.random.default_rng([depth, width])

    def draw() -> int:
        return int.from_bytes(rng.bytes(-(-width // 8)), "little") >> (-width % 8)

    stored = [draw() for _ in range(depth)]

    def ram() -> Ram:
        return Ram(depth=depth, width=width, init=stored, writable=writable)

    assert any(piece.block for piece in ram().pieces())
    now, steps, wanted = list(stored), [], []
    recent = rng.integers(0, depth, 8).tolist()
    for _ in range(3000):
        read = int(rng.choice(recent)) if rng.random() < 0.5 else int(rng.integers(depth))
        target, enable = int(rng.integers(depth)), int(writable and rng.random() < 0.6)
        if target == read:
            enable = 0
        word = draw()
        steps.append((read, enable, target, word))
        wanted.append(now[read])
        if enable:
            now[target] = word
            recent[int(rng.integers(len(recent)))] = target
    for name, platform in (("twin", None), ("cells", ecp5.Target())):
        lines = _bench(ram(), platform, tmp_path / name, steps)
        found = [int(line, 16) for line in lines[Ram.latency - 1 :]]
        assert found == wanted[: len(found)], name


def test_block_ram_cells_are_made_for_the_device_alone_and_use_their_registers():
    def text(platform):
        return emit(Ram(depth=1024, width=36, init=[5], writable=False), "ram", platform)

    assert "DP16KD" not in text(None)
    cells = text(ecp5.Target())
    assert cells.count("DP16KD") == 2
    assert cells.count('.REGMODE_B("OUTREG")') == 2


def test_deep_memories_take_no_deep_recursion():
    """The weights of a layer of 2048 channels fill thousands of blocks."""
    found = pieces(ECP5, 4_200_000, 24, False)
    assert len(found) > 200 and sum(piece.words for piece in found) == 4_200_000

    class Choice(Elaboratable):
        def elaborate(self, platform):
            m = Module()
            selects = [Signal(name=f"select_{i}") for i in range(1500)]
            chosen = Signal(11)
            m.d.comb += chosen.eq(memory._select(selects, [Const(i, 11) for i in range(1500)]))
            return m

    rtlil.convert(Choice(), ports=[])


def test_the_selected_value_is_chosen():
    for count in (1, 2, 3, 4, 7):
        selects, got = Signal(count), Signal(8)

        class Choice(Elaboratable):
            def elaborate(self, platform):
                m = Module()
                values = [Const(10 + i, 8) for i in range(len(selects))]  # noqa: B023
                m.d.comb += got.eq(memory._select(list(selects), values))  # noqa: B023
                return m

        async def bench(ctx):
            for i in range(count):  # noqa: B023
                ctx.set(selects, 1 << i)  # noqa: B023
                assert ctx.get(got) == 10 + i  # noqa: B023

        simulator = Simulator(Choice())
        simulator.add_testbench(bench)
        simulator.run()


def test_4096_channels_plan_and_generate():
    transform = random_transform(
        np.random.default_rng(0), [StageShape(out_channels=4096, kernel=1)]
    )
    found = planner.plan(transform, Resources(dsp=150, bram=200, lut=80_000), max_width=16)
    assert emit(found.pipeline)


def test_2048_channels_between_layers_are_counted():
    """The weights alone are 32 Mbit, which no device holds; the plan says so."""
    shape = StageShape(out_channels=2048, kernel=1)
    transform = random_transform(np.random.default_rng(0), [shape, shape])
    stage = StageFolding(chains=1, convolution=ArrayFolding(chain_length=1, lanes=1))
    pipeline = Pipeline(transform, Folding(max_width=16, stages=[stage, stage]))
    bits = 2048 * 2048 * transform.stages[1].convolution.weight_bits
    assert pipeline.resources(ECP5).bram >= bits / (18 * 1024)
