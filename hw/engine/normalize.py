# amaranth: UnusedElaboratable=no
"""From a norm and what it belongs to, to the normalized value."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, lanes_of, shape_of
from lichen.hw.device.memory import Ram
from lichen.hw.device.multiplier import WIDEST, multiplier_resources
from lichen.hw.engine.pipe import PIPE_MULTIPLY, Pipe
from lichen.hw.engine.requantize import constant_words
from lichen.network.arithmetic import NORM_BITS, ROOT_TABLES
from lichen.network.description import Format, Normalization


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
