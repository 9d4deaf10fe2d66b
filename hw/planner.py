# amaranth: UnusedElaboratable=no
"""The planner: fold a transform onto a budget so that it runs as fast as it can."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

from lichen.errors import UserError
from lichen.hw import timing
from lichen.hw.core import CoreShape
from lichen.hw.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.pipeline import Pipeline
from lichen.hw.tiling import tiles
from lichen.hw.unit import Resources
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Stage, Transform

PHOTO = (512, 768)
"""Height and width of the photograph all frame rates are quoted for."""

CHAINS = (1, 2, 3, 4)
"""Channels per beat that are tried."""

PIXELS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Pixels per group that are tried."""

BRAM_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
"""Worths of a block RAM, in multipliers, that are tried."""


class Budget(Protocol):
    """What the pipeline may use; `lichen.boards.board.Budget` is one."""

    @property
    def dsp(self) -> int: ...

    @property
    def bram(self) -> int: ...

    @property
    def lut(self) -> int: ...


@dataclass(frozen=True)
class _Candidate:
    """One way to fold an array: its folding, its cycles per frame and what it costs."""

    folding: ArrayFolding
    cycles: int
    multipliers: int


def frame_cycles(pipeline: Pipeline, height: int, width: int) -> int:
    """Cycles of a frame, exact, all tiles and their halos included."""
    cut = tiles(pipeline.transform, width, pipeline.folding.max_width)
    widths = [tile.stop - tile.start for tile in cut]
    cycles = {w: timing.cycles(pipeline, height, w) for w in set(widths)}
    return sum(cycles[w] for w in widths)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@lru_cache(maxsize=4096)
def _candidates(
    channels: int, reduction: int, in_channels: int, chains: int, height: int, width: int
) -> tuple[_Candidate, ...]:
    """Every folding of an array no other one beats in both cycles and multipliers.

    ``reduction`` is the number of taps, ``in_channels`` what lanes divide.
    """
    beats = ceil_div(channels, chains)
    lengths = sorted({ceil_div(beats, passes) for passes in range(1, beats + 1)})
    best: dict[tuple[int, int], _Candidate] = {}
    for lanes in _divisors(in_channels):
        for pixels in PIXELS:
            for length in lengths:
                shape = CoreShape(
                    channels=channels,
                    steps=reduction * in_channels // lanes,
                    pixels=pixels,
                    chains=chains,
                    chain_length=length,
                )
                candidate = _Candidate(
                    ArrayFolding(pixels=pixels, chain_length=length, lanes=lanes),
                    shape.frame_cycles(height, width),
                    pixels * chains * length * lanes,
                )
                key = (candidate.multipliers, lanes)
                if key not in best or candidate.cycles < best[key].cycles:
                    best[key] = candidate
    return tuple(sorted(best.values(), key=lambda c: (c.multipliers, c.cycles)))


def _cheapest(
    candidates: tuple[_Candidate, ...], limit: int, before: int | None, penalty: float
) -> tuple[float, _Candidate] | None:
    """The cheapest candidate that meets ``limit`` cycles behind ``before`` channels a beat.

    ``penalty`` is what one more bank of the window buffer or drain is worth in multipliers.
    """
    best = None
    for candidate in candidates:
        lanes = candidate.folding.lanes
        if candidate.cycles > limit:
            continue
        if before is not None and before % lanes and lanes % before:
            continue
        cost = candidate.multipliers + penalty * candidate.folding.pixels
        if best is None or cost < best[0]:
            best = (cost, candidate)
    return best


def _fold(
    transform: Transform, sizes: list[tuple[int, int]], limit: int, penalty: float
) -> list[StageFolding] | None:
    """Stage foldings of least cost whose every unit takes at most ``limit`` cycles."""
    # Stages are coupled only by the channels per beat between them: a shortest path.
    paths: dict[int | None, tuple[float, list[StageFolding]]] = {None: (0.0, [])}
    for stage, (height, width) in zip(transform.stages, sizes[1:], strict=True):
        extended: dict[int | None, tuple[float, list[StageFolding]]] = {}
        for before, (cost, path) in paths.items():
            for chains in CHAINS:
                if stage.out_channels % chains:
                    continue
                folded = _fold_stage(stage, height, width, chains, before, limit, penalty)
                if folded is None:
                    continue
                total = cost + folded[0]
                if chains not in extended or total < extended[chains][0]:
                    extended[chains] = (total, [*path, folded[1]])
        paths = extended
    if not paths:
        return None
    return min(paths.values(), key=lambda p: p[0])[1]


def _fold_stage(
    stage: Stage,
    height: int,
    width: int,
    chains: int,
    before: int | None,
    limit: int,
    penalty: float,
) -> tuple[float, StageFolding] | None:
    conv, channels = stage.convolution, stage.out_channels
    arrays = _candidates(channels, conv.kernel**2, conv.in_channels, chains, height, width)
    best = _cheapest(arrays, limit, before, penalty)
    if best is None:
        return None
    cost, candidate = best
    cost += 2.0 * chains  # the requantizer's multipliers
    norm = None
    if stage.normalization is not None:
        arrays = _candidates(channels, 1, channels, chains, height, width)
        found = _cheapest(arrays, limit, chains, 0.0)
        if found is None:
            return None
        cost += found[0] + 4.0 * chains
        norm = found[1].folding
    return cost, StageFolding(chains=chains, convolution=candidate.folding, normalization=norm)


