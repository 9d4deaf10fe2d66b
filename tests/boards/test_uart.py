# amaranth: UnusedElaboratable=no
"""The serial receiver and transmitter, also at baud rates that do not divide the clock."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from lichen.boards.link.uart import Receiver, Transmitter, phase_increment
from lichen.sim.runner import simulate

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


BREAK, FRAMING, OVERRUN = 256, 257, 258
"""What `Line` gives for the receiver's pulses; a byte is itself."""


class Line(wiring.Component):
    """A receiver on a line that is told its levels: pairs of a level and for how many cycles."""

    def __init__(self, *, clock_hz: float):
        self._receiver = Receiver(clock_hz=clock_hz, baud=1_000_000)
        levels = stream.Signature(data.ArrayLayout(16, 2))
        super().__init__(wiring.Signature({"i": In(levels), "o": Out(stream.Signature(9))}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = self._receiver
        level, left = Signal(init=1), Signal(16)
        m.d.comb += [receiver.rx.eq(level), self.i.ready.eq(left <= 1), receiver.o.ready.eq(1)]
        m.d.sync += left.eq(Mux(left == 0, 0, left - 1))
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [level.eq(self.i.payload[0]), left.eq(self.i.payload[1])]
        with m.Elif(self.i.ready):
            m.d.sync += level.eq(1)
        pulses = {BREAK: receiver.break_, FRAMING: receiver.framing, OVERRUN: receiver.overrun}
        m.d.comb += [
            self.o.valid.eq(receiver.o.valid | Cat(pulses.values()).any()),
            self.o.payload.eq(receiver.o.payload),
        ]
        for event, pulse in pulses.items():
            with m.If(pulse):
                m.d.comb += self.o.payload.eq(event)
        return m


def symbols(value: int) -> list[tuple[int, float]]:
    """Levels of a byte, each a symbol long."""
    return [(bit, 1.0) for bit in (0, *((value >> i) & 1 for i in range(8)), 1)]


def broken_off(value: int, after: float) -> list[tuple[int, float]]:
    """The first ``after`` symbols of a byte."""
    return [(bit, min(1.0, after - i)) for i, (bit, _) in enumerate(symbols(value)) if after > i]


def check_line(
    levels: list[tuple[int, float]], heard: list[int], cycles_per_bit: float = 8.0
) -> None:
    """What a receiver makes of levels that last so many symbols each."""
    ends = np.cumsum([lasts for _, lasts in levels]) * cycles_per_bit
    cycles = np.diff(np.rint(ends).astype(int), prepend=0)
    beats = np.array([[level, n] for (level, _), n in zip(levels, cycles, strict=True) if n])
    result = simulate(
        Line(clock_hz=1e6 * cycles_per_bit), [beats[:, None]], [np.array(heard)[:, None, None]]
    )
    assert result.ok, result.faults


def check_breaks(cases: list[tuple[int, float, float]], cycles_per_bit: float = 8.0) -> None:
    """For cases (value, after, length): a break that begins within a byte is heard, once.

    The byte arrives if half of its stop bit had come, nothing else does, and what follows the
    break is right.
    """
    levels, heard = [], []
    for value, after, length in cases:
        levels += [*broken_off(value, after), (0, length), (1, 1.0), *symbols(0xA6)]
        heard += [*([value] if after > 9.5 else []), BREAK, 0xA6]
    check_line(levels, heard, cycles_per_bit)


def test_a_break_may_begin_at_any_bit_of_any_byte():
    check_breaks([(value, after, 16) for value in range(256) for after in range(11)])


@pytest.mark.parametrize("cycles_per_bit", [8, 20.8])
def test_a_break_has_any_length_and_begins_anywhere(cycles_per_bit):
    values = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
    lengths = (16, 16.3, 17, 20, 25.5, 26, 27, 36, 40, 100)
    # Clear of the moment in which the stop bit is looked at.
    fractions = (0, 0.3, 0.7)
    cases = [
        (value, symbol + fraction, length)
        for value in values
        for length in lengths
        for symbol in range(10)
        for fraction in fractions
    ]
    check_breaks(cases, cycles_per_bit)


@pytest.mark.parametrize("length", [10, 12, 15])
def test_less_than_a_break_is_a_framing_error(length):
    alone = [(0, length), (1, 3.0)]
    within_a_byte = [(0, 1.0), (1, 1.0), (0, length), (1, 3.0)]
    check_line(alone + within_a_byte, [FRAMING, FRAMING])


@pytest.mark.parametrize(
    ("clock_hz", "baud", "message"),
    [
        (3e6, 1_000_000, r"baud must be at most a quarter of the clock \(3 MHz\), not 1000000"),
        (50e6, 9600, r"baud must be at least 97656 at this clock, not 9600"),
        (50e6, 0, r"baud must be at most .* not 0"),
    ],
)
def test_impossible_rates(clock_hz, baud, message):
    with pytest.raises(ValueError, match=message):
        phase_increment(clock_hz=clock_hz, baud=baud)
