# amaranth: UnusedElaboratable=no
"""Constants into the transforms, from bytes, and a checksum of what went in."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Array, Cat, Const, Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.control import PAGE_LUT
from lichen.boards.link.crc import CRC_BITS, advanced
from lichen.boards.port.fill import ADDRESS_START, WORD_BITS, WORD_BYTES
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive
from lichen.hw.device.load import ADDRESS_BITS, DATA_BITS, LoadSignature


class Filler(Gateware):
    """Takes a load apart: words for a transform, then the digest of the network that they are of.

    Takes a byte a cycle.

    Parameters
    ----------
    words : sequence of int
        How many each transform takes.

    Members
    -------
    which : In
        The transform, steady from a load's beginning to its end.
    begin : In(1)
        A pulse: a load begins, of as many words as the transform takes.
    i : In(stream of 8)
        The bytes of the words and of the digest; taken only while a load is under way.
    whole : Out(1)
        A pulse: all has come.
    crc : In(32)
        What its checksum is to be; steady while a load is under way.
    right : Out(1)
        With ``whole``: it is that.
    told, told_at, digest : In, In, Out(8)
        A transform, and which byte of the digest that came last for it.
    loads : array of Out(LoadSignature())
        By transform.
    """

    def __init__(self, *, words: Sequence[int]):
        check_positive(**{f"words_{i}": count for i, count in enumerate(words)})
        self.words = tuple(words)
        which = range(max(2, len(self.words)))
        super().__init__(
            wiring.Signature(
                {
                    "which": In(which),
                    "begin": In(1),
                    "i": In(stream.Signature(8)),
                    "whole": Out(1),
                    "crc": In(CRC_BITS),
                    "right": Out(1),
                    "told": In(which),
                    "told_at": In(range(protocol.DIGEST_BYTES)),
                    "digest": Out(8),
                    "loads": Out(LoadSignature()).array(len(self.words)),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.digests = digests = Memory(
            shape=unsigned(8),
            depth=protocol.DIGEST_BYTES << len(self.which),
            init=[],
            attrs={"ram_style": "distributed"},
        )
        write = digests.write_port()
        read = digests.read_port(domain="comb")
        word = Signal(WORD_BITS)
        at = Signal(range(protocol.DIGEST_BYTES))
        left = Signal(range(max(self.words) + 1))
        register = Signal(CRC_BITS)
        taken = Signal()
        strobe = Signal()
        m.d.comb += [
            taken.eq(self.i.valid & self.i.ready),
            write.addr.eq(Cat(at, self.which)),
            write.data.eq(self.i.payload),
            read.addr.eq(Cat(self.told_at, self.told)),
            self.digest.eq(read.data),
        ]
        m.d.sync += [strobe.eq(0), self.right.eq(register == ~self.crc)]
        with m.If(taken):
            m.d.sync += [
                word.eq(Cat(word[8:], self.i.payload)),
                register.eq(advanced(register, self.i.payload)),
                at.eq(at + 1),
            ]
        with m.FSM():
            with m.State("IDLE"), m.If(self.begin):
                counts = Array(Const(count, len(left)) for count in self.words)
                m.d.sync += [left.eq(counts[self.which]), register.eq(~0), at.eq(0)]
                m.next = "WORDS"
            with m.State("WORDS"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(taken & (at == WORD_BYTES - 1)):
                    m.d.sync += [strobe.eq(1), at.eq(0), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.next = "DIGEST"
            with m.State("DIGEST"):
                m.d.comb += [self.i.ready.eq(1), write.en.eq(taken)]
                with m.If(taken & (at == protocol.DIGEST_BYTES - 1)):
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.next = "WHOLE"
            with m.State("WHOLE"):
                m.d.comb += self.whole.eq(1)
                m.next = "IDLE"
        for number, load in enumerate(self.loads):
            m.d.comb += [
                load.strobe.eq(strobe & (self.which == number)),
                load.address.eq(word[ADDRESS_START:][:ADDRESS_BITS]),
                load.data.eq(word[:DATA_BITS]),
            ]
        return m

    def resources(self, device: Device) -> Resources:
        return Resources(lut=220 + 52 * len(self.words))


def loading_resources(stages: Sequence[int], device: Device) -> Resources:
    """What a link takes more for transforms of so many stages that are filled at run time: a
    filler, and pages."""
    told = protocol.FILL.size - protocol.DIGEST_BYTES
    text = sum(told + count * protocol.STAGE.size for count in stages)
    filler = Filler(words=[1] * len(stages))
    return filler.resources(device) + Resources(lut=round(PAGE_LUT * text))
