# amaranth: UnusedElaboratable=no
"""The serial receiver and transmitter, also at baud rates that do not divide the clock."""

from __future__ import annotations

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from lichen.boards.link.uart import Receiver, Transmitter, phase_step

BYTES = [0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, 0x7E]


@pytest.mark.parametrize("cycles_per_bit", [8, 8.4, 16.67, 43.4])
def test_transmitter_to_receiver(cycles_per_bit):
    clock_hz = 1e6 * cycles_per_bit
    m = Module()
    m.submodules.tx = tx = Transmitter(clock_hz=clock_hz, baud=1_000_000)
    m.submodules.rx = rx = Receiver(clock_hz=clock_hz, baud=1_000_000)
    m.d.comb += rx.rx.eq(tx.tx)

    async def send(ctx):
        for value in BYTES:
            ctx.set(tx.i.payload, value)
            ctx.set(tx.i.valid, 1)
            await ctx.tick().until(tx.i.ready)
        ctx.set(tx.i.valid, 0)

    async def receive(ctx):
        ctx.set(rx.o.ready, 1)
        for value in BYTES:
            (got,) = await ctx.tick().sample(rx.o.payload).until(rx.o.valid)
            assert got == value

    sim = Simulator(m)
    sim.add_clock(1 / clock_hz)
    sim.add_testbench(send)
    sim.add_testbench(receive)
    sim.run()


@pytest.mark.parametrize("speed", [0.97, 1.03])
def test_receiver_tolerates_three_percent(speed):
    clock_hz, baud = 50e6, 1_000_000
    dut = Receiver(clock_hz=clock_hz, baud=baud)

    async def send(ctx):
        for value in BYTES:
            for bit in [0, *((value >> i) & 1 for i in range(8)), 1]:
                ctx.set(dut.rx, bit)
                await ctx.delay(1 / (baud * speed))

    async def receive(ctx):
        ctx.set(dut.o.ready, 1)
        for value in BYTES:
            (got,) = await ctx.tick().sample(dut.o.payload).until(dut.o.valid)
            assert got == value

    sim = Simulator(dut)
    sim.add_clock(1 / clock_hz)
    sim.add_testbench(send)
    sim.add_testbench(receive)
    sim.run()


def test_a_byte_nobody_takes_is_an_overrun():
    m = Module()
    m.submodules.tx = tx = Transmitter(clock_hz=8e6, baud=1_000_000)
    m.submodules.rx = rx = Receiver(clock_hz=8e6, baud=1_000_000)
    m.d.comb += rx.rx.eq(tx.tx)

    async def testbench(ctx):
        ctx.set(tx.i.payload, 0x12)
        ctx.set(tx.i.valid, 1)
        await ctx.tick().until(tx.i.ready)
        ctx.set(tx.i.payload, 0x34)
        await ctx.tick().until(rx.overrun)
        assert ctx.get(rx.o.valid)
        assert ctx.get(rx.o.payload) == 0x12

    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(testbench)
    sim.run_until(1e-3)


@pytest.mark.parametrize(
    ("clock_hz", "baud", "message"),
    [
        (7e6, 1_000_000, r"baud must be at most an eighth of the clock \(7 MHz\), not 1000000"),
        (50e6, 9600, r"baud must be at least 97656 at this clock, not 9600"),
        (50e6, 0, r"baud must be at most .* not 0"),
    ],
)
def test_impossible_rates(clock_hz, baud, message):
    with pytest.raises(ValueError, match=message):
        phase_step(clock_hz=clock_hz, baud=baud)
