# amaranth: UnusedElaboratable=no
"""Rules that hold for all traffic, proved by yosys' SAT solver.

Queues keep their order, lose nothing, take no more than they have room for, and what they offer
stays until it is taken. By induction where invariants say all that a state must be (skid buffer,
credits), else for all traffic of so many first cycles.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, Cat, Fragment, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from lichen.boards.build.tools import YOSYS
from lichen.hw.device.memory import CreditFifo
from lichen.hw.engine.gate import FrameGate
from lichen.hw.engine.regroup import Regroup
from lichen.hw.engine.skid import Skid

pytestmark = pytest.mark.slow


def prove(proof: wiring.Component, folder: Path, *, steps: int, induction: bool = True) -> str:
    """What yosys says: nothing where all assertions hold, by induction over at most so many cycles,
    or in so many first ones."""
    (folder / "proof.il").write_text(rtlil.convert(proof, name="proof", emit_src=False))
    how = "-tempinduct-def" if induction else "-tempinduct-baseonly -tempinduct"
    script = (
        "read_rtlil proof.il; hierarchy -top proof; proc; flatten; memory_map; async2sync; "
        "chformal -lower; opt_clean; sat -verify -prove-asserts -set-assumes -enable_undef "
        "-set-init-def -set-def-inputs "
        f"-seq 1 {how} -maxsteps {steps} -show-ports proof"
    )
    done = subprocess.run(
        [YOSYS.find(), "-Q", "-T", "-p", script], cwd=folder, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-4000:]


def inside(fragment: Fragment) -> dict[str, Signal]:
    """What an elaborated component drives within itself, by name, for invariants."""
    statements = fragment.statements
    found = [s for part in statements.values() for st in part for s in st._lhs_signals()]
    return {signal.name: signal for signal in found}


class Before(wiring.Component):
    """Base of proofs: values of the cycle before, and whether there was one."""

    def past(self, m: Module, value: Value, name: str) -> Signal:
        signal = Signal(len(value), name=f"{name}_before")
        m.d.sync += signal.eq(value)
        return signal

    def rules(self, m: Module, payload: Value, valid: Value, ready: Value, name: str) -> Value:
        """What holds of a stream: a beat offered and not taken is still there, the same."""
        waits = self.past(m, valid & ~ready, f"{name}_waits")
        same = self.past(m, payload, name) == payload
        return ~waits | (valid & same)


class QueueProof(Before):
    """A queue keeps order and number: any one item is followed from entrance to exit."""

    def __init__(self, dut: Skid, places: int, width: int):
        self.dut, self.places, self.width = dut, places, width
        super().__init__({"payload": In(width), "valid": In(1), "ready": In(1), "pick": In(1)})

    def inner(self, platform: object) -> Fragment:
        """The queue, elaborated."""
        return Fragment.get(self.dut, platform)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        dut = self.dut
        m.submodules.dut = self.fragment = self.inner(platform)
        m.d.comb += [
            dut.i.payload.eq(self.payload),
            dut.i.valid.eq(self.valid),
            dut.o.ready.eq(self.ready),
            Assume(self.rules(m, self.payload, self.valid, dut.i.ready, "i")),
            Assert(self.rules(m, dut.o.payload, dut.o.valid, self.ready, "o")),
        ]
        enters, leaves = dut.i.valid & dut.i.ready, dut.o.valid & dut.o.ready
        self.count, self.ahead = Signal(range(self.places + 2)), Signal(range(self.places + 1))
        self.following, self.value = Signal(), Signal(self.width)
        count, ahead, following, value = self.count, self.ahead, self.following, self.value
        m.d.sync += count.eq(count + enters - leaves)
        with m.If(~following & enters & self.pick):
            m.d.sync += [following.eq(1), value.eq(self.payload), ahead.eq(count - leaves)]
        with m.Elif(following & leaves):
            m.d.sync += [following.eq(ahead != 0), ahead.eq(ahead - 1)]
        m.d.comb += [
            Assert(count <= self.places),
            Assert(dut.o.valid == (count != 0)),
            Assert(dut.empty == (count == 0)),
            Assert(~following | (ahead < count)),
            Assert(~(following & (ahead == 0)) | (dut.o.payload == value)),
        ]
        return m


class SkidProof(QueueProof):
    """A skid buffer, with what its registers must hold; perhaps with one that is lost."""

    def __init__(self, fault: str = ""):
        super().__init__(Skid(shape=2), 2, 2)
        self.fault = fault

    def inner(self, platform: object) -> Fragment:
        """The buffer; without what changes the faulty register."""
        fragment = Fragment.get(self.dut, platform)
        statements = fragment.statements["sync"]
        names = [{signal.name for signal in s._lhs_signals()} for s in statements]
        kept = [s for s, n in zip(statements, names, strict=True) if self.fault not in n]
        fragment.statements["sync"] = type(statements)(kept)
        return fragment

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        if self.fault:
            return m
        registers = inside(self.fragment)
        waiting, back = registers["waiting"], registers["back"]
        m.d.comb += [
            Assert(waiting == (self.count == 2)),
            Assert(~(self.following & (self.ahead == 1)) | (back == self.value)),
        ]
        return m


class CreditProof(Before):
    """The queue behind a pipeline that cannot stop: who takes a credit finds room later."""

    def __init__(self) -> None:
        self.dut = CreditFifo(shape=1, depth=16)
        super().__init__({"take": In(1), "push": In(1), "payload": In(1), "ready": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        dut = self.dut
        m.submodules.dut = fragment = Fragment.get(dut, platform)
        flying, level = Signal(range(17)), Signal(range(17))
        m.d.comb += [
            Assume(~self.take | dut.credit),
            Assume(~self.push | (flying != 0)),
            dut.take.eq(self.take),
            dut.push.eq(self.push),
            dut.i.eq(self.payload),
            dut.o.ready.eq(self.ready),
        ]
        leaves = dut.o.valid & self.ready
        m.d.sync += [
            flying.eq(flying + self.take - self.push),
            level.eq(level + self.push - leaves),
        ]
        registers = inside(fragment)
        m.d.comb += [
            Assert(level + flying + registers["credits"] == 16),
            Assert(registers["level"] == level),
            Assert(registers["valid"] == (level != 0)),
            Assert(registers["credit"] == (registers["credits"] != 0)),
            Assert((registers["pushed"] - registers["popped"])[:4] == level[:4]),
            Assert(level + flying <= 16),
            Assert(dut.o.valid == (level != 0)),
            Assert(dut.empty == (level + flying == 0)),
        ]
        return m


class RegroupProof(Before):
    """Any one value that enters leaves at its channel's place, after as many pixels."""

    def __init__(self, dut: Regroup):
        self.dut = dut
        super().__init__(
            {"payload": In(2 * dut.i_lanes), "valid": In(1), "ready": In(1), "pick": In(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = self.dut
        m.d.comb += [
            dut.i.payload.as_value().eq(self.payload),
            dut.i.valid.eq(self.valid),
            dut.o.ready.eq(self.ready),
            Assume(self.rules(m, self.payload, self.valid, dut.i.ready, "i")),
            Assert(self.rules(m, dut.o.payload.as_value(), dut.o.valid, self.ready, "o")),
        ]
        entered, left = Signal(8), Signal(8)  # beats
        m.d.sync += [
            entered.eq(entered + (dut.i.valid & dut.i.ready)),
            left.eq(left + (dut.o.valid & dut.o.ready)),
        ]
        following, value, target, lane = Signal(), Signal(2), Signal(8), Signal(4)
        picks = self.pick & ~following & dut.i.valid & dut.i.ready
        pixel, beat = entered // dut.i_beats, entered % dut.i_beats
        channel = beat * dut.i_lanes  # its first lane's; others go with it
        with m.If(picks):
            m.d.sync += [
                following.eq(1),
                value.eq(self.payload[:2]),
                target.eq(pixel * dut.o_beats + channel // dut.o_lanes),
                lane.eq(channel % dut.o_lanes),
            ]
        found = dut.o.payload.as_value().word_select(lane, 2)
        now = following & dut.o.valid & (left == target)
        with m.If(now & self.ready):
            m.d.sync += following.eq(0)
        m.d.comb += [Assert(~now | (found == value)), Assert(~following | (left <= target))]
        return m


class GateProof(Before):
    """What a frame gate offers it goes on offering, whatever sizes come."""

    def __init__(self) -> None:
        self.dut = FrameGate(shape=2, beats=2, settle=2)
        super().__init__(
            {"payload": In(2), "valid": In(1), "ready": In(1), "empty": In(1)}
            | {"width": In(16), "height": In(16)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.dut = dut = self.dut
        m.d.comb += [
            dut.i.payload.eq(self.payload),
            dut.i.valid.eq(self.valid),
            dut.o.ready.eq(self.ready),
            dut.empty.eq(self.empty),
            dut.width.eq(self.width),
            dut.height.eq(self.height),
            # the size is a part of the first beat's payload
            Assume(
                self.rules(
                    m, Cat(self.payload, self.width, self.height), self.valid, dut.i.ready, "i"
                )
            ),
            Assert(self.rules(m, dut.o.payload, dut.o.valid, self.ready, "o")),
            Assert((dut.o.valid & self.ready) == (self.valid & dut.i.ready)),
        ]
        return m


def test_a_skid_buffer_keeps_order_and_loses_nothing(tmp_path: Path) -> None:
    assert prove(SkidProof(), tmp_path, steps=4) == ""


@pytest.mark.parametrize("fault", ["back", "waiting"])
def test_a_broken_skid_buffer_is_seen(tmp_path: Path, fault: str) -> None:
    assert "proof did fail" in prove(SkidProof(fault), tmp_path, steps=8)


def test_credits_are_never_more_than_places(tmp_path: Path) -> None:
    assert prove(CreditProof(), tmp_path, steps=4) == ""


@pytest.mark.parametrize(("channels", "i_lanes", "o_lanes"), [(3, 1, 2), (5, 4, 1), (4, 2, 4)])
def test_regrouping_keeps_every_value_in_its_place(
    tmp_path: Path, channels: int, i_lanes: int, o_lanes: int
) -> None:
    dut = Regroup(shape=2, channels=channels, i_lanes=i_lanes, o_lanes=o_lanes)
    assert prove(RegroupProof(dut), tmp_path, steps=14, induction=False) == ""


def test_a_gate_keeps_the_rules_of_streams(tmp_path: Path) -> None:
    assert prove(GateProof(), tmp_path, steps=6) == ""
