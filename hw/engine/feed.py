"""The interface between what feeds a multiplier array and the array's core.

A *group* is ``pixels`` neighbouring positions of one row, computed together; a *pass*
computes one set of ``Q`` output channels for a group; a *step* multiplies one set of
reduction lanes. A feeder runs through groups, and within each through ``passes`` passes of
``steps`` steps, without ever stalling inside a group.

A position is one output pixel, except in a transposed convolution: there it is a column of the
input, of which one output row has ``stride`` pixels, its *column phases*. A group computes them
one after the other, all passes of each. Rows have phases as well; both decide which taps, and so
how many steps, a pass has (`Phases`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.gateware import delayed, lanes_of, last_of

FEED_LATENCY = 6
"""Cycles from a step to its operands and flags on the feed."""


@dataclass(frozen=True)
class Phases:
    """How many steps a pass has, by the phase of its row and of its column.

    Attributes
    ----------
    steps : tuple of tuples of int
        ``steps[row][column]``, at least 1.
    skip : int
        Column phases that the first position of every row lacks.
    wait_first : bool
        Where a drain chain is longer than a pass has steps, the pass waits before its steps, as a
        `PhaseSequencer` does, or after them.
    """

    steps: tuple[tuple[int, ...], ...]
    skip: int = 0
    wait_first: bool = False

    @classmethod
    def one(cls, steps: int) -> Phases:
        """Of what has no phases."""
        return cls(((steps,),))

    @property
    def rows(self) -> int:
        return len(self.steps)

    @property
    def columns(self) -> int:
        return len(self.steps[0])

    @property
    def total(self) -> int:
        """Steps of a pass of every phase."""
        return sum(sum(row) for row in self.steps)


ONE_STEP = Phases.one(1)

LEAST_GROUP = 3
"""Cycles a window wants a group to take at least. The strobe of a start comes to it through a
register, for it is made far away; what the next group reads follows a cycle later still."""


class FeedSignature(wiring.Signature):
    """Operands and control of a multiplier array, as its feeder sees it.

    Members
    -------
    bank_free : In(1)
        A drain bank is free: a group may start.
    start : Out(1)
        A group starts; its first step comes in the next cycle.
    count : Out
        With ``start``: output pixels up to the group's last valid one, 1 .. pixels x column
        phases.
    head : Out(1)
        With ``start``: the first group of a row, whose first `Phases.skip` pixels are not valid.
    step : Out(1)
        A step is issued.
    group_first : Out(1)
        With ``step``: the first step of the group.
    row : Out
        With ``group_first``: the phase of the row.
    a : Out
        Operands (pixels x lanes), `FEED_LATENCY` cycles after their step, and 0 in cycles
        without one.
    first, last : Out(1)
        With ``a``: the first and the last step of a pass.
    """

    def __init__(self, *, shape: object, pixels: int, lanes: int, phases: Phases = ONE_STEP):
        super().__init__(
            {
                "bank_free": In(1),
                "start": Out(1),
                "count": Out(range(pixels * phases.columns + 1)),
                "head": Out(1),
                "step": Out(1),
                "group_first": Out(1),
                "row": Out(range(max(2, phases.rows))),  # at least a bit, for Verilog's sake
                "a": Out(lanes_of(lanes_of(shape, lanes), pixels)),
                "first": Out(1),
                "last": Out(1),
            }
        )


class Sequencer:
    """The part all feeders share: when groups start and which step is issued.

    Built inside a feeder's ``elaborate``. The feeder drives `ready` (the next group's inputs
    are there) and reads the strobes. Of these `start` alone is not a register or two of them: it
    waits for the window and for the drain. `free` says that it may come, whether it does or not:
    what the first step of a group reads can be laid ready by that.

    Parameters
    ----------
    passes : int
    steps : int
        Steps per pass.
    pass_cycles : int
        Cycles per pass, at least ``steps``: a drain chain longer than a pass has steps needs
        idle cycles in between.
    feed : flow of a `FeedSignature`
    """

    def __init__(self, m: Module, *, passes: int, steps: int, pass_cycles: int, feed: Any):
        gap_cycles = pass_cycles - steps
        self.ready = Signal(name="seq_ready")
        self.start = Signal(name="seq_start")
        self.step = Signal(name="seq_step")
        self.done = Signal(name="seq_done")
        self.free = free = Signal(init=1, name="seq_free")  # idle, or in a group's last cycle
        active = Signal(name="seq_active")
        index = Signal(range(steps), name="seq_index")
        number = Signal(range(passes), name="seq_pass")
        self.last_step = Signal(init=steps == 1, name="seq_last_step")
        self.last_pass = Signal(init=passes == 1, name="seq_last_pass")
        pass_done = Signal(name="seq_pass_done")
        # What a start depends on lies ready in registers: its strobe goes far.
        first_step = Signal(init=1, name="seq_first_step")
        first_pass = Signal(init=1)
        ending = Signal(name="seq_ending")  # the next cycle is the last of a group
        m.d.comb += self.start.eq(self.ready & feed.bank_free & free)
        m.d.sync += [free.eq((free & ~self.start) | ending), self.done.eq(ending)]
        if gap_cycles:
            gap = Signal(range(gap_cycles + 1), name="seq_gap")
            m.d.comb += [
                self.step.eq(active & (gap == 0)),
                pass_done.eq(gap == 1),
                ending.eq(
                    (gap == 2 if gap_cycles > 1 else self.step & self.last_step) & self.last_pass
                ),
            ]
            with m.If(self.step & self.last_step):
                m.d.sync += gap.eq(gap_cycles)
            with m.Elif(gap != 0):
                m.d.sync += gap.eq(gap - 1)
        else:
            m.d.comb += [
                self.step.eq(active),
                pass_done.eq(active & self.last_step),
            ]
            if steps > 1:
                m.d.comb += ending.eq(active & (index == steps - 2) & self.last_pass)
            elif passes > 1:
                m.d.comb += ending.eq(active & (number == passes - 2))
            else:
                m.d.comb += ending.eq(self.start)
        with m.If(self.step):
            m.d.sync += [index.eq(Mux(self.last_step, 0, index + 1)), first_step.eq(self.last_step)]
            if steps > 1:
                m.d.sync += self.last_step.eq(index == steps - 2)
        with m.If(pass_done):
            m.d.sync += [
                number.eq(Mux(self.last_pass, 0, number + 1)),
                first_pass.eq(self.last_pass),
            ]
            if passes > 1:
                m.d.sync += self.last_pass.eq(number == passes - 2)
        with m.If(self.start):
            m.d.sync += active.eq(1)
        with m.Elif(self.done):
            m.d.sync += active.eq(0)
        first = Signal(name="seq_first")
        m.d.comb += first.eq(self.step & first_step)
        m.d.comb += [
            feed.start.eq(self.start),
            feed.step.eq(self.step),
            feed.group_first.eq(first & first_pass),
            feed.first.eq(delayed(m, first, FEED_LATENCY, "first")),
            feed.last.eq(delayed(m, self.step & self.last_step, FEED_LATENCY, "last")),
        ]


class PhaseSequencer:
    """A `Sequencer` for passes whose steps depend on their phases.

    Parameters
    ----------
    passes : int
        Of every phase.
    phases : Phases
    least_pass : int
        Cycles between the ends of two passes, at least.
    feed : flow of a `FeedSignature`
    row : Value
        Phase of the row of the next group, from a cycle before `ready` on: what follows from it
        lies in registers when the group starts.

    A group takes two cycles at least.
    """

    def __init__(
        self,
        m: Module,
        *,
        passes: int,
        phases: Phases,
        least_pass: int,
        feed: Any,
        row: Value,
    ):
        steps = phases.steps
        group_cycles = [sum(passes * max(n, least_pass) for n in row) for row in steps]
        gaps = [[max(0, least_pass - n) for n in r] for r in steps]
        self.ready = Signal(name="seq_ready")
        self.start = Signal(name="seq_start")
        self.step = Signal(name="seq_step")
        self.last_step = Signal(name="seq_last_step")
        self.done = Signal(name="seq_done")
        self.row = Signal(range(max(2, phases.rows)), name="seq_row", reset_less=True)
        self.column = Signal(range(max(2, phases.columns)), name="seq_column", reset_less=True)
        self.next_column = Signal.like(self.column, name="seq_next_column")  # of the next pass

        # Every signal has a bit at least: in Verilog one of none has two, and may run free.
        # A group takes the cycles it takes; what a start depends on lies ready in registers.
        self.free = free = Signal(init=1, name="seq_free")  # idle, or in a group's last cycle
        active = Signal(name="seq_active")
        left = Signal(range(max(group_cycles) + 1), name="seq_cycles_left")
        ending = Signal(name="seq_ending")  # the next cycle is the last of a group
        m.d.comb += [self.start.eq(self.ready & feed.bank_free & free), ending.eq(left == 2)]
        m.d.sync += [free.eq((free & ~self.start) | ending), self.done.eq(ending)]
        cycles = _by_row(m, group_cycles, row, "cycles")
        with m.If(self.start):
            m.d.sync += left.eq(cycles)
        with m.Elif(active):
            m.d.sync += left.eq(left - 1)

        # Within it, a pass waits first: what counts are the cycles between the ends of passes.
        index = Signal(range(max(2, *map(max, steps))), name="seq_index")  # steps after this one
        number = Signal(range(max(2, passes)), name="seq_pass")
        last_pass = Signal(init=passes == 1, name="seq_last_pass")
        first_step = Signal(name="seq_first_step")
        group_first = Signal(name="seq_group_first")
        pass_done = Signal(name="seq_pass_done")
        after = Signal.like(index, name="seq_steps_after")  # the first one of the next pass
        gap = Signal(range(max(2, max(map(max, gaps)) + 1)), name="seq_gap")
        next_gap = Signal.like(gap, name="seq_next_gap")
        m.d.comb += [
            pass_done.eq(self.step & self.last_step),
            self.next_column.eq(self.column + last_pass),
            after.eq(_choose([[n - 1 for n in r] for r in steps], self.row, self.next_column)),
            next_gap.eq(_choose(gaps, self.row, self.next_column)),
        ]
        steps_after = _by_row(m, [r[0] - 1 for r in steps], row, "steps_after")
        one_step = _by_row(m, [r[0] == 1 for r in steps], row, "one_step")
        first_gap = _by_row(m, [r[0] for r in gaps], row, "gap")
        with m.If(gap != 0):
            m.d.sync += gap.eq(gap - 1)
        with m.If(self.step):
            m.d.sync += [
                index.eq(index - 1),
                self.last_step.eq(index == 1),
                first_step.eq(0),
                group_first.eq(0),
            ]
        with m.If(pass_done):
            m.d.sync += [
                *(index.eq(after), self.last_step.eq(after == 0), first_step.eq(1)),
                *(gap.eq(next_gap), self.column.eq(self.next_column)),
            ]
            m.d.sync += [
                number.eq(Mux(last_pass, 0, number + 1)),
                last_pass.eq(last_of(passes, number)),
            ]
        with m.If(self.start):
            m.d.sync += [
                *(active.eq(1), group_first.eq(1), first_step.eq(1)),
                *(self.row.eq(row), self.column.eq(0)),
                *(index.eq(steps_after), self.last_step.eq(one_step), gap.eq(first_gap)),
            ]
        with m.Elif(self.done):
            m.d.sync += active.eq(0)
        if not any(map(any, gaps)):
            m.d.comb += self.step.eq(active)
        else:  # a register as well: it goes to every enable of what walks through the taps
            at_once = _by_row(m, [r[0] == 0 for r in gaps], row, "at_once")
            waited = Mux(pass_done, next_gap == 0, active & (gap <= 1))
            m.d.sync += self.step.eq(Mux(self.start, at_once, waited & ~self.done))
        m.d.comb += [
            feed.start.eq(self.start),
            feed.step.eq(self.step),
            feed.group_first.eq(self.step & group_first),
            feed.row.eq(self.row),
            feed.first.eq(delayed(m, self.step & first_step, FEED_LATENCY, "first")),
            feed.last.eq(delayed(m, self.step & self.last_step, FEED_LATENCY, "last")),
        ]


def _by_row(m: Module, table: Sequence[int], row: Value, name: str) -> Value:
    """``table[row]`` of constants, in a register where it is not one itself."""
    if len(set(table)) == 1:
        return Const(table[0], range(max(2, table[0] + 1)))
    chosen = Signal(range(max(2, max(table) + 1)), name=f"seq_start_{name}", reset_less=True)
    m.d.sync += chosen.eq(_choose([[n] for n in table], row, Const(0)))
    return chosen


def _choose(table: Sequence[Sequence[int]], row: Value, column: Value) -> Value:
    """``table[row][column]`` of constants."""
    most = max(map(max, table))
    words = [Array(Const(n, range(most + 1)) for n in line)[column] for line in table]
    return Array(words)[row]
