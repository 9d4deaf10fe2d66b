"""The one place memories are made, cut into device blocks so that their number is known.

Two kinds: `Ram` reads through two registers, as block RAM wants for speed; `CreditFifo` is a
small first-word-fall-through queue in lookup tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from amaranth.hdl import Array, Cat, Module, Shape, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lichen.hw.unit import Resources, Unit, check_positive
from lichen.network.arithmetic import ceil_div

BLOCK_SHAPES = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
"""Depth and width of one DP16KD (the first as PDPW16KD)."""

DISTRIBUTED_DEPTH_MAX = 64
"""Memories up to this depth are made of lookup tables."""


def block_shape(depth: int, width: int) -> tuple[int, int]:
    """The block shape that stores ``depth`` words of ``width`` bits in fewest blocks.

    Of equal counts the deepest, which needs the least multiplexing behind it.
    """
    return min(
        BLOCK_SHAPES,
        key=lambda s: (ceil_div(depth, s[0]) * ceil_div(width, s[1]), ceil_div(depth, s[0])),
    )


class Ram(Unit):
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

    Members
    -------
    w_en, w_addr, w_data : In
        Write port, only when ``writable``.
    r_addr : In
    r_data : Out
    """

    latency = 2

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        init: Sequence[int] | Callable[[], Sequence[int]] | None = None,
        writable: bool = True,
    ):
        check_positive(depth=depth, width=width)
        if init is None and not writable:
            raise ValueError("a memory that cannot be written must have init")
        self.depth, self.width, self.writable = depth, width, writable
        self._init = init
        address = unsigned(ceil_log2(depth))
        ports = {"r_addr": In(address), "r_data": Out(unsigned(width))}
        if writable:
            ports |= {"w_en": In(1), "w_addr": In(address), "w_data": In(unsigned(width))}
        super().__init__(wiring.Signature(ports))

    @property
    def block(self) -> bool:
        """Whether the memory is made of block RAM."""
        return self.depth > DISTRIBUTED_DEPTH_MAX

    def _pieces(self) -> tuple[int, int]:
        return block_shape(self.depth, self.width) if self.block else (self.depth, self.width)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        initial = self._init() if callable(self._init) else self._init or []
        if len(initial) > self.depth:
            raise ValueError(f"init must have at most {self.depth} words, not {len(initial)}")
        piece_depth, piece_width = self._pieces()
        low_bits = ceil_log2(piece_depth)
        style = {True: "block", False: "distributed" if self.writable else "logic"}[self.block]
        rows = []
        for i in range(ceil_div(self.depth, piece_depth)):
            words = min(piece_depth, self.depth - i * piece_depth)
            row = []
            for j in range(ceil_div(self.width, piece_width)):
                bits = min(piece_width, self.width - j * piece_width)
                init = [
                    (word >> (j * piece_width)) & ((1 << bits) - 1)
                    for word in initial[i * piece_depth : i * piece_depth + words]
                ]
                memory = Memory(
                    shape=unsigned(bits), depth=words, init=init, attrs={"ram_style": style}
                )
                m.submodules[f"block_{i}_{j}"] = memory
                read = memory.read_port(domain="sync" if self.block else "comb")
                m.d.comb += read.addr.eq(self.r_addr[:low_bits])
                if self.block:
                    m.d.comb += read.en.eq(1)
                    value = read.data
                else:
                    value = Signal(bits, name=f"read_{i}_{j}", reset_less=True)
                    m.d.sync += value.eq(read.data)
                row.append(value)
                if self.writable:
                    write = memory.write_port()
                    m.d.comb += [
                        write.addr.eq(self.w_addr[:low_bits]),
                        write.data.eq(self.w_data[j * piece_width : j * piece_width + bits]),
                        write.en.eq(
                            self.w_en
                            & (self.w_addr[low_bits:] == i if self.depth > piece_depth else 1)
                        ),
                    ]
            rows.append(Cat(*row))
        out = Signal(self.width, reset_less=True)
        if len(rows) == 1:
            m.d.sync += out.eq(rows[0])
        else:
            select = Signal(range(len(rows)), reset_less=True)
            m.d.sync += select.eq(self.r_addr[low_bits:])
            m.d.sync += out.eq(Array(rows)[select])
        m.d.comb += self.r_data.eq(out)
        return m

    def resources(self) -> Resources:
        piece_depth, piece_width = self._pieces()
        deep = ceil_div(self.depth, piece_depth)
        if self.block:
            mux = ceil_div(deep - 1, 2) * self.width if deep > 1 else 0
            return Resources(bram=deep * ceil_div(self.width, piece_width), lut=mux)
        sixteenths = ceil_div(self.depth, 16)
        if self.writable:  # a TRELLIS_DPR16X4 takes 6 lookup tables
            return Resources(lut=sixteenths * ceil_div(self.width, 4) * 6)
        return Resources(lut=sixteenths * self.width)


class CreditFifo(Unit):
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
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width = Shape.cast(self.shape).width
        m.submodules.memory = memory = Memory(
            shape=unsigned(width), depth=self.depth, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        level = Signal(range(self.depth + 1))
        credits = Signal(range(self.depth + 1), init=self.depth)
        valid = Signal()
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
            self.credit.eq(credits != 0),
        ]
        next_level = Signal.like(level)
        m.d.comb += next_level.eq(level + self.push - pop)
        m.d.sync += [
            level.eq(next_level),
            valid.eq(next_level != 0),
            credits.eq(credits - self.take + pop),
            pushed.eq(pushed + self.push),
            popped.eq(popped + pop),
        ]
        return m

    def resources(self) -> Resources:
        width = Shape.cast(self.shape).width
        pointer = bits_for(self.depth)
        return Resources(lut=ceil_div(self.depth, 16) * ceil_div(width, 4) * 6 + 8 * pointer)


def fifo_depth(latency: int) -> int:
    """The depth of a `CreditFifo` that keeps a pipeline of this latency busy."""
    return max(16, 1 << ceil_log2(latency + 2))


__all__ = ["BLOCK_SHAPES", "CreditFifo", "Ram", "block_shape", "fifo_depth"]
