# amaranth: UnusedElaboratable=no
"""The convolution engine of one layer."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Module, Shape, signed
from amaranth.lib import data
from amaranth.lib.wiring import connect

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, lanes_of, shape_of
from lichen.hw.device.memory import CreditFifo, fifo_depth
from lichen.hw.engine.core import Core
from lichen.hw.engine.element import Backend
from lichen.hw.engine.feed import LEAST_GROUP, Phases
from lichen.hw.engine.normalize import norm_payload
from lichen.hw.engine.regroup import Regroup
from lichen.hw.engine.requantize import Requantize
from lichen.hw.engine.row_buffer import RowBuffer
from lichen.hw.engine.skid import Skid, skid_resources
from lichen.hw.engine.window import Window
from lichen.hw.engine.window_shape import WindowShape, window_phases
from lichen.hw.stage.folding import ArrayFolding, divides
from lichen.hw.stage.kind import UnitKind
from lichen.hw.stage.loaded import template_of
from lichen.hw.stage.unit import StageUnit
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Format, Stage


def reduction_order(weight: npt.NDArray[np.integer], lanes: int) -> npt.NDArray[np.int64]:
    """Weights (out, in, ky, kx) in the order of the steps: (out, ky kx beats, lanes).

    Input channels past the last get weight 0.
    """
    out, channels, ky, kx = weight.shape
    beats = ceil_div(channels, lanes)
    padded = np.zeros((out, beats * lanes, ky, kx), dtype=np.int64)
    padded[:, :channels] = weight
    ordered = padded.transpose(0, 2, 3, 1).reshape(out, ky * kx * beats, lanes)
    return ordered


def convolution_operands(stage: Stage, source: Format) -> tuple[Shape, Shape]:
    """An activation and a weight of a stage's convolution."""
    return shape_of(source.lo, source.hi), signed(stage.convolution.weight_bits)


def accumulator_shape(stage: Stage, source: Format) -> Shape:
    """Of the sums of a stage's convolution, whatever its input."""
    template = template_of(stage)
    if template is not None:
        return signed(template.accumulator_bits)
    least, most = stage.convolution.accumulator_range(source)
    return shape_of(min(-1, int(least.min())), int(most.max()))


def output_payload(post: Requantize, lanes: int) -> data.Layout:
    """What leaves a convolution, ``lanes`` channels a beat."""
    if post.normalization is None:
        return lanes_of(post.x_shape, lanes)
    return norm_payload(post.constants.output, post.normalization, lanes)


def requantizer_of(stage: Stage, source: Format, chains: int) -> Requantize:
    """What follows the sums of ``chains`` channels a beat."""
    template = template_of(stage)
    return Requantize(
        bias=[int(b) for b in stage.convolution.bias],
        constants=stage.requantizer,
        accumulator_shape=accumulator_shape(stage, source),
        lanes=chains,
        normalization=stage.normalization,
        ranges=None if template is None else template.ranges,
    )


class ConvUnit(StageUnit):
    """A convolution with its requantizer: window buffer, array, drain, requantizer.

    Parameters
    ----------
    stage : Stage
        The convolution must not be transposed.
    source : Format
        Of the input.
    i_lanes : int
        Channels per beat of the input stream.
    pixels, lanes, chain_length : int
        P, S and the length of a drain chain.
    chains : int
        Channels per beat of the output. Q = chains x chain_length.
    max_width : int
        Widest input, in pixels.
    backend : Backend
        What multiplies.
    rows : int or None
        Row slots of the window; None takes `WindowShape.enough_rows`.

    Members
    -------
    i : In(stream)
    o : Out(stream), of `norm_payload` where a normalization follows.
    """

    window: ClassVar[type[RowBuffer]] = Window
    """What feeds it."""

    transposed: ClassVar[bool] = False
    """Which convolutions it takes."""

    def __init__(
        self,
        *,
        stage: Stage,
        source: Format,
        i_lanes: int,
        pixels: int,
        chains: int,
        chain_length: int,
        lanes: int,
        max_width: int,
        backend: Backend = Backend.PORTABLE,
        rows: int | None = None,
    ):
        check_positive(i_lanes=i_lanes, pixels=pixels, chains=chains, chain_length=chain_length)
        check_positive(lanes=lanes, max_width=max_width)
        self.stage, convolution = stage, stage.convolution
        if convolution.transposed != self.transposed:
            must = "must" if self.transposed else "must not"
            raise ValueError(f"stage {stage.name} {must} be a transposed convolution")
        channels = convolution.in_channels
        a_shape, w_shape = convolution_operands(stage, source)
        core = Core(
            weights=self._ordered_weights(lanes),
            weight_shape=w_shape,
            a_shape=a_shape,
            accumulator_shape=accumulator_shape(stage, source),
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            backend=backend,
            phases=window_phases(convolution.geometry, ceil_div(channels, lanes)),
            least_group=LEAST_GROUP,
            loads=template_of(stage) is not None,
        )
        window = self.window(
            geometry=convolution.geometry,
            channels=channels,
            a_shape=a_shape,
            lanes=lanes,
            pixels=pixels,
            passes=core.shape.passes,
            least_pass=core.shape.least_pass,
            max_width=max_width,
            rows=rows,
        )
        # Here the layers meet: whoever sends and the window may be far apart.
        self.skid = Skid(shape=lanes_of(a_shape, lanes))
        post = requantizer_of(stage, source, chains)
        super().__init__(
            source=lanes_of(a_shape, i_lanes),
            payload=output_payload(post, chains),
            regroup=Regroup(shape=a_shape, channels=channels, i_lanes=i_lanes, o_lanes=lanes),
            feeder=window,
            core=core,
            post=post,
        )

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        regroup, core, post, fifo = self.regroup, self.core, self.post, self.fifo
        skid, window = self.skid, self.feeder
        connect(m, regroup.o, skid.i)
        connect(m, skid.o, window.i)
        m.d.comb += [
            regroup.i.payload.eq(self.i.payload),
            window.width.eq(self.width),
            window.height.eq(self.height),
            self.out_width.eq(window.out_width),
            self.out_height.eq(window.out_height),
            self.empty.eq(regroup.empty & skid.empty & window.empty & core.empty & fifo.empty),
            post.acc.eq(core.o),
        ]
        if self.stage.normalization is None:
            m.d.comb += fifo.i.eq(post.x)
        else:
            m.d.comb += [fifo.i.x.eq(post.x), fifo.i.u.eq(post.u)]
        return m

    def _ordered_weights(self, lanes: int) -> npt.NDArray[np.int64]:
        return reduction_order(self.stage.convolution.weight, lanes)

    @property
    def feeding(self) -> dict[str, Gateware]:
        return {"skid": self.skid, "window": self.feeder}

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        conv = self.stage.convolution
        return conv.output_size(height), conv.output_size(width)


