# amaranth: UnusedElaboratable=no
"""The convolution engine of one layer."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Module, Shape, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import check_positive, delayed, lanes_of, shape_of
from lichen.hw.device.memory import CreditFifo, fifo_depth
from lichen.hw.engine.core import Core
from lichen.hw.engine.element import Backend
from lichen.hw.engine.feed import Phases
from lichen.hw.engine.regroup import Regroup
from lichen.hw.engine.requantize import Requantize
from lichen.hw.engine.skid import Skid, skid_resources
from lichen.hw.engine.transposed_window import TransposedWindow
from lichen.hw.engine.window import (
    SIZE_BITS,
    Window,
    window_resources,
    window_row_words,
    window_rows,
)
from lichen.hw.stage.folding import ArrayFolding, divides
from lichen.hw.stage.kind import StageUnit, UnitKind
from lichen.hw.stage.norm import norm_payload
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Convolution as ConvolutionOf
from lichen.network.description import Format, Stage

AnyWindow = Window | TransposedWindow


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
    least, most = stage.convolution.accumulator_range(source)
    return shape_of(min(-1, int(least.min())), int(most.max()))


def output_payload(post: Requantize, lanes: int) -> data.Layout:
    """What leaves a convolution, ``lanes`` channels a beat."""
    if post.normalization is None:
        return lanes_of(post.x_shape, lanes)
    return norm_payload(post.constants.output, post.normalization, lanes)


def plain_phases(convolution: ConvolutionOf, lanes: int) -> Phases:
    """Steps of a pass of a plain convolution."""
    return Phases.one(convolution.kernel**2 * ceil_div(convolution.in_channels, lanes))


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

    Members
    -------
    i : In(stream)
    o : Out(stream), of `norm_payload` where a normalization follows.
    width, height : In(16)
        Of the input.
    out_width, out_height : Out(16)
        Of the output.
    empty : Out(1)
        Between two frames, and nothing of the earlier one is on its way.
    """

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
    ):
        check_positive(i_lanes=i_lanes, pixels=pixels, chains=chains, chain_length=chain_length)
        check_positive(lanes=lanes, max_width=max_width)
        self.stage = stage
        self._check(stage)
        channels = stage.convolution.in_channels
        a_shape, w_shape = convolution_operands(stage, source)
        accumulator = accumulator_shape(stage, source)
        self.core = Core(
            weights=self._ordered_weights(lanes),
            weight_shape=w_shape,
            a_shape=a_shape,
            accumulator_shape=accumulator,
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            backend=backend,
            phases=self._phases(lanes),
        )
        self.window = self._make_window(a_shape, max_width)
        self.regroup = Regroup(shape=a_shape, channels=channels, i_lanes=i_lanes, o_lanes=lanes)
        # Here the layers meet: whoever sends and the window may be far apart.
        self.skid = Skid(shape=lanes_of(a_shape, lanes))
        self.post = Requantize(
            bias=[int(b) for b in stage.convolution.bias],
            constants=stage.requantizer,
            accumulator_shape=accumulator,
            lanes=chains,
            normalization=stage.normalization,
        )
        payload = output_payload(self.post, chains)
        self.fifo = CreditFifo(shape=payload, depth=fifo_depth(self.latency))
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(lanes_of(a_shape, i_lanes))),
                    "o": Out(stream.Signature(payload)),
                    "width": In(SIZE_BITS),
                    "height": In(SIZE_BITS),
                    "out_width": Out(SIZE_BITS),
                    "out_height": Out(SIZE_BITS),
                    "empty": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.regroup = regroup = self.regroup
        m.submodules.skid = skid = self.skid
        m.submodules.window = window = self.window
        m.submodules.core = core = self.core
        m.submodules.post = post = self.post
        m.submodules.fifo = fifo = self.fifo
        m.d.comb += [
            regroup.i.payload.eq(self.i.payload),
            regroup.i.valid.eq(self.i.valid),
            self.i.ready.eq(regroup.i.ready),
            window.width.eq(self.width),
            window.height.eq(self.height),
            self.out_width.eq(window.out_width),
            self.out_height.eq(window.out_height),
            self.empty.eq(regroup.empty & skid.empty & window.empty & core.empty & fifo.empty),
        ]
        connect(m, regroup.o, skid.i)
        connect(m, skid.o, window.i)
        connect(m, window.feed, core.feed)
        m.d.comb += [
            core.credit.eq(fifo.credit),
            fifo.take.eq(core.o_issue),
            post.beat.eq(core.o_beat),
            post.acc.eq(core.o),
            fifo.push.eq(delayed(m, core.o_issue, self.latency, "push")),
        ]
        if self.stage.normalization is None:
            m.d.comb += fifo.i.eq(post.x)
        else:
            m.d.comb += [fifo.i.x.eq(post.x), fifo.i.u.eq(post.u)]
        m.d.comb += [
            self.o.payload.eq(fifo.o.payload),
            self.o.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.o.ready),
        ]
        return m

    @staticmethod
    def _check(stage: Stage) -> None:
        if stage.convolution.transposed:
            raise ValueError(f"stage {stage.name} must not be a transposed convolution")

    def _phases(self, lanes: int) -> Phases:
        return plain_phases(self.stage.convolution, lanes)

    def _ordered_weights(self, lanes: int) -> npt.NDArray[np.int64]:
        return reduction_order(self.stage.convolution.weight, lanes)

    def _make_window(self, shape: Shape, max_width: int) -> AnyWindow:
        convolution, core = self.stage.convolution, self.core.shape
        return Window(
            kernel=convolution.kernel,
            stride=convolution.stride,
            padding=convolution.padding,
            channels=convolution.in_channels,
            shape=shape,
            lanes=self.core.lanes,
            pixels=core.pixels,
            passes=core.passes,
            pass_cycles=core.pass_cycles(core.phases.total),
            max_width=max_width,
        )

    @property
    def i_beats(self) -> int:
        return self.regroup.i_beats

    @property
    def latency(self) -> int:
        return Core.latency + self.post.latency

    def line_resources(self, device: Device) -> Resources:
        return Resources.total(bank.resources(device) for bank in self.window.banks)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        conv = self.stage.convolution
        return conv.output_size(height), conv.output_size(width)

    def timing(self, height: int, width: int) -> dict[str, int | tuple[int, ...]]:
        out_height, out_width = self.output_size(height, width)
        return {
            **self.regroup.timing(),
            **self.window.timing(height, width),
            **self.core.shape.timing(),
            "out_height": out_height,
            "out_width": out_width,
            "post_latency": self.latency,
            "fifo_depth": self.fifo.depth,
        }

    def resources(self, device: Device) -> Resources:
        parts = (self.regroup, self.skid, self.window, self.core, self.post, self.fifo)
        return Resources.total(part.resources(device) for part in parts)


