"""Free-running pipelines of arithmetic, whose latency counts itself."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Shape, Signal, Value, signed, unsigned

from lichen.hw.device.multiplier import Multiplier
from lichen.network.arithmetic import SATURATION_BITS

PIPE_MULTIPLY = Multiplier.latency + 1
"""Stages of `Pipe.multiply`."""


class Pipe:
    """Values that travel together through register stages.

    `register` puts every live value (`put`) behind one more register, so values written at
    different places stay aligned.

    Parameters
    ----------
    m : Module
    name : str
        Prefix of all signal names.
    """

    def __init__(self, m: Module, name: str):
        self.m, self.name = m, name
        self.latency = 0
        self._values: dict[str, Value] = {}

    def put(self, **values: Value) -> None:
        """Name values of the present stage."""
        self._values |= values

    def drop(self, *names: str) -> None:
        """Stop carrying values."""
        for name in names:
            del self._values[name]

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def register(self, **values: Value) -> None:
        """One register stage for all live values and for ``values``, which replace namesakes."""
        self.latency += 1
        self._values |= values
        for name, value in self._values.items():
            stage = Signal(
                value.shape(), name=f"{self.name}_{name}_{self.latency}", reset_less=True
            )
            self.m.d.sync += stage.eq(value)
            self._values[name] = stage

    def multiply(self, result: str, a: str, b: str, keep: tuple[str, ...] = ()) -> None:
        """``result = a * b``, with one more register behind the multiplier's own.

        ``a`` and ``b`` are dropped unless named in ``keep``.
        """
        x, y = self[a], self[b]
        multiplier = Multiplier(a_shape=x.shape(), b_shape=y.shape())
        self.m.submodules[f"{self.name}_{result}"] = multiplier
        self.m.d.comb += [multiplier.a.eq(x), multiplier.b.eq(y)]
        self.drop(*({a, b} - set(keep)))
        for _ in range(Multiplier.latency):
            self.register()
        self.register(**{result: multiplier.p})

    def shift_round(self, name: str, amount: int) -> None:
        """Round-shift by a constant; one stage."""
        if amount == 0:
            self.register()
        else:
            self.register(**{name: (self[name] + (1 << (amount - 1))) >> amount})

    def _doubled(self, name: str) -> Signal:
        """Twice a value, for shifts by one less than wanted that keep one fraction bit to round on:
        floor((floor(2 v / 2**s) + 1) / 2) equals floor((v + 2**(s-1)) / 2**s) for s >= 0."""
        value = self[name]
        doubled = Signal(
            Shape(value.shape().width + 1, signed=value.shape().signed),
            name=f"{self.name}_{name}_doubled_{self.latency}",
        )
        self.m.d.comb += doubled.eq(value << 1)
        return doubled

    def shift_round_by(self, name: str, amount: str, most: int) -> None:
        """Round-shift by a value of ``0 .. most``; two stages, ``amount`` is dropped."""
        doubled, by = self._doubled(name), self[amount]
        self.drop(amount)
        by_narrow = by[: max(1, most.bit_length())]
        self.register(**{name: doubled >> by_narrow})
        self.register(**{name: (self[name] + 1) >> 1})

    def shift_round_from(self, name: str, least: int, more: Value, cycles: int) -> None:
        """Round-shift by ``least + more``, in one stage or two."""
        # ``least`` costs nothing.
        doubled = self._doubled(name)
        low = doubled[least:]
        shifted = (low.as_signed() if doubled.shape().signed else low) >> more
        if cycles == 2:
            self.register(**{name: shifted})
            shifted = self[name]
        self.register(**{name: (shifted + 1) >> 1})

    def clamp(self, name: str, lo: int, hi: int) -> None:
        """Limit to ``lo .. hi``; one stage. The result is as narrow as the range."""
        value = self[name]
        if lo >= 0:
            shape = unsigned(max(1, hi.bit_length()))
        else:
            shape = signed(max(hi.bit_length(), (-1 - lo).bit_length()) + 1)
        limited = Signal(shape, name=f"{self.name}_{name}_limited_{self.latency}")
        self.m.d.comb += limited.eq(Mux(value < lo, lo, Mux(value > hi, hi, value)))
        self.register(**{name: limited})

    def saturate18(self, name: str) -> None:
        """`lichen.network.arithmetic.saturate18`; one stage."""
        most = (1 << (SATURATION_BITS - 1)) - 1
        self.clamp(name, -most - 1, most)
