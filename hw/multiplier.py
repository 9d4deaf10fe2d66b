"""The one place a product is written, so that back-ends can be exchanged per stage."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.unit import Resources, Unit

OPERAND_BITS_MAX = 18


class Multiplier(Unit):
    """A registered product, portable: ``p`` is ``a * b`` one cycle later.

    Synthesis for ECP5 makes one MULT18X18D of each, whatever the widths up to 18 bits.

    Parameters
    ----------
    a_shape, b_shape : Shape
        Operands, at most 18 bits each (a sign bit included).

    Members
    -------
    a, b : In
    p : Out
    """

    latency = 1

    def __init__(self, *, a_shape: Shape, b_shape: Shape):
        self.a_shape, self.b_shape = Shape.cast(a_shape), Shape.cast(b_shape)
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
        product = Signal.like(self.p, reset_less=True)
        m.d.sync += product.eq(self.a * self.b)
        m.d.comb += self.p.eq(product)
        return m

    def resources(self) -> Resources:
        return Resources(dsp=1)
