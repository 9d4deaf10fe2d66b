# amaranth: UnusedElaboratable=no
"""The planner: fold a transform onto a budget so that it runs as fast as it can."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.errors import UserError
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.engine.element import Backend
from lichen.hw.engine.gate import GATE_RESOURCES
from lichen.hw.engine.regroup import regroup_resources
from lichen.hw.plan.arrays import ArrayFoldings
from lichen.hw.plan.prices import Prices
from lichen.hw.plan.signature import signature
from lichen.hw.plan.tiling import Tile, tiles
from lichen.hw.stage import timing
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding, divides
from lichen.hw.stage.kinds import units_of
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import PHOTO, Transform

CHAINS = (1, 2, 4)
"""Channels per beat that are tried."""

BACKENDS = (Backend.DSP, Backend.PACKED, Backend.LUT)
"""Back-ends that are tried."""

PRICE_ROUNDS = 6
"""How often prices are adjusted before another choice of back-ends is tried."""

LARGE_ARRAYS = 4
"""Arrays for which lookup tables are tried as a matter of choice, not of price."""

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


_Tables = dict[
    tuple[ArrayFoldings, int, int, bool], tuple[list[ArrayFolding], npt.NDArray[np.float64]]
]


@dataclass(frozen=True)
class Known:
    """What searches have found out about stages, for others that have some of the same.

    A search of its own forgets the tables of a pace when it goes on to the next.
    """

    stages: dict[Hashable, list[ArrayFoldings]] = field(default_factory=dict)
    posts: dict[Hashable, Resources] = field(default_factory=dict)
    tables: _Tables = field(default_factory=dict)


class _Search:
    """Foldings of least cost under a pace, for one tile width."""

    def __init__(
        self,
        transform: Transform,
        max_width: int,
        backends: tuple[Backend, ...],
        known: Known | None = None,
        frame: tuple[int, int] = PHOTO,
        *,
        device: Device,
    ):
        self.transform, self.max_width, self.frame = transform, max_width, frame
        self.device = device
        sizes = transform.sizes(frame[0], max_width)
        self.arrays: list[list[ArrayFoldings]] = []
        self._keeps_tables = known is not None
        known = Known() if known is None else known
        self._signatures: list[Hashable] = []
        for stage, source, before, size in zip(
            transform.stages, transform.sources, sizes, sizes[1:], strict=False
        ):
            key = (signature(stage, source), size, before[1], backends, device)
            if key not in known.stages:
                known.stages[key] = [
                    ArrayFoldings(kind, size, before[1], backends, device)
                    for kind in units_of(stage, source)
                ]
            self._signatures.append(key)
            self.arrays.append(known.stages[key])
        self._posts, self._tables = known.posts, known.tables
        self._worked: tuple[ArrayFoldings, ...] = ()

    def _post(self, number: int, chains: int) -> Resources:
        """What stands behind the arrays of a stage: requantizer, root, queues."""
        key = (self._signatures[number], chains)
        if key not in self._posts:
            self._posts[key] = Resources.total(
                array.kind.output_resources(self.device, chains) for array in self.arrays[number]
            )
        return self._posts[key]

    def fold(
        self, limits: list[int], prices: Prices, of_luts: Collection[ArrayFoldings] = ()
    ) -> tuple[Resources, list[StageFolding]] | None:
        """The cheapest stage foldings whose arrays take at most ``limits`` cycles, by stage.

        The arrays of ``of_luts`` are made of lookup tables.
        """
        # Stages are coupled only by the channels per beat between them: a shortest path.
        start = (0.0, GATE_RESOURCES, list[StageFolding]())
        paths: dict[int | None, tuple[float, Resources, list[StageFolding]]] = {None: start}
        for number, arrays in enumerate(self.arrays):
            extended: dict[int | None, tuple[float, Resources, list[StageFolding]]] = {}
            for chains in CHAINS:
                if arrays[0].channels % chains:
                    continue
                options = [
                    self._options(a, limits[number], chains, prices, a in of_luts) for a in arrays
                ]
                if not all(options):
                    continue
                post = self._post(number, chains)
                later = self._behind_first(arrays, options, chains)
                if later is None:
                    continue
                post += Resources.total(
                    array.cost(later[array.kind.slot], chains) for array in arrays[1:]
                )
                for before, (cost, used, path) in paths.items():
                    fitting = [
                        o for o in options[0] if before is None or divides(before, o[1].lanes)
                    ]
                    if not fitting:
                        continue
                    conv = min(fitting, key=lambda o: o[0])[1]
                    regroup = regroup_resources(before or conv.lanes, conv.lanes)
                    need = arrays[0].cost(conv, chains) + post + regroup
                    total = cost + prices.of(need)
                    if chains not in extended or total < extended[chains][0]:
                        folded = {"chains": chains, arrays[0].kind.slot: conv, **later}
                        stage = StageFolding.model_validate(folded)
                        extended[chains] = (total, used + need, [*path, stage])
            paths = extended
        if not paths:
            return None
        return min(paths.values(), key=lambda p: p[0])[1:]

    @staticmethod
    def _behind_first(
        arrays: list[ArrayFoldings], options: list[list[tuple[float, ArrayFolding]]], chains: int
    ) -> dict[str, ArrayFolding] | None:
        """The cheapest foldings of a stage's units behind its first, by slot."""
        found = {}
        for array, choices in zip(arrays[1:], options[1:], strict=True):
            fitting = [o for o in choices if divides(chains, o[1].lanes)]
            if not fitting:
                return None
            found[array.kind.slot] = min(fitting, key=lambda o: o[0])[1]
        return found

    def _options(
        self, array: ArrayFoldings, limit: int, chains: int, prices: Prices, of_luts: bool
    ) -> list[tuple[float, ArrayFolding]]:
        """Price and folding: the cheapest for every number of lanes."""
        key = (array, limit, chains, of_luts)
        if key not in self._tables:
            foldings = [
                f for f in array.foldings(limit, chains) if not of_luts or f.backend is Backend.LUT
            ]
            costs = [array.cost(f, chains) for f in foldings]
            needs = np.array([[c.dsp, c.bram, c.lut] for c in costs], dtype=float).reshape(-1, 3)
            kept = _undominated(needs, np.array([f.lanes for f in foldings]))
            self._tables[key] = [foldings[i] for i in kept], needs[kept]
        foldings, needs = self._tables[key]
        found = needs @ (prices.dsp, prices.bram, prices.lut)
        best: dict[int, tuple[float, ArrayFolding]] = {}
        for i in np.argsort(found, kind="stable").tolist():
            best.setdefault(foldings[i].lanes, (float(found[i]), foldings[i]))
        return list(best.values())

    def reach(
        self, limits: list[int], budget: Resources, *, thorough: bool = False
    ) -> Folding | None:
        """A folding within budget whose arrays keep to ``limits``, or None.

        The first one found, or ``thorough`` the one with fewest lookup tables.
        """
        best: tuple[int, Folding] | None = None
        # Prices alone tip an array from one kind of multiplier to the other as a whole, and
        # two large arrays often together: so it is decided beforehand which of the large ones
        # are made of lookup tables.
        if not self._keeps_tables:
            self._tables.clear()
        # What has worked at another pace is likely to work again.
        for of_luts in sorted(self._choices(), key=lambda choice: choice != self._worked):
            prices = Prices.start(budget)
            for _ in range(PRICE_ROUNDS):
                found = self.fold(limits, prices, of_luts)
                if found is None:
                    break
                used, stages = found
                if fits(used, budget):
                    if best is None or used.lut < best[0]:
                        best = used.lut, Folding(max_width=self.max_width, stages=stages)
                    if not thorough:
                        self._worked = of_luts
                        return best[1]
                    break
                prices = prices.adjusted(used, budget)
        return None if best is None else best[1]

    def _choices(self) -> Iterator[tuple[ArrayFoldings, ...]]:
        """Sets of arrays to make of lookup tables, out of those that multiply most."""
        arrays = [array for stage in self.arrays for array in stage]
        large = sorted(arrays, key=lambda array: -array.products)[:LARGE_ARRAYS]
        large = [array for array in large if Backend.LUT in array.backends]
        for count in range(len(large) + 1):
            yield from itertools.combinations(large, count)

    def smallest(self) -> Folding:
        """Whatever takes fewest block RAMs, at any pace."""
        slowest = 1 << 40
        found = self.fold([slowest] * len(self.arrays), Prices(dsp=0.01, bram=1.0, lut=1e-5))
        assert found is not None
        return Folding(max_width=self.max_width, stages=found[1])

    def least_cycles(self) -> int:
        """No pace below this is of use: half the multiplications of the largest array with all
        that a large device could hold."""
        return max(a.products for arrays in self.arrays for a in arrays) // 4096

    def most_cycles(self) -> int:
        """With one multiplier per array; of small frames, more than that."""
        return max(1, self.least_cycles()) * 4096 * 2


