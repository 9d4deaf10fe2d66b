# amaranth: UnusedElaboratable=no
"""The device's end of the protocol, byte by byte, with stand-ins for the pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from lichen.boards.host.session import Frame, HaltedError, Session, identity
from lichen.boards.link import packet, protocol
from lichen.boards.link.device import Link
from lichen.boards.link.protocol import Kind
from lichen.boards.port.format import PortFormat, value_bytes
from lichen.boards.port.port import TransformPort

from .standin import Standin

DIGEST = bytes.fromhex("c0ffee42") * 8
TIMEOUT = 600
BYTE_CYCLES = 4
"""Cycles of a byte on the line, for tests' sake."""
PATIENCE = 40_000
NUMBER = 0x00C0FFEE


class Bench(Elaboratable):
    """A link and a stand-in."""

    def __init__(self, pipeline: Standin):
        self.pipeline = pipeline
        self.port = TransformPort(name="g_a", pipeline=pipeline, max_width=pipeline.max_width)
        self.link = Link(
            formats=[self.port.format],
            timeout=TIMEOUT,
            digest=DIGEST,
            oscillator_hz=25_000_000,
            line_hz=10,
            clock_hz=BYTE_CYCLES,
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.link, m.submodules.port = self.link, self.port
        wiring.connect(m, self.link.ports[0], self.port)
        return m


class Host:
    """The other end, in simulation: a session, and a line that a test may tamper with.

    ``to_device`` and ``to_host`` take the bytes of a packet with its delimiter and return those
    that arrive.
    """

    def __init__(self, bench: Any):
        self.bench = bench
        self.session = Session(NUMBER)
        self.to_device: Callable[[bytes], bytes] = lambda sent: sent
        self.to_host: Callable[[bytes], bytes] = lambda sent: sent
        self.heard: list[packet.Packet | packet.Damaged] = []
        self.cycle = 0
        self._waiting, self._said = bytearray(), bytearray()

    def run(self, testbench: Callable[[Any], Any]) -> None:
        sim = Simulator(self.bench)
        sim.add_clock(1e-6)
        sim.add_testbench(testbench)
        sim.run()

    async def step(self, ctx: Any) -> None:
        """The time of a byte each way."""
        link = self.bench.link
        sent = self.session.send()
        for part in sent.split(b"\0")[:-1]:
            self._waiting += self.to_device(part + b"\0")
        ctx.set(link.rx.valid, bool(self._waiting))
        if self._waiting:
            ctx.set(link.rx.payload, self._waiting.pop(0))
        ctx.set(link.tx.ready, 1)
        if ctx.get(link.tx.valid):
            self._said.append(ctx.get(link.tx.payload))
            if self._said[-1] == 0:
                said, self._said = self.to_host(bytes(self._said)), bytearray()
                self.heard += packet.Reader(self.session.number).feed(said)
                self.session.receive(said)
        await ctx.tick()
        ctx.set(link.rx.valid, 0)
        ctx.set(link.tx.ready, 0)
        await ctx.tick().repeat(BYTE_CYCLES - 1)
        self.cycle += BYTE_CYCLES

    async def until(self, ctx: Any, reached: Callable[[], Any]) -> None:
        end = self.cycle + PATIENCE
        while not reached():
            assert self.cycle < end, "it never came"
            await self.step(ctx)

    async def open(self, ctx: Any) -> None:
        self.session.heartbeat = self.bench.link.heartbeat
        self.session.begin()
        await self.until(ctx, lambda: self.session.open and self.session.states)

    async def pause(self, ctx: Any, cycles: int) -> None:
        end = self.cycle + cycles
        while self.cycle < end:
            await self.step(ctx)

    def inject(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        """Send a packet that the session knows nothing of."""
        self._waiting += packet.encode(kind, number, payload, self.session.number)

    def frame(self, pixels: np.ndarray, **change: int) -> Frame:
        height, width, _ = pixels.shape
        form: PortFormat = self.bench.port.format
        fields: dict[str, Any] = {
            "transform": 0,
            "width": width,
            "height": height,
            "payload": pixels.tobytes(),
            "expected": height * width * form.out_position,
        }
        return Frame(**(fields | change))

    def result(self) -> np.ndarray:
        pipeline = self.bench.pipeline
        kind = f"<i{value_bytes(pipeline.bits)}"
        values = np.frombuffer(bytes(self.session.output), kind).astype(int)
        return values.reshape(-1, pipeline.transform.out_channels)

    async def check(self, ctx: Any, pixels: np.ndarray, before: int = 0) -> None:
        """A frame goes through; ``before`` pixels went since the last reset."""
        self.session.submit(self.frame(pixels))
        await self.until(ctx, lambda: not self.session.busy)
        flat = pixels.reshape(-1, pixels.shape[2])
        np.testing.assert_array_equal(self.result(), self.bench.pipeline.golden(flat, before))


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"in_channels": 4, "in_lanes": 1, "out_channels": 1, "out_lanes": 1, "bits": 8},
        {"in_channels": 1, "in_lanes": 3, "out_channels": 6, "out_lanes": 4, "bits": 16},
    ],
    ids=["uneven lanes", "bytes", "few channels"],
)
def test_frames_go_through(shape):
    host = Host(Bench(Standin(**shape)))
    channels = host.bench.pipeline.transform.in_channels

    async def testbench(ctx):
        await host.open(ctx)
        await host.check(ctx, photo(2, 3, channels))
        await host.check(ctx, photo(3, 30, channels, seed=1), before=6)
        assert not ctx.get(host.bench.link.busy) and ctx.get(host.bench.link.open)
        assert host.session.tally.repeated_packets == host.session.tally.damaged == 0

    host.run(testbench)


