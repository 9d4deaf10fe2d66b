# amaranth: UnusedElaboratable=no
"""What feeds an array: window and pixel buffer give every step's operands, and lose no cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, connect, flipped

from lichen.hw.engine.feed import FEED_LATENCY
from lichen.hw.engine.gate import FrameGate
from lichen.hw.engine.pixel_buffer import PixelBuffer
from lichen.hw.engine.row_buffer import SIZE_LATENCY
from lichen.hw.engine.transposed_window import TransposedWindow
from lichen.hw.engine.window import Window
from lichen.hw.engine.window_shape import WindowShape
from lichen.network.arithmetic import ceil_div
from lichen.network.geometry import Geometry
from tests.hw.streams import SEED, Agent, Pauses, SizedSource, lanes, simulate, unlanes

BITS = 6


@dataclass(frozen=True)
class Shape:
    """Of a feeder; the last fields are a window's."""

    channels: int
    lanes: int
    pixels: int
    passes: int = 1
    gap: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0

    @property
    def beats(self) -> int:
        return ceil_div(self.channels, self.lanes)

    @property
    def steps(self) -> int:
        return self.kernel**2 * self.beats

    @property
    def pass_cycles(self) -> int:
        return self.steps + self.gap

    @property
    def group_cycles(self) -> int:
        return self.passes * self.pass_cycles

    def out(self, size: int) -> int:
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class Step:
    """A step as the array is to see it: operands of the valid positions, and its flags.

    ``count`` is that of its group; None where every position is a pixel.
    """

    operands: tuple[int, ...]
    group_first: bool
    first: bool
    last: bool
    count: int | None = None
    row: int = 0
    head: bool | None = None


def groups(shape: Shape, frame: np.ndarray) -> list[list[Step]]:
    """Every group of a frame (height, width, channels), from the definition."""
    pad, s = shape.padding, shape.lanes
    channels = shape.beats * s
    padded = np.zeros(
        (frame.shape[0] + 2 * pad, frame.shape[1] + 2 * pad, channels), dtype=np.int64
    )
    padded[pad : pad + len(frame), pad : pad + frame.shape[1], : shape.channels] = frame
    height, width = shape.out(frame.shape[0]), shape.out(frame.shape[1])
    taps = [
        (ky, kx, g)
        for ky in range(shape.kernel)
        for kx in range(shape.kernel)
        for g in range(shape.beats)
    ]
    found = []
    for y in range(height):
        for x in range(0, width, shape.pixels):
            columns = range(x, min(width, x + shape.pixels))
            group = []
            for n in range(shape.passes):
                for i, (ky, kx, g) in enumerate(taps):
                    row = padded[y * shape.stride + ky]
                    values = [row[c * shape.stride + kx, g * s : g * s + s] for c in columns]
                    group.append(
                        Step(
                            tuple(lanes(v, BITS) for v in values),
                            group_first=n == i == 0,
                            first=i == 0,
                            last=i == len(taps) - 1,
                        )
                    )
            found.append(group)
    return found


class FeedWatch(Agent):
    """Frees drain banks at random, and holds a feed to what its groups should be.

    There is no bank until ``behind`` is done.
    """

    def __init__(
        self,
        name: str,
        feed: Any,
        expected: list[list[Step]],
        lanes: int,
        pauses: float,
        behind: Agent,
    ):
        self.name, self.feed, self.expected, self.lanes = name, feed, expected, lanes
        self.pauses, self.behind = Pauses(pauses, 5, hold=16, burst=16), behind
        self.starts: list[int] = []
        self.steps: dict[int, Step] = {}
        """By the cycle in which they are due on the feed."""
        self._group: list[Step] = []
        self.finished = 0

    def drive(self, ctx: Any, t: int) -> None:
        self.free = self.behind.done and not self.pauses()
        ctx.set(self.feed.bank_free, self.free)

    def look(self, ctx: Any, t: int) -> None:
        feed, name = self.feed, self.name
        number = len(self.starts)
        if ctx.get(feed.step):
            assert self._group, f"{name}: a step too many at {t}, after {number} groups"
            step = self._group.pop(0)
            assert ctx.get(feed.group_first) == step.group_first, (
                f"{name}: group_first is wrong at {t}"
            )
            assert ctx.get(feed.row) == step.row, f"{name}: the row's phase is wrong at {t}"
            self.steps[t + FEED_LATENCY] = step
            self.finished += not self._group
        else:
            assert not ctx.get(feed.group_first), f"{name}: group_first without a step at {t}"
        if ctx.get(feed.start):
            assert self.free, f"{name} starts a group without a bank at {t}"
            assert not self._group, f"{name} starts a group inside another at {t}"
            assert number < len(self.expected), f"{name} starts a group too many at {t}"
            self._group = list(self.expected[number])
            count, step = ctx.get(feed.count), self._group[0]
            right = len(step.operands) if step.count is None else step.count
            assert count == right, f"{name}: group {number} has {count} pixels instead of {right}"
            if step.head is not None:
                assert ctx.get(feed.head) == step.head, f"{name}: group {number} is no head or one"
            self.starts.append(t)
        step = self.steps.pop(t, None)
        bits = BITS * self.lanes
        flags = step is not None and step.first, step is not None and step.last
        assert (ctx.get(feed.first), ctx.get(feed.last)) == flags, f"{name}: a flag is wrong at {t}"
        operands = ctx.get(Value.cast(feed.a))
        if step is None:
            assert operands == 0, f"{name}: operands without a step at {t}"
            return
        got = unlanes(operands, bits, len(step.operands))
        place = f"{name}: group {number - 1}, {len(self._group)} steps before its end"
        assert got == list(step.operands), f"{place}: {got} instead of {list(step.operands)}"

    @property
    def done(self) -> bool:
        return self.finished == len(self.expected) and not self.steps