def _undominated(needs: npt.NDArray[np.float64], lanes: npt.NDArray[np.int64]) -> list[int]:
    """Rows of ``needs`` that no other row with as many lanes undercuts, at whatever prices."""
    less = (needs[:, None, :] <= needs[None, :, :]).all(axis=2)
    less &= lanes[:, None] == lanes[None, :]
    # Of equal ones the first stays.
    first = np.triu(np.ones_like(less), 1)
    return np.flatnonzero(~(less & (~less.T | first)).any(axis=0)).tolist()


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


def fits(resources: Resources, budget: Resources) -> bool:
    """Whether a budget holds the resources."""
    return not budget.overruns(resources)


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
    multiple = transform.downsampling
    if max_width is not None:
        if max_width < multiple or max_width % multiple:
            raise UserError(f"the width must be a multiple of {multiple}, not {max_width}.")
        widths = [max_width]
    else:
        widths = tile_widths(transform, frame=frame)
    have = budget
    if multipliers is not None:
        have = replace(budget, dsp=min(budget.dsp, multipliers))
    backends = BACKENDS if multipliers is None else BACKENDS[:2]
    best: Plan | None = None
    searches = []
    for width in widths:
        try:
            transform.sizes(frame[0], width)
            tiles(transform, frame[1], width)
        except ValueError as error:
            raise UserError(f"{error}.") from None
        search = _Search(transform, width, backends, frame=frame, device=device)
        searches.append(search)
        found = _fastest(search, have, best)
        if found is not None and (best is None or found.cycles_per_frame < best.cycles_per_frame):
            best = found
    if best is None and max_width is None:
        # Narrow tiles waste much of the work on halos, but their rows need little memory.
        for width in tile_widths(transform, TILE_COUNTS_MOST, frame)[TILE_COUNTS:]:
            search = _Search(transform, width, backends, frame=frame, device=device)
            searches.append(search)
            found = _fastest(search, have, best)
            if found is not None and (
                best is None or found.cycles_per_frame < best.cycles_per_frame
            ):
                best = found
            elif best is not None:  # memory no longer counts for more than halos
                break
    return best or evaluate(transform, _nearest(searches[-1], have), frame, device=device)


