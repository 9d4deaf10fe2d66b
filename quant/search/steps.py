"""The steps of a search: which changes are worth measuring, and which of those measured is made."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lichen.network.description import PHOTO
from lichen.quant.calibration.options import (
    WIDTHS_MAX,
    Widths,
    bits_of,
)
from lichen.quant.search.costs import Cost
from lichen.quant.search.executors import Executor
from lichen.quant.search.state import (
    SearchOptions,
    State,
)
from lichen.quant.search.trial import RD, Change, Move, Problem, Trial

JUMP = 3
"""Most bits that a step takes away at once: a packing may begin only there."""

BATCHES = 3
"""Times that a step measures a batch of changes before it takes the best of them."""

SWEEP = 4
"""Batches of changes measured before the search ends, though they seem to lose too much."""

FREE = 1e-9
"""Relative difference of two costs that counts as none."""

LEAST_LOSS = 1e-5
"""Losses below this share of the start's rate count as so much, or a gain would divide by zero."""

BARGAIN = 1.5
"""Bits are bought where they win so many times what it seems to lose to save as much elsewhere."""

LEAST_GAIN = 5e-4
"""Share of the start's rate that bits which cost nothing must win to be given."""


class Steps(ABC):
    """What a search does next, whatever it is made of.

    Attributes
    ----------
    options : SearchOptions
    state : State
    cost : Cost
    executor : Executor
    watch : callable
        Called with a phrase and the number of changes tried since the last call.
    """

    options: SearchOptions
    state: State
    cost: Cost
    executor: Executor
    watch: Callable[[str, int], None]

    @abstractmethod
    def _problem(self) -> Problem:
        """What changes are measured on."""

    @abstractmethod
    def _tune(self) -> None:
        """A round of fine-tuning."""

    def knobs(self) -> list[tuple[str, str]]:
        """Stages, and what of them may change, in order."""
        return self._knobs(self.cost.kinds)

    def _knobs(self, of: Sequence[str]) -> list[tuple[str, str]]:
        kinds = [k for k in of if not self.options.kinds or k in self.options.kinds]
        result = []
        for key in self.cost.transforms:
            transform = self.state.start.transforms[key]
            for stage in transform.stages:
                layer = f"{key}.{stage.name}"
                if self.options.layers and layer not in self.options.layers:
                    continue
                for kind in kinds:
                    fixed = kind == "activation" and stage is transform.stages[-1]
                    lacks = kind in ("gamma", "u", "gdn_input") and stage.normalization is None
                    if not fixed and not lacks:
                        result.append((layer, kind))
        return result

    def _allowed(self, bits: int) -> bool:
        return not self.options.among or bits in self.options.among

    def _lesser(self, bits: int, *, far: bool = False) -> list[int]:
        """Fewer bits than these that a step may leave, most first; ``far``: of any length."""
        allowed = [b for b in range(self.options.least, bits) if self._allowed(b)]
        return [b for b in reversed(allowed) if far or b >= min(bits - JUMP, max(allowed))]

    def loss(self, rd: RD) -> float:
        """Above the start, as a share of its rate."""
        first = self.state.first
        return (rd.loss - first.loss) / first.bpp if math.isfinite(first.bpp) else 0.0

    def step(self) -> None:
        """One step: bits given that cannot cost anything, else bought if the loss is to be lower,
        else taken away, else given back for free, else bought where they are worth more than those
        that could be taken, else exchanged, else whatever only seemed to lose too much, else
        fine-tuning, else the end."""
        s = self.state
        tuning = self.options.tune is not None
        if tuning and s.since >= self.options.tune_every:
            self._tune()
            return
        if not s.slopes:
            self._survey()
        kinds = self.cost.kinds
        if (
            self._raise(self.cost.free)
            or (self._room < 0 and self._buy())
            or self._lower()
            or self._raise(kinds)
            or self._buy()
            or self._exchange()
            or self._sweep()
        ):
            return
        if tuning and s.since:
            self._tune()
            return
        s.ended = "loss"

    def _try(self, moves: Sequence[Move]) -> list[Trial]:
        """Measure moves; what single changes say about their knobs is remembered."""
        s, trials = self.state, []
        widths = bits_of(s.network)
        for trial in self.executor.trials(self._problem(), s.network, moves):
            if trial.network is not None and len(trial.move) == 1:
                (change,) = trial.move
                before = getattr(widths[change.layer], change.what)
                lost = trial.rd.loss - s.now.loss
                s.slopes[f"{change.layer}.{change.what}"] = lost / _noise(change.bits, before)
            trials.append(trial)
            s.trials += 1
            self.watch(", ".join(f"{c.layer} {c.what} {c.bits}" for c in trial.move), 1)
        return trials

    def _survey(self) -> None:
        """Try the next fewer bits of everything."""
        widths = bits_of(self.state.network)
        moves: list[Move] = []
        for layer, what in self._knobs((*self.cost.kinds, *self.cost.free)):
            lesser = self._lesser(getattr(widths[layer], what))
            if lesser:
                moves.append((Change(layer, what, lesser[0]),))
        trials = self._try(moves)
        told = [self._told(trial) for trial in trials]
        self.state.log.append(self._entry("survey", None) | {"tried": told})

    def _greater(self, bits: int, what: str) -> int | None:
        """The next more bits than these, None where there are no more."""
        more = range(bits + 1, WIDTHS_MAX[what] + 1)
        return next((b for b in more if self._allowed(b)), None)

    @property
    def _room(self) -> float:
        """How much more R + lambda D may be lost."""
        s = self.state
        return s.first.loss + self.options.max_loss * s.first.bpp - s.now.loss

    def _lower(self) -> bool:
        """Take bits away where most is saved per loss; False when nothing may go."""
        widths = bits_of(self.state.network)
        worth = self._lower_moves(widths, self.cost(widths))

        def estimate(move: Move) -> float:
            # going by its knob's last trial
            slope = self.state.slopes.get(f"{move[0].layer}.{move[0].what}", 0.0)
            return slope * worth[move][1]

        saved = {move: saving for move, (saving, _) in worth.items()}
        return self._best_of("lower", saved, estimate, sure=True)

    def _lower_moves(
        self, widths: Mapping[str, Widths], cost: float, *, far: bool = False
    ) -> dict[Move, tuple[float, float]]:
        """Changes that take bits away from ``widths`` and come below ``cost``, with what each saves
        of it and how much noise it adds."""
        moves: dict[Move, tuple[float, float]] = {}
        kept = {*self.state.raised, *self.state.bought}
        for layer, what in self.knobs():
            if f"{layer}.{what}" in kept:
                continue
            bits, lowest = getattr(widths[layer], what), cost
            for b in self._lesser(bits, far=far):
                change = Change(layer, what, b)
                then = self.cost(change.apply(widths))
                if then < lowest * (1 - FREE):
                    moves[(change,)] = cost - then, _noise(b, bits)
                    lowest = then
        return moves

    def _exchange(self) -> bool:
        """Give bits in one place to take more in another; False when nothing is won.

        Single steps end where the next one would lose too much, or where what was taken first
        is in the way of something better. And some places are worth more bits than the start's.
        """
        widths = bits_of(self.state.network)
        saved, losses = self._exchanges(widths, self.cost(widths))
        return self._best_of("exchange", saved, losses.__getitem__)

    def _exchanges(
        self, widths: Mapping[str, Widths], cost: float, *, far: bool = False
    ) -> tuple[dict[Move, float], dict[Move, float]]:
        """One more width here and fewer bits there, below ``cost``: what each saves of it, and what
        it seems to lose."""
        slopes = self.state.slopes
        saved: dict[Move, float] = {}
        losses: dict[Move, float] = {}
        for layer, what in self.knobs():
            bits = getattr(widths[layer], what)
            more = self._greater(bits, what)
            if more is None:
                continue
            back = Change(layer, what, more)
            between = back.apply(widths)
            won = slopes.get(f"{layer}.{what}", 0.0) * _noise(bits, more)
            for (change,), (saving, noise) in self._lower_moves(between, cost, far=far).items():
                if (change.layer, change.what) != (layer, what):
                    lost = slopes.get(f"{change.layer}.{change.what}", 0.0) * noise
                    saved[back, change] = saving
                    losses[back, change] = lost - won
        return saved, losses

    def _sweep(self) -> bool:
        """Measure what estimates have ruled out, and steps of any length; False when none stays
        within the loss.

        An estimate is what the knob's last trial lost, and losses of a fraction of a percent are
        half noise: before the end the least of them are looked at themselves.
        """
        s = self.state
        widths = bits_of(s.network)
        cost = self.cost(widths)
        saved, losses = self._exchanges(widths, cost, far=True)
        for move, (saving, noise) in self._lower_moves(widths, cost, far=True).items():
            slope = s.slopes.get(f"{move[0].layer}.{move[0].what}", 0.0)
            saved[move], losses[move] = saving, slope * noise
        least = sorted(saved, key=lambda move: (losses[move], move))
        trials = self._try(least[: SWEEP * self.options.tries])
        good = [t for t in trials if t.rd.loss - s.now.loss <= self._room]
        if not good:
            return False
        best = min(good, key=lambda t: (-saved[t.move], t.rd.loss, t.move))
        self._accept("lower" if len(best.move) == 1 else "exchange", best, trials, s.lowered)
        return True

    def _best_of(
        self,
        how: str,
        saved: Mapping[Move, float],
        estimate: Callable[[Move], float],
        *,
        sure: bool = False,
    ) -> bool:
        """Measure the moves that seem best, and make the one that is; False where none may be.

        ``sure`` measures some even if nothing seems to stay within the loss.
        """
        s, room = self.state, self._room
        least = LEAST_LOSS * s.first.bpp
        tried: dict[Move, Trial] = {}

        def worth(move: Move, loss: float) -> tuple[float, Move]:
            return -saved[move] / max(loss, least), move

        def good() -> list[tuple[tuple[float, Move], Trial]]:
            losses = {t.move: t.rd.loss - s.now.loss for t in tried.values()}
            return sorted(
                (worth(move, loss), tried[move]) for move, loss in losses.items() if loss <= room
            )

        for _ in range(BATCHES):
            best = good()
            left = [(move, estimate(move)) for move in saved if move not in tried]
            order = sorted(worth(move, loss) for move, loss in left if loss <= room)
            if best and (not order or best[0][0] <= order[0]):
                break
            if not order:
                if tried or not sure:
                    break
                order = sorted((loss, move) for move, loss in left)
            chosen = [move for _, move in order[: self.options.tries]]
            tried |= {trial.move: trial for trial in self._try(chosen)}
        best = good()
        if not best:
            return False
        self._accept(how, best[0][1], list(tried.values()), s.lowered)
        return True

    def _raise(self, kinds: Sequence[str]) -> bool:
        """Give bits of some kinds where that costs nothing; False when none helps."""
        s = self.state
        widths = bits_of(s.network)
        cost, least = self.cost(widths), LEAST_GAIN * s.first.bpp
        found = []
        for layer, what in self._knobs(kinds):
            bits = getattr(widths[layer], what)
            more = self._greater(bits, what)
            if f"{layer}.{what}" in s.lowered or more is None:
                continue
            change = Change(layer, what, more)
            won = s.slopes.get(f"{layer}.{what}", math.inf) * _noise(bits, more)
            if self.cost(change.apply(widths)) <= cost * (1 + FREE):
                found.append((-won, (change,)))
        trials = self._try([move for _, move in sorted(found)[: self.options.tries]])
        best = min(trials, key=lambda t: (t.rd.loss, t.move), default=None)
        if best is None or best.rd.loss > s.now.loss - least:
            return False
        self._accept("raise", best, trials, s.raised)
        return True

    def _buy(self) -> bool:
        """Give bits where most is won per cost while the loss is to be lower than it is, or
        where more is won than taking as much elsewhere seems to lose; False when nothing is."""
        s = self.state
        widths = bits_of(s.network)
        cost = self.cost(widths)
        least, free = LEAST_GAIN * s.first.bpp, FREE * cost
        rate = 0.0
        if self._room >= 0:
            lower = self._lower_moves(widths, cost)
            rates = [
                s.slopes.get(f"{c.layer}.{c.what}", 0.0) * noise / saving
                for (c,), (saving, noise) in lower.items()
            ]
            positive = [r for r in rates if r > 0]
            if not positive:
                return False
            rate = BARGAIN * min(positive)
        prices: dict[Move, float] = {}
        found = []
        for layer, what in self.knobs():
            bits = getattr(widths[layer], what)
            more = self._greater(bits, what)
            if more is None:
                continue
            change = Change(layer, what, more)
            price = prices[(change,)] = max(free, self.cost(change.apply(widths)) - cost)
            won = s.slopes.get(f"{layer}.{what}", 0.0) * _noise(bits, more)
            if won >= least / 2 and won / price >= rate / 2:
                found.append((-won / price, (change,)))
        trials = self._try([move for _, move in sorted(found)[: self.options.tries]])
        good = [t for t in trials if s.now.loss - t.rd.loss >= max(least, rate * prices[t.move])]
        if not good:
            return False
        best = min(good, key=lambda t: ((t.rd.loss - s.now.loss) / prices[t.move], t.move))
        self._accept("buy", best, trials, s.bought)
        return True

    def _accept(self, how: str, best: Trial, trials: list[Trial], knobs: list[str]) -> None:
        s, widths = self.state, bits_of(self.state.network)
        assert best.network is not None
        told = [self._told(trial) for trial in trials]
        changes = []
        for change in best.move:
            name = f"{change.layer}.{change.what}"
            if name not in knobs:
                knobs.append(name)
            before = getattr(widths[change.layer], change.what)
            changes.append({"layer": change.layer, "what": change.what, "from": before,
                            "to": change.bits})  # fmt: skip
        s.network, s.now = best.network, best.rd
        s.since += 1
        entry = self._entry(how, {"changes": changes})
        s.log.append(entry | {"tried": told})
        self._check_target(entry["cost"])

    def _check_target(self, cost: float) -> None:
        s = self.state
        s.target = self.cost.reached(s.network, cost)
        if s.target is not None:
            s.ended = "target"

    def _told(self, trial: Trial) -> dict[str, Any]:
        """A trial of a change to the network at hand, for the log."""
        widths = bits_of(self.state.network)
        for change in trial.move:
            widths = change.apply(widths)
        possible = trial.network is not None
        return {
            "changes": [asdict(change) for change in trial.move],
            "loss": self.loss(trial.rd) if possible else None,
            "cost": self.cost(widths),
        }

    def _entry(self, step: str, change: dict[str, Any] | None) -> dict[str, Any]:
        """Where the search stands, for the log."""
        s = self.state
        entry: dict[str, Any] = {"step": step, **(change or {})}
        if step == "start":
            entry |= {"how": self.cost.json()}
        return entry | {
            "cost": self.cost(bits_of(s.network)),
            "bops": s.network.bops(*PHOTO),
            "macs": s.network.macs(*PHOTO),
            "loss": self.loss(s.now),
            **s.now.json(),
            "trials": s.trials,
        }


def _noise(bits: int, before: int) -> float:
    """How much the noise of rounding grows from so many bits to fewer, in some unit."""
    return 4.0**-bits - 4.0**-before
