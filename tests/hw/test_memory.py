# amaranth: UnusedElaboratable=no
"""How memories are cut into blocks, and that they read back what was stored."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen.hw.memory import BLOCK_SHAPES, Ram, pieces


@settings(deadline=None)
@given(st.integers(1, 40_000), st.integers(1, 800), st.booleans())
def test_pieces_cover_every_word_once(depth, width, writable):
    position, before = 0, 1 << 20
    for piece in pieces(depth, width, writable):
        assert piece.start == position
        # Low address bits select within a piece only if it starts at a multiple of its depth.
        assert piece.start % piece.depth == 0
        assert piece.words <= piece.depth <= before
        assert not piece.block or (piece.depth, piece.width) in BLOCK_SHAPES
        position, before = position + piece.words, piece.depth
    assert position == depth


def test_weights_of_1600_words_fill_their_blocks():
    memory = Ram(depth=1600, width=384, init=[0], writable=False)
    # 1024 and 512 words in whole blocks; one shape for all takes 43.
    assert memory.resources().bram == 33


@pytest.mark.parametrize(
    ("depth", "width", "writable"),
    [(1, 3, False), (100, 40, False), (1600, 384, False), (700, 10, True), (2100, 5, True)],
)
def test_reads_follow_two_cycles_later(depth, width, writable):
    rng = np.random.default_rng(depth)
    words = [
        int.from_bytes(rng.bytes(-(-width // 8)), "little") >> (-width % 8) for _ in range(depth)
    ]
    ram = Ram(depth=depth, width=width, init=None if writable else words, writable=writable)
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
    assert read[Ram.latency - 1 :] == [words[a] for a in addresses[: -(Ram.latency - 1)]]
