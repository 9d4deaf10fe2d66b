# amaranth: UnusedElaboratable=no
"""A pipeline behind AXI4-Stream, with registers behind AXI4-Lite."""

from __future__ import annotations

from dataclasses import dataclass, replace

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from lichen.boards.core.loader import Loader
from lichen.hw.device.load import ADDRESS_BITS as LOAD_ADDRESS_BITS
from lichen.hw.engine.row_buffer import SIZE_BITS
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.arithmetic import ceil_div
from lichen.network.stage import Format

ADDRESS_BITS = 7
ID = int.from_bytes(b"LCHN", "big")
MAP_VERSION = 1
OKAY, SLVERR = 0, 2


@dataclass(frozen=True)
class Register:
    """A word of the registers; ``access`` is ``ro``, ``rw``, ``wo``, or ``clear`` by any write."""

    name: str
    address: int
    access: str
    about: str


REGISTERS = (
    Register("id", 0x00, "ro", "0x4c43484e"),
    Register("version", 0x04, "ro", "of this map: 1"),
    Register(
        "control",
        0x08,
        "rw",
        "bit 0: frames may begin; bit 1, written as 1: drop what is on its way, 1 meanwhile",
    ),
    Register(
        "status",
        0x0C,
        "ro",
        "bit 0: in a frame of the input; bit 1: nothing is on its way; bit 2: restarting; "
        "bit 3: the size cannot be taken; bit 4: any of the error counters is not 0",
    ),
    Register(
        "size", 0x10, "rw", "of the frames that begin from now on: width, and height from bit 16"
    ),
    Register("max_width", 0x14, "ro", "the greatest width"),
    Register("frames_in", 0x18, "clear", "frames taken whole"),
    Register("frames_out", 0x1C, "clear", "frames given whole"),
    Register("early_last", 0x20, "clear", "beats with tlast before a frame's end"),
    Register("missing_last", 0x24, "clear", "ends of frames without tlast"),
    Register(
        "wrong_user", 0x28, "clear", "beats whose tuser does not mark a frame's start, or does"
    ),
    Register("wrong_keep", 0x2C, "clear", "beats with bytes left out by tkeep"),
    *(
        Register(f"digest_{k}", 0x40 + 4 * k, "ro", f"bytes {4 * k} .. {4 * k + 3} of the digest")
        for k in range(8)
    ),
)
"""Addresses are of bytes; words are 32 bits, little endian."""

LOAD_REGISTERS = (
    Register("load_address", 0x60, "rw", "where the next word goes; one more after every word"),
    Register("load_high", 0x64, "rw", "bits 32 .. 35 of the words that follow"),
    Register(
        "load_data",
        0x68,
        "wo",
        "bits 0 .. 31 of a word, which is written then; SLVERR while a frame is under way",
    ),
    Register(
        "load_crc",
        0x6C,
        "clear",
        "CRC-32 of all words: data in five bytes, address in three, each lowest byte first",
    ),
    Register("load_map", 0x70, "ro", "first four bytes of the map's digest"),
)
"""What a core has more whose constants are filled at run time; its digest can be written, too."""


def registers_of(loads: bool) -> tuple[Register, ...]:
    """All registers of a core."""
    if not loads:
        return REGISTERS
    own = (replace(r, access="rw") if r.name.startswith("digest_") else r for r in REGISTERS)
    return (*own, *LOAD_REGISTERS)


def container_bits(form: Format) -> int:
    """Bits that a channel takes in ``tdata``: whole bytes."""
    return 8 * ceil_div(form.bits, 8)


