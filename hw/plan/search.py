# amaranth: UnusedElaboratable=no
"""The search of the planner: foldings of least cost under a pace, within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lichen.hw.device.device import Device, Resources
from lichen.hw.engine.element import Backend
from lichen.hw.engine.gate import GATE_RESOURCES
from lichen.hw.engine.regroup import regroup_resources
from lichen.hw.plan.arrays import ArrayFoldings
from lichen.hw.plan.prices import Prices
from lichen.hw.plan.signature import signature
from lichen.hw.plan.tiling import tiles
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding, divides
from lichen.hw.stage.kinds import units_of
from lichen.network.description import PHOTO, Transform

CHAINS = (1, 2, 4)
"""Channels per beat that are tried."""

BACKENDS = (Backend.DSP, Backend.PACKED, Backend.LUT)
"""Back-ends that are tried."""

PRICE_ROUNDS = 6
"""How often prices are adjusted before another choice of back-ends is tried."""

LARGE_ARRAYS = 4
"""Arrays for which lookup tables are tried as a matter of choice, not of price."""

MOSTLY_BLOCKS = Prices(dsp=0.01, bram=1.0, lut=1e-5)
"""Prices at which the cheapest takes few block RAMs."""

SLACK = 0.01
"""By how much the cheapest that is found may miss the cheapest that there is."""


def fits(resources: Resources, budget: Resources) -> bool:
    """Whether a budget holds the resources."""
    return not budget.overruns(resources)


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


@dataclass(frozen=True)
class Part:
    """One of the pipelines that share a budget.

    Attributes
    ----------
    transform : Transform
    max_width : int
        Widest frame, or tile, in columns of its input.
    frame : (int, int)
        Height and width of what it reads of an image (`Network.frames`).
    """

    transform: Transform
    max_width: int
    frame: tuple[int, int] = PHOTO

    @property
    def stretch(self) -> float:
        """Columns computed of a frame, halos included, for every column of a tile."""
        cut = tiles(self.transform, self.frame[1], self.max_width)
        return sum(tile.stop - tile.start for tile in cut) / self.max_width


class Search:
    """Foldings of least cost under a pace, for given widths of tiles.

    Parameters
    ----------
    parts : sequence of Part
        Pipelines that share what there is.
    backends : tuple of Backend
    known : Known or None
    device : Device
    tight : bool
        With windows that have as few row slots as can be: fewer block RAMs, and some cycles more
        than the paces of arrays tell.

    Attributes
    ----------
    arrays : list of lists of ArrayFoldings
        By stage, those of one part after those of another.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        backends: tuple[Backend, ...],
        known: Known | None = None,
        *,
        device: Device,
        tight: bool = False,
    ):
        self.parts, self.device = tuple(parts), device
        self.arrays: list[list[ArrayFoldings]] = []
        self._keeps_tables = known is not None
        known = Known() if known is None else known
        self._signatures: list[Hashable] = []
        self._first_stages: list[int] = []
        for part in self.parts:
            self._first_stages.append(len(self.arrays))
            transform = part.transform
            sizes = transform.sizes(part.frame[0], part.max_width)
            for stage, source, before, size in zip(
                transform.stages, transform.sources, sizes, sizes[1:], strict=False
            ):
                key = (signature(stage, source), size, before[1], backends, device, tight)
                if key not in known.stages:
                    known.stages[key] = [
                        ArrayFoldings(kind, size, before[1], backends, device, tight=tight)
                        for kind in units_of(stage, source)
                    ]
                self._signatures.append(key)
                self.arrays.append(known.stages[key])
        # Of this pace, by stage: foldings that were cheapest at some prices, with the lanes that
        # they take in and what they need.
        self._seen: list[dict[StageFolding, tuple[int, Resources]]] = [{} for _ in self.arrays]
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
        start = (0.0, Resources(), list[StageFolding]())
        paths: dict[int | None, tuple[float, Resources, list[StageFolding]]] = {None: start}
        for number, arrays in enumerate(self.arrays):
            if number in self._first_stages:  # of another pipeline: nothing ties them
                cost, used, path = min(paths.values(), key=lambda p: p[0])
                paths = {None: (cost, used + GATE_RESOURCES, path)}
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
                    own = arrays[0].cost(conv, chains) + post
                    need = own + regroup
                    total = cost + prices.of(need)
                    if chains not in extended or total < extended[chains][0]:
                        folded = {"chains": chains, arrays[0].kind.slot: conv, **later}
                        stage = StageFolding.model_validate(folded)
                        extended[chains] = (total, used + need, [*path, stage])
                        self._seen[number][stage] = (conv.lanes, own)
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
            kept = undominated(needs, np.array([f.lanes for f in foldings]))
            self._tables[key] = [foldings[i] for i in kept], needs[kept]
        foldings, needs = self._tables[key]
        found = needs @ (prices.dsp, prices.bram, prices.lut)
        best: dict[int, tuple[float, ArrayFolding]] = {}
        for i in np.argsort(found, kind="stable").tolist():
            best.setdefault(foldings[i].lanes, (float(found[i]), foldings[i]))
        return list(best.values())

    def reach(
        self, limits: list[int], budget: Resources, *, thorough: bool = False
    ) -> list[Folding] | None:
        """Foldings of the parts within budget whose arrays keep to ``limits``, or None.

        The first ones found, or ``thorough`` those with fewest lookup tables.
        """
        best: tuple[int, list[Folding]] | None = None
        # Prices alone tip an array from one kind of multiplier to the other as a whole, and
        # two large arrays often together: so it is decided beforehand which of the large ones
        # are made of lookup tables.
        if not self._keeps_tables:
            self._tables.clear()
        for seen in self._seen:
            seen.clear()
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
                        best = used.lut, self._parted(stages)
                    if not thorough:
                        self._worked = of_luts
                        return best[1]
                    break
                prices = prices.adjusted(used, budget)
        return self._mixed(budget) if best is None else best[1]

    def _mixed(self, budget: Resources) -> list[Folding] | None:
        """The cheapest foldings within budget whose stages were each the cheapest at some prices,
        if not at the same; None where there are none.

        At any one prices all that is chosen lies on the convex hull of what there is, and the best
        that fits often does not.
        """
        paths: dict[int | None, list[_Path]] = {None: [_Path(Resources(), ())]}
        for number, seen in enumerate(self._seen):
            if number in self._first_stages:
                every = [path for found in paths.values() for path in found]
                paths = {None: _undominated([p.through(GATE_RESOURCES) for p in every], budget)}
            extended: dict[int | None, list[_Path]] = {}
            for stage, (lanes, own) in seen.items():
                for before, found in paths.items():
                    if before is not None and not divides(before, lanes):
                        continue
                    need = own + regroup_resources(before or lanes, lanes)
                    extended.setdefault(stage.chains, []).extend(
                        path.through(need, stage) for path in found
                    )
            paths = {chains: _undominated(found, budget) for chains, found in extended.items()}
        ends = [path for found in paths.values() for path in found]
        if not ends:
            return None
        prices = Prices.start(budget)
        return self._parted(list(min(ends, key=lambda path: prices.of(path.used)).stages))

    def _choices(self) -> Iterator[tuple[ArrayFoldings, ...]]:
        """Sets of arrays to make of lookup tables, out of those that multiply most."""
        arrays = [array for stage in self.arrays for array in stage]
        large = sorted(arrays, key=lambda array: -array.products)[:LARGE_ARRAYS]
        large = [array for array in large if Backend.LUT in array.backends]
        for count in range(len(large) + 1):
            yield from itertools.combinations(large, count)

    def _parted(self, stages: list[StageFolding]) -> list[Folding]:
        """The foldings of the parts."""
        ends = [*self._first_stages[1:], len(stages)]
        return [
            Folding(max_width=part.max_width, stages=stages[begin:end])
            for part, begin, end in zip(self.parts, self._first_stages, ends, strict=True)
        ]

    def limits(self, pace: int, lead: float = 0.0) -> list[int]:
        """Cycles that the arrays may take, by stage, for all parts to take equally long.

        ``pace`` are those of the first part's tile; the last stage of each part is to be faster by
        ``lead``, those between them by less.
        """
        found = []
        for part in self.parts:
            stages = len(part.transform.stages)
            own = pace * (self.parts[0].stretch / part.stretch)
            found += [int(own * (1 - lead * k / max(1, stages - 1))) for k in range(stages)]
        return found

    def _smallest(self) -> tuple[Resources, list[StageFolding]]:
        slowest = 1 << 40
        found = self.fold([slowest] * len(self.arrays), MOSTLY_BLOCKS)
        assert found is not None
        return found

    def smallest(self) -> list[Folding]:
        """Whatever takes fewest block RAMs, at any pace."""
        return self._parted(self._smallest()[1])

    def may_fit(self, budget: Resources) -> bool:
        """Whether anything could fit: what does is no dearer than the budget, at any prices."""
        return MOSTLY_BLOCKS.of(self._smallest()[0]) <= (1 + SLACK) * MOSTLY_BLOCKS.of(budget)

    def least_cycles(self) -> int:
        """No pace below this is of use: half the multiplications of the largest array with all
        that a large device could hold."""
        return max(a.products for arrays in self.arrays for a in arrays) // 4096

    def most_cycles(self) -> int:
        """With one multiplier per array; of small frames, more than that."""
        return max(1, self.least_cycles()) * 4096 * 2