def frame_ends(shape: Shape, frames: list[np.ndarray]) -> dict[int, int]:
    """Groups by items, at the ends of frames."""
    items = np.cumsum([frame[..., 0].size * shape.beats for frame in frames])
    numbers = np.cumsum([len(groups(shape, frame)) for frame in frames])
    return {0: 0} | dict(zip(items.tolist(), numbers.tolist(), strict=True))


def group_ends(shape: Shape, frames: list[np.ndarray]) -> dict[int, int]:
    """Groups by items, at the ends of groups of whole pixels."""
    counts = [len(group[0].operands) for frame in frames for group in groups(shape, frame)]
    items = np.cumsum(counts) * shape.beats
    return {0: 0} | {end: k + 1 for k, end in enumerate(items.tolist())}


class EmptyWatch(Agent):
    """A window is empty between frames alone, a pixel buffer when it holds no whole group; both
    when all groups that have come were read."""

    def __init__(self, feeder: Any, source: SizedSource, watch: FeedWatch, ends: dict[int, int]):
        self.feeder, self.source, self.watch = feeder, source, watch
        self.ends = ends
        """Groups by the items up to where the feeder may be empty."""

    def drive(self, ctx: Any, t: int) -> None:
        if ctx.get(self.feeder.empty):
            items = len(self.source.taken)
            if isinstance(self.feeder, PixelBuffer):
                items = max(end for end in self.ends if end <= items)
            right = self.ends.get(items) == self.watch.finished
            assert right, f"{self.watch.name} is not empty at {t}"


