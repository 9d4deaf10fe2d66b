"""The one place memories are made, cut into device blocks so that their number is known.

Three kinds: `Ram` reads through two registers, as block RAM wants for speed; `FastRom` through
three, of which one cuts large tables of logic; `CreditFifo` is a small first-word-fall-through
queue in lookup tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Array, Cat, Const, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lichen.hw.device.device import BlockWrite, Device, Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.device.families import device_of
from lichen.hw.device.gateware import Gateware, check_positive, delayed, delays
from lichen.hw.device.load import (
    DATA_BITS,
    Arrival,
    LoadSignature,
    Place,
    arrivals,
    load_resources,
)
from lichen.hw.device.pieces import Piece, pieces
from lichen.network.arithmetic import ceil_div

BLOCK_LATENCY = 2
"""Cycles from address to data of a memory in blocks, on every device."""


@dataclass(frozen=True)
class Field:
    """Neighbouring bits of a memory's words, from ``start`` up to ``stop``.

    ``late`` is how many cycles after the memory's latency they come.
    """

    start: int
    stop: int
    late: int


LOGIC_DEPTH = 32
"""Words of a `FastRom` that lookup tables choose from between two registers. Synthesis shares
tables among the bits of a ROM by chaining them, the more of them the more words there are."""


class Ram(Gateware):
    """A memory with one write and one read port; ``r_data`` follows ``r_addr`` by two cycles.

    A read of an address written in the same cycle is undefined: users must keep them apart.

    Parameters
    ----------
    depth : int
        Words.
    width : int
        Bits per word.
    init : sequence of int, function that returns one, or None
        Initial words; a function is called when the memory is elaborated. With initial words
        and ``writable`` false the memory is a ROM.
    writable : bool
        Whether there is a write port.
    loads : bool
        Whether it is filled at run time, with the initial words, which then are not in the
        gateware. Not together with ``writable``; nothing may be read meanwhile.
    registered : bool
        Whether ``r_addr`` comes straight out of a register. Lookup tables need none of their own
        then, and one lies between them and the choice among them.

    Members
    -------
    w_en, w_addr, w_data : In
        Write port, only when ``writable``.
    load : In(LoadSignature), only when ``loads``
    r_addr : In
    r_data : Out
    """

    latency = BLOCK_LATENCY

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        init: Sequence[int] | Callable[[], Sequence[int]] | None = None,
        writable: bool = True,
        loads: bool = False,
        registered: bool = False,
    ):
        check_positive(depth=depth, width=width)
        if init is None and not writable:
            raise ValueError("a memory that cannot be written must have init")
        if loads and writable:
            raise ValueError("a memory that loads must not be writable")
        self.depth, self.width, self.writable, self.loads = depth, width, writable, loads
        self.registered = registered
        self.place = Place(0, depth, width)
        self._init = init
        address = unsigned(ceil_log2(depth))
        ports = {"r_addr": In(address), "r_data": Out(unsigned(width))}
        if writable:
            ports |= {"w_en": In(1), "w_addr": In(address), "w_data": In(unsigned(width))}
        if loads:
            ports["load"] = In(LoadSignature())
        super().__init__(wiring.Signature(ports))

    def words(self) -> list[int]:
        """The initial words, all of them. Raises ValueError when there are too many."""
        words = list(self._init() if callable(self._init) else self._init or [])
        if len(words) > self.depth:
            raise ValueError(f"init must have at most {self.depth} words, not {len(words)}")
        return words + [0] * (self.depth - len(words))

    @property
    def _written(self) -> bool:
        """Whether its cells are written, by whichever port."""
        return self.writable or self.loads

    def pieces(self, device: Device = ECP5) -> tuple[Piece, ...]:
        """How the words are stored. The behavioural twin stores them as the ECP5 does."""
        return pieces(device, self.depth, self.width, self._written)

    @property
    def _fields(self) -> list[Field]:
        """The parts of a word that come at the same time, in order."""
        return [Field(0, self.width, 0)]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        device = device_of(platform)
        stored = self.pieces(device)
        # Words that are not given are not written down, those that are loaded neither.
        initial = [] if self.loads or self._init is None else self.words()
        self._arrivals = arrivals(m, self.load, self.place) if self.loads else []
        fields = self._fields
        latest = max(field.late for field in fields)
        chosen = [
            delays(m, self._selected(self.r_addr, piece), self.latency + latest, f"chosen_{i}")
            for i, piece in enumerate(stored)
        ]
        outputs: list[list[Value]] = []
        for i, piece in enumerate(stored):
            words = list(initial[piece.start : piece.start + piece.words])
            late = piece.block or self._staged(piece)
            early = self.latency - BLOCK_LATENCY if late else 1
            address = self.r_addr[: ceil_log2(piece.depth)]
            addresses = delays(m, address, early + latest, f"address_{i}")[early:]
            parts: list[list[Value]] = [[] for _ in fields]
            for j, (start, stop) in enumerate(self._slices(piece)):
                inside = [
                    (k, field)
                    for k, field in enumerate(fields)
                    if field.start < stop and start < field.stop
                ]
                first = min(field.late for _, field in inside)
                data = self._slice(
                    m,
                    device,
                    f"{i}_{j}",
                    piece,
                    (start, stop),
                    [(word >> start) & ((1 << stop - start) - 1) for word in words],
                    addresses[first],
                )
                for k, field in inside:
                    bits = data[max(field.start, start) - start : min(field.stop, stop) - start]
                    parts[k].append(delayed(m, bits, field.late - first, f"late_{i}_{j}_{k}"))
            outputs.append([Cat(*part) for part in parts])
        words_out: list[Value] = []
        for k, field in enumerate(fields):
            selects = [select[self.latency + field.late] for select in chosen]
            words_out.append(_select(selects, [output[k] for output in outputs]))
        m.d.comb += self.r_data.eq(Cat(*words_out))
        return m

    def _slices(self, piece: Piece) -> list[tuple[int, int]]:
        """The bits of a word that every memory of a piece holds: from, up to."""
        if not piece.block:
            fields = [(field.start, field.stop) for field in self._fields]
            return _cut(fields, DATA_BITS) if self.loads else fields
        starts = range(0, self.width, piece.width)
        return [(start, min(start + piece.width, self.width)) for start in starts]

    def _slice(
        self,
        m: Module,
        device: Device,
        name: str,
        piece: Piece,
        place: tuple[int, int],
        init: list[int],
        address: Value,
    ) -> Value:
        """One memory, bits ``place`` of a piece's words; what it reads follows ``address``."""
        if self._staged(piece):
            return self._logic(m, device, f"piece_{name}", place, piece, init, address)
        bits = place[1] - place[0]
        write = self._write(piece, place)
        if piece.block and device.cells is not None:
            data = Signal(bits, name=f"read_{name}")
            device.cells.block_ram(
                m,
                f"piece_{name}",
                width=piece.width,
                init=init,
                address=address,
                data=data,
                write=write,
            )
            missing = BLOCK_LATENCY - device.block.latency
            return delayed(m, data, missing, f"read_{name}") if missing else data
        memory = Memory(
            shape=unsigned(bits),
            depth=piece.words,
            init=init,
            # Users keep colliding accesses apart: no logic to make them behave.
            attrs={**self._style(device, piece, write), "no_rw_check": 1},
        )
        m.submodules[f"piece_{name}"] = memory
        read = memory.read_port(domain="sync" if piece.block else "comb")
        m.d.comb += read.addr.eq(address)
        if piece.block:
            m.d.comb += read.en.eq(1)
        if write is not None:
            _connect(m, memory, write)
        return delayed(m, read.data, 1, f"read_{name}")

    def _staged(self, piece: Piece) -> bool:
        """Whether a register lies between a piece's lookup tables and the choice among them,
        instead of one in front of them."""
        several = self.registered and piece.words > LOGIC_DEPTH
        return not piece.block and (self.latency > BLOCK_LATENCY or several)

    @staticmethod
    def _style(device: Device, piece: Piece, write: BlockWrite | None) -> dict[str, Any]:
        """What synthesis is to make of a memory."""
        if piece.block:
            return {"ram_style": "block"}
        return {"ram_style": "logic"} if write is None else small_style(device)

    def _write(self, piece: Piece, place: tuple[int, int]) -> BlockWrite | None:
        """What writes bits ``place`` of a piece's words, if anything does."""
        start, stop = place
        low_bits = ceil_log2(piece.depth)
        if self.writable:
            enable = self.w_en & self._selected(self.w_addr, piece)
            return BlockWrite(
                enable=enable, address=self.w_addr[:low_bits], data=self.w_data[start:stop]
            )
        if self.loads:
            arrival: Arrival = self._arrivals[start // DATA_BITS]
            low = start // DATA_BITS * DATA_BITS
            return BlockWrite(
                enable=arrival.enable & self._selected(arrival.word, piece),
                address=arrival.word[:low_bits],
                data=arrival.data[start - low : stop - low],
            )
        return None

    def _logic(
        self,
        m: Module,
        device: Device,
        name: str,
        place: tuple[int, int],
        piece: Piece,
        words: list[int],
        address: Value,
    ) -> Value:
        """The word at ``address``, two cycles later, out of lookup tables."""
        parts: list[Value] = []
        write = self._write(piece, place)
        part_bits = ceil_log2(LOGIC_DEPTH)
        for start in range(0, piece.words, LOGIC_DEPTH):
            memory = Memory(
                shape=unsigned(place[1] - place[0]),
                depth=min(piece.words - start, LOGIC_DEPTH),
                init=words[start : start + LOGIC_DEPTH],
                attrs=self._style(device, piece, write),
            )
            m.submodules[f"{name}_{start}"] = memory
            read = memory.read_port(domain="comb")
            m.d.comb += read.addr.eq(address)
            if write is not None:
                enable = write.enable
                if piece.words > LOGIC_DEPTH:
                    enable = enable & (write.address[part_bits:] == start >> part_bits)
                address_here = write.address[:part_bits]
                _connect(m, memory, replace(write, enable=enable, address=address_here))
            parts.append(delayed(m, read.data, 1, f"{name}_{start}_read"))
        if len(parts) == 1:
            return delayed(m, parts[0], 1, f"{name}_read")
        which = delayed(m, address[ceil_log2(LOGIC_DEPTH) :], 1, f"{name}_which")
        return delayed(m, Array(parts)[which], 1, f"{name}_read")

    def _selected(self, address: Value, piece: Piece) -> Value:
        """Whether an address lies in a piece."""
        if piece.words == self.depth:
            return Const(1, 1)
        low_bits = ceil_log2(piece.depth)
        return address[low_bits:] == piece.start >> low_bits

    def resources(self, device: Device) -> Resources:
        return ram_resources(
            device, self.depth, self.width, writable=self.writable, loads=self.loads
        )


def small_style(device: Device) -> dict[str, Any]:
    """For a writable memory in lookup tables. Not every family has such: where it is unknown,
    synthesis makes what there is."""
    return {} if device.cells is None else {"ram_style": "distributed"}


def _connect(m: Module, memory: Memory, by: BlockWrite) -> None:
    """A write port for a memory."""
    write = memory.write_port()
    m.d.comb += [
        write.addr.eq(by.address),
        write.data.eq(by.data),
        write.en.eq(by.enable),
    ]


def _cut(ranges: Sequence[tuple[int, int]], every: int) -> list[tuple[int, int]]:
    """Ranges cut wherever a multiple of ``every`` lies within."""
    found = []
    for start, stop in ranges:
        while start < stop:
            end = min(stop, (start // every + 1) * every)
            found.append((start, end))
            start = end
    return found


def _select(selects: Sequence[Value], values: Sequence[Value]) -> Value:
    """The one value whose bit is up, through as few multiplexers as there can be in a row."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    first = Cat(*selects[:half]).any()
    return Mux(
        first, _select(selects[:half], values[:half]), _select(selects[half:], values[half:])
    )


class FastRom(Ram):
    """A large ROM: ``r_data`` follows ``r_addr`` by three cycles, or more.

    Words of a systolic array's weights are needed piecemeal, each element's a cycle after its
    neighbour's. It is the address that waits, a few bits for every block, and not what is read:
    so blocks may lie along the array.

    Parameters
    ----------
    depth, width, init
        Of a `Ram`.
    late : sequence of int
        The word consists of so many fields of equal width, lowest bits first; by how many
        cycles more each of them follows.

    Members
    -------
    r_addr : In
    r_data : Out
    """

    latency = BLOCK_LATENCY + 1

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        init: Sequence[int] | Callable[[], Sequence[int]],
        late: Sequence[int] = (0,),
        loads: bool = False,
    ):
        super().__init__(depth=depth, width=width, init=init, writable=False, loads=loads)
        if width % len(late):
            raise ValueError(f"width must be a multiple of the {len(late)} fields, not {width!r}")
        self.late = tuple(late)

    @property
    def _fields(self) -> list[Field]:
        width = self.width // len(self.late)
        fields: list[Field] = []
        for k, late in enumerate(self.late):
            if fields and fields[-1].late == late:
                fields[-1] = replace(fields[-1], stop=(k + 1) * width)
            else:
                fields.append(Field(k * width, (k + 1) * width, late))
        return fields

    def resources(self, device: Device) -> Resources:
        return ram_resources(
            device, self.depth, self.width, writable=False, fast=True, loads=self.loads
        )


@cache
def ram_resources(
    device: Device,
    depth: int,
    width: int,
    *,
    writable: bool,
    information: float = 1.0,
    fast: bool = False,
    loads: bool = False,
) -> Resources:
    """What a `Ram` takes, or a `FastRom` if ``fast``.

    ``information`` is how much a bit of a ROM tells, 0 .. 1: see `bit_information`.
    """
    parts = []
    written = writable or loads
    stored = pieces(device, depth, width, written)
    for piece in stored:
        part = piece.resources(device, width, writable=written)
        if not piece.block and not written:
            # A table for every LOGIC_DEPTH words and a choice among them, or one table for all.
            most = LOGIC_DEPTH if fast else piece.words
            starts = range(0, piece.words, most)
            tables = (logic_luts(min(most, piece.words - s), width, information) for s in starts)
            part = Resources(lut=sum(tables) + (len(starts) - 1) * width)
        parts.append(part)
    if loads:
        parts.append(load_resources(Place(0, depth, width), len(stored)))
    # Every piece but the first has to be chosen, too.
    parts.append(Resources(lut=round((len(stored) - 1) * (PIECE_LUTS * width + 4))))
    return Resources.total(parts)


def logic_luts(words: int, width: int, information: float) -> int:
    """Lookup tables that hold words of which a bit tells ``information``."""
    # Lookup tables of 5 to 7 inputs come in twos, fours and eights.
    rounded = 1 << ceil_log2(ceil_div(words, 16))
    return round(rounded * width * (ROM_MUX * information if rounded > 1 else 1.0))


ROM_MUX = 1.2
"""Lookup tables of a ROM for each that its words would fill: synthesis does not share them all."""

PIECE_LUTS = 1.25
"""Lookup tables a bit to choose between two pieces of a memory."""


def bit_information(values: npt.NDArray[np.integer], bits: int) -> float:
    """How much a bit of such values tells on average: 1 where both states are as frequent.

    Logic that stores values of which most bits are 0 is a fraction of what random ones take.
    """
    total = 0.0
    for bit in range(bits):
        share = np.count_nonzero(values >> bit & 1) / values.size
        if 0 < share < 1:
            total -= share * math.log2(share) + (1 - share) * math.log2(1 - share)
    return total / bits


class CreditFifo(Gateware):
    """A queue at the end of a free-running pipeline that can never be overrun.

    Whoever feeds the pipeline takes one credit per item (``take``, allowed while ``credit``);
    the item may be pushed any number of cycles later. The credit comes back when the item
    leaves through ``o``. So the pipeline needs no stall input.

    Parameters
    ----------
    shape : ShapeLike
        Item.
    depth : int
        Items, a power of two, 16 or more; full throughput needs the pipeline's latency + 2.

    Members
    -------
    credit : Out(1)
    take : In(1)
    push : In(1)
    i : In
    o : Out(stream)
    empty : Out(1)
        Nothing is inside, and no credit is taken.
    """

    def __init__(self, *, shape: object, depth: int):
        check_positive(depth=depth)
        if depth < 16 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two from 16, not {depth!r}")
        self.shape, self.depth = shape, depth
        super().__init__(
            wiring.Signature(
                {
                    "credit": Out(1),
                    "take": In(1),
                    "push": In(1),
                    "i": In(shape),
                    "o": Out(stream.Signature(shape)),
                    "empty": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = Shape.cast(self.shape).width
        m.submodules.memory = memory = Memory(
            shape=unsigned(width),
            depth=self.depth,
            init=[],
            attrs=small_style(device_of(platform)),
        )
        write = memory.write_port()
        read = memory.read_port(domain="comb")
        level = Signal(range(self.depth + 1))
        credits = Signal(range(self.depth + 1), init=self.depth)
        valid = Signal()
        credit = Signal(init=1)
        pop = Signal()
        pushed = Signal.like(write.addr)
        popped = Signal.like(read.addr)
        m.d.comb += [
            write.addr.eq(pushed),
            write.data.eq(self.i),
            write.en.eq(self.push),
            read.addr.eq(popped),
            self.o.payload.eq(read.data),
            self.o.valid.eq(valid),
            pop.eq(valid & self.o.ready),
            self.credit.eq(credit),
            self.empty.eq(credits == self.depth),
        ]
        # Whether there is anything is found a cycle ahead, without the adders.
        m.d.sync += [
            level.eq(level + self.push - pop),
            valid.eq((level > 1) | ((level == 1) & ~pop) | self.push),
            credits.eq(credits - self.take + pop),
            credit.eq((credits > 1) | ((credits == 1) & ~self.take) | pop),
            pushed.eq(pushed + self.push),
            popped.eq(popped + pop),
        ]
        return m

    def resources(self, device: Device) -> Resources:
        width = Shape.cast(self.shape).width
        pointer = bits_for(self.depth)
        return Resources(lut=device.small_ram_luts(self.depth, width) + 8 * pointer)


def fifo_depth(latency: int) -> int:
    """The depth of a `CreditFifo` that keeps a pipeline of this latency busy."""
    return max(16, 1 << ceil_log2(latency + 2))


__all__ = [
    "CreditFifo",
    "FastRom",
    "Piece",
    "Ram",
    "bit_information",
    "fifo_depth",
    "pieces",
    "ram_resources",
]
