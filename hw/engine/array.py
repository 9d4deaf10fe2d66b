# amaranth: UnusedElaboratable=no
"""The output-stationary systolic array."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Shape, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive, delayed, lanes_of
from lichen.hw.engine.element import ELEMENTS, Backend, Element


class SystolicArray(Gateware):
    """P pixels x Q channels of dot products of S lanes a cycle.

    Operands of a pixel move along the elements, weights of an element along the pixels, one
    step a cycle; sums stay where they are until a pass ends. The Q channels of a pixel form
    ``chains`` drain chains of ``chain_length`` channels that work in lockstep, ``ways``
    channels an element: finished sums move towards the end of their chain and leave it one a
    cycle. No enable reaches more than one element, and nothing stalls: passes must be at least
    ``chain_length`` cycles apart.

    `channel_order` says which channel is computed where.

    Parameters
    ----------
    pixels, chains, chain_length, lanes : int
        ``chain_length`` a multiple of the back-end's ways.
    a_shape, w_shape : Shape
        One operand, one weight.
    accumulator_shape : Shape
        Wide enough for every partial sum.
    backend : Backend

    Members
    -------
    a : In (pixels x lanes)
        All pixels of a step together.
    w : In (channels x lanes)
        As the element encodes them, each `lateness` cycles after its step's operands.
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
        backend: Backend = Backend.PORTABLE,
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
        self.backend = backend
        self.element = self._element()  # one to ask; every place gets its own
        if chain_length % self.ways:
            raise ValueError(
                f"chain_length must be a multiple of {self.ways}, the channels of an element of "
                f"the {backend} back-end, not {chain_length!r}"
            )
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

    def _element(self) -> Element:
        return ELEMENTS[self.backend](a_shape=self.a_shape, w_shape=self.w_shape, lanes=self.lanes)

    @property
    def ways(self) -> int:
        """Channels of an element."""
        return self.element.ways

    @property
    def elements(self) -> int:
        """Elements of a chain."""
        return self.chain_length // self.ways

    @property
    def latency(self) -> int:
        """See `array_latency`."""
        return array_latency(self.element, self.chain_length)

    def channel_order(self) -> list[int]:
        """Which of a pass's Q channels weight ``c * chain_length + i`` belongs to.

        Item k of chain c is channel ``k * chains + c``; the last element's sums leave first.
        """
        order = []
        for c in range(self.chains):
            for i in range(self.chain_length):
                element, way = divmod(i, self.ways)
                item = (self.elements - 1 - element) * self.ways + way
                order.append(item * self.chains + c)
        return order

    def lateness(self) -> list[int]:
        """By how many cycles each weight comes after the operands: its element's place."""
        return [i // self.ways for i in range(self.chain_length)] * self.chains

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ways, elements = self.ways, self.elements
        accumulator = self.accumulator_shape
        # Weights come when pixel 0 needs them; each further pixel waits one cycle more.
        weights: dict[tuple[int, int], list[object]] = {}
        for c in range(self.chains):
            for i in range(elements):
                place = c * self.chain_length + i * ways
                weights[c, i] = [self.w[place + v] for v in range(ways)]
        for p in range(self.pixels):
            operands = [delayed(m, self.a[p], p, f"a_{p}")] * self.chains
            first = delayed(m, self.first, p, f"first_{p}")
            last = delayed(m, self.last, p, f"last_{p}")
            hops: list[Signal | None] = [None] * self.chains
            for i in range(elements):
                first_here = Signal(name=f"first_{p}_{i}")
                last_here = Signal(name=f"last_{p}_{i}")
                m.d.sync += [first_here.eq(first), last_here.eq(last)]
                first, last = first_here, last_here
                clear = delayed(m, first, self.element.latency, f"clear_{p}_{i}")
                load = delayed(m, last, self.element.latency + 1, f"load_{p}_{i}")
                for c in range(self.chains):
                    name = f"{p}_{c}_{i}"
                    element = self._element()
                    m.submodules[f"element_{name}"] = element
                    a = Signal(self.a.shape().elem_shape, name=f"a_{name}", reset_less=True)
                    m.d.sync += a.eq(operands[c])
                    m.d.comb += element.a.eq(a)
                    operands[c] = a
                    drains = []
                    for v in range(ways):
                        w = Signal(self.w.shape().elem_shape, name=f"w_{name}_{v}", reset_less=True)
                        m.d.sync += w.eq(weights[c, i][v])
                        m.d.comb += element.w[v].eq(w)
                        weights[c, i][v] = w
                        acc = Signal(accumulator, name=f"acc_{name}_{v}", reset_less=True)
                        m.d.sync += acc.eq(Mux(clear, 0, acc) + element.total[v])
                        drain = Signal(accumulator, name=f"drain_{name}_{v}", reset_less=True)
                        drains.append((acc, drain))
                    # Sums step from way to way, then over a hop to the next element, whose own
                    # sums came one cycle later. What follows the first element's is never read.
                    behind = hops[c]
                    for acc, drain in reversed(drains):
                        m.d.sync += drain.eq(acc if behind is None else Mux(load, acc, behind))
                        behind = drain
                    if i == elements - 1:
                        m.d.comb += self.o[p][c].eq(behind)
                    else:
                        hop = Signal(accumulator, name=f"hop_{name}", reset_less=True)
                        m.d.sync += hop.eq(behind)
                        hops[c] = hop
            # The chain's own sums come first, the others follow without a gap.
            # Registers all the way, for the flag goes to every block of the drain's memory.
            since = Signal(self.chain_length, name=f"since_{p}")  # the last `load`, one-hot
            valid = Signal(name=f"valid_{p}")
            m.d.sync += [
                since.eq(Cat(load, since)),
                valid.eq(load | (valid & ~since[-1])),
            ]
            m.d.comb += self.o_valid[p].eq(valid)
        return m

    def resources(self, device: Device) -> Resources:
        return array_resources(
            device,
            self.element,
            pixels=self.pixels,
            chains=self.chains,
            chain_length=self.chain_length,
            bits=self.accumulator_shape.width,
        )


def array_resources(
    device: Device, element: Element, *, pixels: int, chains: int, chain_length: int, bits: int
) -> Resources:
    """What a `SystolicArray` of such elements and ``bits`` of accumulator takes."""
    elements = chain_length // element.ways
    # Per channel an accumulator, the gate that clears it, and the drain's multiplexer.
    channel = Resources(lut=device.chain_luts(bits) + 2 * bits)
    flags = Resources(lut=6 * pixels * elements)
    # The first channel of a chain has nobody behind it to choose from.
    first = Resources(lut=-bits)
    return (
        element.resources(device) * (pixels * chains * elements)
        + channel * (pixels * chains * chain_length)
        + first * (pixels * chains)
        + flags
    )


def array_latency(element: Element, chain_length: int) -> int:
    """Cycles from the last operands of a pass to the first of its sums, at pixel 0.

    Operand, element, accumulator and drain registers, then the skew of the last element,
    whose sums leave first.
    """
    return 3 + element.latency + chain_length // element.ways - 1
