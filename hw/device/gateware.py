"""What every piece of gateware answers for: its resources."""

from __future__ import annotations

import abc

from amaranth.hdl import Const, Module, Shape, Signal, Value, ValueLike, signed, unsigned
from amaranth.lib import data, wiring

from lichen.hw.device.device import Device, Resources


class Gateware(wiring.Component, abc.ABC):
    """A component that knows what it costs.

    `resources` has no default on purpose: a unit that forgets to answer cannot be built.
    """

    @abc.abstractmethod
    def resources(self, device: Device) -> Resources:
        """What the unit takes on a device, everything inside it included."""


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


def last_of(count: int, index: Value) -> Value:
    """Whether the value after ``index`` is the last one of ``0 .. count - 1``, for a register that
    says so of a counter: initially ``count == 1``.

    That one is to be driven even if it never changes: a condition that is constant makes Verilog
    that Icarus Verilog 11 does not read.
    """
    return Const(1) if count == 1 else index == count - 2


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
