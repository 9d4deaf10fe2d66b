"""The one description of the protocol: layouts, checksums, stuffing, and the page that tells it."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest

from lichen.boards.link import packet, protocol
from lichen.boards.link.packet import Damaged, Packet, Reader
from lichen.boards.link.protocol import Kind, ProtocolError
from lichen.boards.port.format import PortFormat

SESSION = 0x01020304
PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_bytes_of_a_packet():
    """Kind, number, payload, then CRC-32 over them behind the session; stuffed; a zero."""
    sent = packet.encode(Kind.FRAME, 9, b"\x00\x10\x00\x20", SESSION)
    crc = zlib.crc32(b"F\x09\x00\x10\x00\x20", SESSION).to_bytes(4, "little")
    assert 0 not in crc
    assert sent == b"\x03F\x09" + b"\x02\x10" + b"\x06\x20" + crc + b"\x00"
    assert packet.decode(sent[:-1], SESSION) == Packet(Kind.FRAME, 9, b"\x00\x10\x00\x20")


def test_a_packet_of_another_session_is_none():
    sent = packet.encode(Kind.INPUT, 0, b"abc", SESSION)[:-1]
    assert packet.decode(sent, SESSION) is not None
    for bit in range(32):
        assert packet.decode(sent, SESSION ^ 1 << bit) is None
    opening = packet.encode(Kind.OPEN, 0, bytes(4), SESSION)[:-1]
    assert packet.decode(opening, 0) == packet.decode(opening, 99) is not None


@pytest.mark.parametrize("size", [0, 1, 2, 253, 254])
@pytest.mark.parametrize("zeros", [0.0, 0.3, 1.0])
def test_stuffing_can_be_undone(size, zeros):
    rng = random.Random(size)
    content = bytes(0 if rng.random() < zeros else rng.randrange(1, 256) for _ in range(size))
    stuffed = packet.stuff(content)
    assert protocol.DELIMITER not in stuffed
    assert len(stuffed) == size + 1
    assert packet.unstuff(stuffed) == content


def test_every_longest_packet_has_the_bytes_that_are_said():
    sent = packet.encode(Kind.INPUT, 3, bytes(range(protocol.PAYLOAD_BYTES)), SESSION)
    assert len(sent) == protocol.LINE_BYTES == 256
    assert protocol.PAYLOAD_BYTES / protocol.LINE_BYTES > 0.9
    with pytest.raises(ValueError, match="at most 248 bytes, not 249"):
        packet.encode(Kind.INPUT, 3, bytes(249), SESSION)
    with pytest.raises(ValueError, match="at most 254 bytes, not 255"):
        packet.stuff(bytes(255))


def test_no_change_of_a_byte_goes_unseen():
    sent = packet.encode(Kind.INPUT, 3, bytes([1, 0, 200, 0, 0, 7]), SESSION)[:-1]
    for at in range(len(sent)):
        for change in range(1, 256):
            damaged = sent[:at] + bytes([sent[at] ^ change]) + sent[at + 1 :]
            assert list(Reader(SESSION).feed(damaged + b"\0")) != list(
                Reader(SESSION).feed(sent + b"\0")
            )
            for part in damaged.split(b"\0"):
                assert packet.decode(part, SESSION) is None
        for other in (sent[:at] + sent[at + 1 :], sent[:at] + sent[at : at + 1] + sent[at:]):
            if other != sent:
                assert packet.decode(other, SESSION) is None


def test_a_reader_takes_bytes_as_they_come_and_finds_its_place_at_the_next_zero():
    one = packet.encode(Kind.STATE, 1, bytes(11), SESSION)
    two = packet.encode(Kind.OUTPUT, 2, b"xyz", SESSION)
    line = b"\0\0garbage" + one + b"\0" + two[3:] + two
    whole = list(Reader(SESSION).feed(line))
    reader = Reader(SESSION)
    assert [item for byte in line for item in reader.feed(bytes([byte]))] == whole
    assert [type(item) for item in whole] == [Damaged, Damaged, Packet]
    assert whole[2] == Packet(Kind.OUTPUT, 2, b"xyz")


def test_a_reader_keeps_no_more_than_a_packet():
    reader = Reader(SESSION)
    for _ in range(100):
        assert not list(reader.feed(b"\xff" * 1000))
    assert len(reader._rest) <= protocol.LINE_BYTES
    sent = packet.encode(Kind.OUTPUT, 2, b"xyz", SESSION)
    assert list(reader.feed(b"\0" + sent))[-1] == Packet(Kind.OUTPUT, 2, b"xyz")


def test_layouts_say_what_does_not_fit():
    packed = protocol.FRAME.pack(transform=1, width=0x0203, height=0x0405, expected=0x06070809)
    assert packed == b"\x01\x03\x02\x05\x04\x09\x08\x07\x06"
    assert protocol.FRAME.unpack(packed)["height"] == 0x0405
    with pytest.raises(ValueError, match="width must be between 0 and 65535, not 65536"):
        protocol.FRAME.pack(transform=0, width=65536, height=1, expected=1)
    with pytest.raises(ProtocolError, match="8 bytes where 9 belong"):
        protocol.FRAME.unpack(bytes(8))


def test_a_transforms_page_is_its_format():
    form = PortFormat(
        name="g_a", max_width=768, in_channels=3, in_bytes=1, out_channels=320, out_bytes=2
    )
    page = protocol.transform_page(form)
    assert page == b"g_a\0\x03\x00\x01\x40\x01\x02\x00\x03"
    assert protocol.transform_of(page) == form
    with pytest.raises(ProtocolError, match="in_bytes must be 1 or 2, not 7"):
        protocol.transform_of(page[:6] + b"\x07" + page[7:])


def test_how_far_numbers_are_ahead():
    assert [protocol.ahead(n, 250) for n in (250, 255, 2, 249, 122)] == [0, 5, 8, -1, -128]
    assert protocol.ahead(3, 259) == 0


def test_the_page_has_the_tables_of_the_code():
    assert protocol.tables() in PAGE.read_text(encoding="utf-8")
