"""How a transform is folded onto multipliers: the planner's answer, the generator's input."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from lichen.hw.engine.element import Backend
from lichen.network.model import Field, Model


class ArrayFolding(Model):
    """Shape of one systolic array.

    Attributes
    ----------
    pixels : int
        P, output pixels computed together.
    chain_length : int
        Channels per drain chain; Q = chains x chain_length channels computed together.
    lanes : int
        S, reduction lanes of each element.
    backend : Backend
        What multiplies.
    rows : int or None
        Row slots of the window before a convolution; None takes `WindowShape.enough_rows`.
    """

    pixels: int = Field(default=1, ge=1)
    chain_length: int = Field(ge=1)
    lanes: int = Field(ge=1)
    backend: Backend = Backend.PORTABLE
    rows: int | None = Field(default=None, ge=1)

    def model_dump(
        self, *, mode: Literal["python", "json"] = "python", exclude: Collection[str] = ()
    ) -> dict[str, Any]:
        """As of any model; without ``rows`` where none are given, as foldings always were written:
        what is digested of them stays the same."""
        unsaid = () if self.rows is not None else ("rows",)
        return super().model_dump(mode=mode, exclude=(*exclude, *unsaid))


class StageFolding(Model):
    """Arrays of one stage.

    Attributes
    ----------
    chains : int
        Drain chains of both arrays, and channels per beat of the stage's streams.
    convolution : ArrayFolding
    normalization : ArrayFolding or None
        Present exactly when the stage has a normalization.
    """

    chains: int = Field(ge=1)
    convolution: ArrayFolding
    normalization: ArrayFolding | None = None

    @property
    def arrays(self) -> dict[str, ArrayFolding | None]:
        """The arrays by the slots that unit kinds name, None where there is none."""
        return {"convolution": self.convolution, "normalization": self.normalization}

    def array(self, slot: str) -> ArrayFolding:
        """The array of a slot that the stage has."""
        array = self.arrays[slot]
        if array is None:
            raise ValueError(f"the folding has no {slot}")
        return array

    @property
    def multipliers(self) -> int:
        """Multipliers of the stage's arrays."""
        arrays = [a for a in self.arrays.values() if a is not None]
        return sum(a.pixels * a.chain_length * self.chains * a.lanes for a in arrays)


class Folding(Model):
    """Arrays of a whole transform, and the widest image it takes.

    Attributes
    ----------
    max_width : int
        Columns of the widest input, 1 .. 65535.
    stages : list of StageFolding
    """

    max_width: int = Field(ge=1, le=65535)
    stages: list[StageFolding] = Field(min_length=1)


def divides(a: int, b: int) -> bool:
    """Whether one of two numbers of channels per beat divides the other, as regrouping wants it."""
    return a % b == 0 or b % a == 0