class Convolution(UnitKind):
    """What plain and transposed convolutions have in common."""

    slot = "convolution"
    least_group = LEAST_GROUP

    @property
    def in_channels(self) -> int:
        return self.stage.convolution.in_channels

    @cached_property
    def operands(self) -> tuple[Shape, Shape]:
        return convolution_operands(self.stage, self.source)

    @cached_property
    def accumulator_bits(self) -> int:
        return accumulator_shape(self.stage, self.source).width

    @property
    def weights(self) -> npt.NDArray[np.integer]:
        return self.stage.convolution.weight

    def macs(self, height: int, width: int) -> int:
        return self.stage.convolution.macs(height, width)

    def problem(self, folding: ArrayFolding, chains: int, before: int | None) -> str | None:
        if folding.lanes > self.in_channels:
            return f"lanes must not exceed the {self.in_channels} input channels"
        if before is not None and not divides(before, folding.lanes):
            return f"lanes must divide or be divided by the {before} channels per beat before it"
        if folding.rows is not None:
            least = self._window(folding, 1).least_rows
            if folding.rows < least:
                return f"rows must be at least {least}, which an output reads"
        return super().problem(folding, chains, before)

    def _window(self, folding: ArrayFolding, max_width: int) -> WindowShape:
        return WindowShape(
            geometry=self.stage.convolution.geometry,
            channels=self.in_channels,
            lanes=folding.lanes,
            pixels=folding.pixels,
            max_width=max_width,
            slots=folding.rows,
        )

    def tight(self, folding: ArrayFolding) -> ArrayFolding:
        window = self._window(folding, 1)
        fewer = window.least_rows < window.enough_rows
        return folding.model_copy(update={"rows": window.least_rows}) if fewer else folding

    def phases(self, lanes: int) -> Phases:
        convolution = self.stage.convolution
        return window_phases(convolution.geometry, ceil_div(convolution.in_channels, lanes))

    def array_resources(
        self, device: Device, folding: ArrayFolding, chains: int, max_width: int
    ) -> Resources:
        bits = self.operands[0].width
        skid = skid_resources(folding.lanes * bits)
        window = self._window(folding, max_width)
        return self.core_resources(device, folding, chains) + skid + window.resources(device, bits)

    def output_resources(self, device: Device, chains: int) -> Resources:
        post = requantizer_of(self.stage, self.source, chains)
        depth = fifo_depth(Core.latency + post.latency)
        fifo = CreditFifo(shape=output_payload(post, chains), depth=depth)
        return post.resources(device) + fifo.resources(device)

    unit: ClassVar[type[ConvUnit]]
    """The gateware."""

    def component(
        self, folding: ArrayFolding, *, chains: int, i_lanes: int, max_width: int
    ) -> ConvUnit:
        return self.unit(
            stage=self.stage,
            source=self.source,
            i_lanes=i_lanes,
            pixels=folding.pixels,
            chains=chains,
            chain_length=folding.chain_length,
            lanes=folding.lanes,
            max_width=max_width,
            backend=folding.backend,
            rows=folding.rows,
        )


class PlainConvolution(Convolution):
    """A convolution that is not transposed."""

    unit = ConvUnit

    @staticmethod
    def fits(stage: Stage) -> bool:
        return not stage.convolution.transposed
