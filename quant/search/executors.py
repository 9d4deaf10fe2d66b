"""Where changes are tried: in this process, or on a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from lichen import cluster
from lichen.network.description import Network
from lichen.quant.search.trial import Move, Problem, Trial, try_move


class Executor(Protocol):
    """Where changes are tried."""

    def trials(self, problem: Problem, network: Network, moves: Sequence[Move]) -> Iterable[Trial]:
        """One trial for each move, in order."""
        ...


class InProcess:
    """One after the other, here."""

    def trials(self, problem: Problem, network: Network, moves: Sequence[Move]) -> Iterable[Trial]:
        return (try_move(problem, network, move) for move in moves)


class Cluster:
    """On the workers of a Dask scheduler.

    Which changes are tried does not depend on how many workers there are, so that the result is
    that of `InProcess`, given the same versions of everything.

    Raises UserError when the extra is missing or no scheduler answers.
    """

    def __init__(self, address: str) -> None:
        self.client = cluster.connect(address)
        self._sent: tuple[str, Any] | None = None

    def trials(self, problem: Problem, network: Network, moves: Sequence[Move]) -> Iterable[Trial]:
        if self._sent is None or self._sent[0] != problem.key:
            self._sent = problem.key, self.client.scatter(problem, broadcast=True, hash=False)
        here = self.client.scatter(network, broadcast=True, hash=False)
        futures = [
            self.client.submit(try_move, self._sent[1], here, move, pure=False) for move in moves
        ]
        return (future.result() for future in futures)
