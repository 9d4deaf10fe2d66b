"""What a device is: one frozen record for each FPGA family, of which costs are asked.

Units are written once. Their latencies are the same on every family, so that cycles do not depend
on the device; a family whose cells have fewer registers than a unit promises gets the rest in the
fabric. What differs is which cells are made and what they cost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from amaranth.hdl import Module, Signal, Value

from lichen.network.arithmetic import ceil_div


@dataclass(frozen=True, kw_only=True)
class Resources:
    """A count of device primitives: what something takes, or what there is.

    A family with primitives of its own extends it by fields.

    Attributes
    ----------
    dsp : int
        Hardware multipliers.
    bram : int
        Block RAMs.
    lut : int
        Lookup tables of four inputs; an estimate, where ``dsp`` and ``bram`` are exact.
    """

    dsp: int = 0
    bram: int = 0
    lut: int = 0

    NAMES: ClassVar[dict[str, str]] = {
        "dsp": "multipliers",
        "bram": "block RAMs",
        "lut": "LUTs",
    }

    def __add__(self, other: Resources) -> Self:
        # Its variables are its fields, and quicker to get at.
        return type(self)(
            **{name: value + getattr(other, name, 0) for name, value in vars(self).items()}
        )

    def __mul__(self, count: int) -> Self:
        return type(self)(**{name: value * count for name, value in vars(self).items()})

    @staticmethod
    def total(parts: Iterable[Resources]) -> Resources:
        """The sum of all parts."""
        result = Resources()
        for part in parts:
            result = result + part
        return result

    def percent(self, share: int) -> Self:
        """So many percent of everything, rounded down."""
        return type(self)(**{f.name: getattr(self, f.name) * share // 100 for f in fields(self)})

    def overruns(self, needed: Resources) -> list[str]:
        """What of ``needed`` is not here, and by how much: a phrase for every primitive."""
        found = []
        for field in fields(self):
            need, have = getattr(needed, field.name, 0), getattr(self, field.name)
            if need > have:
                name = self.NAMES.get(field.name, field.name)
                found.append(f"{need - have} {name} too many ({need} of {have})")
        return found


@dataclass(frozen=True, kw_only=True)
class MultiplierCell:
    """A family's hardware multiplier.

    Attributes
    ----------
    bits : int
        Of either signed operand.
    latency : int
        Cycles through its own registers with all of them in use.
    """

    bits: int
    latency: int


@dataclass(frozen=True, kw_only=True)
class BlockCell:
    """A family's block RAM.

    Attributes
    ----------
    shapes : tuple of (depth, width)
        Rising depth; every depth a power of two.
    latency : int
        Cycles from address to data with its output register in use.
    luts : int
        Lookup tables one is worth: below that price, a memory or what is left of one is made
        of lookup tables. About as many as the device has for each of its blocks.
    """

    shapes: tuple[tuple[int, int], ...]
    latency: int
    luts: int


@dataclass(frozen=True, kw_only=True)
class SmallRam:
    """A family's memory in lookup tables.

    Attributes
    ----------
    depth, width : int
        Words and bits of one cell.
    luts : int
        What it takes.
    """

    depth: int
    width: int
    luts: int


@dataclass(frozen=True, kw_only=True)
class BlockWrite:
    """A write port of a block RAM: one bit, an address, a word."""

    enable: Value
    address: Value
    data: Value


class Cells(ABC):
    """Cells of a family that synthesis would not find, or not with their registers."""

    @abstractmethod
    def multiply(self, m: Module, name: str, a: Value, b: Value, p: Signal) -> None:
        """``p`` is ``a * b`` after the multiplier's latency."""

    @abstractmethod
    def block_ram(
        self,
        m: Module,
        name: str,
        *,
        width: int,
        init: Sequence[int],
        address: Value,
        data: Signal,
        write: BlockWrite | None = None,
    ) -> None:
        """``data`` is the word at ``address`` after the block RAM's latency."""

    @abstractmethod
    def and_add(
        self, m: Module, name: str, lanes: Sequence[tuple[Value, Value]], signed: bool
    ) -> Value:
        """``sum(Mux(bit, value, 0))`` of two (bit, value) lanes, combinational."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """An FPGA family.

    Attributes
    ----------
    name : str
    parts : str
        How the names of its devices begin, as an Amaranth platform's ``device`` says them;
        empty for none.
    multiplier : MultiplierCell
    block : BlockCell
    small : SmallRam
    chain_ends : int
        Lookup tables that lead a carry chain in and out.
    cells : Cells or None
        None leaves everything to synthesis.
    """

    name: str
    parts: str
    multiplier: MultiplierCell
    block: BlockCell
    small: SmallRam
    chain_ends: int
    cells: Cells | None = None

    def chain_luts(self, width: int) -> int:
        """Lookup tables of a carry chain of ``width`` bits: two bits a cell, and its ends."""
        return 2 * ceil_div(width, 2) + self.chain_ends

    def small_ram_luts(self, words: int, width: int) -> int:
        """Lookup tables of a writable memory in lookup tables, without choosing among cells."""
        return (
            ceil_div(words, self.small.depth) * ceil_div(width, self.small.width) * self.small.luts
        )
