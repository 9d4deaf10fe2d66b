# amaranth: UnusedElaboratable=no
"""The output-stationary systolic array."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.multiplier import Multiplier
from lichen.hw.unit import Resources, Unit, check_positive, delayed, lanes_of


def array_latency(chain_length: int) -> int:
    """Cycles from the last operands of a pass to the first of its sums, at pixel 0.

    Operand, product, lane sum, accumulator and drain registers, then the skew of the last
    place, whose sum leaves first.
    """
    return 4 + Multiplier.latency + chain_length - 1


class SystolicArray(Unit):
    """P pixels x Q channels of processing elements, each a dot product of S lanes a cycle.

    Operands of a pixel move along the channels, weights of a channel along the pixels, one
    element a cycle; sums stay where they are until a pass ends. The Q channels of a pixel
    form ``chains`` drain chains of ``chain_length`` elements that work in lockstep: finished
    sums move towards the end of their chain, two cycles a hop, and leave it one a cycle in
    reverse order of their place. No enable reaches more than one element, and nothing stalls:
    passes must be at least ``chain_length`` cycles apart.

    Weight ``c * chain_length + i`` belongs to place i of chain c. The sum of place i of all
    chains leaves as item ``chain_length - 1 - i`` of the pass.

    Parameters
    ----------
    pixels, chains, chain_length, lanes : int
    a_shape, w_shape : Shape
        One operand, one weight.
    accumulator_shape : Shape
        Wide enough for every partial sum.

    Members
    -------
    a : In (pixels x lanes)
        All pixels of a step together; 0 where there is no step.
    w : In (channels x lanes)
    first, last : In(1)
        With the operands: the first and the last step of a pass.
    o : Out (pixels x chains)
        Finished sums. Pixel p follows pixel 0 by p cycles.
    o_valid : Out (pixels)
    """

    def __init__(
        self,
        *,
        pixels: int,
        chains: int,
        chain_length: int,
        lanes: int,
        a_shape: Shape,
        w_shape: Shape,
        accumulator_shape: Shape,
    ):
        check_positive(pixels=pixels, chains=chains, chain_length=chain_length, lanes=lanes)
        self.pixels, self.chains, self.chain_length, self.lanes = (
            pixels,
            chains,
            chain_length,
            lanes,
        )
        self.a_shape, self.w_shape = Shape.cast(a_shape), Shape.cast(w_shape)
        self.accumulator_shape = Shape.cast(accumulator_shape)
        super().__init__(
            wiring.Signature(
                {
                    "a": In(lanes_of(lanes_of(self.a_shape, lanes), pixels)),
                    "w": In(lanes_of(lanes_of(self.w_shape, lanes), chains * chain_length)),
                    "first": In(1),
                    "last": In(1),
                    "o": Out(lanes_of(lanes_of(self.accumulator_shape, chains), pixels)),
                    "o_valid": Out(pixels),
                }
            )
        )

    @property
    def latency(self) -> int:
        """Cycles from the last operands of a pass to the first of its sums, at pixel 0."""
        return array_latency(self.chain_length)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        length = self.chain_length
        # Weights: place i of every chain waits i cycles, then each pixel one more.
        weights: dict[tuple[int, int], object] = {}
        for c in range(self.chains):
            for i in range(length):
                weights[c, i] = delayed(m, self.w[c * length + i], i, f"w_{c}_{i}")
        for p in range(self.pixels):
            operands = [delayed(m, self.a[p], p, f"a_{p}")] * self.chains
            first = delayed(m, self.first, p, f"first_{p}")
            last = delayed(m, self.last, p, f"last_{p}")
            hops: list[Signal | None] = [None] * self.chains
            for i in range(length):
                first_here = Signal(name=f"first_{p}_{i}")
                last_here = Signal(name=f"last_{p}_{i}")
                m.d.sync += [first_here.eq(first), last_here.eq(last)]
                first, last = first_here, last_here
                clear = delayed(m, first, Multiplier.latency + 1, f"clear_{p}_{i}")
                load = delayed(m, last, Multiplier.latency + 2, f"load_{p}_{i}")
                for c in range(self.chains):
                    name = f"{p}_{c}_{i}"
                    a = Signal(self.a.shape().elem_shape, name=f"a_{name}", reset_less=True)
                    w = Signal(self.w.shape().elem_shape, name=f"w_{name}", reset_less=True)
                    m.d.sync += [a.eq(operands[c]), w.eq(weights[c, i])]
                    operands[c], weights[c, i] = a, w
                    products = []
                    for s in range(self.lanes):
                        multiplier = Multiplier(a_shape=self.a_shape, b_shape=self.w_shape)
                        m.submodules[f"mul_{name}_{s}"] = multiplier
                        m.d.comb += [multiplier.a.eq(a[s]), multiplier.b.eq(w[s])]
                        products.append(multiplier.p)
                    total = Signal(self.accumulator_shape, name=f"sum_{name}", reset_less=True)
                    m.d.sync += total.eq(_tree(products))
                    acc = Signal(self.accumulator_shape, name=f"acc_{name}", reset_less=True)
                    m.d.sync += acc.eq(Mux(clear, 0, acc) + total)
                    drain = Signal(self.accumulator_shape, name=f"drain_{name}", reset_less=True)
                    hop = hops[c]
                    m.d.sync += drain.eq(Mux(load, acc, drain if hop is None else hop))
                    if i == length - 1:
                        m.d.comb += self.o[p][c].eq(drain)
                    else:
                        hop = Signal(self.accumulator_shape, name=f"hop_{name}", reset_less=True)
                        m.d.sync += hop.eq(drain)
                        hops[c] = hop
            # The chain's own sum comes first, the others follow without a gap.
            left = Signal(range(length + 1), name=f"left_{p}")
            with m.If(load):
                m.d.sync += left.eq(length)
            with m.Elif(left != 0):
                m.d.sync += left.eq(left - 1)
            m.d.comb += self.o_valid[p].eq(left != 0)
        return m

    def resources(self) -> Resources:
        elements = self.pixels * self.chains * self.chain_length
        bits = self.accumulator_shape.width
        each = Resources(dsp=self.lanes, lut=(self.lanes + 2) * bits)
        return each * elements + Resources(lut=6 * self.pixels * self.chain_length)


def _tree(values: list[Value]) -> Value:
    """The sum of all values as a balanced tree."""
    while len(values) > 1:
        pairs = [a + b for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(values) & ~1 :]
    return values[0]
