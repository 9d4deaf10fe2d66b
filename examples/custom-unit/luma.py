"""A unit of one's own: pixels in, their brightness out, as a stream that keeps all the rules."""

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

WEIGHTS = (77, 150, 29)
"""Red, green and blue in brightness (ITU-R BT.601), in 256ths."""


def luma(image: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """What the unit computes: (height, width, 3) to (height, width, 1), rounded to nearest."""
    return (image.astype(np.int64) @ np.array(WEIGHTS)[:, None] + 128) >> 8


class Luma(wiring.Component):
    """Brightness of pixels, one a cycle, two cycles late.

    Members
    -------
    i : In(stream of 3 x unsigned(8))
        Red, green, blue.
    o : Out(stream of 1 x unsigned(8))
    """

    i: In(stream.Signature(data.ArrayLayout(unsigned(8), 3)))
    o: Out(stream.Signature(data.ArrayLayout(unsigned(8), 1)))

    latency = 2

    def elaborate(self, platform: object) -> Module:
        m = Module()
        products = [Signal(16, name=f"product{k}") for k in range(3)]
        multiplied = Signal()  # products are of a pixel
        moves = Signal()  # the output is free, or becomes so
        m.d.comb += [moves.eq(~self.o.valid | self.o.ready), self.i.ready.eq(moves)]
        with m.If(moves):
            for product, weight, value in zip(products, WEIGHTS, self.i.payload, strict=True):
                m.d.sync += product.eq(value * weight)
            m.d.sync += [
                multiplied.eq(self.i.valid),
                self.o.payload[0].eq((sum(products) + 128) >> 8),
                self.o.valid.eq(multiplied),
            ]
        return m
