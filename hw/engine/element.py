"""What multiplies: dot-product elements, interchangeable behind one interface.

A *lane* is one product; an element sums ``lanes`` of them every cycle, for one or two output
channels (*ways*) that share the activations. All kinds give the same sums; they differ in what
they are made of and in how long they take.
"""

from __future__ import annotations

import abc
import enum

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.families import device_of
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of
from lichen.hw.device.multiplier import WIDEST, Multiplier, multiplier_resources
from lichen.network.arithmetic import SATURATION_BITS, ceil_div


class Backend(enum.StrEnum):
    """What the multipliers of an array are made of."""

    PORTABLE = "portable"
    """A multiplication sign: whatever synthesis makes of it."""
    DSP = "dsp"
    """One product per 18x18 multiplier, all its registers in use."""
    PACKED = "packed"
    """Two products that share an activation per 18x18 multiplier."""
    LUT = "lut"
    """Lookup tables and carry chains only."""


class Element(Gateware, abc.ABC):
    """A dot product a cycle for each of ``ways`` channels.

    Parameters
    ----------
    a_shape, w_shape : Shape
        One activation, one weight. Signed weights are symmetric: never the most negative code.
    lanes : int

    Members
    -------
    a : In (lanes)
    w : In (ways x lanes)
        As `encode` writes them.
    total : Out (ways)
        `latency` cycles later.
    """

    ways = 1

    def __init__(self, *, a_shape: Shape, w_shape: Shape, lanes: int):
        check_positive(lanes=lanes)
        self.a_shape, self.w_shape = Shape.cast(a_shape), Shape.cast(w_shape)
        self.lanes = lanes
        width = self.a_shape.width + self.w_shape.width + ceil_log2(lanes)
        is_signed = self.a_shape.signed or self.w_shape.signed
        self.total_shape = signed(width) if is_signed else unsigned(width)
        super().__init__(
            wiring.Signature(
                {
                    "a": In(lanes_of(self.a_shape, lanes)),
                    "w": In(lanes_of(lanes_of(self.w_shape, lanes), self.ways)),
                    "total": Out(lanes_of(self.total_shape, self.ways)),
                }
            )
        )

    @property
    @abc.abstractmethod
    def latency(self) -> int:
        """Cycles from operands to total."""

    def encode(self, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Weights (..., ways, lanes) as the element wants them."""
        return weights


class MultiplierElement(Element):
    """One 18x18 multiplier a lane, and a tree of adders."""

    portable = False

    @property
    def latency(self) -> int:
        return Multiplier.latency + 1 + ceil_log2(self.lanes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        products: list[Value] = []
        for s in range(self.lanes):
            multiplier = Multiplier(
                a_shape=self.a_shape, b_shape=self.w_shape, portable=self.portable
            )
            m.submodules[f"mul_{s}"] = multiplier
            m.d.comb += [multiplier.a.eq(self.a[s]), multiplier.b.eq(self.w[0][s])]
            # A register in the fabric, for the way to the carry chain is long.
            products.append(delayed(m, multiplier.p, 1, f"product_{s}"))
        m.d.comb += self.total[0].eq(_tree(m, "sum", products))
        return m

    def resources(self, device: Device) -> Resources:
        product = self.a_shape.width + self.w_shape.width
        luts = _tree_luts(device, [product] * self.lanes)
        own = multiplier_resources(device, self.a_shape, self.w_shape)
        return own * self.lanes + Resources(lut=luts)


class PortableElement(MultiplierElement):
    """One multiplication sign a lane."""

    portable = True


class PackedElement(Element):
    """Two weights share a multiplier's operand, and so both meet the same activation.

    The operand is ``w1 * 2**s + w0``, the product ``p = w1 a * 2**s + w0 a``. As long as
    ``|w0 a| < 2**s``, its low s bits are w0 a modulo 2**s, and bit s differs from that of w1 a,
    which is one AND, exactly where w0 a is negative and has borrowed from above.
    """

    ways = 2

    def __init__(self, *, a_shape: Shape, w_shape: Shape, lanes: int):
        super().__init__(a_shape=a_shape, w_shape=w_shape, lanes=lanes)
        if not packs(self.a_shape, self.w_shape):
            raise ValueError(
                f"two products of {self.w_shape!r} and {self.a_shape!r} do not fit one multiplier"
            )
        self.shift = SATURATION_BITS - self.w_shape.width

    @property
    def latency(self) -> int:
        return Multiplier.latency + 1 + ceil_log2(self.lanes)

    def encode(self, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # A negative w0 spreads its sign over the bits below w1 and borrows from it.
        encoded = weights.copy()
        encoded[..., 1, :] -= weights[..., 0, :] < 0
        return encoded

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits, shift = self.w_shape.width, self.shift
        low: list[Value] = []
        high: list[Value] = []
        borrows: list[Value] = []
        for s in range(self.lanes):
            multiplier = Multiplier(a_shape=self.a_shape, b_shape=signed(SATURATION_BITS))
            m.submodules[f"mul_{s}"] = multiplier
            w0, w1 = self.w[0][s].as_unsigned(), self.w[1][s].as_unsigned()
            sign = w0[bits - 1]
            m.d.comb += [
                multiplier.a.eq(self.a[s]),
                multiplier.b.eq(Cat(w0, sign.replicate(shift - bits), w1).as_signed()),
            ]
            odd = Signal(name=f"odd_{s}")
            m.d.comb += odd.eq((w1[0] ^ sign) & self.a[s].as_unsigned()[0])
            odd = delayed(m, odd, Multiplier.latency, f"odd_{s}")
            borrow = Signal(name=f"borrow_{s}", reset_less=True)
            lower = Signal(shift, name=f"low_{s}", reset_less=True)
            upper = Signal(signed(self.a_shape.width + bits), name=f"high_{s}", reset_less=True)
            m.d.sync += [
                borrow.eq(multiplier.p[shift] ^ odd),
                lower.eq(multiplier.p[:shift]),
                upper.eq(multiplier.p[shift:].as_signed()),
            ]
            low.append(Cat(lower, borrow).as_signed())
            high.append(upper)
            borrows.append(borrow)
        total = _tree(m, "low", low)
        m.d.comb += self.total[0].eq(total)
        m.d.comb += self.total[1].eq(_tree(m, "high", high, borrows))
        return m

    def resources(self, device: Device) -> Resources:
        low = _tree_luts(device, [self.shift + 1] * self.lanes)
        high = _tree_luts(device, [self.a_shape.width + self.w_shape.width + 1] * self.lanes)
        own = multiplier_resources(device, self.a_shape, WIDEST)
        return own * self.lanes + Resources(lut=low + high + 2 * self.lanes)


def packs(a_shape: Shape, w_shape: Shape) -> bool:
    """Whether `PackedElement` can hold two products of these operands."""
    if not w_shape.signed:
        return False
    w = (1 << (w_shape.width - 1)) - 1
    a = 1 << (a_shape.width - 1) if a_shape.signed else (1 << a_shape.width) - 1
    # MULT18X18D takes the activation in the other operand, signed.
    fits = a_shape.width + (not a_shape.signed) <= SATURATION_BITS
    return fits and w * a < 1 << (SATURATION_BITS - w_shape.width)


class LUTElement(Element):
    """No multiplier: every bit of the weights gates the activations, and one tree adds them up.

    Bits of equal weight come first, two lanes in one carry chain each; then the planes are put
    together. The most significant bit of a signed weight counts negative.
    """

    @property
    def latency(self) -> int:
        pairs = ceil_div(self.lanes, 2)
        return 1 + ceil_log2(pairs) + ceil_log2(self.w_shape.width)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        planes: list[Value] = []
        for j in range(self.w_shape.width):
            sums: list[Value] = []
            for s in range(0, self.lanes, 2):
                lanes = [
                    (self.w[0][t].as_unsigned()[j], self.a[t])
                    for t in range(s, min(s + 2, self.lanes))
                ]
                gated = _and_add(m, platform, f"plane_{j}_{s}", lanes, self.a_shape.signed)
                sums.append(delayed(m, gated, 1, f"plane_{j}_{s}"))
            planes.append(_tree(m, f"plane_{j}", sums))
        shift, level = 1, 0
        negative = self.w_shape.signed
        while len(planes) > 1:
            merged: list[Value] = []
            level += 1
            for i in range(0, len(planes), 2):
                if i + 1 == len(planes):
                    merged.append(delayed(m, planes[i], 1, f"merge_{level}_{i}"))
                    continue
                low, high = planes[i], planes[i + 1]
                top = i + 2 == len(planes)
                upper = low >> shift
                added = upper - high if top and negative else upper + high
                value = Cat(low[:shift], added)
                signed_value = added.shape().signed
                merged.append(
                    delayed(
                        m,
                        value.as_signed() if signed_value else value,
                        1,
                        f"merge_{level}_{i}",
                    )
                )
                if top:
                    negative = False
            planes, shift = merged, shift * 2
        value = planes[0]
        m.d.comb += self.total[0].eq(-value if negative else value)
        return m

    def resources(self, device: Device) -> Resources:
        pairs, odd = divmod(self.lanes, 2)
        a = self.a_shape.width
        planes = self.w_shape.width
        # A single lane is gated by the reset of its registers.
        luts = planes * (pairs * device.chain_luts(a + 1) + odd)
        widths = [a + 1] * pairs + [a] * odd
        luts += planes * _tree_luts(device, widths)
        width, shift = a + ceil_log2(self.lanes), 1
        while planes > 1:
            luts += planes // 2 * device.chain_luts(width + 1)
            width, shift, planes = width + shift, 2 * shift, ceil_div(planes, 2)
        return Resources(lut=luts)


ELEMENTS: dict[Backend, type[Element]] = {
    Backend.PORTABLE: PortableElement,
    Backend.DSP: MultiplierElement,
    Backend.PACKED: PackedElement,
    Backend.LUT: LUTElement,
}


def _and_add(
    m: Module, platform: object, name: str, lanes: list[tuple[Value, Value]], signed: bool
) -> Value:
    """``sum(Mux(bit, value, 0))`` of one or two (bit, value) lanes, combinational."""
    cells = device_of(platform).cells
    if len(lanes) > 1 and cells is not None:
        return cells.and_add(m, name, lanes, signed)
    total = None
    for bit, value in lanes:
        gated = Mux(bit, value, 0)
        total = gated if total is None else total + gated
    assert total is not None
    return total


def _tree(m: Module, name: str, values: list[Value], carries: list[Value] | None = None) -> Value:
    """The sum of all values and carries (single bits), a register after every level of adders.

    There are as many carries as values, or none: every addition takes one in, and the last
    remaining one is added where the sum ends.
    """
    carries = list(carries or [])
    level = 0
    while len(values) > 1:
        level += 1
        sums: list[Value] = []
        later: list[Value] = []
        for i in range(0, len(values), 2):
            if i + 1 == len(values):
                sums.append(delayed(m, values[i], 1, f"{name}_{level}_{i}"))
            elif carries:
                added = _add_with_carry(values[i], values[i + 1], carries[i + 1])
                sums.append(delayed(m, added, 1, f"{name}_{level}_{i}"))
            else:
                added = values[i] + values[i + 1]
                sums.append(delayed(m, added, 1, f"{name}_{level}_{i}"))
            if carries:
                later.append(delayed(m, carries[i], 1, f"{name}_carry_{level}_{i}"))
        values, carries = sums, later
    return values[0] + carries[0] if carries else values[0]


def _add_with_carry(a: Value, b: Value, carry: Value) -> Value:
    """``a + b + carry`` in one carry chain: a bit below carries it in."""
    total = Cat(1, a).as_signed() + Cat(carry, b).as_signed()
    return total[1:].as_signed()


def _tree_luts(device: Device, widths: list[int]) -> int:
    """Lookup tables of `_tree` over values of these widths."""
    total = 0
    while len(widths) > 1:
        sums = [max(pair) + 1 for pair in zip(widths[::2], widths[1::2], strict=False)]
        total += sum(device.chain_luts(width) for width in sums)
        widths = sums + widths[len(widths) & ~1 :]
    return total
