"""The dimensions of a window buffer: its memory, which rows it needs, what the model asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from amaranth.hdl import Shape
from amaranth.utils import bits_for, ceil_log2

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.memory import ram_resources
from lichen.hw.engine import cycles
from lichen.hw.engine.feed import Phases
from lichen.network.arithmetic import ceil_div
from lichen.network.geometry import Geometry


def window_phases(geometry: Geometry, beats: int) -> Phases:
    """Steps of a pass over ``beats`` beats a pixel.

    A phase without taps (a kernel smaller than the stride of a transposed convolution) has a step
    all the same, for its bias is an output.
    """
    taps = _taps_by_phase(geometry)
    steps = tuple(tuple(max(1, ky * kx * beats) for kx in taps) for ky in taps)
    skip = geometry.padding % len(taps)
    return Phases(steps, skip=skip, wait_first=geometry.transposed)


def _taps_by_phase(geometry: Geometry) -> tuple[int, ...]:
    """Taps along one axis of the outputs o with ``(o + padding) % phases`` of 0, 1, ..."""
    phases = geometry.phases()
    number = {(phase.first + geometry.padding) % len(phases): len(phase.taps) for phase in phases}
    return tuple(number[r] for r in range(len(phases)))


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """The dimensions of a window buffer, and what follows from them.

    Coordinates of the *write side* count pixels from the first column (or row) that has a place in
    memory: of a plain convolution that of the padding, of a transposed one the image's own.

    Attributes
    ----------
    geometry : Geometry
    channels : int
        Of the input.
    lanes : int
        S, channels per step and per beat of the input.
    pixels : int
        P.
    max_width : int
        Widest input, in pixels.
    slots : int or None
        Row slots; None takes `enough_rows`.
    """

    geometry: Geometry
    channels: int
    lanes: int
    pixels: int
    max_width: int
    slots: int | None = None

    @property
    def beats(self) -> int:
        """Beats, and memory words, per input pixel."""
        return ceil_div(self.channels, self.lanes)

    @cached_property
    def phases(self) -> Phases:
        """Steps of a pass."""
        return window_phases(self.geometry, self.beats)

    @cached_property
    def taps(self) -> tuple[int, ...]:
        """Taps along one axis, by phase."""
        return _taps_by_phase(self.geometry)

    @property
    def reach(self) -> int:
        """Inputs along one axis that the taps of an output span at most."""
        return max(self.taps)

    @property
    def spread(self) -> int:
        """Pixels of a position: what neighbouring positions of a step are apart."""
        return 1 if self.geometry.transposed else self.geometry.stride

    @property
    def origin(self) -> int:
        """The image's first column (and row) in coordinates of the write side."""
        return 0 if self.geometry.transposed else self.geometry.padding

    @property
    def border(self) -> int:
        """The image's first column (and row) in those of the read side, which count from the first
        one that a tap may read."""
        return self.reach - 1 if self.geometry.transposed else self.geometry.padding

    # Row slots ----------------------------------------------------------------------------------

    @property
    def least_rows(self) -> int:
        """Row slots without which no group could ever start: the rows that it reads."""
        geometry = self.geometry
        return self.reach if geometry.transposed else max(geometry.kernel, geometry.stride)

    @property
    def enough_rows(self) -> int:
        """Row slots that let writing overlap with reading.

        A plain convolution writes one row while it reads others; with `least_rows` writing follows
        reading pixel by pixel, and some cycles are lost. With R slots a row into a transposed
        convolution may arrive during R stride - kernel + 1 rows of output, of which the first
        frees it column by column.
        """
        if not self.geometry.transposed:
            return self.least_rows + 1
        stride = self.geometry.stride
        enough = self.reach * stride - self.geometry.kernel + 1 >= stride
        return max(2, self.reach + (not enough))

    @property
    def rows(self) -> int:
        """Row slots."""
        return self.enough_rows if self.slots is None else self.slots

    @property
    def position_words(self) -> int:
        """Memory words of one bank per position."""
        return self.spread * self.beats

    @property
    def row_words(self) -> int:
        """Memory words of one bank per row: every P-th position."""
        positions = ceil_div(self.max_width + self.origin, self.spread)
        return ceil_div(positions, self.pixels) * self.position_words

    @property
    def bank_words(self) -> int:
        """Memory words of one bank: the whole ring."""
        return self.rows * self.row_words

    @property
    def row_bits(self) -> int:
        """Of an address in a bank."""
        return Shape.cast(range(self.bank_words)).width

    @property
    def column_bits(self) -> int:
        """Of a padded column, its sums with the kernel size, and what a row's last group reads
        beyond the image."""
        geometry = self.geometry
        beyond = 2 * (geometry.padding + geometry.kernel) + 2 * self.pixels * geometry.stride
        return bits_for(self.max_width + beyond)

    @property
    def out_bits(self) -> int:
        """Of a count of output pixels of a row, those to skip included."""
        widest = self.geometry.output_size(self.max_width) + self.phases.skip
        return bits_for(max(1, widest))

    # Who needs what -----------------------------------------------------------------------------

    @property
    def last_user(self) -> tuple[int, int]:
        """The last output row that needs the first row of the ring, and how many rows of input
        short of the next output row that is, of `users_of`."""
        if self.geometry.transposed:
            return self.geometry.kernel - 1 - self.geometry.padding, 0
        return divmod(self.geometry.padding, self.geometry.stride)

    @property
    def users(self) -> int:
        """Output rows that so many (`users_of`) rows of input later is the last user; one of the
        two is 1."""
        return self.geometry.stride if self.geometry.transposed else 1

    @property
    def users_of(self) -> int:
        """See `users`."""
        return 1 if self.geometry.transposed else self.geometry.stride

    @property
    def first(self) -> int:
        """The position of the first output, in coordinates of the write side: where its first tap
        of a plain convolution reads, its last one of a transposed."""
        return self.geometry.reach(0)[1] if self.geometry.transposed else 0

    @property
    def ahead(self) -> int:
        """Pixels beyond its position that an output needs."""
        return 0 if self.geometry.transposed else self.geometry.kernel - 1

    @property
    def behind(self) -> int:
        """Pixels before its position that an output needs."""
        return self.reach - 1 if self.geometry.transposed else 0

    def timing(self, height: int, width: int) -> dict[str, int]:
        """What the cycle model asks of a window for an input of this size, by `cycles.UNIT`'s
        names."""
        last_user, user_sub = self.last_user
        return {
            "feeder": cycles.ROWS,
            "beats_in": self.beats,
            "pixels": self.pixels,
            "first_x": self.origin,
            "first_y": self.origin,
            "end_x": width + self.origin,
            "end_y": height + self.origin,
            "out_width": self.geometry.output_size(width),
            "out_height": self.geometry.output_size(height),
            "slots": self.rows,
            "last_user": last_user,
            "user_sub": user_sub,
            "users": self.users,
            "users_of": self.users_of,
            "read_x": self.first,
            "read_y": self.first,
            "stride": self.spread,
            "span_x": (self.pixels - 1) * self.spread + self.ahead,
            "span_y": self.ahead,
            "behind": self.behind,
            "row_phases": self.phases.rows,
            "column_phases": self.phases.columns,
            "row_phase": self.phases.skip,
            "skip": self.phases.skip,
        }

    def resources(self, device: Device, bits: int) -> Resources:
        """What a window takes whose values have so many bits."""
        word = self.lanes * bits
        # Fitted to windows packed alone, of 1 to 3 pixels and 6 to 10 bits; one of 4 pixels is 6 %
        # above it.
        control = Resources(lut=585 + 57 * (self.pixels - 1) + 46 * self.column_bits)
        # The zeros of the padding are gated in the same tables.
        rotate = Resources(lut=self.pixels * word * max(1, ceil_log2(self.pixels)))
        banks = ram_resources(device, self.bank_words, word, writable=True) * self.pixels
        return banks + control + rotate
