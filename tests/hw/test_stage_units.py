# amaranth: UnusedElaboratable=no
"""Whole units, a convolution and a normalization, between two streams."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Shape

from lichen.hw.device.memory import CreditFifo
from lichen.hw.engine.core import Core
from lichen.hw.engine.feed import FEED_LATENCY
from lichen.hw.engine.pixel_buffer import PixelBuffer
from lichen.hw.stage.conv import ConvUnit
from lichen.hw.stage.norm import NormUnit
from lichen.network.arithmetic import ROOT_TABLES, ceil_div, norm_input, normalize
from lichen.network.description import Activation, Format, Normalization, Stage, Transform
from lichen.network.random import StageShape, random_transform
from lichen.sim.golden import run_stages, trace_stage
from tests.hw.streams import SEED, Sink, Source, StreamUnitTest, lanes, simulate


def words(tensor: np.ndarray, per_beat: int, shape: Shape) -> list[int]:
    """The beats of a tensor (height, width, channels)."""
    channels = tensor.shape[2]
    return [
        lanes(pixel[c : c + per_beat], shape.width)
        for pixel in tensor.reshape(-1, channels)
        for c in range(0, channels, per_beat)
    ]


def latency_of(unit: ConvUnit | NormUnit) -> int:
    """Cycles from a group's first step to its first beat at the output, one after the other."""
    shape = unit.core.shape
    drain = shape.chain_length + shape.pixels
    return FEED_LATENCY + unit.core.array.latency + drain + unit.latency + 12


class _Unit(StreamUnitTest):
    """A unit on a frame of `height` x `width`."""

    height, width = 4, 6
    chains = 1

    def setup(self, ctx: Any, unit: Any) -> None:
        ctx.set(unit.width, self.width)
        ctx.set(unit.height, self.height)

    def ahead(self) -> int:
        """Items that come before the first group may start."""
        raise NotImplementedError

    def check_rate(self, name: str, items: list[int], took: int) -> None:
        """The array, its drain or its source is busy all the time but for the way through.

        No constant of the gateware that a model could share: too shallow a queue or too few banks
        make it slower than that.
        """
        unit = self.unit()
        size = unit.output_size(self.height, self.width)
        ideal = max(unit.core.shape.frame_cycles(*size), len(items) - self.ahead())
        most = self.ahead() + ideal + latency_of(unit)
        assert ideal < took <= most, f"{name} takes {took} cycles where {most} are enough"


class _Convolution(_Unit):
    shape: StageShape
    lanes: int
    chain_length: int
    pixels = 1

    @cached_property
    def transform(self) -> Transform:
        return random_transform(np.random.default_rng(SEED), [self.shape], in_channels=4)

    def unit(self) -> ConvUnit:
        return ConvUnit(
            stage=self.transform.stages[0],
            source=self.transform.input,
            i_lanes=2,
            pixels=self.pixels,
            chains=self.chains,
            chain_length=self.chain_length,
            lanes=self.lanes,
            max_width=8,
        )

    def frame(self) -> np.ndarray:
        rng = np.random.default_rng(SEED)
        return rng.integers(0, 256, (self.height, self.width, 4))

    def items(self) -> list[int]:
        return words(self.frame(), 2, Shape(8))

    def golden(self, items: list[int]) -> list[int]:
        output = self.transform.stages[0].output
        tensor = run_stages(self.transform, self.frame())[0]
        return words(tensor, self.chains, Shape(output.bits, signed=output.signed))

    def mask(self, k: int) -> int:
        bits = self.transform.stages[0].output.bits
        beat = k % ceil_div(self.shape.out_channels, self.chains)
        left = self.shape.out_channels - beat * self.chains
        return (1 << bits * min(self.chains, left)) - 1

    def ahead(self) -> int:
        convolution = self.transform.stages[0].convolution
        rows = max(0, convolution.kernel - 1 - convolution.padding)
        columns = self.pixels * convolution.stride + convolution.kernel
        return (rows * self.width + columns) * 2


class TestConvUnit(_Convolution):
    """3x3, two pixels; channels per beat that do not divide the channels."""

    shape = StageShape(out_channels=5, kernel=3, activation=Activation.LEAKY_RELU)
    lanes, chains, chain_length, pixels = 4, 2, 2, 2

    @pytest.mark.parametrize(
        "field", ["i_lanes", "pixels", "chains", "chain_length", "lanes", "max_width"]
    )
    def test_parameters(self, field: str) -> None:
        right = {"i_lanes": 1, "pixels": 1, "chains": 1, "chain_length": 1, "lanes": 1}
        right |= {"max_width": 8, field: 0}
        with pytest.raises(TypeError, match=f"{field} must be a positive integer, not 0"):
            ConvUnit(stage=self.transform.stages[0], source=self.transform.input, **right)

    def test_transposed_convolutions_are_refused(self) -> None:
        shape = StageShape(out_channels=2, kernel=3, transposed=True)
        stage = random_transform(np.random.default_rng(0), [shape]).stages[0]
        folding = {"pixels": 1, "chains": 1, "chain_length": 1, "lanes": 1}
        with pytest.raises(ValueError, match=f"stage {stage.name} must not be a transposed"):
            ConvUnit(stage=stage, source=stage.output, i_lanes=1, max_width=4, **folding)


class TestConvUnitThatGivesABeatACycle(_Convolution):
    """1x1, whose array takes as long as its drain: any queue too short shows."""

    shape = StageShape(out_channels=8, kernel=1, stride=1, padding=0)
    lanes, chain_length = 4, 8