class AXICore(wiring.Component):
    """A pipeline with AXI4-Stream ports and an AXI4-Lite register block.

    Frames are streams of pixels, ``tuser`` marks the first beat and ``tlast`` the last. A frame
    begins when `control` allows it and `size` can be taken; its size is that of this moment. Where
    ``tlast``, ``tuser`` and ``tkeep`` say something else than the size does, the size is believed
    and an error counted. A restart withdraws the beat that ``m_axis`` offers.

    Parameters
    ----------
    pipeline : Pipeline
        Restartable.
    digest : bytes
        32 of them: of the network, or of the map where constants are filled at run time.
    """

    def __init__(self, *, pipeline: Pipeline, digest: bytes):
        if not pipeline.restartable:
            raise ValueError("pipeline must be restartable")
        if len(digest) != 32:
            raise ValueError(f"digest must be 32 bytes, not {len(digest)}")
        self.pipeline, self.digest = pipeline, digest
        self.loader = Loader() if pipeline.loadables else None
        self.registers = registers_of(self.loader is not None)
        transform = pipeline.transform
        self.in_bits = container_bits(transform.input)
        self.out_bits = container_bits(transform.output)
        ports: dict[str, object] = {}
        for name, flow, back, bits in (
            ("s_axis", In, Out, self.in_bits * pipeline.in_lanes),
            ("m_axis", Out, In, self.out_bits * pipeline.out_lanes),
        ):
            ports |= {
                f"{name}_tdata": flow(bits),
                f"{name}_tkeep": flow(bits // 8),
                f"{name}_tlast": flow(1),
                f"{name}_tuser": flow(1),
                f"{name}_tvalid": flow(1),
                f"{name}_tready": back(1),
            }
        for name, flow, back, members in (
            ("aw", In, Out, {"addr": ADDRESS_BITS, "prot": 3}),
            ("w", In, Out, {"data": 32, "strb": 4}),
            ("b", Out, In, {"resp": 2}),
            ("ar", In, Out, {"addr": ADDRESS_BITS, "prot": 3}),
            ("r", Out, In, {"data": 32, "resp": 2}),
        ):
            for member, bits in members.items():
                ports[f"s_axil_{name}{member}"] = flow(bits)
            ports |= {f"s_axil_{name}valid": flow(1), f"s_axil_{name}ready": back(1)}
        super().__init__(wiring.Signature(ports))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipeline = self.pipeline
        m.submodules.pipeline = pipeline
        self._words: dict[str, Value] = {
            "id": Const(ID, 32),
            "version": Const(MAP_VERSION, 32),
            "max_width": Const(pipeline.folding.max_width, 32),
        }
        digest = {
            f"digest_{k}": Const(int.from_bytes(self.digest[4 * k : 4 * k + 4], "little"), 32)
            for k in range(8)
        }
        self._write = {r.name: Signal(name=f"write_{r.name}") for r in self.registers}
        self._data = Signal(32, name="write_data")
        self._strobe = Signal(4, name="write_strobe")
        enable = Signal()
        width = Signal(SIZE_BITS)
        height = Signal(SIZE_BITS)
        restarting = self._restart(m)
        with m.If(self._write["control"] & self._strobe[0]):
            m.d.sync += enable.eq(self._data[0])
        for part, low in ((width, 0), (height, 2)):
            for byte in range(2):
                with m.If(self._write["size"] & self._strobe[low + byte]):
                    m.d.sync += part[8 * byte :][:8].eq(self._data[8 * (low + byte) :][:8])
        bad_size = Signal()
        m.d.sync += bad_size.eq((width == 0) | (height == 0) | (width > pipeline.folding.max_width))
        in_frame, began = self._input(
            m, enable & ~bad_size & ~restarting, restarting, width, height
        )
        ended = self._output(m, restarting)
        inside = Signal(8)
        m.d.sync += inside.eq(Mux(restarting, 0, inside + began - ended))
        quiet = ~in_frame & (inside == 0)
        if self.loader is None:
            self._words |= digest
        else:
            self._words["load_map"] = digest["digest_0"]
            self._load(m, self.loader)
        self._words |= {
            "control": Cat(enable, restarting),
            "status": Cat(in_frame, quiet, restarting, bad_size, self._any),
            "size": Cat(width, height),
        }
        self._registers(m, quiet)
        return m

    def _restart(self, m: Module) -> Value:
        """Hold the pipeline's restart as long as it wants; whether it is held."""
        left = Signal(range(self.pipeline.restart_cycles + 1))
        held = Signal(name="restarting")
        m.d.comb += [held.eq(left != 0), self.pipeline.restart.eq(held)]
        with m.If(self._write["control"] & self._strobe[0] & self._data[1]):
            m.d.sync += left.eq(self.pipeline.restart_cycles)
        with m.Elif(held):
            m.d.sync += left.eq(left - 1)
        return held

    def _count(self, m: Module, name: str, event: Value) -> None:
        """A counter that stays at its greatest value."""
        count = Signal(32, name=name)
        self._words[name] = count
        with m.If(self._write[name]):
            m.d.sync += count.eq(0)
        with m.Elif(event & ~count.all()):
            m.d.sync += count.eq(count + 1)

    def _input(
        self, m: Module, may: Value, restarting: Value, width: Signal, height: Signal
    ) -> tuple[Signal, Value]:
        """Frames into the pipeline; whether in one, and whether one begins."""
        pipeline = self.pipeline
        in_frame = Signal()
        moves = Signal()
        begins = Signal()
        frame_width = Signal(SIZE_BITS)
        frame_height = Signal(SIZE_BITS)
        m.d.comb += begins.eq(~in_frame & may & self.s_axis_tvalid)
        with m.If(begins):
            m.d.sync += [in_frame.eq(1), frame_width.eq(width), frame_height.eq(height)]
        bits = len(pipeline.i.payload[0])
        lanes = [self.s_axis_tdata[k * self.in_bits :][:bits] for k in range(pipeline.in_lanes)]
        m.d.comb += [
            pipeline.i.payload.as_value().eq(Cat(*lanes)),
            pipeline.i.valid.eq(self.s_axis_tvalid & in_frame & ~restarting),
            self.s_axis_tready.eq(pipeline.i.ready & in_frame & ~restarting),
            pipeline.width.eq(frame_width),
            pipeline.height.eq(frame_height),
            moves.eq(self.s_axis_tvalid & self.s_axis_tready),
        ]
        first, last = _position(
            m, moves, restarting, pipeline.units[0].i_beats, frame_width, frame_height, "in"
        )
        with m.If(restarting | (moves & last)):
            m.d.sync += in_frame.eq(0)
        self._count(m, "frames_in", moves & last)
        errors = {
            "early_last": self.s_axis_tlast & ~last,
            "missing_last": ~self.s_axis_tlast & last,
            "wrong_user": self.s_axis_tuser != first,
            "wrong_keep": ~self.s_axis_tkeep.all(),
        }
        for name, error in errors.items():
            self._count(m, name, moves & error)
        self._any = Cat(*(self._words[name] for name in errors)).any()
        return in_frame, begins

    def _output(self, m: Module, restarting: Value) -> Value:
        """Frames out of the pipeline; whether one ends."""
        pipeline = self.pipeline
        moves = Signal(name="out_moves")
        lanes = [pipeline.o.payload[k] for k in range(pipeline.out_lanes)]
        wide = [Signal(self.out_bits, name=f"out_lane_{k}") for k in range(len(lanes))]
        m.d.comb += [word.eq(lane) for word, lane in zip(wide, lanes, strict=True)]
        last_unit = pipeline.units[-1]
        beats = ceil_div(pipeline.transform.out_channels, pipeline.out_lanes)
        first, last = _position(
            m, moves, restarting, beats, last_unit.out_width, last_unit.out_height, "out"
        )
        m.d.comb += [
            self.m_axis_tdata.eq(Cat(*wide)),
            self.m_axis_tkeep.eq(~0),
            self.m_axis_tvalid.eq(pipeline.o.valid & ~restarting),
            pipeline.o.ready.eq(self.m_axis_tready & ~restarting),
            self.m_axis_tuser.eq(first),
            self.m_axis_tlast.eq(last),
            moves.eq(self.m_axis_tvalid & self.m_axis_tready),
        ]
        self._count(m, "frames_out", moves & last)
        return moves & last

    def _ready(self, value: Value) -> Value:
        """While a word of constants is on its way, registers wait."""
        return value if self.loader is None else value & self.loader.i.ready

    def _load(self, m: Module, loader: Loader) -> None:
        """Constants from the registers into the pipeline, and what a host says they are."""
        self._whole = Signal(name="load_whole")
        m.submodules.loader = loader
        connect(m, loader.load, self.pipeline.load)
        address = Signal(LOAD_ADDRESS_BITS, name="load_address")
        high = Signal(4, name="load_high")
        for name, word in (("load_address", address), ("load_high", high)):
            self._bytes(m, name, word)
        with m.If(loader.i.valid & loader.i.ready):
            m.d.sync += address.eq(address + 1)
        m.d.comb += [
            loader.i.payload.eq(Cat(self._data, high, Const(0, 4), address)),
            loader.i.valid.eq(self._write["load_data"] & self._whole),
            loader.clear.eq(self._write["load_crc"]),
        ]
        self._words |= {
            "load_address": address,
            "load_high": high,
            "load_data": Const(0, 32),
            "load_crc": loader.crc,
        }
        for k in range(8):
            # like the constants that it names, it survives a reset
            word = Signal(32, name=f"digest_{k}", reset_less=True)
            self._words[word.name] = word
            self._bytes(m, word.name, word)

    def _bytes(self, m: Module, name: str, word: Signal) -> None:
        """Write the bytes of a register that the strobe names."""
        for byte in range(ceil_div(len(word), 8)):
            with m.If(self._write[name] & self._strobe[byte]):
                part = word[8 * byte : 8 * byte + 8]
                m.d.sync += part.eq(self._data[8 * byte :][: len(part)])

    def _registers(self, m: Module, quiet: Value) -> None:
        """The AXI4-Lite slave: one write and one read at a time."""
        slots = 1 << (ADDRESS_BITS - 2)
        known = {register.address >> 2: register for register in self.registers}
        # Writes: address and data come in any order, and wait for each other.
        address = Signal(ADDRESS_BITS - 2)
        have_address = Signal()
        have_data = Signal()
        go = Signal(name="write_go")
        m.d.comb += [
            self.s_axil_awready.eq(~have_address),
            self.s_axil_wready.eq(~have_data),
            go.eq(
                self._ready(have_address & have_data & (~self.s_axil_bvalid | self.s_axil_bready))
            ),
        ]
        with m.If(self.s_axil_awvalid & self.s_axil_awready):
            m.d.sync += [address.eq(self.s_axil_awaddr[2:]), have_address.eq(1)]
        with m.If(self.s_axil_wvalid & self.s_axil_wready):
            m.d.sync += [
                self._data.eq(self.s_axil_wdata),
                self._strobe.eq(self.s_axil_wstrb),
                have_data.eq(1),
            ]
        with m.If(self.s_axil_bready):
            m.d.sync += self.s_axil_bvalid.eq(0)
        writable = [k in known and known[k].access != "ro" for k in range(slots)]
        readable = [k in known and known[k].access != "wo" for k in range(slots)]
        allowed: Value = _table(writable, address)
        if self.loader is not None:
            m.d.comb += self._whole.eq(quiet & self._strobe.all())
            slot = next(k for k, r in known.items() if r.name == "load_data")
            allowed = allowed & ((address != slot) | self._whole)
        with m.If(go):
            m.d.sync += [
                have_address.eq(0),
                have_data.eq(0),
                self.s_axil_bvalid.eq(1),
                self.s_axil_bresp.eq(Mux(allowed, OKAY, SLVERR)),
            ]
        for slot, register in known.items():
            m.d.comb += self._write[register.name].eq(go & (address == slot))
        # Reads.
        m.d.comb += self.s_axil_arready.eq(self._ready(~self.s_axil_rvalid | self.s_axil_rready))
        with m.If(self.s_axil_rready):
            m.d.sync += self.s_axil_rvalid.eq(0)
        with m.If(self.s_axil_arvalid & self.s_axil_arready):
            place = self.s_axil_araddr[2:]
            words = [
                self._words[known[k].name] if k in known else Const(0, 32) for k in range(slots)
            ]
            m.d.sync += [
                self.s_axil_rdata.eq(Array(words)[place]),
                self.s_axil_rresp.eq(Mux(_table(readable, place), OKAY, SLVERR)),
                self.s_axil_rvalid.eq(1),
            ]


def _table(bits: list[bool], index: Value) -> Value:
    """One of constant bits."""
    return Const(sum(bit << k for k, bit in enumerate(bits)), len(bits)).bit_select(index, 1)


def _position(
    m: Module,
    moves: Value,
    clear: Value,
    beats: int,
    width: Value,
    height: Value,
    name: str,
) -> tuple[Value, Value]:
    """Whether a beat is the first of its frame, and whether it is the last."""
    beat = Signal(range(beats), name=f"{name}_beat")
    column = Signal(SIZE_BITS, name=f"{name}_column", init=1)
    row = Signal(SIZE_BITS, name=f"{name}_row", init=1)
    beat_last, column_last, row_last = (
        Signal(name=f"{name}_{n}_last") for n in ("beat", "column", "row")
    )
    m.d.comb += [
        beat_last.eq(beat == beats - 1),
        column_last.eq(column == width),
        row_last.eq(row == height),
    ]
    with m.If(moves):
        m.d.sync += beat.eq(Mux(beat_last, 0, beat + 1))
        with m.If(beat_last):
            m.d.sync += column.eq(Mux(column_last, 1, column + 1))
            with m.If(column_last):
                m.d.sync += row.eq(Mux(row_last, 1, row + 1))
    with m.If(clear):
        m.d.sync += [beat.eq(0), column.eq(1), row.eq(1)]
    return (beat == 0) & (column == 1) & (row == 1), beat_last & column_last & row_last


__all__ = ["REGISTERS", "AXICore", "Register", "container_bits", "registers_of"]
