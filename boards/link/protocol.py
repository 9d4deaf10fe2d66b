"""Protocol 2 between a host and a board: what goes over the line, for both ends.

The one description: the host, the gateware and the tables of docs/protocol.md are made from what
stands here. How bytes become packets is `lichen.boards.link.packet`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from lichen.boards.port.fill import MAP_BYTES, Fill
from lichen.boards.port.format import PortFormat
from lichen.hw.engine.element import Backend
from lichen.hw.stage.folding import StageFolding
from lichen.hw.stage.loaded import StageTemplate
from lichen.network.description import Activation, Format
from lichen.network.model import ValidationError

VERSION = 2

DELIMITER = 0
"""Byte after every packet, and in none."""

NUMBERS = 256
"""Packets in sequence are numbered modulo this."""

CRC_BYTES = 4
OVERHEAD_BYTES = 2 + CRC_BYTES
"""Of a packet before it is stuffed: kind, number, checksum."""

PACKET_BYTES = 254
"""Longest packet before it is stuffed: so one code byte is enough for it."""

PAYLOAD_BYTES = PACKET_BYTES - OVERHEAD_BYTES
"""Longest payload."""

LINE_BYTES = PACKET_BYTES + 2
"""Of the longest packet on the line, its code byte and the delimiter among them."""

CRC_POLYNOMIAL = 0xEDB88320
"""CRC-32 of IEEE 802.3, the bits of a byte from the least: zlib's."""

CRC_RESIDUE = 0xDEBB20E3
"""What the register holds after a packet with its checksum, whatever it began with."""

HEARTBEAT_BYTES = 512
"""Bytes that the line could carry from a state to another one that a device sends unasked."""

DIGEST_BYTES = 32

TRANSFORMS_MAX = 4

ENDED = 0
"""The session while there is none."""


class Kind(IntEnum):
    """The first byte of a packet; capitals come from the host."""

    OPEN = ord("O")
    READ = ord("R")
    CLOSE = ord("C")
    ACK = ord("A")
    FRAME = ord("F")
    INPUT = ord("D")
    LOAD = ord("L")
    OPENED = ord("o")
    INFO = ord("r")
    STATE = ord("a")
    DONE = ord("f")
    OUTPUT = ord("d")

    @property
    def sequenced(self) -> bool:
        """Whether packets of the kind are numbered, kept, and sent again when they are lost."""
        return self in (Kind.FRAME, Kind.INPUT, Kind.LOAD, Kind.DONE, Kind.OUTPUT)

    @property
    def sessionless(self) -> bool:
        """Whether the checksum begins with 0 instead of the session."""
        return self in (Kind.OPEN, Kind.READ, Kind.OPENED, Kind.INFO)


@dataclass(frozen=True)
class Field:
    """A number, or a few bytes, in a payload.

    Attributes
    ----------
    name : str
    size : int
        Bytes; numbers are unsigned, their least significant byte first.
    meaning : str
    raw : bool
        Whether it is bytes and no number.
    """

    name: str
    size: int
    meaning: str
    raw: bool = False


class Layout:
    """The fields of a payload, in the order of their bytes."""

    def __init__(self, *fields: Field):
        self.fields = fields
        codes = {1: "B", 2: "H", 4: "I"}
        types = [f"{f.size}s" if f.raw else codes[f.size] for f in fields]
        self._struct = struct.Struct("<" + "".join(types))

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return self._struct.size

    def pack(self, **values: Any) -> bytes:
        """The payload; ValueError where a number does not fit, KeyError where one is missing."""
        for field in self.fields:
            value = values[field.name]
            if not field.raw and not 0 <= value < 1 << 8 * field.size:
                top = (1 << 8 * field.size) - 1
                raise ValueError(f"{field.name} must be between 0 and {top}, not {value!r}")
        return self._struct.pack(*(values[field.name] for field in self.fields))

    def unpack(self, payload: bytes) -> dict[str, Any]:
        """The fields by name; ProtocolError for a payload of another length."""
        if len(payload) != self.size:
            raise ProtocolError(f"{len(payload)} bytes where {self.size} belong")
        values = self._struct.unpack(payload)
        return {field.name: value for field, value in zip(self.fields, values, strict=True)}

    def places(self) -> Iterable[tuple[Field, int]]:
        """Every field with its first byte."""
        at = 0
        for field in self.fields:
            yield field, at
            at += field.size


class ProtocolError(Exception):
    """What came is no packet of this protocol."""


class State(IntEnum):
    """What a device is doing."""

    IDLE = 0
    BUSY = 1
    """A frame or a load is in flight."""
    HALTED = 2
    """An error has stopped it until a session is opened."""


