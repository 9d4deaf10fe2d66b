# amaranth: UnusedElaboratable=no
"""The integer divisive normalization: GDN, IGDN, GDN1, IGDN1."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Module, Mux, Shape, Signal, unsigned
from amaranth.lib.wiring import connect

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, lanes_of, shape_of
from lichen.hw.device.memory import CreditFifo, Ram, fifo_depth, ram_resources
from lichen.hw.engine.core import Core, CoreShape
from lichen.hw.engine.element import Backend
from lichen.hw.engine.feed import Phases
from lichen.hw.engine.normalize import Normalize, norm_payload
from lichen.hw.engine.pixel_buffer import PixelBuffer, pixel_buffer_resources
from lichen.hw.engine.regroup import Regroup, regroup_resources
from lichen.hw.stage.folding import ArrayFolding, divides
from lichen.hw.stage.kind import UnitKind
from lichen.hw.stage.loaded import template_of
from lichen.hw.stage.unit import StageUnit
from lichen.network.arithmetic import NORM_BITS, ceil_div
from lichen.network.description import Format, Normalization, Stage


def waiting_depth(shape: CoreShape, lanes: int) -> int:
    """Beats that wait for their root while others of them are on the way through the core."""
    groups = PixelBuffer.banks + shape.banks + 1
    return groups * shape.pixels * shape.beats + 2 * max(1, lanes // shape.chains)


class NormUnit(StageUnit):
    """A whole normalization: pixel buffer, gamma array, root, scaling. Sizes stay as they are.

    Parameters
    ----------
    normalization : Normalization
    source : Format
        Of ``x``.
    pixels, lanes, chain_length : int
        P, S and the length of a drain chain.
    chains : int
        Channels per beat of the input and the output.
    backend : Backend
        What multiplies.
    product_shift : int or None
        As of `Normalize`: where all constants are filled at run time.

    Members
    -------
    i : In(stream of `norm_payload`)
    o : Out(stream)
    empty : Out(1)
        Nothing is inside, once whole rows have come.
    """

    def __init__(
        self,
        *,
        normalization: Normalization,
        source: Format,
        pixels: int,
        chains: int,
        chain_length: int,
        lanes: int,
        backend: Backend = Backend.PORTABLE,
        product_shift: int | None = None,
    ):
        check_positive(pixels=pixels, chains=chains, chain_length=chain_length, lanes=lanes)
        norm = self.normalization = normalization
        channels = norm.channels
        steps = ceil_div(channels, lanes)
        gamma = np.zeros((channels, steps * lanes), dtype=np.int64)
        gamma[:, :channels] = norm.gamma
        u_shape = unsigned(norm.u_bits)
        core = Core(
            weights=gamma.reshape(channels, steps, lanes),
            weight_shape=unsigned(norm.gamma_bits),
            a_shape=u_shape,
            accumulator_shape=unsigned(NORM_BITS),
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            backend=backend,
            loads=product_shift is not None,
        )
        buffer = PixelBuffer(
            channels=channels,
            shape=u_shape,
            lanes=lanes,
            pixels=pixels,
            passes=core.shape.passes,
            pass_cycles=core.shape.pass_cycles(steps),
        )
        post = Normalize(
            normalization=norm, source=source, lanes=chains, product_shift=product_shift
        )
        super().__init__(
            source=norm_payload(source, norm, chains),
            payload=lanes_of(post.y_shape, chains),
            regroup=Regroup(shape=u_shape, channels=channels, i_lanes=chains, o_lanes=lanes),
            feeder=buffer,
            core=core,
            post=post,
        )
        # Every x waits while its group is in the pixel buffer or in a drain bank; a beat or
        # two more sit in the regrouper.
        self._x_shape = lanes_of(post.x_shape, chains)
        self.x_ram = Ram(
            depth=waiting_depth(core.shape, lanes),
            width=chains * post.x_shape.width,
            registered=True,
        )

    def elaborate(self, platform: object) -> Module:
        m = super().elaborate(platform)
        regroup, core, post, fifo = self.regroup, self.core, self.post, self.fifo
        buffer, x_ram = self.feeder, self.x_ram
        m.submodules.x_ram = x_ram
        connect(m, regroup.o, buffer.i)
        m.d.comb += [
            regroup.i.payload.eq(self.i.payload.u),
            buffer.width.eq(self.width),
            self.empty.eq(regroup.empty & buffer.empty & core.empty & fifo.empty),
            self.out_width.eq(self.width),
            self.out_height.eq(self.height),
        ]
        x_in = Signal(range(x_ram.depth))
        x_out = Signal(range(x_ram.depth))
        accept = Signal()
        m.d.comb += accept.eq(self.i.valid & self.i.ready)
        with m.If(accept):
            m.d.sync += x_in.eq(Mux(x_in == x_ram.depth - 1, 0, x_in + 1))
        with m.If(core.o_issue):
            m.d.sync += x_out.eq(Mux(x_out == x_ram.depth - 1, 0, x_out + 1))
        if self.restart is not None:
            with m.If(self.restarted):
                m.d.sync += [x_in.eq(0), x_out.eq(0)]
        x = Signal(self._x_shape, reset_less=True)
        m.d.sync += x.as_value().eq(x_ram.r_data)
        m.d.comb += [
            x_ram.w_en.eq(accept),
            x_ram.w_addr.eq(x_in),
            x_ram.w_data.eq(self.i.payload.x.as_value()),
            x_ram.r_addr.eq(x_out),
            post.sum.eq(core.o),
            post.x.eq(x),
            fifo.i.eq(post.y),
        ]
        return m

    @property
    def feeding(self) -> dict[str, Gateware]:
        return {"buffer": self.feeder}

    @property
    def parts(self) -> tuple[Gateware, ...]:
        return *super().parts, self.x_ram

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def resources(self, device: Device) -> Resources:
        return super().resources(device) + NORM_CONTROL


NORM_CONTROL = Resources(lut=40)
"""What a `NormUnit` takes beside its parts."""


class DivisiveNormalization(UnitKind):
    """GDN, IGDN, GDN1 or IGDN1."""

    slot = "normalization"

    @staticmethod
    def fits(stage: Stage) -> bool:
        return stage.normalization is not None

    @property
    def name(self) -> str:
        return self.stage.units[-1]

    @property
    def _norm(self) -> Normalization:
        assert self.stage.normalization is not None
        return self.stage.normalization

    @property
    def _product_shift(self) -> int | None:
        template = template_of(self.stage)
        return None if template is None else template.product_shift

    @property
    def in_channels(self) -> int:
        return self.channels

    @cached_property
    def operands(self) -> tuple[Shape, Shape]:
        return unsigned(self._norm.u_bits), unsigned(self._norm.gamma_bits)

    @property
    def accumulator_bits(self) -> int:
        return NORM_BITS

    @property
    def weights(self) -> npt.NDArray[np.integer]:
        return self._norm.gamma

    def phases(self, lanes: int) -> Phases:
        return Phases.one(ceil_div(self.channels, lanes))

    def macs(self, height: int, width: int) -> int:
        return self._norm.macs(height, width)

    def problem(self, folding: ArrayFolding, chains: int, before: int | None) -> str | None:
        if folding.lanes > self.channels:
            return f"lanes of the normalization must not exceed its {self.channels} channels"
        if not divides(chains, folding.lanes):
            return f"lanes of the normalization must divide or be divided by the {chains} chains"
        if folding.rows is not None:
            return "rows are those of a convolution's window; a normalization has none"
        return super().problem(folding, chains, before)

    def array_resources(
        self, device: Device, folding: ArrayFolding, chains: int, max_width: int
    ) -> Resources:
        x = self.stage.requantizer.output
        waiting = ram_resources(
            device,
            waiting_depth(self.shape(folding, chains), folding.lanes),
            chains * shape_of(x.lo, x.hi).width,
            writable=True,
        )
        buffer = pixel_buffer_resources(
            device,
            self.channels,
            lanes=folding.lanes,
            bits=self.operands[0].width,
            pixels=folding.pixels,
        )
        regroup = regroup_resources(chains, folding.lanes)
        return (
            self.core_resources(device, folding, chains) + waiting + buffer + regroup + NORM_CONTROL
        )

    def output_resources(self, device: Device, chains: int) -> Resources:
        post = Normalize(
            normalization=self._norm,
            source=self.stage.requantizer.output,
            lanes=chains,
            product_shift=self._product_shift,
        )
        depth = fifo_depth(Core.latency + post.latency)
        fifo = CreditFifo(shape=lanes_of(post.y_shape, chains), depth=depth)
        return post.resources(device) + fifo.resources(device)

    def component(
        self, folding: ArrayFolding, *, chains: int, i_lanes: int, max_width: int
    ) -> NormUnit:
        return NormUnit(
            normalization=self._norm,
            source=self.stage.requantizer.output,
            pixels=folding.pixels,
            chains=chains,
            chain_length=folding.chain_length,
            lanes=folding.lanes,
            backend=folding.backend,
            product_shift=self._product_shift,
        )
