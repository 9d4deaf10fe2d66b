# amaranth: UnusedElaboratable=no
"""The simulation bench, on components small enough to see through."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Array, Const, Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen import processes
from lichen.errors import UserError
from lichen.sim import runner, verilator
from lichen.sim.beats import Lanes, Recording
from lichen.sim.harness import compact_memories
from lichen.sim.report import STARTED
from lichen.sim.runner import Simulator, simulate

LANES, BITS, STEPS = 3, 16, 2
CHANNELS = 4


class Chain(wiring.Component):
    """Two steps, each y = 1 - 3 x in 16 bits, one register each; 8 bits in.

    ``fault`` breaks it: ``value`` (the second step adds 1 to lane 1 of beat 8), ``swallow``
    (the second step takes beats but gives none from beat 9 on), ``refuse`` (the first step takes
    none from beat 9 on), ``restless`` (the output changes while it waits), ``chatty`` (there is
    always a beat to be had).
    """

    latency = STEPS

    def __init__(self, fault: str | None = None):
        self.fault = fault
        self.taps = ["first", "second"]
        inner = data.ArrayLayout(signed(BITS), LANES)
        tap = wiring.Signature({"payload": Out(inner), "valid": Out(1), "ready": Out(1)})
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(unsigned(8), LANES))),
                "o": Out(stream.Signature(inner)),
                "width": In(16),
                "height": In(16),
                "tap_second": Out(tap),
                "tap_first": Out(tap),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        payload, valid, ready = self.i.payload, self.i.valid, self.i.ready
        for k, tap in enumerate((self.tap_first, self.tap_second)):
            count = Signal(16, name=f"count{k}")
            held = Signal(data.ArrayLayout(signed(BITS), LANES), name=f"held{k}")
            full = Signal(name=f"full{k}")
            leaves = Signal(name=f"leaves{k}")
            late = count >= 9
            m.d.comb += ready.eq(~full | leaves)
            if self.fault == "refuse" and k == 0:
                m.d.comb += ready.eq((~full | leaves) & ~late)
            with m.If(leaves):
                m.d.sync += full.eq(0)
            with m.If(valid & ready):
                m.d.sync += [count.eq(count + 1), full.eq(1)]
                if self.fault == "swallow" and k == 1:
                    m.d.sync += full.eq(~late)
                for lane in range(LANES):
                    m.d.sync += held[lane].eq(1 - 3 * payload[lane])
                if self.fault == "value" and k == 1:
                    m.d.sync += held[1].eq(1 - 3 * payload[1] + (count == 8))
            payload, valid, ready = held, full, Signal(name=f"ready{k}")
            m.d.comb += [leaves.eq(full & ready)]
            m.d.comb += [tap.payload.eq(payload), tap.valid.eq(valid), tap.ready.eq(ready)]
        m.d.comb += [ready.eq(self.o.ready), self.o.valid.eq(valid)]
        if self.fault == "chatty":
            m.d.comb += self.o.valid.eq(1)
        beats = Signal(4)
        m.d.sync += beats.eq(beats + 1)
        for lane in range(LANES):
            flip = beats[0] if self.fault == "restless" else 0
            m.d.comb += self.o.payload[lane].eq(payload[lane] ^ flip)
        return m


def step(x: np.ndarray) -> np.ndarray:
    return 1 - 3 * x


def frame(seed: int, height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, CHANNELS))


@pytest.fixture(scope="module")
def icarus() -> Simulator:
    return Simulator(Chain(), simulator="icarus")


@pytest.fixture(scope="module")
def verilated() -> Simulator:
    return Simulator(Chain(), simulator="verilator", taps=True)


def beats(tensor: np.ndarray) -> int:
    return tensor.shape[0] * tensor.shape[1] * -(-CHANNELS // LANES)


def test_frames_in_a_row(icarus: Simulator) -> None:
    """Two of one size back to back, then one of another size."""
    frames = [frame(0), frame(1), frame(2, 3, 2)]
    result = icarus.run(frames, [step(step(f)) for f in frames])
    assert result.ok, result.faults
    assert (result.mismatches, result.first_mismatch) == (0, None)
    assert result.compared == sum(f.size for f in frames)
    assert result.frame_cycles == [beats(f) + Chain.latency for f in frames]
    assert result.cycles == beats(frames[0]) + Chain.latency
    for f, output in zip(frames, result.outputs, strict=True):
        np.testing.assert_array_equal(output, step(step(f)))


def test_drained_frames_do_not_overlap(icarus: Simulator) -> None:
    frames = [frame(0), frame(1)]
    tight = icarus.run(frames, [step(step(f)) for f in frames])
    loose = icarus.run(frames, [step(step(f)) for f in frames], drain=True)
    assert loose.ok and loose.frame_cycles == tight.frame_cycles
    assert loose.streams[-1]["last_cycle"] > tight.streams[-1]["last_cycle"]


def test_a_shape_collects_without_comparing(icarus: Simulator) -> None:
    image = frame(3)
    result = icarus.run([image], [(5, 7, CHANNELS)])
    assert result.ok and result.compared == 0
    np.testing.assert_array_equal(result.outputs[0], step(step(image)))


@pytest.mark.parametrize("fixture", ["icarus", "verilated"])
def test_wrong_value_is_located(fixture: str, request: pytest.FixtureRequest) -> None:
    built: Simulator = request.getfixturevalue(fixture)
    frames = [frame(0), frame(1)]
    expected = [step(step(f)) for f in frames]
    expected[1][3, 4, 3] += 5
    expected[1][4, 0, 0] += 1
    taps = {"first": [step(f) for f in frames], "second": [step(step(f)) for f in frames]}
    result = built.run(frames, expected, expected_taps=taps)
    assert not result.ok and result.mismatches == 2
    right = int(step(step(frames[1]))[3, 4, 3])
    assert result.first_mismatch == {
        "stage": "output",
        "frame": 1,
        "y": 3,
        "x": 4,
        "channel": 3,
        "expected": right + 5,
        "actual": right,
    }
    assert "row 3, column 4, channel 3" in result.faults[0]


class Lookup(wiring.Component):
    """y = x ^ 3, by a table and a table of tables that are looked up at registers.

    The registers change with x = 255 only.
    """

    def __init__(self) -> None:
        lanes = data.ArrayLayout(unsigned(8), LANES)
        ports = {"i": In(stream.Signature(lanes)), "o": Out(stream.Signature(lanes))}
        super().__init__({**ports, "width": In(16), "height": In(16)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        row, column, found = Signal(2), Signal(2), Signal(8)
        with m.If(self.i.valid & (self.i.payload[0] == 255)):
            m.d.sync += [row.eq(row + 1), column.eq(column + row)]
        table = Array(Const(1) for _ in range(3))
        tables = Array(Array(Const(2) for _ in range(3))[column + k] for k in range(3))
        m.d.comb += [
            found.eq(table[row] ^ tables[row]),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            *(self.o.payload[k].eq(self.i.payload[k] ^ found) for k in range(LANES)),
        ]
        return m


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail rather than wait for what may never end."""

    def fail(number: int, where: object) -> None:
        pytest.fail(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("black", [False, True])
def test_blocks_run_once_at_time_zero(black: bool) -> None:
    """Whether their inputs ever change or not, and time goes on."""
    image = frame(0) // 2 * (not black)
    with at_most(60):
        result = simulate(Lookup(), [image], [image ^ 3], simulator="icarus")
    assert result.ok, result.faults


@pytest.mark.parametrize("fixture", ["icarus", "verilated"])
@pytest.mark.parametrize(("idle", "backpressure", "hold"), [(0.5, 0.6, 1), (0.0, 0.7, 16)])
def test_pauses(
    fixture: str, idle: float, backpressure: float, hold: int, request: pytest.FixtureRequest
) -> None:
    built: Simulator = request.getfixturevalue(fixture)
    frames = [frame(0), frame(1)]
    result = built.run(
        frames,
        [step(step(f)) for f in frames],
        expected_taps={
            "first": [step(f) for f in frames],
            "second": [step(step(f)) for f in frames],
        },
        idle=idle,
        backpressure=backpressure,
        hold=hold,
        seed=7,
    )
    assert result.ok, result.faults
    assert result.cycles is None
    assert result.frame_cycles[0] > 1.5 * (beats(frames[0]) + Chain.latency)


def test_verilator_counts_like_icarus(verilated: Simulator) -> None:
    frames = [frame(0), frame(2, 3, 2)]
    result = verilated.run(
        frames,
        [step(step(f)) for f in frames],
        expected_taps={
            "first": [step(f) for f in frames],
            "second": [step(step(f)) for f in frames],
        },
    )
    assert result.ok, result.faults
    assert result.frame_cycles == [beats(f) + Chain.latency for f in frames]
    assert [s["name"] for s in result.streams] == ["first", "second", "output"]
    assert [s["mismatches"] for s in result.streams] == [0, 0, 0]
    again = Simulator(Chain(), simulator="verilator", taps=True)
    assert again._folder == verilated._folder


def test_first_divergent_stage_is_named() -> None:
    image = frame(0)
    result = simulate(
        Chain("value"),
        [image],
        [step(step(image))],
        expected_taps={"first": [step(image)], "second": [step(step(image))]},
        simulator="icarus",
    )
    assert result.first_mismatch is not None
    # Beat 8 is the first of two of pixel 4.
    where = {k: result.first_mismatch[k] for k in ("stage", "y", "x", "channel")}
    assert where == {"stage": "second", "y": 0, "x": 4, "channel": 1}


@pytest.mark.parametrize(
    ("fault", "stage", "words"),
    [
        ("refuse", "first", "input i is offered and not taken after 9 of 70 beats"),
        ("swallow", "second", "second has nothing to offer after 9 of 70 beats"),
    ],
)
def test_deadlock_names_the_stream(fault: str, stage: str, words: str) -> None:
    image = frame(0)
    result = simulate(
        Chain(fault),
        [image],
        [step(step(image))],
        expected_taps={"first": [step(image)], "second": [step(step(image))]},
        simulator="icarus",
        watchdog=200,
    )
    assert result.stuck_stage == stage
    assert result.deadlock is not None and words in result.deadlock
    assert result.deadlock in result.faults
    assert result.cycles is None and not result.outputs
    assert result.compared == 4 * CHANNELS + LANES


def test_deadlock_without_taps() -> None:
    image = frame(0)
    result = simulate(
        Chain("refuse"), [image], [step(step(image))], simulator="icarus", watchdog=200
    )
    assert result.deadlock is not None
    assert "nothing moved for 200 cycles; input i is offered and not taken" in result.deadlock


def test_changing_a_waiting_beat_is_a_fault() -> None:
    image = frame(0)
    result = simulate(
        Chain("restless"), [image], [(5, 7, CHANNELS)], simulator="icarus", backpressure=0.5
    )
    assert any("withdrew or changed a beat" in fault for fault in result.faults)


def test_beats_too_many_are_a_fault() -> None:
    image = frame(0)
    result = simulate(Chain("chatty"), [image], [(5, 7, CHANNELS)], simulator="icarus")
    assert any("beats too many" in fault for fault in result.faults)


class Talker(wiring.Component):
    """Passes 8-bit beats on, and talks more than it should.

    Parameters
    ----------
    after : int
        It takes no more than so many beats.
    pause : int
        Cycles from the last of them to the first beat too many, and between two of these.
    extra : int
        Beats too many; 0 for no end of them.
    predicts : int or None
        What it says of its cycles, if anything.
    """

    def __init__(self, *, after: int, pause: int, extra: int, predicts: int | None = None):
        self.after, self.pause, self.extra = after, pause, extra
        if predicts is not None:
            self.predicted_cycles = lambda height, width: predicts
        lane = stream.Signature(data.ArrayLayout(unsigned(8), 1))
        super().__init__({"i": In(lane), "o": Out(lane)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        taken, waited, given = Signal(16), Signal(16), Signal(16)
        open_ = taken != self.after
        m.d.comb += self.o.payload.eq(self.i.payload)
        with m.If(open_):
            m.d.comb += [self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready)]
            m.d.sync += taken.eq(taken + (self.i.valid & self.o.ready))
        with m.Elif(waited != self.pause):
            m.d.sync += waited.eq(waited + 1)
        with m.Else():
            m.d.comb += self.o.valid.eq((given != self.extra) | (self.extra == 0))
            with m.If(self.o.valid & self.o.ready):
                m.d.sync += [waited.eq(0), given.eq(given + 1)]
        return m


FEW = np.arange(20).reshape(4, 5, 1)


@pytest.mark.parametrize(
    ("pause", "predicts", "backpressure"),
    [(70, None, 0.5), (1000, None, 0), (1000, 20, 0.5), (5000, 4900, 0), (8000, 9000, 0.5)],
)
def test_a_late_beat_is_seen(pause: int, predicts: int | None, backpressure: float) -> None:
    """As late as the run is long, or should have been."""
    result = simulate(
        Talker(after=20, pause=pause, extra=1, predicts=predicts),
        [FEW],
        [FEW],
        simulator="icarus",
        backpressure=backpressure,
    )
    assert result.mismatches == 0 and result.deadlock is None and result.endless is None
    (fault,) = result.faults
    assert fault.startswith("output gave 1 beats too many, the last at cycle ")


@pytest.mark.parametrize(
    ("after", "pause", "predicts", "simulator"),
    [
        (9, 0, None, "icarus"),
        (9, 15, 20, "icarus"),
        (9, 15, None, "verilator"),
        (20, 0, 20, "icarus"),
        (20, 0, None, "icarus"),
    ],
)
def test_what_never_stops_talking_is_ended(
    after: int, pause: int, predicts: int | None, simulator: str
) -> None:
    """With beats of its own instead of what it should take, or on top of that."""
    result = simulate(
        Talker(after=after, pause=pause, extra=0, predicts=predicts),
        [FEW],
        [FEW],
        simulator=simulator,
        watchdog=1000,
    )
    assert not result.ok and result.deadlock is None
    many = result.streams[-1]["beats"] - FEW.size
    assert many > 0
    assert any(f.startswith(f"output gave {many} beats too many") for f in result.faults)
    assert (result.endless is None) == (after == 20)
    if result.endless is not None:
        assert result.stuck_stage == "output" and result.endless == result.faults[0]
        assert "input i is offered and not taken after 9 of 20 beats" in result.endless


def test_slow_talk_ends_by_what_was_predicted() -> None:
    talker = Talker(after=9, pause=900, extra=0, predicts=20)
    result = simulate(talker, [FEW], [FEW], simulator="icarus", watchdog=1000)
    assert 1000 < result.clocks < 1100
    assert result.endless is not None
    assert result.endless.startswith(f"no end: still moving after {result.clocks} cycles; ")


@pytest.mark.parametrize(
    ("simulator", "tool", "package"),
    [("icarus", "iverilog", "iverilog"), ("verilator", "g++", "g++")],
)
def test_missing_tool(
    simulator: str, tool: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    verilator.compiler_version.cache_clear()
    verilator.icarus_version.cache_clear()
    with pytest.raises(
        UserError, match=rf"^{tool.replace('+', '[+]')} is not installed.*{package}"
    ):
        simulate(Chain(), [frame(0)], [step(step(frame(0)))], simulator=simulator)


def test_values_must_fit_the_stream(icarus: Simulator) -> None:
    with pytest.raises(ValueError, match=r"must lie in 0 \.\. 255"):
        icarus.run([frame(0) + 1000], [step(step(frame(0)))])


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12, 16, 17, 33])
@pytest.mark.parametrize("signed_", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_beats_round_trip(bits: int, signed_: bool, count: int, tmp_path: Path) -> None:
    """Through a file as the bench writes it."""
    rng = np.random.default_rng(bits)
    lanes = Lanes(count=count, bits=bits, signed=signed_)
    lo = -(1 << (bits - 1)) if signed_ else 0
    tensor = rng.integers(lo, lo + (1 << bits), (3, 4, 5))
    packed = lanes.pack(tensor)
    total = lanes.beats((3, 4, 5))
    assert len(packed) == total * lanes.byte_width
    line = lanes.line * lanes.byte_width
    padded = packed + bytes(-len(packed) % line)
    text = "".join(padded[k : k + line].hex() + "\n" for k in range(0, len(padded), line))
    (tmp_path / "o.hex").write_text(text)
    recording = Recording(tmp_path / "o.hex", lanes, total)
    np.testing.assert_array_equal(recording.tensor(0, (3, 4, 5)), tensor)
    assert recording.compare([tensor]).mismatches == 0


def test_unknown_bits_are_mismatches(tmp_path: Path) -> None:
    lanes = Lanes(count=64, bits=8, signed=False)
    (tmp_path / "o.hex").write_text("0" * 123 + "X" + "00xx\n")
    found = Recording(tmp_path / "o.hex", lanes, 1).compare([np.zeros((1, 1, 64), int)])
    assert found.mismatches == 2
    assert found.first is not None and found.first.channel == 0 and found.first.actual is None


def test_memories_move_to_files() -> None:
    words = "".join(f"    mem[{k}] = 8'h{k:02x};\n" for k in range(20))
    zeros = "".join(f"    \\m$1 [{k}] = 32'd0;\n" for k in range(20))
    odd = "".join(f"    odd[{k}] = 8'h{k:02x};\n" for k in range(1, 20))
    text = "".join(f"  initial begin\n{body}  end\n" for body in (words, zeros, odd))
    design, files = compact_memories("module m;\n" + text + "endmodule\n")
    assert files == {"0.hex": "".join(f"{k:02x}\n" for k in range(20))}
    assert '$readmemh("memories/0.hex", mem);' in design
    assert "< 20;" in design and "mem[1]" not in design and "[3] = 32'd0" not in design
    assert odd in design


def test_first_channel_lies_in_the_low_bits() -> None:
    lanes = Lanes(count=2, bits=4, signed=False)
    assert lanes.pack(np.array([[[1, 2]]])) == b"\x21"


def hanging(tmp_path: Path, *, started: bool) -> Simulator:
    """A simulator whose program never ends, past time zero or before."""
    program = tmp_path / "simulator"
    mark = f"Path({STARTED!r}).touch()" if started else "pass"
    program.write_text(
        f"#!{sys.executable}\nimport time\nfrom pathlib import Path\n"
        f"Path('pid').write_text(str(__import__('os').getpid()))\n{mark}\ntime.sleep(600)\n"
    )
    program.chmod(0o755)
    built = object.__new__(Simulator)
    built.simulator, built._folder = "verilator", tmp_path
    return built


@pytest.mark.parametrize(
    ("started", "message"),
    [
        (False, r"the verilator simulation is still at time zero after 1 s and was ended"),
        (True, r"has not done its 100 cycles in 1 s and was ended: its time stands still"),
    ],
)
def test_a_simulator_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool, message: str
) -> None:
    monkeypatch.setattr(runner, "START_SECONDS", 0.6)
    monkeypatch.setitem(runner.SLOWEST, "verilator", 1000)
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(RuntimeError, match=message):
        hanging(tmp_path, started=started)._execute(folder, [], 100)
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


@pytest.mark.parametrize("fixture", ["icarus", "verilated"])
def test_a_simulator_says_that_its_time_has_passed_zero(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a bound by the clock on the wall waits for."""
    seen, intact = [], processes.run

    def run(command: list[str], *, cwd: Path, **options: Any) -> processes.Finished:
        done = intact(command, cwd=cwd, **options)
        seen.append((cwd / STARTED).exists())
        return done

    built: Simulator = request.getfixturevalue(fixture)
    monkeypatch.setattr(processes, "run", run)
    once = step(frame(0))
    taps = {"first": [once], "second": [step(once)]} if built.taps else None
    assert built.run([frame(0)], [step(once)], expected_taps=taps).ok
    assert seen == [True]
