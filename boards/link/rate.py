"""How long frames are on the line."""

from __future__ import annotations

from collections.abc import Iterable

from lichen.boards.link import protocol
from lichen.boards.port.format import PortFormat
from lichen.hw.plan.tiling import tiles
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Transform

BITS = 10
"""Of a byte on a serial line: a start bit and a stop bit beside its own."""

AROUND = protocol.LINE_BYTES - protocol.PAYLOAD_BYTES
"""Bytes of a packet on the line that are not payload."""


def on_the_line(payload: int) -> int:
    """Bytes that carry a payload of any length, in as few packets as can be."""
    return payload + ceil_div(payload, protocol.PAYLOAD_BYTES) * AROUND


def frame_bytes(given: int, made: int) -> tuple[int, int]:
    """Bytes on the line to and from the device, for a frame of so many bytes of input and output.

    A state answers every packet that is used up, and an ACK every packet of output, which is the
    most that a host sends.
    """
    size = protocol.PAYLOAD_BYTES
    packets_in, packets_out = 1 + ceil_div(given, size), 1 + ceil_div(made, size)
    acks, states = protocol.ACK.size + AROUND, protocol.STATE.size + AROUND
    up = on_the_line(protocol.FRAME.size) + on_the_line(given) + packets_out * acks
    down = on_the_line(protocol.DONE.size) + on_the_line(made) + packets_in * states
    return up, down


def frame_seconds(frames: Iterable[tuple[int, int]], baud: int) -> float:
    """Time on a serial line of frames of so many bytes of input and output, one after the other.

    Both directions carry at once; the busier one counts.
    """
    return sum(max(frame_bytes(*frame)) for frame in frames) * BITS / baud


def tensor_seconds(
    transform: Transform, form: PortFormat, height: int, width: int, baud: int
) -> float | None:
    """Time on a serial line of a tensor of that size, in tiles where it is wider than the build.

    None where the build is too narrow for tiles.
    """
    try:
        cut = tiles(transform, width, form.max_width)
    except ValueError:
        return None
    frames = []
    for tile in cut:
        columns = tile.stop - tile.start
        rows_out, columns_out = transform.sizes(height, columns)[-1]
        given = height * columns * form.in_position
        frames.append((given, rows_out * columns_out * form.out_position))
    return frame_seconds(frames, baud)