class Framed(wiring.Component):
    """A feeder behind a gate, so that frames of any sizes can follow each other."""

    def __init__(self, feeder: Window | TransposedWindow | PixelBuffer, beats: int):
        self.feeder = feeder
        stream = feeder.signature.members["i"]
        self.gate = FrameGate(shape=feeder.i.payload.shape(), beats=beats, settle=SIZE_LATENCY)
        super().__init__(
            {
                "i": stream,
                "feed": feeder.signature.members["feed"],
                "width": In(16),
                "height": In(16),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.gate, m.submodules.feeder = self.gate, self.feeder
        gate, feeder = self.gate, self.feeder
        empty = Signal()
        m.d.sync += empty.eq(gate.drain & feeder.empty)
        connect(m, flipped(self.i), gate.i)
        connect(m, gate.o, feeder.i)
        connect(m, feeder.feed, flipped(self.feed))
        m.d.comb += [
            gate.width.eq(self.width),
            gate.height.eq(self.height),
            gate.empty.eq(empty),
            feeder.width.eq(gate.frame_width),
        ]
        if not isinstance(feeder, PixelBuffer):
            m.d.comb += feeder.height.eq(gate.frame_height)
        return m


def window(shape: Shape, max_width: int, rows: int | None = None) -> Window:
    return Window(
        geometry=Geometry(kernel=shape.kernel, stride=shape.stride, padding=shape.padding),
        channels=shape.channels,
        a_shape=unsigned(BITS),
        lanes=shape.lanes,
        pixels=shape.pixels,
        passes=shape.passes,
        least_pass=shape.pass_cycles,
        max_width=max_width,
        rows=rows,
    )


def buffer(shape: Shape) -> PixelBuffer:
    return PixelBuffer(
        channels=shape.channels,
        shape=unsigned(BITS),
        lanes=shape.lanes,
        pixels=shape.pixels,
        passes=shape.passes,
        pass_cycles=shape.pass_cycles,
    )


def frames_of(shape: Shape, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Frames without a 0, the padding; sizes are (width, height)."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(1, 1 << BITS, (h, w, shape.channels)) for w, h in sizes]


def run(
    feeder: Window | PixelBuffer,
    shape: Shape,
    frames: list[np.ndarray],
    idle: float = 0.0,
    backpressure: float = 0.0,
    blocked: bool = False,
) -> tuple[SizedSource, FeedWatch]:
    """Frames through a feeder, back to back; no group starts before all has come if ``blocked``."""
    framed = Framed(feeder, shape.beats)
    beats = [
        lanes(pixel[c : c + shape.lanes], BITS)
        for frame in frames
        for pixel in frame.reshape(-1, shape.channels)
        for c in range(0, shape.channels, shape.lanes)
    ]
    sizes = [(f.shape[1], f.shape[0], f.shape[0] * f.shape[1] * shape.beats) for f in frames]
    expected = [group for frame in frames for group in groups(shape, frame)]
    source = SizedSource(framed, sizes, beats, idle, hold=1 if backpressure else 32)
    name = type(feeder).__name__
    behind = source if blocked else Agent()
    watch = FeedWatch(name, framed.feed, expected, shape.lanes, backpressure, behind)
    cycles = len(expected) * shape.group_cycles + len(beats)
    ends = frame_ends(shape, frames) if isinstance(feeder, Window) else group_ends(shape, frames)
    empty = EmptyWatch(feeder, source, watch, ends)
    simulate(framed, [source, watch, empty], limit=20 * cycles + 400)
    return source, watch


def taken_without_a_bank(unit: Window | PixelBuffer, cycles: int, **size: int) -> int:
    """How many beats a feeder takes whose groups cannot start."""
    taken = 0

    class Blocked(Agent):
        def drive(self, ctx: Any, t: int) -> None:
            for port, value in size.items():
                ctx.set(getattr(unit, port), value)
            ctx.set(unit.i.valid, t > SIZE_LATENCY)
            ctx.set(unit.feed.bank_free, 0)

        def look(self, ctx: Any, t: int) -> None:
            nonlocal taken
            taken += ctx.get(unit.i.ready) and t > SIZE_LATENCY

    simulate(unit, [Blocked()], limit=cycles, linger=cycles)
    return taken


traffic = pytest.mark.parametrize(
    "pauses", [(0.0, 0.0), (0.3, 0.8), (0.3, 0.0)], ids=["full rate", "pauses", "starved"]
)


def widest(shape: Callable[[int], WindowShape]) -> int:
    """The widest input, a few columns at least, of windows whose columns have as many bits."""
    width = 4
    while shape(width + 1).column_bits == shape(width).column_bits:
        width += 1
    return width


WINDOWS = {
    "3x3, two passes": Shape(3, 2, 2, passes=2, kernel=3, padding=1),
    "5x5 s2, three pixels": Shape(2, 2, 3, kernel=5, stride=2, padding=2),
    "4x4 s3, a gap": Shape(1, 1, 1, gap=3, kernel=4, stride=3, padding=1),
    "2x2 s4, rows unused": Shape(3, 1, 2, kernel=2, stride=4),
    "3x3 s2, lopsided": Shape(2, 1, 4, gap=1, passes=2, kernel=3, stride=2),
    "1x1": Shape(2, 2, 2, gap=2, kernel=1),
}
WIDEST = 9
SIZES = [(WIDEST, 7), (5, 4), (5, 4), (4, 9), (WIDEST, 3)]
"""Wide, narrow (whose right padding lies where the wide frame had pixels), tall, wide again."""


class TestWindow:
    @pytest.mark.parametrize("name", WINDOWS)
    def test_the_widest_columns_of_so_many_bits(self, name: str) -> None:
        """Columns have as few bits as the widest input needs."""
        shape = WINDOWS[name]
        width = widest(lambda width: window(shape, width).shape)
        sizes = [(width, shape.kernel), (shape.kernel, shape.kernel), (width, shape.kernel + 1)]
        run(window(shape, width), shape, frames_of(shape, sizes))

    @pytest.mark.parametrize("name", WINDOWS)
    @traffic
    def test_operands(self, name: str, pauses: tuple[float, float]) -> None:
        shape = WINDOWS[name]
        run(window(shape, WIDEST), shape, frames_of(shape, SIZES), *pauses)

    @pytest.mark.parametrize("name", ["3x3, two passes", "4x4 s3, a gap", "1x1"])
    def test_groups_follow_each_other(self, name: str) -> None:
        """When all their pixels are there, without a cycle in between."""
        shape = WINDOWS[name]
        frame = frames_of(shape, [(WIDEST, shape.kernel)])
        _, watch = run(window(shape, WIDEST), shape, frame, blocked=True)
        assert set(np.diff(watch.starts)) == {shape.group_cycles}, "Window"

    @pytest.mark.parametrize("name", WINDOWS)
    @traffic
    def test_as_few_rows_as_a_kernel_reads_suffice(
        self, name: str, pauses: tuple[float, float]
    ) -> None:
        shape = WINDOWS[name]
        rows = max(shape.kernel, shape.stride)
        run(window(shape, WIDEST, rows), shape, frames_of(shape, SIZES), *pauses)

    @pytest.mark.parametrize("fewer", [0, 1])
    @pytest.mark.parametrize("name", WINDOWS)
    def test_it_holds_its_rows(self, name: str, fewer: int) -> None:
        """Without a bank for the first group, as many rows are taken as there are slots."""
        shape = WINDOWS[name]
        unit = window(shape, WIDEST, window(shape, WIDEST).shape.enough_rows - fewer)
        taken = taken_without_a_bank(unit, width=4, height=20, cycles=200)
        assert taken == unit.shape.rows * 4 * shape.beats, "Window has other row slots than it says"

    def test_a_stream_is_taken_at_full_rate(self) -> None:
        """A fast array never lets its source wait, but for a cycle behind every row."""
        shape = WINDOWS["2x2 s4, rows unused"]
        source, _ = run(window(shape, WIDEST), shape, frames_of(shape, [(WIDEST, 9)]))
        row = WIDEST * shape.beats
        expected = ([1] * (row - 1) + [2]) * 9
        assert np.diff(source.taken).tolist() == expected[:-1], "Window"

    @pytest.mark.parametrize(
        ("field", "value", "error", "message"),
        [
            *(
                (field, 0, TypeError, f"{field} must be a positive integer, not 0")
                for field in ("kernel", "stride", "channels", "lanes", "pixels", "passes")
            ),
            ("least_pass", 0, TypeError, "least_pass must be a positive integer, not 0"),
            ("kernel", 1, ValueError, "a group must take at least 3 cycles; raise least_pass"),
            ("max_width", 1 << 16, ValueError, "max_width must fit 16 bits, not be 65536"),
            ("rows", 2, ValueError, "rows must be at least 3, not 2"),
        ],
    )
    def test_parameters(self, field: str, value: int, error: type, message: str) -> None:
        right: dict[str, Any] = {
            **{"channels": 2, "a_shape": signed(4), "lanes": 1, "pixels": 1, "passes": 1},
            **{"least_pass": 1, "max_width": 8},
        }
        geometry = {"kernel": 3, "stride": 1, "padding": 1}
        assert Window(geometry=Geometry(**geometry), **right).shape.rows == 4
        (geometry if field in geometry else right)[field] = value
        with pytest.raises(error, match=message):
            Window(geometry=Geometry(**geometry), **right)


BUFFERS = {
    "two pixels, two passes": Shape(5, 2, 2, passes=2),
    "three pixels, a gap": Shape(3, 1, 3, gap=2),
    "one beat": Shape(2, 2, 1),
}


class TestPixelBuffer:
    @pytest.mark.parametrize("name", BUFFERS)
    @traffic
    def test_operands(self, name: str, pauses: tuple[float, float]) -> None:
        shape = BUFFERS[name]
        run(buffer(shape), shape, frames_of(shape, [(7, 3), (4, 2), (1, 2), (8, 1)]), *pauses)

    @pytest.mark.parametrize("passes", [1, 3])
    def test_groups_follow_each_other(self, passes: int) -> None:
        """Slower than its source it never waits; as fast, it never lets its source wait."""
        shape = Shape(4, 2, 2, passes=passes)
        source, watch = run(buffer(shape), shape, frames_of(shape, [(8, 2)]))
        if passes == 1:
            assert set(np.diff(source.taken)) == {1}, "PixelBuffer"
        apart = max(shape.group_cycles, shape.pixels * shape.beats)
        assert set(np.diff(watch.starts)) == {apart}, "PixelBuffer"

    @pytest.mark.parametrize("name", BUFFERS)
    def test_it_holds_two_groups(self, name: str) -> None:
        """Without a bank for the first one, two groups are taken and no beat more."""
        shape = BUFFERS[name]
        taken = taken_without_a_bank(buffer(shape), width=6, cycles=60)
        assert taken == 2 * shape.pixels * shape.beats, "PixelBuffer holds other than two groups"

    @pytest.mark.parametrize("field", ["channels", "lanes", "pixels", "passes", "pass_cycles"])
    def test_parameters(self, field: str) -> None:
        right = {"channels": 4, "lanes": 2, "pixels": 1, "passes": 1, "pass_cycles": 2}
        with pytest.raises(TypeError, match=f"{field} must be a positive integer, not -1"):
            PixelBuffer(shape=signed(4), **(right | {field: -1}))