@dataclass(frozen=True)
class _Path:
    """Foldings of the first stages, and what they need."""

    used: Resources
    stages: tuple[StageFolding, ...]

    def through(self, need: Resources, *stage: StageFolding) -> _Path:
        """This one and what comes next."""
        return _Path(self.used + need, (*self.stages, *stage))


def _undominated(paths: list[_Path], budget: Resources) -> list[_Path]:
    """Those within budget that none undercuts in everything."""
    kept: list[_Path] = []
    front: list[tuple[int, int]] = []  # block RAMs and lookup tables, of fewer multipliers
    for path in sorted(paths, key=lambda path: (path.used.dsp, path.used.bram, path.used.lut)):
        used = path.used
        if not fits(used, budget) or any(b <= used.bram and n <= used.lut for b, n in front):
            continue
        front = [(b, n) for b, n in front if b < used.bram or n < used.lut]
        front.append((used.bram, used.lut))
        kept.append(path)
    return kept


def undominated(needs: npt.NDArray[np.float64], lanes: npt.NDArray[np.int64]) -> list[int]:
    """Rows of ``needs`` that no other row with as many lanes undercuts, at whatever prices."""
    less = (needs[:, None, :] <= needs[None, :, :]).all(axis=2)
    less &= lanes[:, None] == lanes[None, :]
    # Of equal ones the first stays.
    first = np.triu(np.ones_like(less), 1)
    return np.flatnonzero(~(less & (~less.T | first)).any(axis=0)).tolist()
