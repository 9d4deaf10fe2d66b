# amaranth: UnusedElaboratable=no
"""The UART top, driven through its serial line with a stand-in for the pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator

from lichen.boards.link import protocol
from lichen.boards.link.device import Link
from lichen.boards.link.protocol import Error, State, Stuck
from lichen.boards.port.format import PortFormat, value_bytes
from lichen.boards.port.port import TransformPort
from lichen.boards.top import UARTTop

from .standin import Standin

DIGEST = bytes.fromhex("c0ffee42") + bytes(28)
CLOCK_HZ = 8e6
BAUD = 1_000_000
SYMBOL = 1 / BAUD
TIMEOUT = 1500


class Host:
    """The other end of the line, in simulation: sends bytes and breaks, collects packets."""

    def __init__(self, pipeline: Standin):
        self.pipeline = pipeline
        self.dut = UARTTop(
            ports=[TransformPort(name="g_a", pipeline=pipeline, max_width=pipeline.max_width)],
            clock_hz=CLOCK_HZ,
            baud=BAUD,
            digest=DIGEST,
            timeout=TIMEOUT,
        )
        self.packets: list[tuple[int, bytes]] = []
        self.reader = protocol.PacketReader()

    def run(self, testbench) -> None:
        sim = Simulator(self.dut)
        sim.add_clock(1 / CLOCK_HZ)
        sim.add_testbench(self._listen, background=True)
        sim.add_testbench(testbench)
        sim.run()

    async def _listen(self, ctx) -> None:
        while True:
            if ctx.get(self.dut.tx):
                await ctx.negedge(self.dut.tx)
            await ctx.delay(SYMBOL / 2)
            value = 0
            for i in range(8):
                await ctx.delay(SYMBOL)
                value |= ctx.get(self.dut.tx) << i
            await ctx.delay(SYMBOL)
            assert ctx.get(self.dut.tx), "no stop bit"
            self.packets += self.reader.feed(bytes([value]))

    async def send(self, ctx, payload: bytes) -> None:
        for byte in payload:
            for bit in [0, *((byte >> i) & 1 for i in range(8)), 1]:
                ctx.set(self.dut.rx, bit)
                await ctx.delay(SYMBOL)

    async def send_break(self, ctx) -> None:
        ctx.set(self.dut.rx, 0)
        await ctx.delay(20 * SYMBOL)
        ctx.set(self.dut.rx, 1)
        await ctx.delay(2 * SYMBOL)

    async def status(self, ctx, symbols: int = 2500) -> protocol.Status:
        """Wait for the next status packet."""
        seen = len([p for p in self.packets if p[0] == protocol.KIND_STATUS])
        for _ in range(symbols):
            await ctx.delay(SYMBOL)
            found = [p for p in self.packets if p[0] == protocol.KIND_STATUS]
            if len(found) > seen:
                return protocol.Status.unpack(found[seen][1])
        raise AssertionError("no status packet came")

    def latents(self) -> np.ndarray:
        payload = b"".join(p for kind, p in self.packets if kind == protocol.KIND_LATENTS)
        width = value_bytes(self.pipeline.bits)
        values = np.frombuffer(payload, f"<i{width}").astype(int)
        return values.reshape(-1, self.pipeline.transform.out_channels)

    def frame(self, pixels: np.ndarray) -> bytes:
        height, width, _ = pixels.shape
        expected = (
            height * width * self.pipeline.transform.out_channels * value_bytes(self.pipeline.bits)
        )
        return (
            protocol.header(protocol.FRAME, width=width, height=height, expected=expected)
            + pixels.tobytes()
        )


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
    host = Host(Standin(**shape))
    channels = host.pipeline.transform.in_channels
    first, second = photo(2, 3, channels), photo(3, 1, channels, seed=1)

    async def testbench(ctx):
        for pixels in (first, second):
            await host.send(ctx, host.frame(pixels))
            status = await host.status(ctx)
            assert (status.state, status.errors) == (State.IDLE, Error(0))
            assert ctx.get(host.dut.lamps) == 0b100

    host.run(testbench)
    pixels = np.concatenate([first.reshape(-1, channels), second.reshape(-1, channels)])
    np.testing.assert_array_equal(host.latents(), host.pipeline.golden(pixels))


def test_a_credit_for_every_64_bytes():
    host = Host(Standin(in_channels=8, out_channels=1, out_lanes=1))
    pixels = photo(1, 17, 8)  # 136 bytes

    async def testbench(ctx):
        await host.send(ctx, host.frame(pixels))
        await host.status(ctx)

    host.run(testbench)
    assert [kind for kind, _ in host.packets].count(protocol.KIND_CREDIT) == 2
    np.testing.assert_array_equal(host.latents(), host.pipeline.golden(pixels.reshape(-1, 8)))


def test_a_credit_comes_with_the_64th_byte_and_not_before():
    host = Host(Standin(out_channels=1, out_lanes=1, bits=8))
    pixels = photo(1, 22)

    async def testbench(ctx):
        sent = host.frame(pixels)
        for part, credits in ((sent[: 12 + 63], 0), (sent[12 + 63 :], 1)):
            await host.send(ctx, part)
            await ctx.delay(60 * SYMBOL)
            kinds = [kind for kind, _ in host.packets]
            assert kinds.count(protocol.KIND_CREDIT) == credits, "credits before their bytes"

    host.run(testbench)


def test_status_on_request_says_what_the_bitstream_is():
    host = Host(Standin())

    async def testbench(ctx):
        await host.send(ctx, protocol.header(protocol.STATUS))
        status = await host.status(ctx)
        assert status == protocol.Status(
            max_width=64, in_channels=3, out_channels=5, latent_bytes=2, digest=DIGEST[:4]
        )

    host.run(testbench)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"XiL" + bytes(9), Error.MAGIC),
        (b"Lo" + bytes(10), Error.MAGIC),
        (b"Li\x02F" + bytes(8), Error.MAGIC),
        (b"Li\x01?" + bytes(8), Error.MAGIC),
        (protocol.header(protocol.FRAME, width=65, height=1, expected=1), Error.SIZE),
        (protocol.header(protocol.FRAME, width=0, height=1, expected=1), Error.SIZE),
        (protocol.header(protocol.FRAME, width=1, height=0, expected=1), Error.SIZE),
        (protocol.header(protocol.FRAME, width=1, height=1, expected=0), Error.SIZE),
    ],
    ids=["M", "i", "version", "command", "too wide", "no width", "no height", "nothing expected"],
)
def test_a_bad_header_is_reported(sent, error):
    host = Host(Standin())

    async def testbench(ctx):
        await host.send(ctx, sent)
        status = await host.status(ctx)
        assert (status.state, status.errors) == (State.HALTED, error)

    host.run(testbench)


def test_after_an_error_only_a_break_helps():
    host = Host(Standin())
    pixels = photo(1, 2)

    async def testbench(ctx):
        await host.send(ctx, b"LI" + bytes(10))
        assert (await host.status(ctx)).errors == Error.MAGIC
        # Good frames are dropped now, and the error stays.
        await host.send(ctx, host.frame(pixels))
        assert ctx.get(host.dut.lamps) == 0b110
        await host.send_break(ctx)
        status = await host.status(ctx)
        assert (status.state, status.errors) == (State.IDLE, Error.MAGIC)
        await host.send_break(ctx)
        assert (await host.status(ctx)).errors == Error(0)
        await host.send(ctx, host.frame(pixels))
        assert (await host.status(ctx)).errors == Error(0)

    host.run(testbench)
    np.testing.assert_array_equal(host.latents(), host.pipeline.golden(pixels.reshape(-1, 3)))


def test_overrun_is_reported():
    host = Host(Standin(fault="deaf"))

    async def testbench(ctx):
        pixels = photo(3, 64)
        await host.send(ctx, host.frame(pixels)[: 12 + 2 * 3 + 3 + 256])
        assert not any(kind == protocol.KIND_STATUS for kind, _ in host.packets)
        await host.send(ctx, bytes(4))
        status = await host.status(ctx)
        assert (status.state, status.errors) == (State.HALTED, Error.OVERRUN)

    host.run(testbench)


@pytest.mark.parametrize(
    ("fault", "sent", "stuck"),
    [("deaf", 30, Stuck.PIXELS), ("mute", 30, Stuck.LATENTS), (None, 29, Stuck.HOST)],
)
def test_the_watchdog_names_the_stuck_stream(fault, sent, stuck):
    host = Host(Standin(fault=fault))

    async def testbench(ctx):
        await host.send(ctx, host.frame(photo(2, 5))[: 12 + sent])
        assert ctx.get(host.dut.lamps) & 3 == 1
        status = await host.status(ctx)
        assert (status.state, status.errors, status.stuck) == (
            State.HALTED,
            Error.WATCHDOG,
            stuck,
        )
        await host.send_break(ctx)
        assert (await host.status(ctx)).stuck == stuck

    host.run(testbench)


def test_surplus_latents_are_reported():
    host = Host(Standin(fault="chatty"))

    async def testbench(ctx):
        await host.send(ctx, host.frame(photo(1, 1)))
        assert (await host.status(ctx)).errors in (Error(0), Error.SURPLUS)
        await host.send_break(ctx)
        assert (await host.status(ctx)).errors == Error.SURPLUS

    host.run(testbench)


def test_a_byte_without_stop_bit_is_reported():
    host = Host(Standin())

    async def testbench(ctx):
        for bit in (0, 1, 0, 0, 0, 0, 0, 0, 0, 0):
            ctx.set(host.dut.rx, bit)
            await ctx.delay(SYMBOL)
        ctx.set(host.dut.rx, 1)
        assert (await host.status(ctx)).errors == Error.FRAMING

    host.run(testbench)


def test_a_break_in_the_middle_of_a_frame():
    """The packet that has begun is completed; nothing of the old frame follows the status."""
    host = Host(Standin())
    pixels = photo(2, 8)

    async def testbench(ctx):
        await host.send(ctx, host.frame(photo(2, 8, seed=3))[: 12 + 25])
        await host.send_break(ctx)
        status = await host.status(ctx)
        assert (status.state, status.errors) == (State.IDLE, Error(0))
        host.packets.clear()
        await host.send(ctx, host.frame(pixels))
        await host.status(ctx)

    host.run(testbench)
    np.testing.assert_array_equal(host.latents(), host.pipeline.golden(pixels.reshape(-1, 3)))


@pytest.mark.parametrize(("fault", "sent"), [("deaf", 100), (None, 30)], ids=["pixels", "latents"])
def test_a_break_drops_what_waits(fault, sent):
    """Pixels before the pipeline, and half of a latent on its way to the line."""
    host = Host(Standin(fault=fault, out_channels=7, out_lanes=7))
    pixels = photo(1, 2, seed=2)

    async def testbench(ctx):
        await host.send(ctx, host.frame(photo(5, 8))[: 12 + sent])
        await host.send_break(ctx)
        status = await host.status(ctx)
        assert (status.state, status.errors) == (State.IDLE, Error(0))
        host.packets.clear()
        await host.send(ctx, host.frame(pixels))
        status = await host.status(ctx)
        assert (status.state, status.errors) == (State.IDLE, Error(0))

    host.run(testbench)
    np.testing.assert_array_equal(host.latents(), host.pipeline.golden(pixels.reshape(-1, 3)))


def test_a_break_in_the_middle_of_a_byte():
    """A host that has lost its place: the break begins after a 1 of a pixel."""
    host = Host(Standin())

    async def testbench(ctx):
        await host.send(ctx, host.frame(photo(1, 2))[:14])
        for level, symbols in ((0, 1), (1, 3), (0, 16)):
            ctx.set(host.dut.rx, level)
            await ctx.delay(symbols * SYMBOL)
        ctx.set(host.dut.rx, 1)
        status = await host.status(ctx)
        assert (status.state, status.errors) == (State.IDLE, Error(0))

    host.run(testbench)


FORMAT = PortFormat(
    name="g_a", max_width=64, in_channels=3, in_bytes=1, out_channels=5, out_bytes=1
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeout": 0}, "timeout must be a positive integer, not 0"),
        ({"digest": b"ab"}, "digest must be 4 bytes, not b'ab'"),
        ({"formats": []}, "1 to 4 transforms, not 0"),
    ],
)
def test_link_says_what_is_wrong(change, message):
    good = {"formats": [FORMAT], "timeout": 100, "digest": b"abcd"}
    with pytest.raises((TypeError, ValueError), match=message):
        Link(**(good | change))
