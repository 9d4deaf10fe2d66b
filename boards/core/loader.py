# amaranth: UnusedElaboratable=no
"""Constants into a pipeline, a word at a time, and a checksum of what went in."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lichen.boards.link.crc import CRC_BITS, advanced
from lichen.boards.port.fill import ADDRESS_START, WORD_BITS, WORD_BYTES
from lichen.hw.device.device import Resources
from lichen.hw.device.load import ADDRESS_BITS, DATA_BITS, LoadSignature
from lichen.hw.stage.pipeline import Pipeline

CYCLES_PER_WORD = WORD_BYTES + 1
"""That a `Loader` takes: one for each byte's checksum, one to take the word."""

CRC_INIT = (1 << CRC_BITS) - 1


class Loader(wiring.Component):
    """Gives a pipeline's bus the words of a stream, and keeps the CRC-32 of their bytes.

    A word takes `CYCLES_PER_WORD`.

    Members
    -------
    i : In(stream of 64)
    clear : In(1)
        Begin the checksum anew; takes effect while no word is in.
    crc : Out(32)
        Of all words that have been taken, when ``i.ready`` is high.
    load : Out(LoadSignature)
    """

    def __init__(self) -> None:
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(WORD_BITS)),
                    "clear": In(1),
                    "crc": Out(CRC_BITS),
                    "load": Out(LoadSignature()),
                }
            )
        )

    @staticmethod
    def resources() -> Resources:
        """A choice for every bit of the word, and three for every bit of the checksum: two that
        make the next one and one that gives its complement."""
        return Resources(lut=WORD_BITS + 3 * CRC_BITS)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rest = Signal(WORD_BITS)
        left = Signal(range(WORD_BYTES + 1))
        register = Signal(CRC_BITS, init=CRC_INIT)
        m.d.comb += [self.i.ready.eq(left == 0), self.crc.eq(~register)]
        m.d.sync += self.load.strobe.eq(self.i.valid & self.i.ready)
        with m.If(left != 0):
            m.d.sync += [
                rest.eq(rest >> 8),
                left.eq(left - 1),
                register.eq(advanced(register, rest[:8])),
            ]
        with m.Else():
            with m.If(self.clear):
                m.d.sync += register.eq(CRC_INIT)
            with m.If(self.i.valid):
                m.d.sync += [
                    rest.eq(self.i.payload),
                    left.eq(WORD_BYTES),
                    self.load.address.eq(self.i.payload[ADDRESS_START:][:ADDRESS_BITS]),
                    self.load.data.eq(self.i.payload[:DATA_BITS]),
                ]
        return m


class StreamCore(wiring.Component):
    """A pipeline with streams whose constants come through a stream of their own.

    Parameters
    ----------
    pipeline : Pipeline
        Something of it is filled at run time.

    Members
    -------
    i, o, width, height
        Of the `Pipeline`.
    load : In(stream of 64), load_clear : In(1), load_crc : Out(32)
        ``i``, ``clear`` and ``crc`` of a `Loader`.
    """

    def __init__(self, *, pipeline: Pipeline):
        if not pipeline.loadables:
            raise ValueError("nothing of the pipeline is filled at run time")
        self.pipeline, self.loader = pipeline, Loader()
        own = pipeline.signature.members
        super().__init__(
            wiring.Signature(
                {
                    **{name: own[name] for name in ("i", "o", "width", "height")},
                    "load": In(stream.Signature(WORD_BITS)),
                    "load_clear": In(1),
                    "load_crc": Out(CRC_BITS),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.pipeline = pipeline = self.pipeline
        m.submodules.loader = loader = self.loader
        connect(m, flipped(self.i), pipeline.i)
        connect(m, pipeline.o, flipped(self.o))
        connect(m, flipped(self.load), loader.i)
        connect(m, loader.load, pipeline.load)
        m.d.comb += [
            pipeline.width.eq(self.width),
            pipeline.height.eq(self.height),
            loader.clear.eq(self.load_clear),
            self.load_crc.eq(loader.crc),
        ]
        return m
