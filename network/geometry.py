"""Where convolutions read and how much they make: sizes, receptive fields, phases, products.

One axis at a time: kernels are square, and rows and columns follow the same rules. Everything
here holds for plain and transposed convolutions alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Outputs of a convolution along one axis that use the same taps.

    Output ``m * outputs + first`` is the sum over i of tap ``taps[i]`` times input
    ``m * inputs + offsets[i]``, for every m.

    Attributes
    ----------
    first : int
        The first output, 0 .. outputs - 1.
    outputs, inputs : int
        Outputs and inputs from one m to the next: 1 and the stride of a plain convolution,
        the stride and 1 of a transposed one.
    taps : tuple of int
        Rising; none where the kernel is smaller than the stride of a transposed convolution.
    offsets : tuple of int
        Of the input that each tap multiplies; outside of the input lie zeros.
    """

    first: int
    outputs: int
    inputs: int
    taps: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A size that follows another one: ``slope * n + offset`` for every ``n >= 1``."""

    slope: int
    offset: int

    def __call__(self, n: int) -> int:
        return self.slope * n + self.offset

    @property
    def least(self) -> int:
        """The size at ``n = 1``; the smallest one unless the slope is negative."""
        return self(1)

    def covers(self, other: Affine) -> bool:
        """Whether it is at least as large as the other at every ``n >= 1``."""
        return self.slope >= other.slope and self.least >= other.least

    def __str__(self) -> str:
        rows = "n" if self.slope == 1 else f"{self.slope} n"
        if not self.offset:
            return rows
        return f"{rows} {'+' if self.offset > 0 else '-'} {abs(self.offset)}"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A convolution along one axis, as in PyTorch's ``Conv2d`` and ``ConvTranspose2d``."""

    kernel: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    transposed: bool = False

    def output_size(self, size: int) -> int:
        """Rows (or columns) made of ``size`` rows (or columns); 0 or less when nothing fits."""
        if self.transposed:
            return (size - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def grown(self, size: Affine) -> Affine:
        """`output_size` of a size that follows another one.

        Raises ValueError when no one slope gives it, because the stride divides only some sizes.
        """
        offset = self.output_size(size.offset)
        if self.transposed:
            return Affine(slope=size.slope * self.stride, offset=offset)
        if size.slope % self.stride:
            raise ValueError(f"a stride of {self.stride} does not divide inputs of {size}")
        return Affine(slope=size.slope // self.stride, offset=offset)

    def reach(self, out: Any) -> tuple[Any, Any]:
        """First and last row (or column) of the input that row ``out`` of the output reads.

        Padding counts: they may lie outside of the input. An array gives arrays.
        """
        if self.transposed:
            first = -((self.kernel - 1 - self.padding - out) // self.stride)
            return first, (out + self.padding) // self.stride
        first = out * self.stride - self.padding
        return first, first + self.kernel - 1

    def complete(self, rows: int) -> int:
        """How many rows of output the first ``rows`` rows of a longer input suffice for."""
        if self.transposed:
            return max(0, rows * self.stride - self.padding)
        return max(0, (rows + self.padding - self.kernel) // self.stride + 1)

    def phases(self) -> tuple[Phase, ...]:
        """The outputs by the taps that they use, in the order of their first output.

        A plain convolution has one phase. A transposed one has as many as its stride: output o
        with ``o + padding = q stride + r`` sums input ``q - j`` times tap ``r + j stride``, so no
        inserted zero is ever multiplied.
        """
        if not self.transposed:
            taps = tuple(range(self.kernel))
            offsets = tuple(tap - self.padding for tap in taps)
            return (Phase(first=0, outputs=1, inputs=self.stride, taps=taps, offsets=offsets),)
        phases = []
        for first in range(self.stride):
            q, r = divmod(first + self.padding, self.stride)
            taps = tuple(range(r, self.kernel, self.stride))
            phases.append(
                Phase(
                    first=first,
                    outputs=self.stride,
                    inputs=1,
                    taps=taps,
                    offsets=tuple(q - j for j in range(len(taps))),
                )
            )
        return tuple(phases)

    def macs(self, inputs: int, outputs: int, positions: int) -> int:
        """Multiplications of a convolution from so many channels to so many.

        Parameters
        ----------
        inputs, outputs : int
            Channels.
        positions : int
            Pixels of the output.

        Notes
        -----
        A transposed convolution multiplies each input sample by every tap once, borders
        included, as in every MAC count of the field; inserted zeros are not counted.
        """
        dilution = self.stride if self.transposed else 1
        return self.kernel * self.kernel * inputs * outputs * positions // dilution**2


def norm_macs(channels: int, positions: int) -> int:
    """Multiplications of a divisive normalization's sums over ``positions`` pixels."""
    return channels**2 * positions


def receptive_field(geometries: Iterable[Geometry], first: int, last: int) -> tuple[int, int]:
    """First and last input that outputs ``first .. last`` of a chain of convolutions read.

    The geometries in the order of the chain. Padding counts, as in `Geometry.reach`.
    """
    for geometry in reversed(list(geometries)):
        first, last = geometry.reach(first)[0], geometry.reach(last)[1]
    return first, last