class Convolution(UnitKind):
    """What plain and transposed convolutions have in common."""

    slot = "convolution"

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
        return super().problem(folding, chains, before)

    def array_resources(
        self, device: Device, folding: ArrayFolding, chains: int, max_width: int
    ) -> Resources:
        skid = skid_resources(folding.lanes * self.operands[0].width)
        window = self.window_resources(device, folding, max_width)
        return self.core_resources(device, folding, chains) + skid + window

    @abstractmethod
    def window_resources(self, device: Device, folding: ArrayFolding, max_width: int) -> Resources:
        """What the window buffer takes."""

    def output_resources(self, device: Device, chains: int) -> Resources:
        stage = self.stage
        post = Requantize(
            bias=[int(b) for b in stage.convolution.bias],
            constants=stage.requantizer,
            accumulator_shape=accumulator_shape(stage, self.source),
            lanes=chains,
            normalization=stage.normalization,
        )
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
        )


class PlainConvolution(Convolution):
    """A convolution that is not transposed."""

    unit = ConvUnit

    @staticmethod
    def fits(stage: Stage) -> bool:
        return not stage.convolution.transposed

    def phases(self, lanes: int) -> Phases:
        return plain_phases(self.stage.convolution, lanes)

    def window_resources(self, device: Device, folding: ArrayFolding, max_width: int) -> Resources:
        conv = self.stage.convolution
        row = window_row_words(
            max_width=max_width,
            padding=conv.padding,
            stride=conv.stride,
            beats=ceil_div(conv.in_channels, folding.lanes),
            pixels=folding.pixels,
        )
        return window_resources(
            device,
            window_rows(conv.kernel, conv.stride) * row,
            lanes=folding.lanes,
            bits=self.operands[0].width,
            pixels=folding.pixels,
        )
