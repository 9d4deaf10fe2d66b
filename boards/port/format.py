"""What the bytes at a transform's port are."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Shape

from lichen.network.arithmetic import ceil_div

MOST_CHANNELS = 0xFFFF
"""Of a position; links count with 16 bits."""


def value_shape(shape: object) -> Shape:
    """A shape whose values can be sent; ValueError for one that is not of 1 to 16 bits."""
    cast = Shape.cast(shape)
    if not 1 <= cast.width <= 16:
        raise ValueError(f"shape must have 1 to 16 bits, not {cast!r}")
    return cast


def value_bytes(bits: int) -> int:
    """Whole bytes that hold a value of ``bits`` bits."""
    return ceil_div(bits, 8)


@dataclass(frozen=True, kw_only=True)
class PortFormat:
    """The bytes of one transform: positions in raster order, the channels of one together.

    A value takes the least number of whole bytes, least significant first; negative ones are in
    two's complement. So a pixel is three bytes, and a symbol of y of up to 8 bits is one.

    Attributes
    ----------
    name : str
        ``g_a``, ``g_s``, ...
    max_width : int
        Widest input, in positions.
    in_channels, out_channels : int
        Of a position.
    in_bytes, out_bytes : int
        Of a value, 1 or 2.
    """

    name: str
    max_width: int
    in_channels: int
    in_bytes: int
    out_channels: int
    out_bytes: int

    def __post_init__(self) -> None:
        for field in ("max_width", "in_channels", "out_channels"):
            value = getattr(self, field)
            if not 1 <= value <= MOST_CHANNELS:
                raise ValueError(f"{field} must be between 1 and {MOST_CHANNELS}, not {value!r}")
        for field in ("in_bytes", "out_bytes"):
            if getattr(self, field) not in (1, 2):
                raise ValueError(f"{field} must be 1 or 2, not {getattr(self, field)!r}")

    @property
    def in_position(self) -> int:
        """Bytes of an input position."""
        return self.in_channels * self.in_bytes

    @property
    def out_position(self) -> int:
        """Bytes of an output position."""
        return self.out_channels * self.out_bytes
