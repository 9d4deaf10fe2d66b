"""One product, and the registers around it."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device import ecp5
from lichen.hw.device.unit import Resources, Unit

OPERAND_BITS_MAX = ecp5.MULTIPLIER_BITS


class Multiplier(Unit):
    """A product with registers before, inside and behind: ``p`` is ``a * b`` three cycles later.

    Parameters
    ----------
    a_shape, b_shape : Shape
        Operands, at most 18 bits each (a sign bit included).
    portable : bool
        Leave it to synthesis to find a multiplier and the registers that go into it, on every
        device. Otherwise an ECP5 gets its MULT18X18D with all registers in use.

    Members
    -------
    a, b : In
    p : Out
    """

    latency = ecp5.MULTIPLIER_LATENCY

    def __init__(self, *, a_shape: Shape, b_shape: Shape, portable: bool = False):
        self.a_shape, self.b_shape = Shape.cast(a_shape), Shape.cast(b_shape)
        self.portable = portable
        for name, shape in (("a_shape", self.a_shape), ("b_shape", self.b_shape)):
            # An unsigned operand meets a signed one as a signed value one bit wider.
            mixed = self.a_shape.signed != self.b_shape.signed and not shape.signed
            if not 1 <= shape.width + mixed <= OPERAND_BITS_MAX:
                raise ValueError(
                    f"{name} must be 1 to {OPERAND_BITS_MAX} bits wide as a multiplier operand, "
                    f"not {shape!r}"
                )
        is_signed = self.a_shape.signed or self.b_shape.signed
        width = self.a_shape.width + self.b_shape.width
        super().__init__(
            wiring.Signature(
                {
                    "a": In(self.a_shape),
                    "b": In(self.b_shape),
                    "p": Out(signed(width) if is_signed else unsigned(width)),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if ecp5.on_ecp5(platform) and not self.portable:
            ecp5.multiply(m, "cell", self.a, self.b, self.p)
            return m
        a = Signal.like(self.a, reset_less=True)
        b = Signal.like(self.b, reset_less=True)
        inside = Signal.like(self.p, reset_less=True)
        product = Signal.like(self.p, reset_less=True)
        m.d.sync += [a.eq(self.a), b.eq(self.b), inside.eq(a * b), product.eq(inside)]
        m.d.comb += self.p.eq(product)
        return m

    def resources(self) -> Resources:
        return Resources(dsp=1)