class Error(IntFlag):
    """What has stopped a device."""

    SIZE = 1
    """A frame is wider than its transform, something in it is 0, or there is no such transform."""
    ORDER = 2
    """Input without a frame or a load, more of it than belongs to that, or one within another."""
    WATCHDOG = 4
    """The transform stood still for too long; see `Stuck`."""
    SURPLUS = 8
    """The transform made more output than the host had said it expects."""
    LOAD = 16
    """A load does not suit its transform, or another checksum than the device's own."""
    EMPTY = 32
    """A frame for a transform that is filled at run time, and is not."""


class Stuck(IntFlag):
    """Which streams stood still when the watchdog barked."""

    INPUT = 1
    """The transform does not take the input it is offered."""
    OUTPUT = 2
    """The transform offers no output, though it has taken all input."""


class Flag(IntFlag):
    """What the other end is asked to do."""

    AGAIN = 1
    """A packet was lost: send again from the number that this packet gives."""
    ANSWER = 2
    """In an ACK: answer with a state."""


SESSION = Layout(Field("session", 4, "any number but 0, another one for every opening"))

FRAME = Layout(
    Field("transform", 1, "which one, counted from 0"),
    Field("width", 2, "columns of the input, 1 .. the widest of the transform"),
    Field("height", 2, "rows of the input, 1 or more"),
    Field("expected", 4, "bytes of output that belong to it, 1 or more"),
)

LOAD = Layout(
    Field("transform", 1, "which one, counted from 0"),
    Field("words", 4, "as many as the transform takes"),
    Field("crc", 4, "CRC-32 of the words and the digest"),
)

ACK = Layout(
    Field("tag", 1, "any number; states give it back"),
    Field("flags", 1, "bit 0: send again from this packet's number; bit 1: answer with a state"),
)

STATE = Layout(
    Field("limit", 1, "number of the first packet in sequence that there is no room for"),
    Field("sent", 1, "number of the next packet in sequence that the device will send"),
    Field("tag", 1, "of the last ACK that came"),
    Field("flags", 1, "bit 0: send again from this packet's number"),
    Field("state", 1, "0 idle, 1 a frame or a load is in flight, 2 halted"),
    Field("errors", 1, "what has halted it, bits"),
    Field("stuck", 1, "what the watchdog saw, bits"),
    Field("clock", 4, "the device's cycles, modulo 2**32"),
)

DONE = Layout(
    Field("cycles", 4, "from the first beat that the transform took to the last; 0 for a load"),
)

CAPABILITIES = Layout(
    Field("version", 1, "of the protocol, 2"),
    Field("transforms", 1, "how many there are"),
    Field("input_slots", 1, "packets in sequence that the device has room for"),
    Field("output_slots", 1, "packets in sequence that it sends without an ACK"),
    Field("digest", DIGEST_BYTES, "the network's SHA-256; zeros if loads fill it", raw=True),
    Field("oscillator_hz", 4, "frequency of the oscillator that the line is clocked by"),
    Field("line_hz", 4, "bits a second of the line"),
    Field("heartbeat", 4, "cycles after a state until it sends another one unasked"),
)

COUNTERS = Layout(
    Field("session", 4, "the session that is open, or 0"),
    Field("frames", 4, "frames completed since power-up"),
    Field("cycles", 4, "of the last frame"),
    Field("damaged", 2, "packets with a wrong checksum"),
    Field("lost", 2, "packets that came where another was due"),
    Field("framing", 2, "bytes without a stop bit, and breaks"),
    Field("ratio", 2, "the device's cycles in 1024 of the oscillator"),
)

TRANSFORM = Layout(
    Field("name", 4, "g_a, g_s, ..., filled up with zeros", raw=True),
    Field("in_channels", 2, "values of an input position"),
    Field("in_bytes", 1, "bytes of each, 1 or 2"),
    Field("out_channels", 2, "values of an output position"),
    Field("out_bytes", 1, "bytes of each, 1 or 2"),
    Field("max_width", 2, "widest input in columns"),
)

RATIO_CYCLES = 1024
"""Cycles of the oscillator in which the device counts its own."""

FILL = Layout(
    Field("stages", 1, "that the transform has"),
    Field("words", 4, "that fill it"),
    Field("map", MAP_BYTES, "first of the SHA-256 of what both ends have to agree on", raw=True),
    Field("digest", DIGEST_BYTES, "SHA-256 of the network that fills it; zeros: none", raw=True),
)


def _format(name: str, what: str) -> tuple[Field, ...]:
    return (
        Field(f"{name}_bits", 1, f"of {what}; bit 7: signed"),
        Field(f"{name}_lo", 2, "least value, modulo 65536"),
        Field(f"{name}_hi", 2, "greatest value, modulo 65536"),
    )


