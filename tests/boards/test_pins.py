"""The whole board at its pins: the real pipelines behind the real link, in simulation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lichen.boards.host.connection import Connection
from lichen.boards.host.session import Session
from lichen.boards.link import protocol
from lichen.boards.link.rate import BITS, frame_seconds, on_the_line
from lichen.boards.simulated.board import SimulatedBoard

from . import simulation
from .simulation import DIGEST, ENCODER, FOLDING, QUARTER, job


@pytest.fixture(scope="module")
def board() -> Iterator[SimulatedBoard]:
    with simulation.running() as found:
        yield found


@pytest.fixture
def host(board) -> Iterator[Connection]:
    connection = simulation.connect(board.port)
    yield connection
    connection.close()


def test_the_board_says_what_it_is(host):
    found = host.identity
    assert [form.name for form in found.transforms] == ["g_a", "g_s"]
    assert (found.digest, found.line_hz) == (DIGEST, QUARTER.uart.baud)
    encoder = found.transforms[0]
    assert (encoder.in_channels, encoder.in_bytes, encoder.max_width) == (3, 1, FOLDING.max_width)
    assert (encoder.out_channels, encoder.out_bytes) == (ENCODER.out_channels, 2)
    assert host.clock_hz() == QUARTER.oscillator_hz


def test_frames_of_any_size_go_through(host):
    """Taller than wide, wider than tall, a single pixel."""
    for seed, size in enumerate([(16, 12), (5, 16), (16, 16), (1, 1)]):
        one = job(seed, 0, *size)
        assert host.run(one.frame) == one.golden, f"a frame of {size}"
    assert host.repeated == 0
    assert host.session.tally.repeated_packets == host.session.tally.damaged == 0


def test_encoder_and_decoder_in_one_bitstream(host):
    """Frames of both in turn; latents go in as they come out, two bytes each."""
    for seed, (which, *size) in enumerate([(0, 6, 8), (1, 8, 6), (0, 3, 5), (1, 5, 3)]):
        one = job(seed, which, *size)
        assert host.run(one.frame) == one.golden, f"transform {which}"
    assert host.repeated == 0


def begin(host: Connection, packets: int) -> None:
    """A frame that breaks off when so many packets of its input have been used."""
    host._open()
    host.session.submit(job(8, 0, 100, 16).frame)
    while host.session.arrived <= packets:
        host._turn()


@pytest.mark.parametrize("size", [(16, 12), (100, 16)], ids=["smaller", "as large"])
def test_a_frame_after_a_host_was_killed_in_mid_frame(host, size):
    begin(host, 3)
    host.line.write(b"\x05half a packet")
    host.session = Session()
    one = job(9, 0, *size)
    assert host.run(one.frame) == one.golden
    assert host.repeated == 0


@pytest.mark.parametrize("size", [(16, 12), (100, 16)], ids=["smaller", "as large"])
def test_a_frame_after_the_clock_was_lost_in_mid_frame(board, host, size):
    """LOCK falls, and everything is as it was at first."""
    begin(host, 3)
    board.brown_out()
    host.session = Session()
    one = job(9, 0, *size)
    assert host.run(one.frame) == one.golden
    assert host.repeated == 0
    assert host.counters()["frames"] == 1, "counters begin with the clock"


def test_a_host_in_mid_frame_finds_that_the_clock_was_lost(board, host):
    begin(host, 3)
    board.brown_out()
    with pytest.raises(Exception, match="it has been reset"):
        host._finish(job(8, 0, 100, 16).frame, lambda done: None)


@pytest.mark.parametrize("which", [0, 1], ids=["output", "input"])
def test_packets_carry_nine_tenths_of_the_line(host, which):
    """Of the direction that is busy: the encoder's output here, the decoder's input."""
    one = job(1, which, 100, 16)
    host._open()
    tally = host.session.tally
    before = tally.received_bytes, tally.sent_bytes
    assert host.run(one.frame) == one.golden
    carried = (tally.received_bytes, tally.sent_bytes)[which] - before[which]
    wanted = (len(one.golden), len(one.frame.payload))[which]
    assert wanted > 0.9 * carried
    # And it is busy nearly all of the time, as plans say. The board's count ends with the output's
    # last byte on its way to the line, where all slots may still be full.
    frame = len(one.frame.payload), len(one.golden)
    cycles_per_second = QUARTER.oscillator_hz
    told = frame_seconds([frame], QUARTER.uart.baud) * cycles_per_second
    waiting = on_the_line(host.identity.output_slots * protocol.PAYLOAD_BYTES)
    tail = waiting * BITS / QUARTER.uart.baud * cycles_per_second
    assert told - tail < host.session.cycles < told
