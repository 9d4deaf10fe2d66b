"""How a transform is folded onto multipliers: the planner's answer, the generator's input."""

from __future__ import annotations

from typing import Self

from amaranth.hdl import Shape, signed, unsigned
from pydantic import BaseModel, ConfigDict, Field

from lichen.hw.device.unit import shape_of
from lichen.hw.engine.element import ELEMENTS, Backend, packs
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Format, Stage, Transform


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
    backend : Backend
        What multiplies.
    """

    pixels: int = Field(default=1, ge=1)
    chain_length: int = Field(ge=1)
    lanes: int = Field(ge=1)
    backend: Backend = Backend.PORTABLE


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
        for stage, source, folding in zip(
            transform.stages, transform.sources, self.stages, strict=True
        ):
            problem = _problem(stage, folding, chains) or _backend_problem(stage, folding, source)
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


def operand_shapes(stage: Stage, source: Format) -> list[tuple[Shape, Shape]]:
    """Activation and weight of the stage's convolution, and of its normalization if any."""
    shapes = [(shape_of(source.lo, source.hi), signed(stage.convolution.weight_bits))]
    norm = stage.normalization
    if norm is not None:
        shapes.append((unsigned(norm.u_bits), unsigned(norm.gamma_bits)))
    return shapes


def _backend_problem(stage: Stage, folding: StageFolding, source: Format) -> str | None:
    arrays = [folding.convolution, folding.normalization]
    for array, (a, w) in zip(arrays, operand_shapes(stage, source), strict=False):
        if array is None or array.backend is not Backend.PACKED:
            continue
        ways = ELEMENTS[array.backend].ways
        if array.chain_length % ways:
            return f"chain_length must be a multiple of {ways} with the packed back-end"
        if not packs(a, w):
            return f"two products of {w} and {a} do not fit one multiplier, as packed wants it"
    return None
