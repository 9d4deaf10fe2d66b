"""All kinds of units, and what follows from them for a stage and a transform."""

from __future__ import annotations

from collections.abc import Iterator

from lichen.hw.stage.conv import PlainConvolution
from lichen.hw.stage.folding import Folding, StageFolding
from lichen.hw.stage.kind import UnitKind
from lichen.hw.stage.norm import DivisiveNormalization
from lichen.hw.stage.transposed import TransposedConvolution
from lichen.network.description import Format, Stage, Transform

KINDS: tuple[type[UnitKind], ...] = (
    PlainConvolution,
    TransposedConvolution,
    DivisiveNormalization,
)
"""In the order in which a stage's units follow each other."""


def units_of(stage: Stage, source: Format) -> list[UnitKind]:
    """The units of a stage behind inputs of this format, in pipeline order."""
    return [kind(stage, source) for kind in KINDS if kind.fits(stage)]


def transform_units(transform: Transform) -> Iterator[list[UnitKind]]:
    """`units_of` for every stage."""
    for stage, source in zip(transform.stages, transform.sources, strict=True):
        yield units_of(stage, source)


def check_folding(folding: Folding, transform: Transform) -> None:
    """Raise ValueError, naming the stage, unless the folding fits the transform."""
    if len(folding.stages) != len(transform.stages):
        raise ValueError(
            f"the folding has {len(folding.stages)} stages, the transform {len(transform.stages)}"
        )
    before = None
    for units, stage_folding in zip(transform_units(transform), folding.stages, strict=True):
        problem = _problem(units, stage_folding, before)
        if problem:
            raise ValueError(f"stage {units[0].stage.name}: {problem}")
        before = stage_folding.chains


def _problem(units: list[UnitKind], folding: StageFolding, before: int | None) -> str | None:
    slots = {unit.slot for unit in units}
    for slot, array in folding.arrays.items():
        if (array is not None) != (slot in slots):
            return f"the folding must fold a {slot} exactly where the stage has one"
    for unit in units:
        array = folding.array(unit.slot)
        problem = unit.problem(array, folding.chains, before)
        if problem:
            return problem
        before = folding.chains
    return None
