"""How a transform is folded onto multipliers: the planner's answer, the generator's input."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from lichen.network.arithmetic import ceil_div
from lichen.network.description import Stage, Transform


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayFolding(_Model):
    """Shape of one systolic array.

    Attributes
    ----------
    pixels : int
        P, output pixels computed together.
    chain_length : int
        Channels per drain chain; Q = chains x chain_length channels computed together.
    lanes : int
        S, reduction lanes of each element.
    """

    pixels: int = Field(default=1, ge=1)
    chain_length: int = Field(ge=1)
    lanes: int = Field(ge=1)


class StageFolding(_Model):
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
    def multipliers(self) -> int:
        """Multipliers of the stage's arrays."""
        arrays = [a for a in (self.convolution, self.normalization) if a is not None]
        return sum(a.pixels * a.chain_length * self.chains * a.lanes for a in arrays)


class Folding(_Model):
    """Arrays of a whole transform, and the widest image it takes.

    Attributes
    ----------
    max_width : int
        Columns of the widest input, 1 .. 65535.
    stages : list of StageFolding
    """

    max_width: int = Field(ge=1, le=65535)
    stages: list[StageFolding] = Field(min_length=1)

    def check(self, transform: Transform) -> Self:
        """Raise ValueError, naming the stage, unless this folding fits the transform."""
        if len(self.stages) != len(transform.stages):
            raise ValueError(
                f"the folding has {len(self.stages)} stages, the transform {len(transform.stages)}"
            )
        chains = None
        for stage, folding in zip(transform.stages, self.stages, strict=True):
            problem = _problem(stage, folding, chains)
            if problem:
                raise ValueError(f"stage {stage.name}: {problem}")
            chains = folding.chains
        return self


def _divides(a: int, b: int) -> bool:
    return a % b == 0 or b % a == 0


def _problem(stage: Stage, folding: StageFolding, source_chains: int | None) -> str | None:
    """What is wrong with a stage's folding, if anything."""
    channels, chains = stage.out_channels, folding.chains
    conv, norm = folding.convolution, folding.normalization
    if stage.convolution.transposed:
        return "transposed convolutions cannot be generated yet"
    if (norm is None) != (stage.normalization is None):
        return "the folding must fold a normalization exactly where the stage has one"
    if conv.lanes > stage.convolution.in_channels:
        return f"lanes must not exceed the {stage.convolution.in_channels} input channels"
    if source_chains is not None and not _divides(source_chains, conv.lanes):
        return f"lanes must divide or be divided by the {source_chains} channels per beat before it"
    for array in (conv, norm):
        if array is not None and array.chain_length > ceil_div(channels, chains):
            return f"chains x chain_length must not exceed the {channels} output channels"
    if norm is not None and norm.lanes > channels:
        return f"lanes of the normalization must not exceed its {channels} channels"
    if norm is not None and not _divides(chains, norm.lanes):
        return f"lanes of the normalization must divide or be divided by the {chains} chains"
    return None
