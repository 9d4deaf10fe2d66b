"""The protocol's host end."""

from __future__ import annotations

import pytest

from lichen.boards.link import protocol
from lichen.boards.link.protocol import Error, PacketReader, ProtocolError, State, Status, Stuck

STATUS = Status(
    state=State.HALTED,
    errors=Error.WATCHDOG | Error.OVERRUN,
    stuck=Stuck.PIXELS,
    max_width=768,
    in_channels=3,
    out_channels=320,
    latent_bytes=2,
    digest=b"abcd",
)


def test_header_layout():
    got = protocol.header(protocol.FRAME, width=0x0102, height=0x0304, expected=0x05060708)
    assert got == b"Li\x01F\x02\x01\x04\x03\x08\x07\x06\x05"
    assert len(got) == protocol.HEADER_BYTES


@pytest.mark.parametrize(
    ("field", "value"), [("width", 65536), ("height", -1), ("expected", 1 << 32)]
)
def test_header_fields_must_fit(field, value):
    with pytest.raises(ValueError, match=f"{field} must be between 0 and .*, not {value}"):
        protocol.header(protocol.FRAME, **{field: value})


def test_status_layout():
    assert STATUS.pack() == b"\x01\x02\x09\x02\x00\x03\x03\x00\x40\x01\x02\x40abcd"
    assert Status.unpack(STATUS.pack()) == STATUS


@pytest.mark.parametrize("payload", [b"", bytes(15), b"\x01\x09" + bytes(14)])
def test_what_is_no_status(payload):
    with pytest.raises(ProtocolError, match="not a status packet"):
        Status.unpack(payload)


def test_reader_takes_bytes_as_they_come():
    reader = PacketReader()
    sent = b"L\x03abcC\x00S\x10" + STATUS.pack()
    got = [packet for byte in sent for packet in reader.feed(bytes([byte]))]
    assert got == [(ord("L"), b"abc"), (ord("C"), b""), (ord("S"), STATUS.pack())]
    assert list(PacketReader().feed(sent)) == got


def test_reader_refuses_garbage():
    with pytest.raises(ProtocolError, match="unknown packet kind 0x00"):
        list(PacketReader().feed(bytes(2)))
