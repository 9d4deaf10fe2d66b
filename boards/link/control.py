# amaranth: UnusedElaboratable=no
"""Packets out of sequence: what the device is, what it is doing, that a session is open."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.builder import PacketBuilder
from lichen.boards.link.protocol import Kind, Layout
from lichen.boards.link.slots import ITEM
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive

PAGE_LUT = 0.85
"""Lookup tables for a byte of a page that never changes."""

ROOM = 64
"""Bytes of the longest such packet on the line, at most."""


def packed(layout: Layout, values: dict[str, Value]) -> Value:
    """The bytes of a payload, the first in the least significant bits."""
    return Cat(Cat(values[f.name], Const(0, 8 * f.size))[: 8 * f.size] for f in layout.fields)


class Control(Gateware):
    """Makes one packet at a time, of those that are wanted the most urgent.

    Parameters
    ----------
    pages : dict of int to bytes
        Payloads of the INFO packets that never change, by their numbers. Those from
        `protocol.PAGE_FILLS` to `protocol.PAGE_STAGES` go on with a digest.

    Members
    -------
    opened, info, state : In(1)
        Packets that are wanted; hold until ``*_taken``, when it is made of what stands here.
    opened_taken, info_taken, state_taken : Out(1)
    session : In(32)
    page : In(8)
    number : In(8)
        Of the STATE packet.
    fields : In
        Payload of the STATE packet.
    counters : In
        That of the page of counters.
    digest_of, digest_at : Out(8)
        Transform and byte of a digest.
    digest : In(8)
        In the same cycle: that byte.
    ready : Out(1)
        A packet is complete, until ``taken``.
    taken : In(1)
    o : Out(stream of ITEM)
        Its bytes.
    """

    def __init__(self, *, pages: Mapping[int, bytes]):
        check_positive(pages=len(pages))
        self.pages = dict(pages)
        sizes = [len(page) for page in self.pages.values()]
        longest = max(protocol.COUNTERS.size, protocol.FILL.size, *sizes)
        assert longest + protocol.OVERHEAD_BYTES + 1 <= ROOM
        self._builder = PacketBuilder()
        taken = {f"{name}_taken": Out(1) for name in ("opened", "info", "state")}
        super().__init__(
            wiring.Signature(
                {
                    **{name: In(1) for name in ("opened", "info", "state")},
                    **taken,
                    "session": In(32),
                    "page": In(8),
                    "number": In(8),
                    "fields": In(8 * protocol.STATE.size),
                    "counters": In(8 * protocol.COUNTERS.size),
                    "digest_of": Out(8),
                    "digest_at": Out(8),
                    "digest": In(8),
                    "ready": Out(1),
                    "taken": In(1),
                    "o": Out(stream.Signature(ITEM)),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.builder = builder = self._builder
        m.submodules.memory = memory = Memory(
            shape=unsigned(8), depth=ROOM, init=[], attrs={"ram_style": "distributed"}
        )
        write = memory.write_port()
        read = memory.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(builder.w_en),
            write.addr.eq(builder.w_addr),
            write.data.eq(builder.w_data),
        ]
        text = b"".join(self.pages.values())
        m.submodules.rom = rom = Memory(
            shape=unsigned(8), depth=len(text), init=list(text), attrs={"ram_style": "logic"}
        )
        rom_read = rom.read_port(domain="comb")
        at = Signal(range(len(text) + 1))

        shift = Signal(8 * (2 + protocol.COUNTERS.size))  # what comes before any of the ROM
        # Bytes left of that, of the ROM, and of a digest.
        own = Signal(range(len(shift) // 8 + 1))
        fixed = Signal(range(256))
        told = Signal(range(protocol.DIGEST_BYTES + 1))
        behind = Mux(fixed == 0, self.digest, rom_read.data)
        m.d.comb += [
            rom_read.addr.eq(at),
            builder.i.payload.byte.eq(Mux(own == 0, behind, shift[:8])),
            builder.i.payload.last.eq(own + fixed + told == 1),
            self.digest_at.eq(protocol.DIGEST_BYTES - told),
        ]
        with m.FSM():
            # What is next is chosen a cycle before it is laid ready: that enables hundreds of bits.
            with m.State("IDLE"):
                with m.If(self.opened):
                    m.next = "OPENED"
                with m.Elif(self.info):
                    m.next = "INFO"
                with m.Elif(self.state):
                    m.next = "STATE"
            with m.State("OPENED"):
                m.d.comb += self.opened_taken.eq(1)
                payload = packed(protocol.SESSION, {"session": self.session})
                self._load(m, shift, own, Kind.OPENED, Const(0, 8), payload)
                m.d.sync += [builder.seed.eq(0), fixed.eq(0)]
                m.next = "MAKE"
            with m.State("INFO"):
                m.d.comb += self.info_taken.eq(1)
                self._load(m, shift, own, Kind.INFO, self.page, Cat())
                m.d.sync += [builder.seed.eq(0), fixed.eq(0)]
                self._choose_page(m, shift, own, at, fixed, told)
                m.next = "MAKE"
            with m.State("STATE"):
                m.d.comb += self.state_taken.eq(1)
                self._load(m, shift, own, Kind.STATE, self.number, self.fields)
                m.d.sync += [builder.seed.eq(self.session), fixed.eq(0)]
                m.next = "MAKE"
            with m.State("MAKE"):
                m.d.comb += builder.i.valid.eq(1)
                with m.If(builder.i.ready):
                    m.d.sync += shift.eq(shift >> 8)
                    with m.If(own != 0):
                        m.d.sync += own.eq(own - 1)
                    with m.Elif(fixed != 0):
                        m.d.sync += [fixed.eq(fixed - 1), at.eq(at + 1)]
                    with m.Else():
                        m.d.sync += told.eq(told - 1)
                    with m.If(builder.i.payload.last):
                        m.next = "STUFF"
            with m.State("STUFF"):
                with m.If(builder.done):
                    m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += self.ready.eq(1)
                with m.If(self.taken):
                    m.next = "IDLE"
        self._give(m, read)
        return m

    def _load(
        self, m: Module, shift: Signal, own: Signal, kind: Kind, number: Value, payload: Value
    ) -> None:
        """Kind, number and what follows at once."""
        m.d.sync += [
            shift.eq(Cat(Const(kind, 8), number, payload)),
            own.eq(2 + len(payload) // 8),
        ]

    def _choose_page(
        self, m: Module, shift: Signal, own: Signal, at: Signal, fixed: Signal, told: Signal
    ) -> None:
        """What an INFO packet carries; nothing for a page that there is not."""
        first = 0
        with m.Switch(self.page):
            for number, page in self.pages.items():
                with m.Case(number):
                    m.d.sync += [at.eq(first), fixed.eq(len(page))]
                    if protocol.PAGE_FILLS <= number < protocol.PAGE_STAGES:
                        of = number - protocol.PAGE_FILLS
                        m.d.sync += [told.eq(protocol.DIGEST_BYTES), self.digest_of.eq(of)]
                first += len(page)
            with m.Case(protocol.PAGE_COUNTERS):
                self._load(m, shift, own, Kind.INFO, self.page, self.counters)

    def _give(self, m: Module, read: object) -> None:
        """The bytes of the packet that is ready."""
        offset = Signal(range(ROOM))
        m.d.comb += [
            read.addr.eq(offset),  # type: ignore[attr-defined]
            self.o.payload.byte.eq(read.data),  # type: ignore[attr-defined]
            self.o.payload.last.eq(offset == self._builder.length - 1),
            self.o.valid.eq(self.ready),
        ]
        with m.If(~self.ready):
            m.d.sync += offset.eq(0)
        with m.Elif(self.o.ready):
            m.d.sync += offset.eq(offset + 1)

    def resources(self, device: Device) -> Resources:
        rom = round(PAGE_LUT * sum(map(len, self.pages.values())))
        return self._builder.resources(device) + Resources(lut=370 + rom)
