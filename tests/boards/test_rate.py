"""What a plan says of the line."""

from __future__ import annotations

import json

import pytest

from lichen import models
from lichen.boards.board import find
from lichen.boards.design import binds
from lichen.boards.link import packet, protocol
from lichen.boards.link.protocol import Kind
from lichen.boards.link.rate import frame_bytes, frame_seconds, on_the_line
from lichen.cli import main
from lichen.hw.plan.tiling import tiles


@pytest.mark.parametrize("size", [1, 247, 248, 249, 1000])
def test_bytes_are_those_of_packets(size):
    parts = [b"\1" * min(248, size - i) for i in range(0, size, 248)]
    sent = sum(len(packet.encode(Kind.INPUT, 0, part, 7)) for part in parts)
    assert on_the_line(size) == sent


def test_a_frame_takes_the_time_of_its_busier_direction():
    up, down = frame_bytes(248, 248)
    around = 8  # kind, number, checksum, code byte, delimiter
    state, done = protocol.STATE.size + around, protocol.DONE.size + around
    assert down == 2 * state + done + 256
    assert up == 256 + protocol.FRAME.size + around + 2 * (protocol.ACK.size + around)
    assert frame_seconds([(248, 248)] * 3, 1000) == pytest.approx(3 * 10 * max(up, down) / 1000)
    assert frame_bytes(10**6, 0)[0] < 10**6 / 0.9


def test_a_plan_tells_the_link_from_the_engine(capsys):
    main(["plan", "tiny", "--board", "ulx3s-85f", "--transform", "g_a", "--json", "-"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["binds"] == "link" and plan["fps_link"] < plan["fps"]
    # A photograph's pixels, and what its tiles overlap.
    board, network = find("ulx3s-85f"), models.load_network("tiny")
    transform = network.transform("g_a")
    columns = sum(t.stop - t.start for t in tiles(transform, 768, plan["tile_width"]))
    least = 10 * 3 * 512 * columns / board.uart.baud
    assert 0.9 < least * plan["fps_link"] < 1
    assert binds(2.0, 2.0) == binds(1.0, 2.0) == "engine"
    assert binds(2.0, 1.0) == "link" and binds(None, 1.0) is binds(1.0, None) is None
