"""Keeping cells apart: areas as charges, whose field drives them from where there are too many.

After Lu et al., "ePlace: electrostatics-based placement using fast Fourier transform and Nesterov's
method" (2015). The transform is a product with a matrix of cosines here: on grids of a hundred bins
that takes about a millisecond, and, unlike a library's, it rounds alike everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lichen.boards.ecp5.floorplan import kernels

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

COSINE_BITS = 30
"""Cosines come from the C library, whose last bits differ; so they are rounded to fewer."""


def cosines(bins: int) -> Floats:
    """The matrix (wave, bin) of the cosine transform of ``bins`` values, in units of 2**-30."""
    turns = np.array(
        [
            [math.cos(math.pi * wave * (2 * i + 1) / (2 * bins)) for i in range(bins)]
            for wave in range(bins)
        ]
    )
    return np.rint(turns * 2.0**COSINE_BITS) / 2.0**COSINE_BITS


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Bins over a device, and what solves Poisson's equation on them.

    Attributes
    ----------
    bin_width, bin_height : float
        In tiles.
    forward_x, forward_y, back_x, back_y : float arrays
        Cosine transforms along columns and rows.
    green : float array (columns, rows)
        One over the squared wave number.
    """

    bin_width: float
    bin_height: float
    forward_x: Floats
    forward_y: Floats
    back_x: Floats
    back_y: Floats
    green: Floats

    @classmethod
    def over(cls, width: int, height: int, bin_width: float, bin_height: float) -> Grid:
        """A grid that covers ``width`` x ``height`` tiles."""
        columns, rows = math.ceil(width / bin_width), math.ceil(height / bin_height)
        x, y = cosines(columns), cosines(rows)
        wave_x = math.pi / (columns * bin_width) * np.arange(columns)
        wave_y = math.pi / (rows * bin_height) * np.arange(rows)
        squares = (wave_x * wave_x)[:, None] + (wave_y * wave_y)[None, :]
        squares[0, 0] = math.inf  # a constant has no field
        return cls(
            bin_width=bin_width,
            bin_height=bin_height,
            forward_x=x,
            forward_y=np.ascontiguousarray(y.T),
            back_x=_inverse(x),
            back_y=np.ascontiguousarray(_inverse(y).T),
            green=1.0 / squares,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and rows of bins."""
        return len(self.forward_x), len(self.forward_y)

    def field(self, charge: Floats) -> tuple[Floats, Floats]:
        """The gradient of the potential of ``charge`` per tile, along columns and along rows."""
        waves = kernels.product(kernels.product(self.forward_x, charge), self.forward_y)
        potential = kernels.product(kernels.product(self.back_x, waves * self.green), self.back_y)
        return (
            np.gradient(potential, self.bin_width, axis=0),
            np.gradient(potential, self.bin_height, axis=1),
        )


def _inverse(forward: Floats) -> Floats:
    bins = len(forward)
    scale = np.full(bins, 2.0 / bins)
    scale[0] = 1.0 / bins
    return np.ascontiguousarray(forward.T * scale)


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """Cells of one kind, the places for them, and fillers for the places that stay free.

    Fillers push like cells but hang on no net: without them the cells of a design that fills a
    tenth of a device would be spread all over it.

    Attributes
    ----------
    cells, fillers : int array
        Indices into the arrays of positions and areas.
    grid : Grid
    capacity : float array
        Area of the places in every bin, scaled to the area of cells and fillers where they need
        more.
    area : float
        Of the cells.
    """

    cells: Ints
    fillers: Ints
    grid: Grid
    capacity: Floats
    area: float

    @classmethod
    def of(
        cls,
        *,
        cells: Ints,
        fillers: Ints,
        area: Floats,
        grid: Grid,
        place_x: Floats,
        place_y: Floats,
    ) -> Crowd:
        """A crowd on places of area 1 with their middles at ``place_x``, ``place_y``."""
        capacity = np.zeros(grid.shape)
        everywhere = np.arange(len(place_x))
        kernels.deposit(
            place_x,
            place_y,
            np.ones(len(place_x)),
            everywhere,
            grid.bin_width,
            grid.bin_height,
            capacity,
        )
        total = kernels.size(area, cells)
        capacity *= (total + kernels.size(area, fillers)) / len(place_x)
        return cls(cells=cells, fillers=fillers, grid=grid, capacity=capacity, area=total)

    def force(self, x: Floats, y: Floats, area: Floats) -> tuple[Floats, Floats, float]:
        """The gradient of the field's energy for every cell, and the share of area in excess."""
        grid = self.grid
        bins = (grid.bin_width, grid.bin_height)
        filled = np.zeros(grid.shape)
        kernels.deposit(x, y, area, self.cells, *bins, filled)
        excess = kernels.excess(filled, self.capacity) / max(self.area, 1e-9)
        kernels.deposit(x, y, area, self.fillers, *bins, filled)
        field = grid.field((filled - self.capacity) / (grid.bin_width * grid.bin_height))
        gradient_x, gradient_y = np.zeros(len(x)), np.zeros(len(x))
        for members in (self.cells, self.fillers):
            kernels.repel(x, y, area, members, *bins, *field, gradient_x, gradient_y)
        return gradient_x, gradient_y, excess
