# amaranth: UnusedElaboratable=no
"""What is filled at run time: one bus that writes, one map of what lies where.

A memory's words are cut into chunks of `DATA_BITS`. An address of the bus says, from its low bits
up, which word, which chunk, and which memory: so the map follows from depths and widths alone,
whatever blocks a device stores them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from amaranth.hdl import Const, Module, Signal, Value, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware
from lichen.network.arithmetic import ceil_div

DATA_BITS = 36
"""Of the bus. Every shape of a block RAM divides it, so a block never lies in two chunks."""

ADDRESS_BITS = 24
"""Of the bus: 16 M places; a network of a million 8-bit weights takes a quarter of a million."""

REACH = 8
"""Chunks of a memory that one register of the bus reaches; the others have another behind it."""


class LoadSignature(wiring.Signature):
    """A word, written where its address says when ``strobe`` is up. It may take cycles to arrive.

    Members
    -------
    strobe : Out(1)
    address : Out(24)
    data : Out(36)
    """

    def __init__(self) -> None:
        super().__init__({"strobe": Out(1), "address": Out(ADDRESS_BITS), "data": Out(DATA_BITS)})


@dataclass(frozen=True)
class Place:
    """Where ``depth`` words of ``width`` bits lie in the map.

    Attributes
    ----------
    base : int
        Address of the first word's lowest chunk; a multiple of `size`.
    depth, width : int
    """

    base: int
    depth: int
    width: int

    @property
    def word_bits(self) -> int:
        """Of an address, that say which word."""
        return ceil_log2(self.depth)

    @property
    def chunks(self) -> int:
        """Of a word."""
        return ceil_div(self.width, DATA_BITS)

    @property
    def chunk_bits(self) -> int:
        """Of an address, that say which chunk."""
        return ceil_log2(self.chunks)

    @property
    def size(self) -> int:
        """Addresses it takes, a power of two; between chunks some are nobody's."""
        return 1 << (self.word_bits + self.chunk_bits)

    def writes(self, words: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Addresses and data that fill it with ``depth`` words, chunk by chunk."""
        if len(words) != self.depth:
            raise ValueError(f"there must be {self.depth} words, not {len(words)}")
        mask = (1 << DATA_BITS) - 1
        for chunk in range(self.chunks):
            for number, word in enumerate(words):
                address = self.base | chunk << self.word_bits | number
                yield address, word >> (chunk * DATA_BITS) & mask


class Loadable(Protocol):
    """What has a place in the map: a memory, or a register."""

    place: Place

    def words(self) -> list[int]:
        """What it is to hold."""


def placed(parts: Mapping[str, Loadable]) -> dict[str, Place]:
    """Give every part its place, in order; places by the parts' names.

    Raises ValueError where the bus has not so many addresses.
    """
    end = 0
    found = {}
    for name, part in parts.items():
        start = ceil_div(end, part.place.size) * part.place.size
        part.place = found[name] = Place(start, part.place.depth, part.place.width)
        end = start + part.place.size
    if end > 1 << ADDRESS_BITS:
        raise ValueError(f"the constants take {end} addresses, and there are {1 << ADDRESS_BITS}")
    return found


def image(parts: Iterable[Loadable]) -> list[tuple[int, int]]:
    """Addresses and data that fill all parts."""
    return [write for part in parts for write in part.place.writes(part.words())]


@dataclass(frozen=True)
class Arrival:
    """The bus as a chunk of a memory sees it: one bit, and what to write where."""

    enable: Value
    word: Value
    data: Value


def arrivals(m: Module, bus: wiring.PureInterface, place: Place) -> list[Arrival]:
    """The bus behind registers, for every chunk of a memory."""
    low = place.word_bits + place.chunk_bits
    enable: Value = bus.strobe
    if low < ADDRESS_BITS:
        enable = enable & (bus.address[low:] == place.base >> low)
    word: Value = bus.address[: place.word_bits]
    chunk: Value = bus.address[place.word_bits : low]
    data: Value = bus.data[: min(DATA_BITS, place.width)]
    found = []
    for number in range(place.chunks):
        if number % REACH == 0:
            values = {"enable": enable, "word": word, "chunk": chunk, "data": data}
            held = {}
            for name, value in values.items():
                held[name] = Const(0, 0) if len(value) == 0 else _register(m, name, number, value)
            enable, word, chunk, data = held.values()
        own = enable & (chunk == number) if place.chunk_bits else enable
        found.append(Arrival(own, word, data))
    return found


def _register(m: Module, name: str, number: int, value: Value) -> Signal:
    """Of the enable with a reset, of the others without."""
    register = Signal(
        len(value), name=f"load_{name}_{number // REACH}", reset_less=name != "enable"
    )
    m.d.sync += register.eq(value)
    return register


def load_resources(place: Place, pieces: int) -> Resources:
    """What it takes beside the memory, stored in so many pieces: to know its own addresses."""
    own = ceil_div(ADDRESS_BITS - place.word_bits - place.chunk_bits, 3)
    return Resources(lut=own + place.chunks * (ceil_div(place.chunk_bits, 3) + pieces))


class LoadRegister(Gateware):
    """A word that is filled at run time, and that no reset changes.

    Parameters
    ----------
    width : int
        1 .. 36 bits.
    word : int
        What it is to hold.

    Members
    -------
    load : In(LoadSignature)
    value : Out
    """

    def __init__(self, *, width: int, word: int):
        if not 1 <= width <= DATA_BITS:
            raise ValueError(f"width must be 1 to {DATA_BITS} bits, not {width!r}")
        self.width, self._word = width, word
        self.place = Place(0, 1, width)
        super().__init__(
            wiring.Signature({"load": In(LoadSignature()), "value": Out(unsigned(width))})
        )

    def words(self) -> list[int]:
        return [self._word]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        (arrival,) = arrivals(m, self.load, self.place)
        value = Signal(self.width, reset_less=True)
        with m.If(arrival.enable):
            m.d.sync += value.eq(arrival.data)
        m.d.comb += self.value.eq(value)
        return m

    def resources(self, device: Device) -> Resources:
        return load_resources(self.place, 0)
