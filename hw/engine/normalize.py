# amaranth: UnusedElaboratable=no
"""From a norm and what it belongs to, to the normalized value."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, lanes_of, shape_of
from lichen.hw.device.load import LoadRegister, LoadSignature
from lichen.hw.device.memory import Ram
from lichen.hw.device.multiplier import WIDEST, multiplier_resources
from lichen.hw.engine.pipe import PIPE_MULTIPLY, Pipe
from lichen.hw.engine.requantize import SHIFT_BITS, constant_words
from lichen.network.arithmetic import NORM_BITS, ROOT_TABLES, SATURATION_BITS
from lichen.network.description import Format, Normalization
from lichen.network.stage import SHIFT_MAX

NORM_SHIFT_BITS = 6
"""Of ``b``, whose whole range may be filled in at run time: 0 .. 47."""


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

    Parameters
    ----------
    normalization : Normalization
    source : Format
        Of ``x``.
    lanes : int
    product_shift : int or None
        Where all constants are filled at run time: the least ``a`` that may be chosen, of
        `SHIFT_SPAN` more.

    Members
    -------
    load : In(LoadSignature), only with ``product_shift``
    beat : In
        Index of the beat within its pixel, `Ram.latency + 1` cycles before ``sum`` and ``x``.
    sum : In (lanes)
        ``sum gamma u``, without beta.
    x : In (lanes)
    y : Out (lanes)
        `latency` cycles later.
    """

    def __init__(
        self,
        *,
        normalization: Normalization,
        source: Format,
        lanes: int,
        product_shift: int | None = None,
    ):
        check_positive(lanes=lanes)
        norm = self.normalization = normalization
        self.source, self.lanes = source, lanes
        self.x_shape = shape_of(source.lo, source.hi)
        self.y_shape = shape_of(norm.output.lo, norm.output.hi)
        words = constant_words([(norm.beta, NORM_BITS), (norm.multiplier, 17)], lanes)
        loads = product_shift is not None
        self.rom = Ram(
            depth=len(words),
            width=lanes * (NORM_BITS + 17),
            init=words,
            writable=False,
            loads=loads,
            registered=True,
        )
        self._product_shift, self.shifts = product_shift, None
        if product_shift is not None:
            word = norm.product_shift - product_shift | norm.shift << SHIFT_BITS
            self.shifts = LoadRegister(width=SHIFT_BITS + NORM_SHIFT_BITS, word=word)
        table = [int(v) | (int(d) & 1023) << 16 for v, d in ROOT_TABLES[norm.kind]]
        self.tables = [Ram(depth=256, width=26, init=table, writable=False) for _ in range(lanes)]
        super().__init__(
            wiring.Signature(
                {
                    "beat": In(range(len(words))),
                    "sum": In(lanes_of(unsigned(NORM_BITS), lanes)),
                    "x": In(lanes_of(self.x_shape, lanes)),
                    "y": Out(lanes_of(self.y_shape, lanes)),
                    **({"load": In(LoadSignature())} if loads else {}),
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
        norm, shift = self.normalization, Const(self.normalization.shift)
        m.submodules.rom = self.rom
        if self.shifts is not None:
            m.submodules.shifts = self.shifts
            shift = self.shifts.value[SHIFT_BITS:]
            connect(m, flipped(self.load), self.rom.load)
            connect(m, flipped(self.load), self.shifts.load)
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
            if self.shifts is None or self._product_shift is None:
                pipe.shift_round("p", norm.product_shift)
            else:
                more = self.shifts.value[:SHIFT_BITS]
                pipe.shift_round_from("p", self._product_shift, more, 1)
            pipe.saturate18("p")
            pipe.multiply("y", "p", "k")
            amount = Signal(6, name=f"amount_{lane}")
            if norm.kind.inverse:
                m.d.comb += amount.eq(shift - pipe["e"])
            else:
                m.d.comb += amount.eq(shift + pipe["e"])
            most = self._most_shift
            pipe.put(amount=amount)
            pipe.drop("e")
            pipe.shift_round_by("y", "amount", most)
            pipe.clamp("y", norm.output.lo, norm.output.hi)
            m.d.comb += self.y[lane].eq(pipe["y"])
            assert pipe.latency == self.latency
        return m

    @property
    def _most_shift(self) -> int:
        """Greatest of the last shift, with the exponent that the norm may have."""
        norm = self.normalization
        if self.shifts is not None:
            return SHIFT_MAX
        return norm.shift + (0 if norm.kind.inverse else norm.exponent_max(self.source))

    def resources(self, device: Device) -> Resources:
        lane = multiplier_resources(device, WIDEST, WIDEST) * 3 + Resources(lut=530)
        tables = Resources.total(table.resources(device) for table in self.tables)
        shifts = Resources()
        if self.shifts is not None:
            # Of the product some 18 bits are left, of eight shifts each; twice as many long shifts.
            lane += Resources(lut=4 * SATURATION_BITS + 2 * SATURATION_BITS)
            shifts = self.shifts.resources(device)
        return lane * self.lanes + tables + self.rom.resources(device) + shifts