def _nearest(search: _Search, budget: Resources) -> Folding:
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


def _fastest(search: _Search, budget: Resources, best: Plan | None) -> Plan | None:
    """The fastest plan of one tile width, if it can beat the best so far."""
    stages = len(search.arrays)
    low, high = search.least_cycles(), search.most_cycles()
    share = 1.0
    if best is not None:
        # Tiles and halos stretch the work by this much; no use in slower paces than the best's.
        cut = tiles(search.transform, search.frame[1], search.max_width)
        share = sum(tile.stop - tile.start for tile in cut) / search.max_width
        high = min(high, int(best.cycles_per_frame / share))
    found = search.reach([high] * stages, budget)
    if found is None:
        return None
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        faster = search.reach([middle] * stages, budget)
        if faster is None:
            low = middle
        else:
            found, high = faster, middle
    options = [search.reach([high] * stages, budget, thorough=True) or found]
    # A stage starts when the one before has made some rows: what stands further down must be
    # faster than the slowest to end soon after it.
    for lead in LEADS[1:]:
        limits = [int(high * (1 - lead * k / max(1, stages - 1))) for k in range(stages)]
        staggered = search.reach(limits, budget, thorough=True)
        if staggered is not None and staggered not in options:
            options.append(staggered)
    plans = [
        evaluate(search.transform, folding, search.frame, device=search.device)
        for folding in options
    ]
    return min(plans, key=lambda plan: plan.cycles_per_frame)


__all__ = ["PHOTO", "Plan", "evaluate", "fits", "frame_cycles", "plan", "tile_widths"]
