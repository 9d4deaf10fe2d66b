# amaranth: UnusedElaboratable=no
"""Weights over the link: packets that fill transforms, whatever the line does to them."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Array, Elaboratable, Module, Signal
from amaranth.lib import wiring

from lichen.boards.host.session import Frame, HaltedError, Load, Session, identity
from lichen.boards.link import packet, protocol
from lichen.boards.link.device import Link
from lichen.boards.link.protocol import Kind
from lichen.boards.port.fill import Fill, bytes_of, words_of
from lichen.boards.port.format import PortFormat
from lichen.boards.port.port import PortSignature
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.loaded import loadable, templates
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import Activation
from lichen.network.random import StageShape, random_transform

from . import test_link
from .standin import Standin
from .test_link import BYTE_CYCLES, NUMBER, TIMEOUT, Host

NONE = bytes(32)
PLACES = 8
"""Of the constants that `Keeper` keeps."""


class Keeper(wiring.Component):
    """A transform of single bytes: each leaves with one of the constants added, in turn."""

    form = PortFormat(
        name="g_a", max_width=600, in_channels=1, in_bytes=1, out_channels=1, out_bytes=1
    )

    def __init__(self) -> None:
        super().__init__(PortSignature(loads=True))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        kept = Array(Signal(36, name=f"kept_{i}", reset_less=True) for i in range(PLACES))
        at = Signal(range(PLACES))
        m.d.comb += [
            self.o.payload.eq(self.i.payload + kept[at]),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
        ]
        with m.If(self.load.strobe & (self.load.address < PLACES)):
            m.d.sync += kept[self.load.address[:3]].eq(self.load.data)
        with m.If(self.reset):
            m.d.sync += at.eq(0)
        with m.Elif(self.i.valid & self.o.ready):
            m.d.sync += at.eq(at + 1)
        return m


class Bench(Elaboratable):
    """A link and two keepers."""

    def __init__(self, fill: Fill):
        self.ports = [Keeper(), Keeper()]
        self.fills = [fill, replace(fill, words=2 * PLACES)]
        self.link = Link(
            formats=[Keeper.form, replace(Keeper.form, name="g_s")],
            fills=self.fills,
            timeout=TIMEOUT,
            digest=NONE,
            oscillator_hz=25_000_000,
            line_hz=10,
            clock_hz=BYTE_CYCLES,
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.link = self.link
        for number, port in enumerate(self.ports):
            m.submodules[f"port_{number}"] = port
            wiring.connect(m, self.link.ports[number], port)
        return m


TRANSFORM = random_transform(
    np.random.default_rng(3),
    [
        StageShape(out_channels=4, kernel=3, stride=2, activation=Activation.GDN),
        StageShape(out_channels=6, kernel=3, output_bits=9),
    ],
)
ARRAY = ArrayFolding(chain_length=2, lanes=1)
FOLDING = Folding(
    max_width=600,
    stages=[
        StageFolding(chains=2, convolution=ARRAY, normalization=ARRAY),
        StageFolding(chains=3, convolution=ARRAY),
    ],
)


@pytest.fixture(scope="module")
def fill() -> Fill:
    return replace(Fill.of(Pipeline(loadable(TRANSFORM), FOLDING)), words=PLACES)


class Filling(Host):
    """A host of two transforms that are filled."""

    def __init__(self, fill: Fill):
        super().__init__(Bench(fill))

    def load(self, which: int, seed: int, **change: Any) -> Load:
        """Constants of a seed; a changed checksum or digest is one of another seed."""
        words = words_of(enumerate(constants(which, seed)))
        fields = {
            "transform": which,
            "words": bytes_of(words),
            "digest": bytes([seed]) * 32,
        } | change
        return Load(**fields)

    async def done(self, ctx: Any, work: Frame | Load) -> bytes:
        self.session.submit(work)
        await self.until(ctx, lambda: not self.session.busy)
        return bytes(self.session.output)

    async def holds(self, ctx: Any, which: int, seed: int) -> None:
        """A frame of a transform that holds the constants of a seed."""
        sent = bytes(range(200, 256)) + bytes(range(48))
        assert len(sent) % PLACES == 0  # so the next frame begins with the first constant, too
        frame = Frame(transform=which, width=len(sent), height=1, payload=sent, expected=len(sent))
        added = constants(which, seed)[:PLACES]
        wanted = [(b + added[i % PLACES]) % 256 for i, b in enumerate(sent)]
        assert await self.done(ctx, frame) == bytes(wanted)

    async def told(self, ctx: Any) -> list[bytes]:
        """Digests that the device tells."""
        pages = [protocol.PAGE_FILLS, protocol.PAGE_FILLS + 1]
        for page in pages:
            self.session.ask(page)
            await self.until(ctx, lambda page=page: page in self.session.answers)
        return [protocol.FILL.unpack(self.session.answers[page])["digest"] for page in pages]

    async def renew(self, ctx: Any) -> None:
        self.session = Session(self.session.number + 1)
        await self.open(ctx)


def constants(which: int, seed: int) -> list[int]:
    rng = random.Random(100 * which + seed)
    return [rng.getrandbits(36) for _ in range((1 + which) * PLACES)]


def test_the_device_tells_what_it_takes(fill):
    """Stages as they are, but for their names."""
    host = Filling(fill)

    async def testbench(ctx):
        numbers = [0, *(protocol.PAGE_TRANSFORMS + i for i in range(2))]
        for which in range(2):
            numbers.append(protocol.PAGE_FILLS + which)
            numbers += [protocol.stage_number(which, i) for i in range(2)]
        for page in numbers:
            host.session.ask(page)
            await host.until(ctx, lambda page=page: page in host.session.answers)

    host.run(testbench)
    found = identity(host.session.answers)
    assert [f.words for f in found.fills] == [PLACES, 2 * PLACES]
    names = [stage.name for stage in TRANSFORM.stages]
    for got, want in zip(found.fills, host.bench.fills, strict=True):
        named = [
            template.model_copy(update={"name": name})
            for template, name in zip(got.templates, names, strict=True)
        ]
        assert tuple(named) == want.templates == templates(TRANSFORM)
        assert (got.folding, got.map) == (FOLDING, want.map)


def test_constants_come_and_go(fill):
    """One transform after the other, and another network into the first."""
    host = Filling(fill)

    async def testbench(ctx):
        await host.open(ctx)
        assert await host.told(ctx) == [NONE, NONE]
        for which, seed in ((0, 1), (1, 2)):
            assert await host.done(ctx, host.load(which, seed)) == b""
            assert host.session.cycles == 0
        assert await host.told(ctx) == [bytes([1]) * 32, bytes([2]) * 32]
        await host.holds(ctx, 0, 1)
        await host.holds(ctx, 1, 2)
        await host.done(ctx, host.load(0, 3))
        assert await host.told(ctx) == [bytes([3]) * 32, bytes([2]) * 32]
        await host.holds(ctx, 0, 3)
        await host.renew(ctx)  # a session's end leaves them in
        assert await host.told(ctx) == [bytes([3]) * 32, bytes([2]) * 32]
        await host.holds(ctx, 1, 2)
        host.session.ask(protocol.PAGE_COUNTERS)
        await host.until(ctx, lambda: protocol.PAGE_COUNTERS in host.session.answers)
        found = protocol.COUNTERS.unpack(host.session.answers[protocol.PAGE_COUNTERS])
        assert found["frames"] == 4, "loads are no frames"

    host.run(testbench)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ("frame", "the transform holds no network"),
        ("short", "what was loaded does not suit the transform"),
        ("unknown", "what was loaded does not suit the transform"),
        ("wrong", "what was loaded does not suit the transform"),
    ],
)
def test_what_is_not_whole_is_not_used(fill, work, message):
    """A frame before a load, a load of another length, of no transform, of another checksum."""
    host = Filling(fill)

    async def testbench(ctx):
        await host.open(ctx)
        await host.done(ctx, host.load(0, 1))
        frame = Frame(transform=1, width=1, height=1, payload=b"a", expected=1)
        whole = host.load(1, 2)
        short = replace(whole, words=whole.words[:-8])
        works = {"frame": frame, "short": short, "unknown": replace(whole, transform=2)}
        if work == "wrong":  # a word is another one than the checksum has
            host.session.submit(whole)
            kind, payload = host.session._sequence.packets[-1]
            assert (kind, payload) == (Kind.INPUT, whole.payload)
            changed = payload[:9] + bytes([payload[9] ^ 1]) + payload[10:]
            host.session._sequence.packets[-1] = kind, changed
        else:
            host.session.submit(works[work])
        with pytest.raises(HaltedError, match=message):
            await host.until(ctx, lambda: not host.session.busy)
        await host.renew(ctx)
        assert await host.told(ctx) == [bytes([1]) * 32, NONE]
        await host.holds(ctx, 0, 1)
        host.session.submit(frame)
        with pytest.raises(HaltedError, match="the transform holds no network"):
            await host.until(ctx, lambda: not host.session.busy)

    host.run(testbench)


def test_a_reset_in_mid_load_leaves_nothing(fill):
    """At its beginning, among its words, in its digest: what was held is gone, too."""
    host = Filling(fill)
    total = len(host.load(1, 1).payload)

    async def testbench(ctx):
        await host.open(ctx)
        for seed, upto in enumerate((0, 1, 60, total - 31, total - 1), start=10):
            await host.done(ctx, host.load(1, seed))
            load = host.load(1, seed + 50)
            number = host.session._sequence.end
            for kind, payload in (load.header(), (Kind.INPUT, load.payload[:upto])):
                host.inject(kind, number, payload)
                number += 1
            host.session._sequence.reached = number
            await host.pause(ctx, 2 * BYTE_CYCLES * (total + 40))
            assert ctx.get(host.bench.link.busy)
            await host.renew(ctx)
            assert (await host.told(ctx))[1] == NONE, upto
        await host.done(ctx, host.load(1, 99))
        await host.holds(ctx, 1, 99)

    host.run(testbench)


def test_a_frame_within_a_load_halts(fill):
    host = Filling(fill)

    async def testbench(ctx):
        await host.open(ctx)
        host.inject(Kind.LOAD, 0, host.load(0, 1).header()[1])
        host.inject(Kind.FRAME, 1, protocol.FRAME.pack(transform=0, width=1, height=1, expected=1))
        host.session._sequence.reached = 2
        with pytest.raises(HaltedError, match="an order that makes no sense"):
            await host.pause(ctx, 6000)
        await host.renew(ctx)
        assert await host.told(ctx) == [NONE, NONE]

    host.run(testbench)


@pytest.mark.parametrize("seed", range(2))
def test_a_line_that_loses_repeats_and_changes(fill, seed):
    """Loads and frames in turn arrive whole, with pauses of the line between."""
    host, rng = Filling(fill), random.Random(seed)
    done = set()

    def line(sent: bytes) -> bytes:
        if rng.random() < 0.75:
            return sent
        kind = rng.choice(("drop", "repeat", "flip", "cut"))
        done.add(kind)
        if kind == "drop":
            return b""
        if kind == "repeat":
            return sent + sent
        if kind == "cut":
            return sent[: rng.randrange(len(sent))]
        at = rng.randrange(len(sent))
        return sent[:at] + bytes([sent[at] ^ 1 << rng.randrange(8)]) + sent[at + 1 :]

    async def testbench(ctx):
        await host.open(ctx)
        host.to_device = host.to_host = line
        for which, number in ((0, 4), (1, 5), (0, 6), (1, 7)):
            await host.done(ctx, host.load(which, number))
            await host.pause(ctx, rng.randrange(300))
            await host.holds(ctx, which, number)
        host.to_device = host.to_host = lambda sent: sent
        assert await host.told(ctx) == [bytes([6]) * 32, bytes([7]) * 32]

    host.run(testbench)
    assert len(done) > 2


def test_a_device_that_is_not_filled_takes_no_load():
    host = Host(test_link.Bench(Standin()))

    async def testbench(ctx):
        await host.open(ctx)
        host.session.submit(Load(transform=0, words=bytes(8), digest=NONE))
        with pytest.raises(HaltedError, match="what was loaded does not suit"):
            await host.until(ctx, lambda: not host.session.busy)

    host.run(testbench)


def test_words_are_those_of_their_order(fill):
    """Whoever changes what words hold where gives `lichen.boards.port.fill.ORDER` another number:
    a device that was built before would be filled with nonsense, and say it is right."""
    pipeline = Pipeline(loadable(TRANSFORM), FOLDING)
    crc = zlib.crc32(bytes_of(words_of(pipeline.image())))
    assert (fill.map.hex(), f"{crc:08x}") == ("5487e1c5", "455268db")


def test_pages_tell_row_slots():
    """A folding with few row slots comes back whole from what a device tells of it."""
    few = ARRAY.model_copy(update={"rows": 3})
    stages = [FOLDING.stages[0].model_copy(update={"convolution": few}), FOLDING.stages[1]]
    folding = FOLDING.model_copy(update={"stages": stages})
    fill = Fill.of(Pipeline(loadable(TRANSFORM), folding))
    told = [protocol.stage_of(page, "conv") for page in protocol.stage_pages(fill)]
    assert [stage for _, stage in told] == stages
    assert not any(template.transposed for template, _ in told)
    many = ARRAY.model_copy(update={"rows": 128})
    stages = [stages[0].model_copy(update={"convolution": many}), stages[1]]
    with pytest.raises(ValueError, match="at most 127 row slots can be told, not 128"):
        protocol.stage_pages(replace(fill, folding=FOLDING.model_copy(update={"stages": stages})))


def test_the_checksum_covers_words_and_digest():
    load = Load(transform=1, words=bytes(range(16)), digest=bytes(range(32)))
    kind, header = load.header()
    assert kind == Kind.LOAD
    crc = zlib.crc32(bytes(range(16)) + bytes(range(32)))
    assert protocol.LOAD.unpack(header) == {"transform": 1, "words": 2, "crc": crc}
    sent = packet.encode(kind, 0, header, NUMBER)
    assert packet.decode(sent[:-1], NUMBER) == (kind, 0, header)
