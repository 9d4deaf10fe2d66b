"""All cells of a netlist placed globally, and the places of its macros chosen with them.

Wires pull, crowds push (see `density`), paths that take long pull harder; what the macros'
neighbours want is then an assignment problem with exact costs, solved over and over while the
logic settles around them. nextpnr's placers have no such step: they move a macro to a free place
near where it wants to be, one after the other, and the last ones go far.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from lichen.boards.ecp5.floorplan import kernels
from lichen.boards.ecp5.floorplan.density import Crowd, Grid
from lichen.boards.ecp5.floorplan.fabric import Fabric, Places
from lichen.boards.ecp5.floorplan.netlist import (
    FLIP_FLOPS,
    LOGIC_AREA,
    MEMORIES,
    MULTIPLIERS,
    Netlist,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SLOTS = 8
"""Lookup tables of a tile, and flip-flops."""

MACRO_BIN = (9.0, 12.0)
"""Tiles after which the columns and the rows of macros repeat, on every ECP5."""

WIRE_NS, WIRE_NS_PER_TILE = 0.35, 0.065
"""A routed wire, and what each tile adds; from nextpnr's timing reports, speed grade 6."""

UNIT = 64
"""Positions are whole numbers of this part of a tile where macros are assigned."""

WEIGHT_UNIT = 16
"""Weights are whole numbers of this part of a wire's there."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to try, and how much timing counts.

    Attributes
    ----------
    spread : int
        Steps in which everything moves, at most.
    settle : int
        Steps in which logic settles around the macros.
    rounds : int
        How often that is done.
    growth : float
        By which crowds push harder after each step.
    excess : float
        Share of the area in overfull bins at which spreading ends.
    timing : float
        Weight of a path that takes as long as it may, in wires.
    """

    spread: int = 1200
    settle: int = 80
    rounds: int = 4
    growth: float = 1.025
    excess: float = 0.1
    timing: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A run of steps.

    Attributes
    ----------
    steps : int
        At most; fewer once every crowd's excess is below ``excess``.
    smoothing, stride : (float, float)
        At the beginning and at the end, in tiles.
    excess : float
        Share of the area in overfull bins at which crowds are thin enough.
    growth : float
        Factor on the pressure of a crowd that is not, after each step.
    timing_after : int
        Step from which on paths count.
    logic_only : bool
        Whether macros stand still.
    """

    steps: int
    smoothing: tuple[float, float]
    stride: tuple[float, float]
    excess: float = 0.0
    growth: float = 1.0
    timing_after: int = 0
    logic_only: bool = False


@dataclass(kw_only=True)
class Springs:
    """Wires of long paths, as nets of two cells with weights."""

    pointer: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    members: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    weight: Floats = field(default_factory=lambda: np.zeros(0))


class Placement:
    """Positions of all cells, and the steps that improve them.

    Parameters
    ----------
    netlist : Netlist
    fabric : Fabric
    pads : dict
        Column and row of the cells that stand still.
    period_ns : float
        What paths should stay below.
    seed : int
        Of the start.
    effort : Effort
    """

    def __init__(
        self,
        netlist: Netlist,
        fabric: Fabric,
        *,
        pads: dict[int, tuple[int, int]],
        period_ns: float,
        seed: int,
        effort: Effort | None = None,
    ):
        self.netlist = netlist
        self.fabric = fabric
        self.period_ns = period_ns
        self.effort = effort or Effort()
        self._random = random.Random(seed)
        self.macros = [
            (netlist.of(MEMORIES), fabric.memories),
            (netlist.of(MULTIPLIERS), fabric.multipliers),
        ]
        self.chosen = [np.zeros(0, np.int64) for _ in self.macros]
        self._place_crowds()
        self._still = np.zeros(len(self.x), bool)
        for cell, (x, y) in pads.items():
            self.x[cell], self.y[cell] = x + 0.5, y + 0.5
            self._still[cell] = True
        self._weight = np.ones(len(netlist.pointer) - 1)
        self._springs = Springs()
        # With which each crowd pushes; None until there is a pull to compare with.
        self._pressure: list[float | None] = [None] * len(self.crowds)

    def _draw(self, count: int) -> Floats:
        """Numbers from 0 to 1, the same for a seed with every version of Python."""
        return np.array([self._random.random() for _ in range(count)])

    def _place_crowds(self) -> None:
        netlist, fabric = self.netlist, self.fabric
        cells = len(netlist.names)
        area = np.zeros(cells)
        for kind, slots in LOGIC_AREA.items():
            area[netlist.of((kind,))] = slots / SLOTS
        area[netlist.of(FLIP_FLOPS)] = 1 / SLOTS
        kinds = [
            (netlist.of(LOGIC_AREA), (fabric.logic_x, fabric.logic_y), (1.0, 1.0)),
            (netlist.of(FLIP_FLOPS), (fabric.logic_x, fabric.logic_y), (1.0, 1.0)),
        ]
        for members, places in self.macros:
            area[members] = 1.0
            kinds.append((members, (places.x, places.y), MACRO_BIN))
        x = [(0.5 + 0.02 * (self._draw(cells) - 0.5)) * fabric.width]
        y = [(0.5 + 0.02 * (self._draw(cells) - 0.5)) * fabric.height]
        crowds, areas, first = [], [area], cells
        for members, (place_x, place_y), bins in kinds:
            free = max(0, len(place_x) - int(np.ceil(kernels.size(area, members))))
            taken = np.argsort(self._draw(len(place_x)), kind="stable")[:free]
            x.append(place_x[taken] + 0.5)
            y.append(place_y[taken] + 0.5)
            areas.append(np.ones(free))
            crowds.append((members, np.arange(first, first + free), place_x, place_y, bins))
            first += free
        self.x, self.y = np.concatenate(x), np.concatenate(y)
        self.area = np.concatenate(areas)
        grids = {bins: Grid.over(fabric.width, fabric.height, *bins) for *_, bins in kinds}
        self.crowds = [
            Crowd.of(
                cells=members,
                fillers=fillers,
                area=self.area,
                grid=grids[bins],
                place_x=place_x + 0.5,
                place_y=place_y + 0.5,
            )
            for members, fillers, place_x, place_y, bins in crowds
        ]

    def wire_length(self) -> float:
        """Half perimeters of all nets, in tiles."""
        return kernels.half_perimeter(self.netlist.pointer, self.netlist.members, self.x, self.y)

    def path_lengths(self) -> Floats:
        """The longest path through every edge of the timing graph, in nanoseconds."""
        paths = self.netlist.paths
        away = abs(self.x[paths.source] - self.x[paths.sink]) + abs(
            self.y[paths.source] - self.y[paths.sink]
        )
        wire = np.where(paths.routed, WIRE_NS + WIRE_NS_PER_TILE * away, 0.0)
        return kernels.path_lengths(
            paths.source, paths.sink, wire, paths.through_ns, paths.ends, paths.launch_ns
        )

    def _tighten(self) -> None:
        """Springs for the wires of the paths that take longest."""
        paths = self.netlist.paths
        late = _late(self.path_lengths(), self.period_ns)
        weight = np.where(paths.routed, self.effort.timing * late * late, 0.0)
        edges = np.flatnonzero(weight > 0.05)
        if len(edges) > SPRINGS:
            edges = np.sort(edges[np.argsort(-weight[edges], kind="stable")[:SPRINGS]])
        self._springs = Springs(
            pointer=2 * np.arange(len(edges) + 1, dtype=np.int64),
            members=np.stack([paths.source[edges], paths.sink[edges]], axis=1).ravel(),
            weight=weight[edges],
        )

    def descend(self, phase: Phase) -> None:
        """Adam on the wires' smooth length and the crowds' energy."""
        moves = ~self._still
        crowds = self.crowds[: len(self.crowds) - len(self.macros) * phase.logic_only]
        adam = [_Adam(len(self.x)) for _ in range(2)]
        limits = (self.fabric.width - 0.5, self.fabric.height - 0.5)
        for step in range(phase.steps):
            share = step / max(phase.steps - 1, 1)
            if self.effort.timing and step >= phase.timing_after and step % RETIME == 0:
                self._tighten()
            gradients = self._pulls(_between(phase.smoothing, share))
            worst = self._pushes(crowds, gradients, phase)
            stride = _between(phase.stride, share)
            for axis, at in enumerate((self.x, self.y)):
                at -= np.where(moves, stride * adam[axis].direction(gradients[axis]), 0.0)
                np.clip(at, 0.5, limits[axis], out=at)
            if worst < phase.excess and step > phase.steps // 2:
                break

    def _pulls(self, smoothing: float) -> list[Floats]:
        """Gradients along x and y of the length of nets and springs."""
        netlist, springs = self.netlist, self._springs
        found = []
        for at in (self.x, self.y):
            gradient = np.zeros(len(at))
            kernels.pull(netlist.pointer, netlist.members, self._weight, at, smoothing, gradient)
            if len(springs.weight):
                kernels.pull(
                    springs.pointer, springs.members, springs.weight, at, smoothing, gradient
                )
            found.append(gradient)
        return found

    def _pushes(self, crowds: list[Crowd], gradients: list[Floats], phase: Phase) -> float:
        """Add the crowds' forces to the gradients; returns the largest excess of a crowd."""
        worst = 0.0
        for index, crowd in enumerate(crowds):
            *force, over = crowd.force(self.x, self.y, self.area)
            worst = max(worst, over)
            pressure = self._pressure[index]
            if pressure is None:
                pull = sum(kernels.size(one, crowd.cells) for one in gradients)
                push = sum(kernels.size(one, crowd.cells) for one in force)
                pressure = PRESSURE * pull / max(push, 1e-9)
            for gradient, one in zip(gradients, force, strict=True):
                gradient += pressure * one
            dense = over > phase.excess / 2
            self._pressure[index] = pressure * phase.growth if dense else pressure
        return worst

    def run(self) -> None:
        """The whole of it: spread, assign, settle."""
        effort = self.effort
        self.descend(
            Phase(
                steps=effort.spread,
                smoothing=(8.0, 0.6),
                stride=(1.0, 1 / 3),
                excess=effort.excess,
                growth=effort.growth,
                timing_after=effort.spread // 4,
            )
        )
        self.assign()
        for cells, _ in self.macros:
            self._still[cells] = True
        settle = Phase(
            steps=effort.settle, smoothing=(1.0, 0.6), stride=(1 / 3, 1 / 6), logic_only=True
        )
        for _ in range(effort.rounds):
            self.descend(settle)
            self.reassign(10)
        self.descend(replace(settle, stride=(1 / 4, 1 / 8)))

    def assign(self) -> None:
        """Give every macro a place: the nearest ones first, then those with the shortest wires."""
        for index, (cells, places) in enumerate(self.macros):
            # The square keeps one macro from going far for the sake of several others.
            away = abs(_whole(self.x[cells])[:, None] - _middles(places.x)) + abs(
                _whole(self.y[cells])[:, None] - _middles(places.y)
            )
            self.chosen[index] = linear_sum_assignment((away * away).astype(np.float64))[1]
            self._stand(index)
        self.reassign(6)

    def _stand(self, index: int) -> None:
        cells, places = self.macros[index]
        self.x[cells] = places.x[self.chosen[index]] + 0.5
        self.y[cells] = places.y[self.chosen[index]] + 0.5

    def reassign(self, rounds: int) -> None:
        """Choose places again by what the wires would cost, half of the macros at a time."""
        nets = _Wires.of(self.netlist, self._springs)
        x, y = _whole(self.x), _whole(self.y)
        for round_ in range(rounds):
            for index, (cells, places) in enumerate(self.macros):
                if not len(cells):
                    continue
                count = len(cells) if round_ == 0 else max(min(8, len(cells)), len(cells) // 2)
                some = np.sort(np.argsort(self._draw(len(cells)), kind="stable")[:count])
                taken = np.delete(self.chosen[index], some)
                free = np.setdiff1d(np.arange(len(places)), taken)
                before = self.chosen[index][some]
                gain = nets.change(cells[some], before, places, free, x, y)
                if gain is not None:
                    self.chosen[index][some] = gain
        for index in range(len(self.macros)):
            self._stand(index)


def _late(length_ns: Floats, period_ns: float) -> Floats:
    """0 for paths that have time, 1 for those that take a period, 2 at most."""
    return np.clip((length_ns / period_ns - SLACK) / (1 - SLACK), 0.0, 2.0)


def lateness(placement: Placement) -> float:
    """How late paths are, by estimate: squares, summed over all cells' inputs where paths end."""
    paths = placement.netlist.paths
    late = _late(placement.path_lengths()[paths.ends], placement.period_ns)
    # In a fixed order.
    return float(np.cumsum(late * late)[-1]) if len(late) else 0.0


SLACK = 0.7
"""Share of a period from which a path counts as long: the estimate knows no detours."""

SPRINGS = 20000
"""Wires that count for timing at a time, at most."""

RETIME = 25
"""Steps after which paths are looked at again."""

PRESSURE = 1e-3
"""With which crowds begin to push, as a share of the wires' pull."""

MOMENTUM, MOMENTUM_2 = 0.9, 0.99
"""Adam's."""


class _Adam:
    """Directions from gradients, one axis (Kingma and Ba, "Adam", 2015)."""

    def __init__(self, cells: int):
        self._first, self._second = np.zeros(cells), np.zeros(cells)
        self._fade = (1.0, 1.0)

    def direction(self, gradient: Floats) -> Floats:
        """Against it the cells should move, by about one."""
        self._first += (1 - MOMENTUM) * (gradient - self._first)
        self._second += (1 - MOMENTUM_2) * (gradient * gradient - self._second)
        self._fade = (self._fade[0] * MOMENTUM, self._fade[1] * MOMENTUM_2)
        root = np.sqrt(self._second / (1 - self._fade[1]))
        return self._first / (1 - self._fade[0]) / (root + 1e-6)


def _between(ends: tuple[float, float], share: float) -> float:
    """From the first to the second, in equal steps of the root: fast first, slow at the end."""
    root = math.sqrt(ends[0])
    at = root + (math.sqrt(ends[1]) - root) * share
    return at * at


def _whole(at: Floats) -> Ints:
    return np.rint(at * UNIT).astype(np.int64)


def _middles(tiles: Ints) -> Ints:
    return tiles * UNIT + UNIT // 2


@dataclass(frozen=True, kw_only=True)
class _Wires:
    """Nets and springs together, with whole weights, and which of them touch each cell."""

    pointer: Ints
    members: Ints
    weight: Ints
    nets_from: Ints
    nets: Ints

    @classmethod
    def of(cls, netlist: Netlist, springs: Springs) -> _Wires:
        pointer = np.concatenate([netlist.pointer, netlist.pointer[-1] + springs.pointer[1:]])
        members = np.concatenate([netlist.members, springs.members])
        weight = np.concatenate(
            [
                np.full(len(netlist.pointer) - 1, WEIGHT_UNIT),
                np.rint(springs.weight * WEIGHT_UNIT).astype(np.int64),
            ]
        )
        order = np.argsort(members, kind="stable")
        counts = np.bincount(members, minlength=len(netlist.names))
        return cls(
            pointer=pointer,
            members=members,
            weight=weight,
            nets_from=np.concatenate([[0], np.cumsum(counts)]),
            nets=np.repeat(np.arange(len(weight)), np.diff(pointer))[order],
        )

    def change(
        self, cells: Ints, before: Ints, places: Places, free: Ints, x: Ints, y: Ints
    ) -> Ints | None:
        """Better places for ``cells`` among the ``free`` ones, or None.

        ``x`` and ``y`` follow. The cost of each cell is exact while the others stand still, so an
        assignment of many may make things worse, and is then not kept.
        """
        lists = [self.nets[self.nets_from[i] : self.nets_from[i + 1]] for i in cells]
        touched = np.unique(np.concatenate(lists))
        was = kernels.whole_cost(self.pointer, self.members, self.weight, touched, x, y)
        place_x, place_y = _middles(places.x), _middles(places.y)
        cost = kernels.place_costs(
            self.pointer,
            self.members,
            self.weight,
            np.concatenate([[0], np.cumsum([len(one) for one in lists])]),
            np.concatenate(lists),
            cells,
            x,
            y,
            place_x[free],
            place_y[free],
        )
        # Whole numbers below 2**53: the assignment is exact in floats.
        after = free[linear_sum_assignment(cost.astype(np.float64))[1]]
        x[cells], y[cells] = place_x[after], place_y[after]
        if kernels.whole_cost(self.pointer, self.members, self.weight, touched, x, y) <= was:
            return after
        x[cells], y[cells] = place_x[before], place_y[before]
        return None
