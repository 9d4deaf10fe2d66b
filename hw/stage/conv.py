# amaranth: UnusedElaboratable=no
"""The convolution engine of one layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Module, Shape
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from lichen.hw.device.memory import CreditFifo, fifo_depth
from lichen.hw.device.unit import Resources, Unit, delayed, lanes_of, shape_of
from lichen.hw.engine.core import Core
from lichen.hw.engine.element import Backend
from lichen.hw.engine.regroup import Regroup
from lichen.hw.engine.requantize import Requantize
from lichen.hw.engine.skid import Skid
from lichen.hw.engine.window import SIZE_BITS, Window
from lichen.hw.stage.norm import norm_payload
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Format, Stage


def reduction_order(weight: npt.NDArray[np.integer], lanes: int) -> npt.NDArray[np.int64]:
    """Weights (out, in, ky, kx) in the order of the steps: (out, ky kx groups, lanes).

    Input channels past the last get weight 0.
    """
    out, channels, ky, kx = weight.shape
    groups = ceil_div(channels, lanes)
    padded = np.zeros((out, groups * lanes, ky, kx), dtype=np.int64)
    padded[:, :channels] = weight
    ordered = padded.transpose(0, 2, 3, 1).reshape(out, ky * kx * groups, lanes)
    return ordered


class ConvUnit(Unit):
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
        convolution = stage.convolution
        if convolution.transposed:
            raise ValueError(f"stage {stage.name} must not be a transposed convolution")
        self.stage = stage
        channels = convolution.in_channels
        a_shape = shape_of(source.lo, source.hi)
        least, most = convolution.accumulator_range(source)
        accumulator = shape_of(min(-1, int(least.min())), int(most.max()))
        self.core = Core(
            weights=reduction_order(convolution.weight, lanes),
            weight_shape=Shape(convolution.weight_bits, signed=True),
            a_shape=a_shape,
            accumulator_shape=accumulator,
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            backend=backend,
        )
        self.window = Window(
            kernel=convolution.kernel,
            stride=convolution.stride,
            padding=convolution.padding,
            channels=channels,
            shape=a_shape,
            lanes=lanes,
            pixels=pixels,
            passes=self.core.shape.passes,
            pass_cycles=self.core.shape.pass_cycles,
            max_width=max_width,
        )
        self.regroup = Regroup(shape=a_shape, channels=channels, i_lanes=i_lanes, o_lanes=lanes)
        # Here the layers meet: whoever sends and the window may be far apart.
        self.skid = Skid(shape=lanes_of(a_shape, lanes))
        self.post = Requantize(
            bias=[int(b) for b in convolution.bias],
            constants=stage.requantizer,
            accumulator_shape=accumulator,
            lanes=chains,
            normalization=stage.normalization,
        )
        payload: object = lanes_of(self.post.x_shape, chains)
        if stage.normalization is not None:
            payload = norm_payload(stage.requantizer.output, stage.normalization, chains)
        self.fifo = CreditFifo(shape=payload, depth=fifo_depth(Core.latency + self.post.latency))
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
            fifo.push.eq(delayed(m, core.o_issue, Core.latency + post.latency, "push")),
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

    def resources(self) -> Resources:
        parts = (self.regroup, self.skid, self.window, self.core, self.post, self.fifo)
        return Resources.total(part.resources() for part in parts)
