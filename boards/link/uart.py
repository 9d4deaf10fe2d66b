# amaranth: UnusedElaboratable=no
"""Serial receiver and transmitter: 8 data bits, no parity, one stop bit.

Both divide the clock by a fraction, so that any baud rate up to a quarter of the clock is met
on average to better than a thousandth.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware

PHASE_BITS = 18
"""Width of the phase accumulators: the increment is then right to 2**-18 of a symbol."""

CYCLES_PER_BIT_MIN = 4

BREAK_BITS = 16
"""Symbols of low line that make a break (a byte has at most 9)."""


def break_cycles(*, clock_hz: float, baud: int) -> int:
    """Cycles of low line after which it is a break: half a symbol less than the host's least."""
    return round((BREAK_BITS - 0.5) * clock_hz / baud)


def phase_increment(*, clock_hz: float, baud: int) -> int:
    """Increment per clock cycle of a phase accumulator that overflows ``baud`` times a second.

    Raises ValueError when the clock is too slow for the baud rate.
    """
    if baud < 1 or clock_hz < CYCLES_PER_BIT_MIN * baud:
        raise ValueError(
            f"baud must be at most a quarter of the clock ({clock_hz / 1e6:g} MHz), not {baud!r}"
        )
    increment = round(baud * (1 << PHASE_BITS) / clock_hz)
    if abs(increment * clock_hz / (1 << PHASE_BITS) / baud - 1) > 1e-3:
        raise ValueError(f"baud must be at least {clock_hz / 512:.0f} at this clock, not {baud!r}")
    return increment


class Receiver(Gateware):
    """Turns a serial line into bytes.

    A byte waits in ``o`` until it is taken; one that is complete before then is lost, and
    ``overrun`` pulses. A byte without its stop bit is dropped, and when the line is high again
    ``framing`` pulses. A line that stays low for `BREAK_BITS` symbols is a break, whatever was on
    it before: ``break_`` pulses, once, and ``framing`` does not.

    Parameters
    ----------
    clock_hz : float
        Frequency of the ``sync`` domain.
    baud : int
        Symbols per second.

    Members
    -------
    rx : In(1)
        The line, asynchronous; idle high.
    o : Out(stream of 8)
    overrun, framing, break_ : Out(1)
        One-cycle pulses.
    """

    def __init__(self, *, clock_hz: float, baud: int):
        self.increment = phase_increment(clock_hz=clock_hz, baud=baud)
        self.break_cycles = break_cycles(clock_hz=clock_hz, baud=baud)
        super().__init__(
            wiring.Signature(
                {
                    "rx": In(1, init=1),
                    "o": Out(stream.Signature(8)),
                    "overrun": Out(1),
                    "framing": Out(1),
                    "break_": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line = Signal(init=1)
        m.submodules.line = FFSynchronizer(self.rx, line, init=1)

        phase = Signal(PHASE_BITS)
        tick = Signal()  # the middle of a symbol
        advanced = phase + self.increment
        m.d.comb += tick.eq(advanced[PHASE_BITS])
        m.d.sync += phase.eq(advanced)

        shift = Signal(8)
        count = Signal(range(10))
        arrived = Signal()

        # How long the line has been low, seen apart from bytes: a break may begin inside of one.
        low = Signal(range(self.break_cycles + 1))
        breaks = Signal()
        m.d.comb += breaks.eq(low == self.break_cycles - 1)
        with m.If(line):
            m.d.sync += low.eq(0)
        with m.Elif(low != self.break_cycles):
            m.d.sync += low.eq(low + 1)

        # Registers, for a symbol's phase is a long way from what comes of an error.
        m.d.sync += [self.overrun.eq(0), self.framing.eq(0), self.break_.eq(breaks & ~line)]
        with m.FSM():
            with m.State("IDLE"):
                # Half a symbol from the edge of the start bit to its middle.
                m.d.sync += [phase.eq(1 << (PHASE_BITS - 1)), count.eq(0)]
                with m.If(~line):
                    m.next = "BITS"
            with m.State("BITS"), m.If(tick):
                m.d.sync += count.eq(count + 1)
                with m.If(count == 0):
                    with m.If(line):  # a spike, not a start bit
                        m.next = "IDLE"
                with m.Elif(count <= 8):
                    m.d.sync += shift.eq(Cat(shift[1:], line))
                with m.Elif(line):
                    m.d.comb += arrived.eq(1)
                    m.next = "IDLE"
                with m.Else():
                    m.next = "LOW"
            with m.State("LOW"), m.If(line):
                # After a break the line's rise ends the break, not a byte.
                m.d.sync += self.framing.eq(low != self.break_cycles)
                m.next = "IDLE"

        with m.If(self.o.valid & self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(arrived):
            with m.If(self.o.valid & ~self.o.ready):
                m.d.sync += self.overrun.eq(1)
            with m.Else():
                m.d.sync += [self.o.payload.eq(shift), self.o.valid.eq(1)]
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=80)


class Transmitter(Gateware):
    """Turns bytes into a serial line.

    Parameters
    ----------
    clock_hz : float
        Frequency of the ``sync`` domain.
    baud : int
        Symbols per second.

    Members
    -------
    i : In(stream of 8)
    tx : Out(1)
        The line; idle high.
    """

    def __init__(self, *, clock_hz: float, baud: int):
        self.increment = phase_increment(clock_hz=clock_hz, baud=baud)
        super().__init__(wiring.Signature({"i": In(stream.Signature(8)), "tx": Out(1, init=1)}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        phase = Signal(PHASE_BITS)
        advanced = phase + self.increment
        tick = advanced[PHASE_BITS]

        # The bits still to send; the line holds the current one. All ones when idle.
        shift = Signal(9, init=0x1FF)
        left = Signal(range(11))
        m.d.comb += self.i.ready.eq(left == 0)
        m.d.sync += phase.eq(Mux(left == 0, 0, advanced))
        with m.If(left == 0):
            with m.If(self.i.valid):
                m.d.sync += [
                    self.tx.eq(0),
                    shift.eq(Cat(self.i.payload, Const(1, 1))),
                    left.eq(10),
                ]
        with m.Elif(tick):
            m.d.sync += [self.tx.eq(shift[0]), shift.eq(Cat(shift[1:], 1)), left.eq(left - 1)]
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=45)