class TestConvUnitBeforeANormalization(_Convolution):
    """The same, and its way to the queue is so long that 16 places are too few."""

    shape = StageShape(out_channels=8, kernel=1, stride=1, padding=0, activation=Activation.GDN)
    lanes, chain_length = 4, 8

    def golden(self, items: list[int]) -> list[int]:
        stage = self.transform.stages[0]
        norm, x_format = stage.normalization, stage.requantizer.output
        assert norm is not None
        x = trace_stage(stage, self.transform.input, self.frame()).x
        u = norm_input(x.astype(np.int64), norm.kind.squares, norm.u_shift)
        xs = words(x, self.chains, Shape(x_format.bits, signed=x_format.signed))
        us = words(u, self.chains, Shape(norm.u_bits))
        return [a | b << x_format.bits * self.chains for a, b in zip(xs, us, strict=True)]

    def mask(self, k: int) -> int:
        return -1

    def test_it_needs_more_than_the_least_queue(self) -> None:
        assert self.unit().fifo.depth == 32


class _Normalization(_Unit):
    activation = Activation.GDN
    channels, lanes, chain_length, pixels = 8, 4, 8, 1

    @cached_property
    def stage(self) -> Stage:
        shape = StageShape(out_channels=self.channels, kernel=1, activation=self.activation)
        return random_transform(np.random.default_rng(SEED), [shape]).stages[0]

    @property
    def norm(self) -> Normalization:
        assert self.stage.normalization is not None
        return self.stage.normalization

    @property
    def source(self) -> Format:
        return self.stage.requantizer.output

    def unit(self) -> NormUnit:
        return NormUnit(
            normalization=self.norm,
            source=self.source,
            pixels=self.pixels,
            chains=self.chains,
            chain_length=self.chain_length,
            lanes=self.lanes,
        )

    def x(self) -> np.ndarray:
        lo, hi = self.source.lo, self.source.hi
        size = self.height, self.width, self.channels
        return np.random.default_rng(SEED).integers(lo, hi + 1, size)

    def u(self) -> np.ndarray:
        return norm_input(self.x(), self.norm.kind.squares, self.norm.u_shift)

    def items(self) -> list[int]:
        source = Shape(self.source.bits, signed=self.source.signed)
        xs = words(self.x(), self.chains, source)
        us = words(self.u(), self.chains, Shape(self.norm.u_bits))
        return [x | u << source.width * self.chains for x, u in zip(xs, us, strict=True)]

    def golden(self, items: list[int]) -> list[int]:
        norm = self.norm
        n = norm.beta + self.u() @ norm.gamma.T.astype(np.int64)
        y = normalize(
            self.x(),
            n,
            ROOT_TABLES[norm.kind],
            norm.kind.squares,
            norm.kind.inverse,
            norm.product_shift,
            norm.multiplier.astype(np.int64),
            norm.shift,
            norm.output.lo,
            norm.output.hi,
        )
        output = Shape(norm.output.bits, signed=norm.output.signed)
        return words(y, self.chains, output)

    def ahead(self) -> int:
        return self.pixels * ceil_div(self.channels, self.chains) + self.lanes

    @pytest.mark.parametrize("field", ["pixels", "chains", "chain_length", "lanes"])
    def test_parameters(self, field: str) -> None:
        right = {"pixels": 1, "chains": 1, "chain_length": 1, "lanes": 1} | {field: -1}
        with pytest.raises(TypeError, match=f"{field} must be a positive integer, not -1"):
            NormUnit(normalization=self.norm, source=self.source, **right)

    def test_every_x_that_waits_has_a_place(self) -> None:
        """Nothing leaves until nothing enters any more; then everything is there."""
        unit, items = self.unit(), self.items() * 3
        self_height = self.height * 3
        expected = self.golden([]) * 3
        source = Source(unit.i, items)

        class Blocked(Sink):
            """Takes nothing until the source has been refused for long."""

            open_ = False

            def drive(self, ctx: Any, t: int) -> None:
                refused = bool(source.taken) and t - source.taken[-1] > 150
                self.open_ = self.open_ or refused or source.done
                self._ready = self.open_
                if refused and not self.items:
                    waiting = len(source.taken) - unit.fifo.depth
                    places = unit.x_ram.depth
                    assert waiting <= places, f"NormUnit: {waiting} x wait in {places} places"
                ctx.set(self.stream.ready, self.open_)

        sink = Blocked("NormUnit", unit.o, len(expected))

        def setup(ctx: Any) -> None:
            ctx.set(unit.width, self.width)
            ctx.set(unit.height, self_height)

        simulate(unit, [source, sink], limit=4000, setup=setup, settle=4)
        assert source.taken[-1] > source.taken[0] + 150, "the source was never refused"
        assert sink.items == expected, "NormUnit mixes up what waits"


class TestNormUnit(_Normalization):
    """As slow as its drain is fast, a pixel at a time."""


class TestNormUnitSlowerThanItsSource(_Normalization):
    """Two pixels, three passes; lanes and chains differ, so that the regrouper collects."""

    activation = Activation.IGDN1
    channels, lanes, chains, chain_length, pixels = 6, 4, 2, 1, 2
    width = 5
    """Odd, so that rows end with a group of one pixel."""


class TestOutputQueues:
    """A unit's queue covers all that is on the way when its consumer stops."""

    @pytest.mark.parametrize("test", [TestConvUnit, TestNormUnit])
    def test_depth(self, test: type) -> None:
        unit = test().unit()
        assert isinstance(unit.fifo, CreditFifo)
        on_the_way = Core.latency + unit.post.latency
        assert unit.fifo.depth >= on_the_way + 2, type(unit).__name__

    def test_a_pixel_buffer_has_two_banks(self) -> None:
        """Which the cycle model takes for granted."""
        assert PixelBuffer.banks == 2
