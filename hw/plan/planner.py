# amaranth: UnusedElaboratable=no
"""The planner: fold transforms onto a budget so that they run as fast as they can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lichen.errors import UserError
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.engine.element import Backend
from lichen.hw.plan.search import BACKENDS, Part, Search, fits
from lichen.hw.plan.tiling import Tile, tiles
from lichen.hw.stage import timing
from lichen.hw.stage.folding import ArrayFolding, Folding
from lichen.hw.stage.kinds import units_of
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import PHOTO, Transform

TILE_COUNTS, TILE_COUNTS_MOST = 5, 14
"""Numbers of tiles that are tried, and where none of them fits."""

SCARCE = 0.97
"""A primitive of which so large a share is used holds a plan back."""

LEADS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.25)
"""By how much the stages behind the first few are tried to be faster than the slowest."""


def frame_cycles(pipeline: Pipeline, height: int, width: int) -> int:
    """Cycles of a frame, exact, all tiles and their halos included."""
    cut = tiles(pipeline.transform, width, pipeline.folding.max_width)
    widths = [tile.stop - tile.start for tile in cut]
    cycles = {w: timing.cycles(pipeline, height, w) for w in set(widths)}
    return sum(cycles[w] for w in widths)


@dataclass(frozen=True)
class Plan:
    """A folding with what it needs and what it reaches.

    Attributes
    ----------
    pipeline : Pipeline
    resources : Resources
        Of the pipeline alone.
    cycles_per_frame : int
        Of one frame, tiles and halos included.
    frame : (int, int)
        Height and width of what the transform reads of the image that frames are counted in.
    device : Device
        What was asked for the costs.
    """

    pipeline: Pipeline
    resources: Resources
    cycles_per_frame: int
    frame: tuple[int, int] = PHOTO
    device: Device = ECP5

    @property
    def folding(self) -> Folding:
        return self.pipeline.folding

    def _tiles(self) -> list[Tile]:
        return tiles(self.pipeline.transform, self.frame[1], self.folding.max_width)

    @property
    def halo_share(self) -> float:
        """Columns of a frame that are computed twice for tiles to overlap, of all computed."""
        return 1 - self.frame[1] / sum(tile.stop - tile.start for tile in self._tiles())

    def describe(self, clock_hz: float) -> dict[str, Any]:
        """The fields of ``lichen plan --json``, without ``fits``."""
        return {
            "stages": self.stages(),
            "clock_mhz": clock_hz / 1e6,
            "tile_width": self.folding.max_width,
            "tiles": len(self._tiles()),
            "halo_share": self.halo_share,
            "cycles_per_frame": self.cycles_per_frame,
            "fps": clock_hz / self.cycles_per_frame,
            "dsp": self.resources.dsp,
            "lut": self.resources.lut,
            "bram": self.resources.bram,
        }

    def stages(self) -> list[dict[str, Any]]:
        """Per unit: array, resources, and how busy it is over an untiled frame."""
        width = min(self.frame[1], self.folding.max_width)
        total, spent = timing.simulate(self.pipeline, self.frame[0], width)
        units = self.pipeline.stage_resources(self.device).items()
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
                    "backend": unit.core.array.backend.value,
                    "busy": use["busy"] / total,
                    "stall_input": use["stall_input"] / total,
                    "stall_drain": use["stall_drain"] / total,
                    "dsp": cost.dsp,
                    "bram": cost.bram,
                    "bram_weights": unit.core.rom.resources(self.device).bram,
                    "bram_lines": unit.line_resources(self.device).bram,
                    "lut": cost.lut,
                }
            )
        return rows

    def bounds(self, budget: Resources) -> list[str]:
        """What holds the plan back: a phrase for every primitive that is used up."""
        rows = self.stages()
        weights = sum(row["bram_weights"] for row in rows)
        lines = sum(row["bram_lines"] for row in rows)
        need = self.resources
        phrases = {
            "dsp": f"multipliers ({need.dsp} of {budget.dsp})",
            "bram": f"block RAMs ({need.bram} of {budget.bram} that a plan may use: {weights} for "
            f"weights, {lines} for rows, {need.bram - weights - lines} for other things)",
            "lut": f"LUTs (about {need.lut} of {budget.lut} that a plan may use)",
        }
        return [
            phrase
            for name, phrase in phrases.items()
            if getattr(need, name) >= SCARCE * getattr(budget, name)
        ]


def evaluate(
    transform: Transform,
    folding: Folding,
    frame: tuple[int, int] = PHOTO,
    *,
    device: Device = ECP5,
) -> Plan:
    """The plan of a given folding on a device, for frames of this height and width.

    Raises UserError when the folding is not one of the transform.
    """
    try:
        pipeline = Pipeline(transform, folding)
    except ValueError as error:
        raise UserError(f"this folding does not suit the network: {error}.") from None
    resources = pipeline.resources(device)
    return Plan(pipeline, resources, frame_cycles(pipeline, *frame), frame, device)


def plan(
    transform: Transform,
    budget: Resources,
    *,
    device: Device = ECP5,
    max_width: int | None = None,
    multipliers: int | None = None,
    frame: tuple[int, int] = PHOTO,
) -> Plan:
    """The fastest folding found within a budget; the smallest one if none fits.

    Parameters
    ----------
    transform : Transform
    budget : Resources
        What the pipeline may use; whatever surrounds it must have been taken off.
    device : Device
        Of which costs are asked.
    max_width : int or None
        Widest frame, or tile, in columns of the input; None chooses the one that is fastest.
    multipliers : int or None
        Use at most so many of the budget's multipliers, and no others.
    frame : (int, int)
        Height and width of what the transform reads of an image (`Network.frames`).

    Raises
    ------
    UserError
        When the transform cannot be generated at all.
    """
    wanted = Wanted(transform, frame, max_width)
    return plan_together([wanted], budget, device=device, multipliers=multipliers)[0]


@dataclass(frozen=True)
class Wanted:
    """A transform to be planned.

    Attributes
    ----------
    transform : Transform
    frame : (int, int)
        Height and width of what it reads of an image (`Network.frames`).
    max_width : int or None
        Widest frame, or tile, in columns of its input; None leaves the choice to the planner.
    """

    transform: Transform
    frame: tuple[int, int] = PHOTO
    max_width: int | None = None

    def parts(self, counts: int) -> list[Part]:
        """For every width to try, widest first. Raises UserError where it cannot be one."""
        multiple, width = self.transform.downsampling, self.max_width
        if width is not None and (width < multiple or width % multiple):
            raise UserError(f"the width must be a multiple of {multiple}, not {width}.")
        widths = tile_widths(self.transform, counts, self.frame) if width is None else [width]
        found = []
        for width in widths:
            try:
                self.transform.sizes(self.frame[0], width)
                tiles(self.transform, self.frame[1], width)
            except ValueError as error:
                raise UserError(f"{error}.") from None
            found.append(Part(self.transform, width, self.frame))
        return found


def plan_together(
    wanted: Sequence[Wanted],
    budget: Resources,
    *,
    device: Device = ECP5,
    multipliers: int | None = None,
) -> list[Plan]:
    """Plans of pipelines that share a budget: those whose slowest is the fastest found.

    The smallest ones where none fit. All go through in as many tiles. Parameters and errors are
    those of `plan`.
    """
    have = budget
    if multipliers is not None:
        have = replace(budget, dsp=min(budget.dsp, multipliers))
    backends = BACKENDS if multipliers is None else BACKENDS[:2]
    widths = list(zip(*(one.parts(TILE_COUNTS_MOST) for one in wanted), strict=False))
    best, at = _best_width(widths, have, backends, device, tight=False)
    if _rows_to_give_up(widths[0]) and (best is None or _scarce_blocks(best, have)):
        # Fewer row slots make room for wider tiles, or for more multipliers.
        tight, _ = _best_width(widths, have, backends, device, tight=True, least=at + 2, best=best)
        best = tight or best
    if best is None:
        search = Search(widths[-1], backends, device=device, tight=True)
        return _evaluated(search, _nearest(search, have))
    return _relaxed(best, have)


def _best_width(
    widths: Sequence[Sequence[Part]],
    budget: Resources,
    backends: tuple[Backend, ...],
    device: Device,
    *,
    tight: bool,
    least: int = TILE_COUNTS,
    best: list[Plan] | None = None,
) -> tuple[list[Plan] | None, int]:
    """The fastest plans of all widths, if they beat ``best``, and the place of theirs.

    Narrow tiles waste much of the work on halos, but their rows need little memory: behind the
    ``least`` widest they are tried where nothing else fits, and as long as each is faster.
    """
    found, at, improved = None, -1, False
    for number, parts in enumerate(widths):
        if number >= least and (found or best) is not None and not improved:
            break
        plans = _fastest(Search(parts, backends, device=device, tight=tight), budget, found or best)
        known = found or best
        improved = plans is not None and (known is None or _slowest(plans) < _slowest(known))
        if improved:
            found, at = plans, number
    return found, at


def _slowest(plans: Sequence[Plan]) -> int:
    """Cycles of the one that takes longest."""
    return max(plan.cycles_per_frame for plan in plans)


def _used(plans: Sequence[Plan]) -> Resources:
    return Resources.total(plan.resources for plan in plans)


def _scarce_blocks(plans: Sequence[Plan], budget: Resources) -> bool:
    """Whether block RAMs hold the plans back, so that rows are better given up."""
    return _used(plans).bram >= SCARCE * budget.bram


def _rows_to_give_up(parts: Sequence[Part]) -> bool:
    """Whether any window can make do with fewer row slots."""
    usual = ArrayFolding(chain_length=1, lanes=1)
    return any(
        units_of(stage, source)[0].tight(usual) != usual
        for part in parts
        for stage, source in zip(part.transform.stages, part.transform.sources, strict=True)
    )


def _relaxed(plans: list[Plan], budget: Resources) -> list[Plan]:
    """Windows with the row slots that cost no cycles, wherever there is room left for them."""
    for number, part in enumerate(plans):
        for place, stage in enumerate(part.folding.stages):
            if stage.convolution.rows is None:
                continue
            present = plans[number]
            stages = list(present.folding.stages)
            convolution = stage.convolution.model_copy(update={"rows": None})
            stages[place] = stage.model_copy(update={"convolution": convolution})
            folding = present.folding.model_copy(update={"stages": stages})
            wider = evaluate(
                present.pipeline.transform, folding, present.frame, device=present.device
            )
            others = [*plans[:number], *plans[number + 1 :]]
            if (
                fits(_used([wider, *others]), budget)
                and wider.cycles_per_frame <= present.cycles_per_frame
            ):
                plans = [*plans[:number], wider, *plans[number + 1 :]]
    return plans


def _evaluated(search: Search, foldings: Sequence[Folding]) -> list[Plan]:
    return [
        evaluate(part.transform, folding, part.frame, device=search.device)
        for part, folding in zip(search.parts, foldings, strict=True)
    ]


def _nearest(search: Search, budget: Resources) -> list[Folding]:
    """Where nothing fits: what would, with a little more of everything, else the smallest."""
    slow = [search.most_cycles()] * len(search.arrays)
    for percent in EXCESS:
        more = budget.percent(percent)
        found = search.reach(slow, more)
        if found is not None:
            return found
    return search.smallest()


EXCESS = (102, 105, 110, 120, 140, 200)
"""Shares of the budget, in percent, that are tried where nothing fits it."""


def tile_widths(
    transform: Transform, counts: int = TILE_COUNTS, frame: tuple[int, int] = PHOTO
) -> list[int]:
    """Widths worth trying, widest first: for every number of tiles the least that makes do."""
    multiple = transform.downsampling
    least: dict[int, int] = {}
    for width in range(frame[1] // multiple * multiple, 0, -multiple):
        try:
            least[len(tiles(transform, frame[1], width))] = width
        except ValueError:
            break
    return sorted(least.values(), reverse=True)[:counts]


def _fastest(search: Search, budget: Resources, best: list[Plan] | None) -> list[Plan] | None:
    """The fastest plans of one width of tiles, if they can beat the best so far."""
    if not search.may_fit(budget):
        return None
    low, high = search.least_cycles(), search.most_cycles()
    if best is not None:
        # Tiles and halos stretch the work; no use in slower paces than the best's.
        high = min(high, int(_slowest(best) / search.parts[0].stretch))
    found = search.reach(search.limits(high), budget)
    if found is None:
        return None
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        faster = search.reach(search.limits(middle), budget)
        if faster is None:
            low = middle
        else:
            found, high = faster, middle
    options = [search.reach(search.limits(high), budget, thorough=True) or found]
    # A stage starts when the one before has made some rows: what stands further down must be
    # faster than the slowest to end soon after it.
    for lead in LEADS[1:]:
        staggered = search.reach(search.limits(high, lead), budget, thorough=True)
        if staggered is not None and staggered not in options:
            options.append(staggered)
    return min((_evaluated(search, foldings) for foldings in options), key=_slowest)


__all__ = [
    "PHOTO",
    "Part",
    "Plan",
    "Wanted",
    "evaluate",
    "fits",
    "frame_cycles",
    "plan",
    "plan_together",
    "tile_widths",
]
