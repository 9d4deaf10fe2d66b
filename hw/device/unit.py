"""What every piece of gateware answers for: its resources."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass, fields

from amaranth.hdl import Module, Shape, Signal, ValueLike, signed, unsigned
from amaranth.lib import data, wiring


@dataclass(frozen=True, kw_only=True)
class Resources:
    """A count of device primitives.

    Attributes
    ----------
    dsp : int
        18x18 multipliers (ECP5 MULT18X18D).
    bram : int
        18-kbit block RAMs (ECP5 DP16KD).
    lut : int
        4-input lookup tables; an estimate, where ``dsp`` and ``bram`` are exact.
    """

    dsp: int = 0
    bram: int = 0
    lut: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __mul__(self, count: int) -> Resources:
        return Resources(**{f.name: getattr(self, f.name) * count for f in fields(self)})

    @staticmethod
    def total(parts: Iterable[Resources]) -> Resources:
        """The sum of all parts."""
        result = Resources()
        for part in parts:
            result = result + part
        return result


class Unit(wiring.Component, abc.ABC):
    """A component that knows what it costs.

    `resources` has no default on purpose: a unit that forgets to answer cannot be built.
    """

    @abc.abstractmethod
    def resources(self) -> Resources:
        """What the unit takes on the device, everything inside it included."""


def delays(m: Module, value: ValueLike, cycles: int, name: str) -> list[ValueLike]:
    """``value`` as it was 0, 1, .. ``cycles`` clock cycles ago (reset to 0)."""
    values = [value]
    for i in range(cycles):
        stage = Signal(value.shape(), name=f"{name}_d{i + 1}", reset_less=True)
        m.d.sync += stage.eq(values[-1])
        values.append(stage)
    return values


def delayed(m: Module, value: ValueLike, cycles: int, name: str) -> ValueLike:
    """``value`` as it was ``cycles`` clock cycles ago (reset to 0)."""
    return delays(m, value, cycles, name)[-1]


def lanes_of(shape: object, count: int) -> data.ArrayLayout:
    """The payload of ``count`` parallel values."""
    return data.ArrayLayout(shape, count)


def check_positive(**values: object) -> None:
    """Raise a TypeError naming the first value that is not a positive integer."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise TypeError(f"{name} must be a positive integer, not {value!r}")


def shape_of(lo: int, hi: int) -> Shape:
    """The narrowest shape that holds every value of ``lo .. hi``."""
    if lo >= 0:
        return unsigned(max(1, int(hi).bit_length()))
    return signed(max(int(hi).bit_length(), (-1 - int(lo)).bit_length()) + 1)
