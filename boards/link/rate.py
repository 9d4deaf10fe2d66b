"""How long frames are on the line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lichen.boards.link import protocol
from lichen.boards.port.format import PortFormat
from lichen.hw.plan.tiling import tiles
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Transform

if TYPE_CHECKING:
    from lichen.boards.record import HostLink

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


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """What bulk transactions cost, by USB 2.0, tables 5-9 and 5-10.

    Attributes
    ----------
    packet : int
        Bytes that one carries at most.
    overhead : int
        Of one, in the time that a byte takes: token, handshake, turning around.
    period_s : float
        Of a frame, or a microframe.
    most : int
        Full ones in a period: what is left of it carries nothing.
    """

    packet: int
    overhead: int
    period_s: float
    most: int

    def seconds(self, frames: Iterable[tuple[int, int]]) -> float:
        """Time on the bus of frames of so many bytes of input and output.

        Both directions share the bus. The host asks for output as often as it sends: what the
        device has to say does not wait until it fills a packet.
        """
        spent = 0
        for frame in frames:
            up, down = frame_bytes(*frame)
            sent = ceil_div(up, self.packet)
            asked = max(sent, ceil_div(down, self.packet))
            spent += up + down + (sent + asked) * self.overhead
        return spent * self.period_s / (self.most * (self.packet + self.overhead))


FULL_SPEED = Bulk(packet=64, overhead=13, period_s=1e-3, most=19)
HIGH_SPEED = Bulk(packet=512, overhead=55, period_s=125e-6, most=13)


def tensor_seconds(
    transform: Transform, form: PortFormat, height: int, width: int, link: HostLink
) -> float | None:
    """Time on a link of a tensor of that size, in tiles where it is wider than the build.

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
    return link.seconds(frames)