def _array(name: str, what: str) -> tuple[Field, ...]:
    return (
        Field(f"{name}_pixels", 2, f"P of the array for {what}"),
        Field(f"{name}_chain", 2, "its channels in a drain chain"),
        Field(f"{name}_lanes", 2, "its S"),
        Field(f"{name}_backend", 1, f"what multiplies: {_told(BACKENDS)}"),
    )


def _told(names: Sequence[str]) -> str:
    return ", ".join(f"{i} {name}" for i, name in enumerate(names))


BACKENDS = tuple(Backend)
ACTIVATIONS = tuple(Activation)

STAGE = Layout(
    Field("in_channels", 2, "at most"),
    Field("out_channels", 2, "at most"),
    Field("kernel", 1, "rows and columns"),
    Field("stride", 1, ""),
    Field("padding", 1, ""),
    Field("output_padding", 1, ""),
    Field("transposed", 1, "0 or 1; bits 1 to 7: row slots of the window, 0: as usual"),
    Field("activation", 1, _told(ACTIVATIONS)),
    *_format("source", "the input"),
    *_format("x", "what is requantized"),
    *_format("output", "the output"),
    Field("weight_bits", 1, ""),
    Field("accumulator_bits", 1, "of a bias, too"),
    Field("gamma_bits", 1, "0 without a normalization"),
    Field("u_bits", 1, "the same"),
    Field("pre_shift", 1, "least d"),
    Field("shift", 1, "least s"),
    Field("u_shift", 1, "least t"),
    Field("product_shift", 1, "least a"),
    Field("pre_cycles", 1, "of the shift by d"),
    Field("chains", 2, "drain chains of both arrays"),
    *_array("convolution", "the convolution"),
    *_array("normalization", "the normalization; P of 0: none"),
)

PAGE_CAPABILITIES, PAGE_COUNTERS, PAGE_TRANSFORMS, PAGE_FILLS, PAGE_STAGES = 0, 1, 2, 16, 64
"""Numbers of READ packets; the transforms' pages follow one another, and so do the stages'."""

STAGES_MAX = 32
"""Stages of a transform that pages can tell."""

PAYLOADS: dict[Kind, Layout | None] = {
    Kind.OPEN: SESSION,
    Kind.READ: None,
    Kind.CLOSE: None,
    Kind.ACK: ACK,
    Kind.FRAME: FRAME,
    Kind.INPUT: None,
    Kind.LOAD: LOAD,
    Kind.OPENED: SESSION,
    Kind.INFO: None,
    Kind.STATE: STATE,
    Kind.DONE: DONE,
    Kind.OUTPUT: None,
}
"""What packets carry; None where it is nothing, plain bytes, or a page."""


def transform_page(form: PortFormat) -> bytes:
    """The page of a transform; ValueError where a number does not fit."""
    return TRANSFORM.pack(**(vars(form) | {"name": form.name.encode("ascii").ljust(4, b"\0")}))


def transform_of(page: bytes) -> PortFormat:
    """The transform of a page; ProtocolError for anything else."""
    values = TRANSFORM.unpack(page)
    name = values.pop("name").rstrip(b"\0").decode("ascii", "replace")
    try:
        return PortFormat(name=name, **values)
    except ValueError as error:
        raise ProtocolError(f"not a transform: {error}") from None


def fill_page(fill: Fill) -> bytes:
    """The page of what fills a transform, without the digest at its end."""
    page = FILL.pack(
        stages=len(fill.templates), words=fill.words, map=fill.map, digest=bytes(DIGEST_BYTES)
    )
    return page[:-DIGEST_BYTES]


def stage_number(transform: int, stage: int) -> int:
    """The page of a stage."""
    return PAGE_STAGES + STAGES_MAX * transform + stage


def stage_pages(fill: Fill) -> list[bytes]:
    """The pages of a transform's stages; ValueError where a number does not fit."""
    if len(fill.templates) > STAGES_MAX:
        raise ValueError(f"at most {STAGES_MAX} stages can be loaded, not {len(fill.templates)}")
    pairs = zip(fill.templates, fill.folding.stages, strict=True)
    return [_stage_page(template, folding) for template, folding in pairs]


def _stage_page(template: StageTemplate, folding: StageFolding) -> bytes:
    values: dict[str, Any] = {name: value or 0 for name, value in template}
    values["activation"] = ACTIVATIONS.index(template.activation)
    values["chains"] = folding.chains
    rows = folding.convolution.rows or 0
    if rows >= 128:
        raise ValueError(f"at most 127 row slots can be told, not {rows}")
    values["transposed"] |= rows << 1
    for name in ("source", "x", "output"):
        form: Format = getattr(template, name)
        values[f"{name}_bits"] = form.bits | form.signed << 7
        values[f"{name}_lo"], values[f"{name}_hi"] = form.lo % 65536, form.hi % 65536
    for name, array in folding.arrays.items():
        values[f"{name}_pixels"] = array.pixels if array else 0
        values[f"{name}_chain"] = array.chain_length if array else 0
        values[f"{name}_lanes"] = array.lanes if array else 0
        values[f"{name}_backend"] = BACKENDS.index(array.backend) if array else 0
    return STAGE.pack(**values)


