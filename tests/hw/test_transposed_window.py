# amaranth: UnusedElaboratable=no
"""The window of transposed convolutions gives every step's operands, and multiplies no zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import unsigned
from amaranth.sim import Simulator

from lichen.hw.engine.row_buffer import SIZE_LATENCY
from lichen.hw.engine.transposed_window import TransposedWindow
from lichen.hw.engine.window_shape import WindowShape
from lichen.network.arithmetic import ceil_div
from lichen.network.geometry import Geometry
from tests.hw.streams import SEED, Agent, SizedSource, lanes, simulate
from tests.hw.test_feeders import BITS, FeedWatch, Framed, Step, widest

NAME = "TransposedWindow"


@dataclass(frozen=True)
class Shape:
    """Of a window."""

    kernel: int
    stride: int
    padding: int
    output_padding: int
    channels: int
    lanes: int
    pixels: int
    passes: int = 1
    chain_length: int = 1

    @property
    def beats(self) -> int:
        return ceil_div(self.channels, self.lanes)

    @property
    def geometry(self) -> Geometry:
        names = ("kernel", "stride", "padding", "output_padding")
        return Geometry(transposed=True, **{name: getattr(self, name) for name in names})

    @property
    def reach(self) -> int:
        return ceil_div(self.kernel, self.stride)

    def out(self, size: int) -> int:
        return (size - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding

    def taps(self, phase: int) -> range:
        """Tap ``phase + j stride`` reads input q - j."""
        return range(len(range(phase, self.kernel, self.stride)))

    def steps(self, row: int, column: int) -> int:
        return max(1, len(self.taps(row)) * len(self.taps(column)) * self.beats)

    def group_cycles(self, row: int) -> int:
        columns = range(self.stride)
        return self.passes * sum(max(self.chain_length, self.steps(row, c)) for c in columns)


def groups(shape: Shape, frame: np.ndarray) -> list[list[Step]]:
    """Every group of a frame (height, width, channels), from the definition."""
    rows, columns, _ = frame.shape
    height, width = shape.out(rows), shape.out(columns)
    s, pad = shape.stride, shape.padding

    def word(y: int, x: int, beat: int) -> int:
        if not (0 <= y < rows and 0 <= x < columns):
            return 0
        values = [0] * shape.lanes
        part = frame[y, x, beat * shape.lanes : (beat + 1) * shape.lanes]
        values[: len(part)] = [int(v) for v in part]
        return lanes(values, BITS)

    found = []
    for row in range(height):
        qy, ry = divmod(row + pad, s)
        first, last = pad // s, (width - 1 + pad) // s
        for q in range(first, last + 1, shape.pixels):
            count = min(width + pad - q * s, shape.pixels * s)
            positions = range(q, q + ceil_div(count, s))
            group: list[Step] = []
            for rx in range(s):
                reads = [
                    (jy, jx, beat)
                    for jy in shape.taps(ry)
                    for jx in shape.taps(rx)
                    for beat in range(shape.beats)
                ]
                for _ in range(shape.passes):
                    for i, read in enumerate(reads or [None]):
                        operands: tuple[int, ...] = ()  # of no matter in a phase without taps
                        if read is not None:
                            jy, jx, beat = read
                            operands = tuple(word(qy - jy, x - jx, beat) for x in positions)
                        group.append(
                            Step(
                                operands,
                                group_first=not group,
                                first=i == 0,
                                last=i == max(1, len(reads)) - 1,
                                count=count,
                                row=ry,
                                head=q == first,
                            )
                        )
            found.append(group)
    return found


def window(shape: Shape, max_width: int, rows: int | None = None) -> TransposedWindow:
    return TransposedWindow(
        geometry=shape.geometry,
        channels=shape.channels,
        a_shape=unsigned(BITS),
        lanes=shape.lanes,
        pixels=shape.pixels,
        passes=shape.passes,
        least_pass=shape.chain_length,
        max_width=max_width,
        rows=rows,
    )


def run(
    shape: Shape,
    sizes: list[tuple[int, int]],
    idle: float = 0.0,
    backpressure: float = 0.0,
    blocked: bool = False,
    rows: int | None = None,
) -> FeedWatch:
    """Frames (width, height) through a window, back to back."""
    rng = np.random.default_rng(SEED)
    frames = [rng.integers(1, 1 << BITS, (h, w, shape.channels)) for w, h in sizes]
    feeder = window(shape, max(w for w, _ in sizes), rows)
    framed = Framed(feeder, shape.beats)
    beats = [
        lanes(pixel[c : c + shape.lanes], BITS)
        for frame in frames
        for pixel in frame.reshape(-1, shape.channels)
        for c in range(0, shape.channels, shape.lanes)
    ]
    counted = [(w, h, h * w * shape.beats) for w, h in sizes]
    source = SizedSource(framed, counted, beats, idle)
    expected = [group for frame in frames for group in groups(shape, frame)]
    behind = source if blocked else Agent()
    watch = FeedWatch(NAME, framed.feed, expected, shape.lanes, backpressure, behind)
    cycles = len(beats) + sum(shape.group_cycles(row) for row in range(shape.stride)) * ceil_div(
        len(expected), shape.stride
    )
    simulate(framed, [source, watch], limit=round(8 * cycles) + 800)
    return watch


def starts(shape: Shape, width: int, height: int, beats: int) -> bool:
    """Whether a group starts when so many beats of a frame have come, and no more come."""
    unit = window(shape, width)
    seen: list[bool] = []

    async def bench(ctx: Any) -> None:
        ctx.set(unit.width, width)
        ctx.set(unit.height, height)
        ctx.set(unit.feed.bank_free, 1)
        await ctx.tick().repeat(SIZE_LATENCY + 1)
        taken = 0
        for _ in range(beats + 40):
            ctx.set(unit.i.valid, taken < beats)
            seen.append(bool(ctx.get(unit.feed.start)))
            taken += ctx.get(unit.i.ready) and taken < beats
            await ctx.tick()
        assert taken == beats, NAME

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return any(seen)


SHAPES = {
    "5x5 s2": Shape(5, 2, 2, 1, channels=3, lanes=2, pixels=1, passes=2),
    "5x5 s2, short": Shape(5, 2, 2, 0, channels=1, lanes=1, pixels=2),
    "4x4 s2, cropped inside a phase": Shape(4, 2, 1, 0, channels=2, lanes=1, pixels=3),
    "3x3 s1": Shape(3, 1, 1, 0, channels=2, lanes=2, pixels=2, passes=2, chain_length=3),
    "9x9 s4": Shape(9, 4, 3, 2, channels=1, lanes=1, pixels=2),
    "2x2 s3, phases without taps": Shape(2, 3, 0, 2, channels=2, lanes=1, pixels=2),
    "7x7 s3, a long chain": Shape(7, 3, 4, 1, channels=1, lanes=1, pixels=3, chain_length=6),
}
SIZES = [(5, 3), (2, 2), (2, 2), (5, 2), (3, 4)]
"""Wide, narrow (whose right border lies where the wide frame had pixels), wide again."""


class TestTransposedWindow:
    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("busy", [False, True], ids=["full rate", "pauses"])
    def test_operands(self, name: str, busy: bool) -> None:
        run(SHAPES[name], SIZES, *((0.3, 0.8) if busy else (0.0, 0.0)))

    @pytest.mark.parametrize("name", SHAPES)
    def test_the_widest_columns_of_so_many_bits(self, name: str) -> None:
        """Columns have as few bits as the widest input needs."""
        shape = SHAPES[name]
        width = widest(lambda width: window(shape, width).shape)
        run(shape, [(width, shape.reach), (2, 2), (width, 2)])

    @pytest.mark.parametrize("name", ["5x5 s2", "4x4 s2, cropped inside a phase"])
    def test_as_few_rows_as_a_kernel_reads_suffice(self, name: str) -> None:
        shape = SHAPES[name]
        run(shape, SIZES, 0.2, 0.5, rows=shape.reach)

    @pytest.mark.parametrize("name", ["5x5 s2", "7x7 s3, a long chain"])
    def test_groups_follow_each_other(self, name: str) -> None:
        """When all their pixels are there, without a cycle in between: no step for a zero."""
        shape = SHAPES[name]
        frame = [(5, shape.reach)]
        watch = run(shape, frame, blocked=True)
        columns = ceil_div(len(watch.starts), shape.out(frame[0][1]))
        apart = [
            shape.group_cycles((row + shape.padding) % shape.stride)
            for row in range(shape.out(frame[0][1]))
            for _ in range(columns)
        ]
        assert np.diff(watch.starts).tolist() == apart[:-1], NAME

    @pytest.mark.parametrize("name", ["5x5 s2", "4x4 s2, cropped inside a phase", "9x9 s4"])
    def test_a_group_waits_for_its_last_pixel(self, name: str) -> None:
        """However long that takes: with all but its last beat the first one does not start."""
        shape = SHAPES[name]
        first = shape.padding // shape.stride
        width, height = first + shape.pixels + 1, first + 2
        enough = (first * width + first + shape.pixels) * shape.beats
        assert not starts(shape, width, height, enough - 1), NAME
        assert starts(shape, width, height, enough), NAME

    def test_no_tap_is_multiplied_twice_or_with_a_zero_between(self) -> None:
        """All phases together have the kernel's taps, each once."""
        for kernel in range(2, 10):
            for stride in range(1, 5):
                geometry = Geometry(kernel=kernel, stride=stride, transposed=True)
                taps = WindowShape(
                    geometry=geometry, channels=1, lanes=1, pixels=1, max_width=1
                ).taps
                assert sum(taps) == kernel and len(taps) == stride

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rows": 2}, "rows must be at least 3, not 2"),
            ({"max_width": 1 << 16}, "max_width must fit 16 bits, not be 65536"),
            ({"pixels": 0}, "pixels must be a positive integer, not 0"),
        ],
    )
    def test_parameters(self, change: dict[str, int], message: str) -> None:
        right = {
            **{"geometry": SHAPES["5x5 s2"].geometry, "channels": 2, "a_shape": unsigned(4)},
            **{"lanes": 1, "pixels": 1, "passes": 1, "least_pass": 3, "max_width": 8},
        }
        with pytest.raises((TypeError, ValueError), match=message):
            TransposedWindow(**(right | change))
