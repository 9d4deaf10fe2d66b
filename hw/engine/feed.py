"""The interface between what feeds a multiplier array and the array's core.

A *group* is ``pixels`` neighbouring output pixels of one row, computed together; a *pass*
computes one set of ``Q`` output channels for a group; a *step* multiplies one set of
reduction lanes. A feeder runs through groups, and within each through ``passes`` passes of
``steps`` steps, without ever stalling inside a group.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.unit import delayed, lanes_of

FEED_LATENCY = 6
"""Cycles from a step to its operands and flags on the feed."""


class FeedSignature(wiring.Signature):
    """Operands and control of a multiplier array, as its feeder sees it.

    Members
    -------
    bank_free : In(1)
        A drain bank is free: a group may start.
    start : Out(1)
        A group starts; its first step comes in the next cycle.
    count : Out
        With ``start``: valid pixels of the group, 1 .. pixels.
    step : Out(1)
        A step is issued.
    restart : Out(1)
        With ``step``: the first step of the group.
    a : Out
        Operands (pixels x lanes), `FEED_LATENCY` cycles after their step, and 0 in cycles
        without one.
    first, last : Out(1)
        With ``a``: the first and the last step of a pass.
    """

    def __init__(self, *, shape: object, pixels: int, lanes: int):
        super().__init__(
            {
                "bank_free": In(1),
                "start": Out(1),
                "count": Out(range(pixels + 1)),
                "step": Out(1),
                "restart": Out(1),
                "a": Out(lanes_of(lanes_of(shape, lanes), pixels)),
                "first": Out(1),
                "last": Out(1),
            }
        )


class Sequencer:
    """The part all feeders share: when groups start and which step is issued.

    Built inside a feeder's ``elaborate``. The feeder drives `ready` (the next group's inputs
    are there) and reads the strobes.

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
        active = Signal(name="seq_active")
        index = Signal(range(steps), name="seq_index")
        number = Signal(range(passes), name="seq_pass")
        self.last_step = Signal(init=steps == 1, name="seq_last_step")
        self.last_pass = Signal(init=passes == 1, name="seq_last_pass")
        pass_done = Signal(name="seq_pass_done")
        # What a start depends on lies ready in registers: its strobe goes far.
        first_step, first_pass = Signal(init=1, name="seq_first_step"), Signal(init=1)
        free = Signal(init=1, name="seq_free")  # not active, or in the last cycle of a group
        ending = Signal(name="seq_ending")  # the next cycle is that
        m.d.comb += [
            self.done.eq(pass_done & self.last_pass),
            self.start.eq(self.ready & feed.bank_free & free),
        ]
        m.d.sync += free.eq((free & ~self.start) | ending)
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
            feed.restart.eq(first & first_pass),
            feed.first.eq(delayed(m, first, FEED_LATENCY, "first")),
            feed.last.eq(delayed(m, self.step & self.last_step, FEED_LATENCY, "last")),
        ]