def stage_of(page: bytes, name: str) -> tuple[StageTemplate, StageFolding]:
    """The stage of a page, which gets a name; ProtocolError for anything else."""
    values = STAGE.unpack(page)
    try:
        arrays = {slot: _array_of(values, slot) for slot in ("convolution", "normalization")}
        rows, transposed = values["transposed"] >> 1, values["transposed"] & 1
        if rows and arrays["convolution"] is not None:
            arrays["convolution"]["rows"] = rows
        folding = StageFolding.model_validate({"chains": values.pop("chains"), **arrays})
        activation = ACTIVATIONS[values.pop("activation")]
        forms = {form: _format_of(values, form) for form in ("source", "x", "output")}
        if activation.norm is None:
            values |= dict.fromkeys(("gamma_bits", "u_bits", "u_shift", "product_shift"))
        fixed = {"name": name, "activation": activation, **forms}
        fixed["transposed"] = bool(transposed)
        return StageTemplate.model_validate(values | fixed), folding
    except (ValidationError, IndexError) as error:
        raise ProtocolError(f"not a stage: {error}") from None


def _format_of(values: dict[str, Any], name: str) -> Format:
    bits, lo, hi = (values.pop(f"{name}_{part}") for part in ("bits", "lo", "hi"))
    signed = bool(bits >> 7)
    if signed:
        lo, hi = ((value + 32768) % 65536 - 32768 for value in (lo, hi))
    return Format(bits=bits & 127, signed=signed, lo=lo, hi=hi)


def _array_of(values: dict[str, Any], slot: str) -> dict[str, Any] | None:
    pixels, chain, lanes, backend = (
        values.pop(f"{slot}_{part}") for part in ("pixels", "chain", "lanes", "backend")
    )
    if not pixels:
        return None
    told = {"pixels": pixels, "chain_length": chain, "lanes": lanes}
    return told | {"backend": BACKENDS[backend]}


def ahead(number: int, of: int) -> int:
    """How many packets ``number`` is ahead of another one, -128 .. 127."""
    return (number - of + NUMBERS // 2) % NUMBERS - NUMBERS // 2


def tables() -> str:
    """The tables of docs/protocol.md."""
    lines = ["| kind | packet | from | number | payload |", "|---|---|---|---|---|"]
    for kind in Kind:
        number = "in sequence" if kind.sequenced else _NUMBERS.get(kind, "0")
        sender = "host" if chr(kind).isupper() else "device"
        layout = PAYLOADS[kind]
        what = _PAYLOADS[kind] if layout is None else f"{layout.size} bytes, below"
        lines.append(f"| `{kind:02x}` {chr(kind)} | {kind.name} | {sender} | {number} | {what} |")
    parts = ["\n".join(lines)]
    titles = {
        "OPEN, OPENED": SESSION,
        "ACK": ACK,
        "FRAME": FRAME,
        "LOAD": LOAD,
        "STATE": STATE,
        "DONE": DONE,
        f"INFO {PAGE_CAPABILITIES}: what the device is": CAPABILITIES,
        f"INFO {PAGE_COUNTERS}: counters": COUNTERS,
        f"INFO from {PAGE_TRANSFORMS} on: a transform": TRANSFORM,
        f"INFO from {PAGE_FILLS} on: what fills a transform": FILL,
        f"INFO from {PAGE_STAGES} on, {STAGES_MAX} pages a transform: a stage": STAGE,
    }
    for title, layout in titles.items():
        rows = [f"**{title}**", "", "| byte | size | field | |", "|---|---|---|---|"]
        rows += [f"| {at} | {f.size} | {f.name} | {f.meaning} |" for f, at in layout.places()]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


_NUMBERS = {
    Kind.READ: "the page",
    Kind.INFO: "the page",
    Kind.ACK: "of the next output packet that the host expects",
    Kind.STATE: "of the next packet in sequence that the device expects",
}
_PAYLOADS = {
    Kind.READ: "none",
    Kind.CLOSE: "none",
    Kind.INPUT: f"1 to {PAYLOAD_BYTES} bytes of a frame's input or of a load",
    Kind.INFO: "the page, below; empty where there is none",
    Kind.OUTPUT: f"1 to {PAYLOAD_BYTES} bytes of a frame's output",
}