def test_pages_say_what_the_bitstream_is_and_need_no_session():
    host = Host(Bench(Standin()))

    async def testbench(ctx):
        for page in (0, 1, 2, 7):
            host.session.ask(page)
            await host.until(ctx, lambda page=page: page in host.session.answers)
        assert not host.session.states, "a device without a session is silent"

    host.run(testbench)
    found = identity(host.session.answers)
    assert found.transforms == (host.bench.port.format,)
    assert (found.digest, found.input_slots, found.output_slots) == (DIGEST, 8, 8)
    assert (found.line_hz, found.heartbeat) == (10, host.bench.link.heartbeat)
    assert host.session.answers[7] == b""
    counters = protocol.COUNTERS.unpack(host.session.answers[1])
    assert set(counters.values()) == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 65}, "the frame does not suit its transform"),
        ({"width": 0}, "the frame does not suit its transform"),
        ({"height": 0}, "the frame does not suit its transform"),
        ({"expected": 0}, "the frame does not suit its transform"),
        ({"transform": 1}, "the frame does not suit its transform"),
        ({"height": 1}, "packets came in an order that makes no sense"),
    ],
    ids=["too wide", "no width", "no height", "nothing expected", "no transform", "too much"],
)
def test_a_bad_frame_halts_until_a_session_is_opened(change, message):
    host = Host(Bench(Standin()))

    async def testbench(ctx):
        await host.open(ctx)
        host.session.submit(host.frame(photo(2, 64), **change))
        with pytest.raises(HaltedError, match=message):
            await host.until(ctx, lambda: not host.session.busy)
        assert ctx.get(host.bench.link.failed)
        host.session = Session(NUMBER + 1)
        await host.open(ctx)
        assert not ctx.get(host.bench.link.failed)
        await host.check(ctx, photo(1, 2))

    host.run(testbench)


@pytest.mark.parametrize("kind", [Kind.INPUT, Kind.FRAME])
def test_packets_out_of_place_halt(kind):
    """Input without a frame, and a frame within a frame."""
    host = Host(Bench(Standin()))
    header = protocol.FRAME.pack(transform=0, width=9, height=9, expected=9)

    async def testbench(ctx):
        await host.open(ctx)
        host.inject(Kind.FRAME, 0, header) if kind == Kind.FRAME else None
        host.inject(kind, kind == Kind.FRAME, header)
        host.session._sequence.reached = 2
        with pytest.raises(HaltedError, match="an order that makes no sense"):
            await host.pause(ctx, 6000)

    host.run(testbench)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("deaf", "takes no input"), ("mute", "gives no output"), ("chatty", "more output than")],
)
def test_a_faulty_transform_is_named(fault, message):
    host = Host(Bench(Standin(fault=fault)))

    async def testbench(ctx):
        await host.open(ctx)
        host.session.submit(host.frame(photo(2, 5)))
        with pytest.raises(HaltedError, match=message):
            await host.pause(ctx, 12_000)

    host.run(testbench)


def test_a_host_that_is_late_is_no_error():
    """Neither missing input nor output that nobody acknowledges."""
    host = Host(Bench(Standin(out_channels=7, bits=16)))
    pixels = photo(3, 60)

    async def testbench(ctx):
        await host.open(ctx)
        host.to_device = lambda sent: sent if sent[1:2] not in b"DA" else b""
        host.session.submit(host.frame(pixels))
        await host.pause(ctx, 4 * TIMEOUT)
        host.to_device = lambda sent: sent if sent[1:2] != b"A" else b""
        await host.pause(ctx, 20 * TIMEOUT)
        assert ctx.get(host.bench.link.busy)
        numbers = {p.number for p in host.heard if isinstance(p, packet.Packet) and p.kind == "d"}
        assert numbers <= set(range(8))
        host.to_device = lambda sent: sent
        await host.until(ctx, lambda: not host.session.busy)
        flat = pixels.reshape(-1, 3)
        np.testing.assert_array_equal(host.result(), host.bench.pipeline.golden(flat))

    host.run(testbench)


