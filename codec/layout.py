"""How a latent is cut into streams in version 2 of the file: strips, groups and segments.

A latent (h, w, channels) is cut into *strips* of columns, as an encoder takes a wide image tile
by tile; a strip into *groups* of rows, where contexts forget and reading may begin; a group, in
raster order, into *segments* of so many places, one stream each, that an encoder holds at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lichen.network.arithmetic import ceil_div


@dataclass(frozen=True)
class Window:
    """The symbols of one stream, and what it may look at.

    Attributes
    ----------
    rows, columns : tuple of int
        Of its group: first, and the one behind the last.
    places : tuple of int
        Of the segment, counted in the group's raster order.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    places: tuple[int, int]

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]

    @property
    def size(self) -> int:
        """Places, each of as many symbols as there are channels."""
        return self.places[1] - self.places[0]

    @property
    def first_row(self) -> int:
        return self.rows[0] + self.places[0] // self.width

    @property
    def end_row(self) -> int:
        """Behind the last row that has one of its places."""
        return self.rows[0] - -self.places[1] // self.width

    def is_wanted(self, rows: tuple[int, int], columns: tuple[int, int]) -> bool:
        """Whether these rows and columns take the segment; those above in its group go with it."""
        (top, bottom), (left, right) = rows, columns
        across = self.columns[0] < right and left < self.columns[1]
        return across and self.first_row < bottom and top < self.rows[1]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Its places as rectangles: the rest of a row, whole rows, and the start of one."""
        (top, _), (left, _), width = self.rows, self.columns, self.width
        begin, end = self.places
        while begin < end:
            row, column = divmod(begin, width)
            count = 1 if column or end - begin < width else (end - begin) // width
            stop = width if count > 1 else min(width, column + end - begin)
            yield slice(top + row, top + row + count), slice(left + column, left + stop)
            begin += (count - 1) * width + stop - column


@dataclass(frozen=True)
class Layout:
    """The measures of a file.

    Attributes
    ----------
    columns : int
        Of a strip of y; those of z are as many times fewer as z has fewer columns.
    rows : int
        Of a group, in either latent.
    places : int
        Of a segment; the last one of a group may have fewer.
    """

    columns: int = 48
    rows: int = 8
    places: int = 48

    def strip(self, ratio: int = 1) -> int:
        """Columns of a strip of a latent that has one for ``ratio`` of y."""
        return max(1, self.columns // ratio)

    def groups(self, height: int, width: int, ratio: int = 1) -> Iterator[tuple[Window, ...]]:
        """The segments of each group in the order of the file: strip by strip, downwards."""
        strip = self.strip(ratio)
        for left in range(0, width, strip):
            columns = left, min(left + strip, width)
            for top in range(0, height, self.rows):
                rows = top, min(top + self.rows, height)
                count = (rows[1] - rows[0]) * (columns[1] - columns[0])
                yield tuple(
                    Window(rows, columns, (first, min(first + self.places, count)))
                    for first in range(0, count, self.places)
                )

    def segments(self, height: int, width: int, ratio: int = 1) -> int:
        """How many streams a latent makes."""
        whole, rest = divmod(width, self.strip(ratio))
        return whole * self._in_strip(height, self.strip(ratio)) + self._in_strip(height, rest)

    def _in_strip(self, height: int, width: int) -> int:
        whole, rest = divmod(height, self.rows)
        return whole * ceil_div(self.rows * width, self.places) + ceil_div(
            rest * width, self.places
        )
