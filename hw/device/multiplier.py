"""One product, and the registers around it."""

from __future__ import annotations

from amaranth.hdl import Module, Shape, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.families import device_of
from lichen.hw.device.gateware import Gateware, delayed
from lichen.network.arithmetic import SATURATION_BITS, ceil_div

OPERAND_BITS_MAX = SATURATION_BITS
"""Bits of the widest signed operand: what the arithmetic was made for."""


class Multiplier(Gateware):
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

    latency = 3
    """On every device: registers before, inside and behind the product."""

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
        device = device_of(platform)
        single = self.resources(device).dsp == 1
        if device.cells is not None and single and not self.portable:
            missing = self.latency - device.multiplier.latency
            product = Signal.like(self.p) if missing else self.p
            device.cells.multiply(m, "cell", self.a, self.b, product)
            if missing:
                m.d.comb += self.p.eq(delayed(m, product, missing, "product"))
            return m
        a = Signal.like(self.a, reset_less=True)
        b = Signal.like(self.b, reset_less=True)
        inside = Signal.like(self.p, reset_less=True)
        product = Signal.like(self.p, reset_less=True)
        m.d.sync += [a.eq(self.a), b.eq(self.b), inside.eq(a * b), product.eq(inside)]
        m.d.comb += self.p.eq(product)
        return m

    def resources(self, device: Device) -> Resources:
        return multiplier_resources(device, self.a_shape, self.b_shape)


WIDEST = signed(OPERAND_BITS_MAX)
"""Either operand of the arithmetic's 18x18 multiplications."""


def multiplier_resources(device: Device, a_shape: Shape, b_shape: Shape) -> Resources:
    """What a `Multiplier` of these operands takes: several where the device's are narrower."""
    mixed = a_shape.signed != b_shape.signed
    across = [
        ceil_div(shape.width + (mixed and not shape.signed), device.multiplier.bits)
        for shape in (a_shape, b_shape)
    ]
    return Resources(dsp=across[0] * across[1])
