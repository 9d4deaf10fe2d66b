# amaranth: UnusedElaboratable=no
"""The integer divisive normalization: GDN, IGDN, GDN1, IGDN1."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Const, Module, Mux, Shape, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of, shape_of
from lichen.hw.device.memory import CreditFifo, Ram, fifo_depth, ram_resources
from lichen.hw.device.multiplier import WIDEST, multiplier_resources
from lichen.hw.engine.core import Core, CoreShape
from lichen.hw.engine.element import Backend
from lichen.hw.engine.feed import Phases
from lichen.hw.engine.pipe import PIPE_MULTIPLY, Pipe
from lichen.hw.engine.pixel_buffer import PixelBuffer, pixel_buffer_resources
from lichen.hw.engine.regroup import Regroup, regroup_resources
from lichen.hw.engine.requantize import constant_words
from lichen.hw.engine.window import SIZE_BITS
from lichen.hw.stage.folding import ArrayFolding, divides
from lichen.hw.stage.kind import StageUnit, UnitKind
from lichen.network.arithmetic import NORM_BITS, ROOT_TABLES, ceil_div
from lichen.network.description import Format, Normalization, Stage


def norm_payload(source: Format, normalization: Normalization, lanes: int) -> data.StructLayout:
    """What enters a normalization: ``x`` and its ``u``, ``lanes`` channels a beat."""
    return data.StructLayout(
        {
            "x": lanes_of(shape_of(source.lo, source.hi), lanes),
            "u": lanes_of(unsigned(normalization.u_bits), lanes),
        }
    )


class Normalize(Gateware):
    """`lichen.network.arithmetic.normalize` for ``lanes`` channels a cycle, free running.

    Members
    -------
    beat : In
        Index of the beat within its pixel, `Ram.latency + 1` cycles before ``sum`` and ``x``.
    sum : In (lanes)
        ``sum gamma u``, without beta.
    x : In (lanes)
    y : Out (lanes)
        `latency` cycles later.
    """

    def __init__(self, *, normalization: Normalization, source: Format, lanes: int):
        check_positive(lanes=lanes)
        norm = self.normalization = normalization
        self.source, self.lanes = source, lanes
        self.x_shape = shape_of(source.lo, source.hi)
        self.y_shape = shape_of(norm.output.lo, norm.output.hi)
        words = constant_words([(norm.beta, NORM_BITS), (norm.multiplier, 17)], lanes)
        self.rom = Ram(depth=len(words), width=lanes * (NORM_BITS + 17), init=words, writable=False)
        table = [int(v) | (int(d) & 1023) << 16 for v, d in ROOT_TABLES[norm.kind]]
        self.tables = [Ram(depth=256, width=26, init=table, writable=False) for _ in range(lanes)]
        super().__init__(
            wiring.Signature(
                {
                    "beat": In(range(len(words))),
                    "sum": In(lanes_of(unsigned(NORM_BITS), lanes)),
                    "x": In(lanes_of(self.x_shape, lanes)),
                    "y": Out(lanes_of(self.y_shape, lanes)),
                }
            )
        )

    @property
    def _distances(self) -> list[tuple[int, ...]]:
        """By how much every stage that removes leading zeros may shift: a power of two costs a
        comparison and a multiplexer, and two of them after wide comparisons are too many."""
        return [(16,), (8,), (4, 2)] + ([] if self.normalization.kind.squares else [(1,)])

    @property
    def latency(self) -> int:
        """Cycles from ``sum`` and ``x`` to ``y``."""
        leading_zeros = len(self._distances)
        return 1 + leading_zeros + Ram.latency + 3 * PIPE_MULTIPLY + 1 + 2 + 3

    def elaborate(self, platform: object) -> Module:
        m = Module()
        norm = self.normalization
        m.submodules.rom = self.rom
        m.d.comb += self.rom.r_addr.eq(self.beat)
        layout = data.StructLayout({"beta": unsigned(NORM_BITS), "k": unsigned(17)})
        word = Signal(lanes_of(layout, self.lanes), reset_less=True)
        m.d.sync += word.as_value().eq(self.rom.r_data)
        for lane, table in enumerate(self.tables):
            m.submodules[f"table_{lane}"] = table
            pipe = Pipe(m, f"lane{lane}")
            pipe.put(x=self.x[lane], k=word[lane].k)
            pipe.register(n=(self.sum[lane] + word[lane].beta)[:NORM_BITS])
            pipe.put(z=Const(0, 5))
            for distances in self._distances:
                n, z = pipe["n"], pipe["z"]
                for distance in distances:
                    small = n[NORM_BITS - distance :] == 0
                    n = Mux(small, n << distance, n)[:NORM_BITS]
                    z = z | Mux(small, distance, 0)
                pipe.register(n=n, z=z)
            n = pipe["n"]
            m.d.comb += table.r_addr.eq(n[24:])
            exponent = Signal(5, name=f"exponent_{lane}")
            m.d.comb += exponent.eq((31 - pipe["z"]) >> int(norm.kind.squares))
            pipe.put(fraction=n[8:24], e=exponent)
            pipe.drop("n", "z")
            for _ in range(Ram.latency):
                pipe.register()
            pipe.put(value=table.r_data[:16], slope=table.r_data[16:26].as_signed())
            pipe.multiply("rise", "slope", "fraction")
            root = Signal(16, name=f"root_{lane}")
            m.d.comb += root.eq(pipe["value"] + ((pipe["rise"] + (1 << 15)) >> 16))
            pipe.drop("value", "rise")
            pipe.register(r=root)
            pipe.multiply("p", "x", "r")
            pipe.shift_round("p", norm.product_shift)
            pipe.saturate18("p")
            pipe.multiply("y", "p", "k")
            amount = Signal(6, name=f"amount_{lane}")
            most = norm.shift
            if norm.kind.inverse:
                m.d.comb += amount.eq(norm.shift - pipe["e"])
            else:
                m.d.comb += amount.eq(norm.shift + pipe["e"])
                most += norm.exponent_max(self.source)
            pipe.put(amount=amount)
            pipe.drop("e")
            pipe.shift_round_by("y", "amount", most)
            pipe.clamp("y", norm.output.lo, norm.output.hi)
            m.d.comb += self.y[lane].eq(pipe["y"])
            assert pipe.latency == self.latency
        return m

    def resources(self, device: Device) -> Resources:
        lane = multiplier_resources(device, WIDEST, WIDEST) * 3 + Resources(lut=530)
        tables = Resources.total(table.resources(device) for table in self.tables)
        return lane * self.lanes + tables + self.rom.resources(device)


def waiting_depth(shape: CoreShape, lanes: int) -> int:
    """Beats that wait for their root while others of them are on the way through the core."""
    groups = PixelBuffer.banks + shape.banks + 1
    return groups * shape.pixels * shape.beats + 2 * max(1, lanes // shape.chains)


class NormUnit(StageUnit):
    """A whole normalization: pixel buffer, gamma array, root, scaling.

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

    Members
    -------
    i : In(stream of `norm_payload`)
    o : Out(stream)
    width, height : In(16)
    out_width, out_height : Out(16)
        The same.
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
    ):
        check_positive(pixels=pixels, chains=chains, chain_length=chain_length, lanes=lanes)
        norm = self.normalization = normalization
        channels = norm.channels
        steps = ceil_div(channels, lanes)
        gamma = np.zeros((channels, steps * lanes), dtype=np.int64)
        gamma[:, :channels] = norm.gamma
        u_shape = unsigned(norm.u_bits)
        self.core = Core(
            weights=gamma.reshape(channels, steps, lanes),
            weight_shape=unsigned(norm.gamma_bits),
            a_shape=u_shape,
            accumulator_shape=unsigned(NORM_BITS),
            pixels=pixels,
            chains=chains,
            chain_length=chain_length,
            backend=backend,
        )
        self.buffer = PixelBuffer(
            channels=channels,
            shape=u_shape,
            lanes=lanes,
            pixels=pixels,
            passes=self.core.shape.passes,
            pass_cycles=self.core.shape.pass_cycles(steps),
        )
        self.regroup = Regroup(shape=u_shape, channels=channels, i_lanes=chains, o_lanes=lanes)
        self.post = Normalize(normalization=norm, source=source, lanes=chains)
        y = lanes_of(self.post.y_shape, chains)
        self.fifo = CreditFifo(shape=y, depth=fifo_depth(self.latency))
        # Every x waits while its group is in the pixel buffer or in a drain bank; a beat or
        # two more sit in the regrouper.
        self._x_shape = lanes_of(self.post.x_shape, chains)
        self.x_ram = Ram(
            depth=waiting_depth(self.core.shape, lanes),
            width=chains * self.post.x_shape.width,
        )
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(norm_payload(source, norm, chains))),
                    "o": Out(stream.Signature(y)),
                    "width": In(SIZE_BITS),
                    "empty": Out(1),
                    "height": In(SIZE_BITS),
                    "out_width": Out(SIZE_BITS),
                    "out_height": Out(SIZE_BITS),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.core = core = self.core
        m.submodules.buffer = buffer = self.buffer
        m.submodules.regroup = regroup = self.regroup
        m.submodules.post = post = self.post
        m.submodules.fifo = fifo = self.fifo
        m.submodules.x_ram = x_ram = self.x_ram
        m.d.comb += [
            regroup.i.payload.eq(self.i.payload.u),
            regroup.i.valid.eq(self.i.valid),
            self.i.ready.eq(regroup.i.ready),
            buffer.width.eq(self.width),
            self.empty.eq(regroup.empty & buffer.empty & core.empty & fifo.empty),
            self.out_width.eq(self.width),
            self.out_height.eq(self.height),
        ]
        connect(m, regroup.o, buffer.i)
        connect(m, buffer.feed, core.feed)

        x_in, x_out = Signal(range(x_ram.depth)), Signal(range(x_ram.depth))
        accept = Signal()
        m.d.comb += accept.eq(self.i.valid & self.i.ready)
        with m.If(accept):
            m.d.sync += x_in.eq(Mux(x_in == x_ram.depth - 1, 0, x_in + 1))
        with m.If(core.o_issue):
            m.d.sync += x_out.eq(Mux(x_out == x_ram.depth - 1, 0, x_out + 1))
        m.d.comb += [
            x_ram.w_en.eq(accept),
            x_ram.w_addr.eq(x_in),
            x_ram.w_data.eq(self.i.payload.x.as_value()),
            x_ram.r_addr.eq(x_out),
        ]
        x = Signal(self._x_shape, reset_less=True)
        m.d.sync += x.as_value().eq(x_ram.r_data)
        m.d.comb += [
            core.credit.eq(fifo.credit),
            fifo.take.eq(core.o_issue),
            post.beat.eq(core.o_beat),
            post.sum.eq(core.o),
            post.x.eq(x),
            fifo.push.eq(delayed(m, core.o_issue, self.latency, "push")),
            fifo.i.eq(post.y),
        ]
        m.d.comb += [
            self.o.payload.eq(fifo.o.payload),
            self.o.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.o.ready),
        ]
        return m

    @property
    def i_beats(self) -> int:
        return self.regroup.i_beats

    @property
    def latency(self) -> int:
        return Core.latency + self.post.latency

    def line_resources(self, device: Device) -> Resources:
        return Resources.total(ram.resources(device) for ram in self.buffer.rams)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def timing(self, height: int, width: int) -> dict[str, int | tuple[int, ...]]:
        return {
            **self.regroup.timing(),
            **self.buffer.timing(width),
            **self.core.shape.timing(),
            "post_latency": self.latency,
            "fifo_depth": self.fifo.depth,
        }

    def resources(self, device: Device) -> Resources:
        parts = (self.core, self.buffer, self.regroup, self.post, self.fifo, self.x_ram)
        return Resources.total(part.resources(device) for part in parts) + NORM_CONTROL


NORM_CONTROL = Resources(lut=40)
"""What a `NormUnit` takes beside its parts."""


class DivisiveNormalization(UnitKind):
    """GDN, IGDN, GDN1 or IGDN1."""

    slot = "normalization"
    suffix = "_norm"

    @staticmethod
    def fits(stage: Stage) -> bool:
        return stage.normalization is not None

    @property
    def _norm(self) -> Normalization:
        assert self.stage.normalization is not None
        return self.stage.normalization

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
            normalization=self._norm, source=self.stage.requantizer.output, lanes=chains
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
        )