@dataclass(frozen=True)
class Plan:
    """A folding with what it needs and what it reaches.

    Attributes
    ----------
    pipeline : Pipeline
    resources : Resources
        Of the pipeline alone.
    cycles_per_frame : int
        Of one `PHOTO`, tiles and halos included.
    """

    pipeline: Pipeline
    resources: Resources
    cycles_per_frame: int

    @property
    def folding(self) -> Folding:
        return self.pipeline.folding

    def describe(self, clock_hz: float) -> dict[str, Any]:
        """The fields of ``lichen plan --json``, without ``fits``."""
        return {
            "stages": self.stages(),
            "clock_mhz": clock_hz / 1e6,
            "tile_width": self.folding.max_width,
            "cycles_per_frame": self.cycles_per_frame,
            "fps": clock_hz / self.cycles_per_frame,
            "dsp": self.resources.dsp,
            "lut": self.resources.lut,
            "bram": self.resources.bram,
        }

    def stages(self) -> list[dict[str, Any]]:
        """Per unit: array, resources, and how busy it is over an untiled frame."""
        width = min(PHOTO[1], self.folding.max_width)
        total, spent = timing.simulate(self.pipeline, PHOTO[0], width)
        units = self.pipeline.stage_resources().items()
        rows = []
        for unit, (name, cost), use in zip(self.pipeline.units, units, spent, strict=True):
            shape = unit.core.shape
            rows.append(
                {
                    "name": name,
                    "pixels": shape.pixels,
                    "channels": shape.chains * shape.chain_length,
                    "chains": shape.chains,
                    "lanes": unit.core.lanes,
                    "busy": use["busy"] / total,
                    "stall_input": use["stall_input"] / total,
                    "stall_drain": use["stall_drain"] / total,
                    "dsp": cost.dsp,
                    "bram": cost.bram,
                    "lut": cost.lut,
                }
            )
        return rows


def fits(resources: Resources, budget: Budget) -> bool:
    """Whether a budget holds the resources."""
    return (
        resources.dsp <= budget.dsp
        and resources.bram <= budget.bram
        and resources.lut <= budget.lut
    )


def evaluate(transform: Transform, folding: Folding) -> Plan:
    """The plan of a given folding. Raises UserError when the folding is not one of it."""
    try:
        pipeline = Pipeline(transform, folding)
    except ValueError as error:
        raise UserError(f"this folding does not suit the network: {error}.") from None
    return Plan(pipeline, pipeline.resources(), frame_cycles(pipeline, *PHOTO))


def plan(
    transform: Transform,
    budget: Budget,
    *,
    max_width: int = PHOTO[1],
    multipliers: int | None = None,
) -> Plan:
    """The fastest folding found within a budget; the smallest one if none fits.

    Parameters
    ----------
    transform : Transform
        Plain convolutions only.
    budget : Budget
        What the pipeline may use; whatever surrounds it must have been taken off.
    max_width : int
        Widest image, or tile, in pixels.
    multipliers : int or None
        Use at most so many of the budget's multipliers.

    Raises
    ------
    UserError
        When the transform cannot be generated at all.
    """
    for stage in transform.stages:
        if stage.convolution.transposed:
            raise UserError(
                f"stage {stage.name} is a transposed convolution, which cannot be generated yet; "
                "the analysis transform g_a can."
            )
    step = transform.downsampling
    if max_width < step or max_width % step:
        raise UserError(f"the width must be a multiple of {step}, not {max_width}.")
    height = PHOTO[0]
    try:
        sizes = transform.sizes(height, max_width)
        tiles(transform, PHOTO[1], max_width)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    dsp = budget.dsp if multipliers is None else min(budget.dsp, multipliers)

    def attempt(limit: int, penalty: float) -> Pipeline | None:
        stages = _fold(transform, sizes, limit, penalty)
        if stages is None:
            return None
        return Pipeline(transform, Folding(max_width=max_width, stages=stages))

    def good(pipeline: Pipeline) -> bool:
        resources = pipeline.resources()
        return resources.dsp <= dsp and fits(resources, budget)

    slowest = _limits(transform, sizes)[-1]
    smallest = attempt(slowest, BRAM_WEIGHTS[-1])
    assert smallest is not None
    best: Pipeline | None = None
    best_limit = 0
    limits = _limits(transform, sizes)
    for penalty in BRAM_WEIGHTS:
        low, high = 0, len(limits) - 1
        while low <= high:
            middle = (low + high) // 2
            pipeline = attempt(limits[middle], penalty)
            if pipeline is not None and good(pipeline):
                if best is None or limits[middle] < best_limit:
                    best, best_limit = pipeline, limits[middle]
                high = middle - 1
            else:
                low = middle + 1
    chosen = best if best is not None else smallest
    return Plan(chosen, chosen.resources(), frame_cycles(chosen, *PHOTO))


def _limits(transform: Transform, sizes: list[tuple[int, int]]) -> list[int]:
    """Every cycle count per frame that some unit can have, in rising order."""
    found: set[int] = set()
    for stage, (height, width) in zip(transform.stages, sizes[1:], strict=True):
        conv, channels = stage.convolution, stage.out_channels
        for chains in CHAINS:
            if channels % chains:
                continue
            arrays = [(conv.kernel**2, conv.in_channels)]
            if stage.normalization is not None:
                arrays.append((1, channels))
            for taps, lanes in arrays:
                found |= {
                    c.cycles for c in _candidates(channels, taps, lanes, chains, height, width)
                }
    # The slowest unit sets the pace: no limit below the largest of the least is of use, and
    # neighbours closer than a per mille are one.
    ordered = sorted(found)
    return [a for a, b in pairwise(ordered) if b - a > a // 1000] + [ordered[-1]]


__all__ = ["PHOTO", "Budget", "Plan", "evaluate", "fits", "frame_cycles", "plan"]
