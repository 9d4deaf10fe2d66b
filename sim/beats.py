"""Arrays to beats of a stream and back, and where two tensors differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

MAX_LANE_BITS = 63
LINE_BYTES = 64
"""Lines of a recording hold so many bytes, or one beat if that is more."""

_UNKNOWN = 0xFF
_NIBBLE = np.full(256, _UNKNOWN, np.uint8)
for _i, _digit in enumerate("0123456789abcdef"):
    _NIBBLE[ord(_digit)] = _NIBBLE[ord(_digit.upper())] = _i


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The payload of a stream: parallel values of one width.

    Attributes
    ----------
    count : int
        Channels per beat.
    bits : int
        Width of one lane, 1 .. 63.
    signed : bool
    """

    count: int
    bits: int
    signed: bool

    @property
    def width(self) -> int:
        """Bits of a whole beat."""
        return self.count * self.bits

    @property
    def byte_width(self) -> int:
        """Bytes of a whole beat in the simulation's files."""
        return -(-self.width // 8)

    @property
    def line(self) -> int:
        """Beats to a line of a recording."""
        return max(1, LINE_BYTES // self.byte_width)

    def beats(self, shape: tuple[int, int, int]) -> int:
        """Beats of a (height, width, channels) tensor."""
        height, width, channels = shape
        return height * width * -(-channels // self.count)

    def pack(self, tensor: npt.NDArray[np.integer]) -> bytes:
        """Big-endian beats of a (height, width, channels) tensor; unused lanes are 0.

        Raises ValueError when a value does not fit its lane.
        """
        height, width, channels = tensor.shape
        lo = -(1 << (self.bits - 1)) if self.signed else 0
        hi = (1 << (self.bits - int(self.signed))) - 1
        if tensor.size and (int(tensor.min()) < lo or int(tensor.max()) > hi):
            raise ValueError(
                f"values must lie in {lo} .. {hi} to fit the stream, "
                f"but span {int(tensor.min())} .. {int(tensor.max())}"
            )
        beats_per_pixel = -(-channels // self.count)
        lanes = np.zeros((height * width, beats_per_pixel * self.count), _container(self.bits))
        lanes[:, :channels] = tensor.reshape(height * width, channels).astype(lanes.dtype)
        bits = np.unpackbits(lanes.view(np.uint8), axis=1, bitorder="little")
        bits = bits.reshape(-1, self.count, lanes.itemsize * 8)[:, :, : self.bits]
        packed = np.packbits(bits.reshape(-1, self.width), axis=1, bitorder="little")
        return packed[:, ::-1].tobytes()

    def unpack(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Values (beats, count) of big-endian beats (beats, byte_width)."""
        bits = np.unpackbits(data[:, ::-1], axis=1, bitorder="little")[:, : self.width]
        container = _container(self.bits)
        bits = bits.reshape(-1, self.count, self.bits)
        padding = [(0, 0), (0, 0), (0, container.itemsize * 8 - self.bits)]
        # Sign extension: the padding repeats the top bit.
        bits = np.pad(bits, padding, mode="edge" if self.signed else "constant")
        values = np.packbits(bits, axis=2, bitorder="little").view(container)[:, :, 0]
        if self.signed:
            values = values.view(f"<i{container.itemsize}")
        return values.astype(np.int64)


def _container(bits: int) -> np.dtype:
    if not 1 <= bits <= MAX_LANE_BITS:
        raise ValueError(f"a lane must have 1 .. {MAX_LANE_BITS} bits, not {bits}")
    size = next(size for size in (1, 2, 4, 8) if size * 8 >= bits)
    return np.dtype(f"<u{size}")


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """One value that differs from the expected one.

    Attributes
    ----------
    frame, y, x, channel : int
        Where, counted from 0.
    expected : int
    actual : int or None
        None where a four-state simulator saw unknown bits.
    """

    frame: int
    y: int
    x: int
    channel: int
    expected: int
    actual: int | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of comparing a stream with what was expected.

    Attributes
    ----------
    compared, mismatches : int
        Values; those that never came are not compared.
    first : Mismatch or None
        In the order of the stream.
    beats, expected_beats : int
        Beats seen and wanted.
    """

    compared: int
    mismatches: int
    first: Mismatch | None
    beats: int
    expected_beats: int


class Recording:
    """What an observer of the test bench wrote: hexadecimal digits, some beats to the line.

    Parameters
    ----------
    path : Path
        A missing file is an empty recording.
    lanes : Lanes
    count : int
        Beats to take; the last line may hold fewer than the others.
    """

    def __init__(self, path: Path, lanes: Lanes, count: int):
        digits = 2 * lanes.byte_width
        raw = np.fromfile(path, np.uint8) if path.exists() else np.zeros(0, np.uint8)
        lines = raw.reshape(-1, digits * lanes.line + 1)[:, :-1]
        nibbles = _NIBBLE[lines.reshape(-1, digits)[:count]]
        unknown = nibbles == _UNKNOWN
        self.lanes = lanes
        self.values = lanes.unpack(_join(np.where(unknown, 0, nibbles)))
        """Values (beats, lanes)."""
        self.unknown: npt.NDArray[np.bool_] | None = None
        """Where unknown bits were seen, or None where there were none."""
        if unknown.any():
            self.unknown = lanes.unpack(_join(np.where(unknown, 0xF, 0))) != 0

    def __len__(self) -> int:
        return len(self.values)

    def tensor(self, start: int, shape: tuple[int, int, int]) -> npt.NDArray[np.int64] | None:
        """The (height, width, channels) tensor that starts at a beat; None if it is incomplete."""
        end = start + self.lanes.beats(shape)
        if end > len(self):
            return None
        height, width, channels = shape
        return self.values[start:end].reshape(height, width, -1)[:, :, :channels]

    def compare(self, expected: Sequence[npt.NDArray[np.integer]]) -> Comparison:
        """Compare with the tensors (height, width, channels) that should have come, in order.

        Lanes past the last channel are not looked at.
        """
        start = compared = mismatches = 0
        first = None
        for frame, tensor in enumerate(expected):
            height, width, channels = tensor.shape
            beats = self.lanes.beats((height, width, channels))
            actual = self.values[start : start + beats]
            beats_per_pixel = -(-channels // self.lanes.count)
            padded = np.zeros((height, width, beats_per_pixel * self.lanes.count), np.int64)
            padded[:, :, :channels] = tensor
            real = np.tile(np.arange(padded.shape[2]) < channels, height * width)
            real = real.reshape(beats, -1)[: len(actual)]
            wrong = actual != padded.reshape(beats, -1)[: len(actual)]
            if self.unknown is not None:
                wrong |= self.unknown[start : start + beats]
            wrong &= real
            compared += int(np.count_nonzero(real))
            mismatches += int(np.count_nonzero(wrong))
            if first is None and wrong.any():
                beat, lane = (int(i) for i in np.argwhere(wrong)[0])
                pixel, part = divmod(beat, beats_per_pixel)
                y, x = divmod(pixel, width)
                channel = part * self.lanes.count + lane
                known = self.unknown is None or not self.unknown[start + beat, lane]
                first = Mismatch(
                    frame=frame,
                    y=y,
                    x=x,
                    channel=channel,
                    expected=int(tensor[y, x, channel]),
                    actual=int(actual[beat, lane]) if known else None,
                )
            start += beats
        return Comparison(
            compared=compared,
            mismatches=mismatches,
            first=first,
            beats=len(self),
            expected_beats=start,
        )


def _join(nibbles: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return (nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).astype(np.uint8)