def lose(which: int, kind: bytes, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A line that does something to the packet of a kind with that number, once."""
    left = [True]

    def line(sent: bytes) -> bytes:
        found = packet.unstuff(sent[:-1])
        if left[0] and found is not None and found[:1] == kind and found[1] == which:
            left[0] = False
            return change(sent)
        return sent

    return line


CHANGES = {
    "lost": lambda sent: b"",
    "twice": lambda sent: sent + sent,
    "cut": lambda sent: sent[:-3],
    "a bit": lambda sent: sent[:3] + bytes([sent[3] ^ 0x10 or 1]) + sent[4:],
    "a zero": lambda sent: sent[:5] + b"\0" + sent[5:],
}


@pytest.mark.parametrize(
    ("kind", "which", "change"),
    [
        *((b"D", 1, change) for change in CHANGES),
        *((b"d", 1, change) for change in CHANGES),
        *((kind, number, "lost") for kind, number in ((b"F", 0), (b"D", 2), (b"d", 3), (b"f", 4))),
    ],
)
def test_what_the_line_does_to_a_packet_in_sequence_is_mended(kind, which, change):
    host = Host(Bench(Standin(bits=16)))
    side = "to_device" if kind.isupper() else "to_host"

    async def testbench(ctx):
        await host.open(ctx)
        setattr(host, side, lose(which, kind, CHANGES[change]))
        await host.check(ctx, photo(2, 40))
        if kind.islower():  # sent again from there on, not what had been acknowledged
            packets = [p for p in host.heard if isinstance(p, packet.Packet)]
            packets = [p for p in packets if p.kind in (Kind.OUTPUT, Kind.DONE)]
            assert [p.number for p in packets if p.number < which] == list(range(which))

    host.run(testbench)


def test_an_opening_that_comes_twice_does_no_harm():
    host = Host(Bench(Standin()))

    async def testbench(ctx):
        await host.open(ctx)
        host.session.submit(host.frame(photo(2, 60)))
        await host.until(ctx, lambda: host.session.arrived)
        host.inject(Kind.OPEN, 0, protocol.SESSION.pack(session=NUMBER))
        await host.until(ctx, lambda: not host.session.busy)
        golden = host.bench.pipeline.golden(photo(2, 60).reshape(-1, 3))
        np.testing.assert_array_equal(host.result(), golden)

    host.run(testbench)


@pytest.mark.parametrize(
    ("fault", "cycles", "lanes"), [("deaf", 1400, 7), (None, 3000, 7), (None, 3000, 2)]
)
def test_a_new_session_in_mid_frame_leaves_nothing_of_the_old(fault, cycles, lanes):
    """Input before the pipeline, half a value in it, and output on its way to the line.

    The deaf one has its first packet by then, and the watchdog has not barked yet. Two lanes are
    held back between the beats of a pixel.
    """
    host = Host(Bench(Standin(fault=fault, out_channels=7, out_lanes=lanes, bits=16)))

    async def testbench(ctx):
        await host.open(ctx)
        host.session.submit(host.frame(photo(5, 50, seed=3)))
        await host.pause(ctx, cycles)
        host._waiting = host._waiting[:5]
        host.session = Session(NUMBER + 1)
        await host.open(ctx)
        await host.check(ctx, photo(1, 2))

    host.run(testbench)


def test_the_old_sessions_packets_are_damaged_ones_to_the_new():
    host = Host(Bench(Standin()))

    async def testbench(ctx):
        await host.open(ctx)
        old = host.session
        host.session = Session(NUMBER + 1)
        await host.open(ctx)
        for number in range(3):
            host._waiting += packet.encode(Kind.INPUT, number, b"abc", old.number)
        await host.check(ctx, photo(1, 2))
        host.session.ask(protocol.PAGE_COUNTERS)
        await host.until(ctx, lambda: host.session.answers)
        found = protocol.COUNTERS.unpack(host.session.answers[protocol.PAGE_COUNTERS])
        assert found["damaged"] == 3 and found["session"] == NUMBER + 1
        assert found["frames"] == 1 and found["cycles"] == host.session.cycles > 0

    host.run(testbench)


def test_a_closed_session_is_silent():
    host = Host(Bench(Standin()))

    async def testbench(ctx):
        await host.open(ctx)
        host.session.end()
        await host.pause(ctx, 1000)
        heard = len(host.heard)
        await host.pause(ctx, 3 * host.bench.link.heartbeat)
        assert len(host.heard) == heard and not ctx.get(host.bench.link.open)

    host.run(testbench)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"formats": []}, "1 to 4 transforms, not 0"),
        ({"digest": b"ab"}, "digest must be 32 bytes, not b'ab'"),
        ({"timeout": 0}, "timeout must be a positive integer, not 0"),
        ({"input_slots": 3}, "count must be a power of two from 2, not 3"),
    ],
)
def test_link_says_what_is_wrong(change, message):
    form = PortFormat(
        name="g_a", max_width=64, in_channels=3, in_bytes=1, out_channels=5, out_bytes=1
    )
    good = {
        "formats": [form],
        "timeout": 100,
        "digest": DIGEST,
        "oscillator_hz": 25_000_000,
        "line_hz": 1_000_000,
        "clock_hz": 5e7,
    }
    with pytest.raises((TypeError, ValueError), match=message):
        Link(**(good | change))
