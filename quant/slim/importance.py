"""What each channel is worth, and which are to leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lichen.errors import UserError
from lichen.quant.float.architectures import (
    channel_counts,
    parameters_of,
)
from lichen.quant.float.channels import Coupling, couplings_of, without
from lichen.quant.slim.config import LIMIT, ChannelCounts, Cost
from lichen.quant.slim.gates import Gates, Moments
from lichen.quant.slim.surgery import RIDGE


def slimmable(arch: str, kinds: Sequence[str]) -> list[Coupling]:
    """The couplings of these kinds."""
    return [coupling for coupling in couplings_of(arch) if coupling.kind in kinds]


def importances(
    model: Any,
    arch: str,
    couplings: Sequence[Coupling],
    batches: Sequence[Tensor],
    *,
    method: str,
    lmbda: float,
    moments: Moments | None,
    cost: Cost,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, npt.NDArray[np.float64]]:
    """What the loss is estimated to lose by each channel (channels,), by coupling.

    See `SlimConfig.importance`; ``progress`` is called once a batch.
    """
    state = parameters_of(model)
    count = {coupling.name: len(state[f"{coupling.layer.module}.bias"]) for coupling in couplings}
    if method in ("magnitude", "random"):
        return _baseline(arch, state, couplings, method, cost, seed)
    gates = Gates(model, arch, moments)
    result = {name: np.zeros(channels) for name, channels in count.items()}
    for i, x in enumerate(batches):
        if method == "taylor":
            for name, channels in count.items():
                gates.values[name] = torch.ones(len(x), channels, requires_grad=True)
            gates.loss(x, lmbda, seed + i).backward()
            for name, gate in gates.values.items():
                assert gate.grad is not None
                # each crop's own derivative: the loss is their mean
                squares = (len(x) * gate.grad.double()) ** 2
                result[name] += squares.mean(dim=0).numpy() / len(batches)
        else:
            with torch.no_grad():
                gates.values = {}
                whole = gates.loss(x, lmbda, seed + i).item()
                for name, channels in count.items():
                    for c in range(channels):
                        gate = torch.ones(1, channels)
                        gate[0, c] = 0
                        gates.values = {name: gate}
                        rise = gates.loss(x, lmbda, seed + i).item() - whole
                        result[name][c] += rise / len(batches)
        progress()
    return result


def _baseline(
    arch: str,
    state: Mapping[str, Tensor],
    couplings: Sequence[Coupling],
    method: str,
    cost: Cost,
    seed: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Importances that say nothing across layers: each layer's mean is what a channel costs."""
    rng = np.random.default_rng(seed)
    counts, result = channel_counts(arch, state), {}
    for coupling in couplings:
        weight = state[f"{coupling.layer.module}.weight"].transpose(0, coupling.layer.out_axis)
        values = weight.flatten(1).norm(dim=1).double().numpy()
        if method == "random":
            values = rng.random(len(values))
        saved = cost(counts) - cost(without(coupling, counts, 1))
        result[coupling.name] = values / values.mean() * saved
    return result


@dataclass(frozen=True)
class Ranking:
    """The channels of a coupling in the order in which they leave, and what each then costs."""

    order: npt.NDArray[np.int64]
    rises: npt.NDArray[np.float64]

    @classmethod
    def by_value(cls, values: npt.NDArray[np.float64]) -> Ranking:
        """The least important first."""
        order = np.argsort(values, kind="stable")
        return cls(order, values[order])

    @classmethod
    def by_elimination(
        cls, values: npt.NDArray[np.float64], products: Tensor, means: Tensor
    ) -> Ranking:
        """Those first whose part that the rest does not explain is the least important.

        Of a channel that leaves, the linear compensation puts what the others explain into the
        readers, so its importance counts by the part of its variance that it does not; and as
        others leave, less of those that have gone is explained. Every step takes the channel
        with the least rise of the sum.
        """
        products_, means_ = products.double().numpy(), means.double().numpy()
        covariance = products_ - np.outer(means_, means_)
        count = len(values)
        covariance += RIDGE * max(covariance.trace() / count, 1e-12) * np.eye(count)
        weights = np.maximum(values, 0) / covariance.diagonal()
        precision = np.linalg.inv(covariance)
        # what of those that have gone (rows) is in those that are there (columns)
        shares = np.zeros((count, count))
        there = np.ones(count, bool)
        order, rises = [], []
        for _ in range(count):
            rise = np.full(count, np.inf)
            lost = weights + (weights[~there, None] * shares[~there] ** 2).sum(axis=0)
            rise[there] = lost[there] / precision.diagonal()[there]
            c = int(rise.argmin())
            order.append(c)
            rises.append(rise[c])
            share = -precision[c] / precision[c, c]
            share[c] = 0
            shares += np.outer(shares[:, c], share)
            shares[:, c] = 0
            shares[c] = share
            precision = precision - np.outer(precision[:, c], precision[c]) / precision[c, c]
            precision[c], precision[:, c] = 0, 0
            there[c] = False
        return cls(np.array(order, np.int64), np.array(rises))


def choose(
    arch: str,
    counts: ChannelCounts,
    rankings: Mapping[str, Ranking],
    couplings: Sequence[Coupling],
    *,
    target: float,
    multiple: int,
    cost: Cost,
    limit: float = LIMIT,
) -> dict[str, npt.NDArray[np.int64]]:
    """The channels to keep (indices, rising) by coupling, so that the cost is at most ``target``.

    The bundle of channels that costs the least loss for what it saves leaves, again and again;
    bundles bring a layer's width to a multiple of ``multiple``, and at least one of them stays.
    At most the part ``limit`` of a layer leaves, or more if that is not enough.

    Raises UserError when the target cannot be reached.
    """
    counts = dict(counts)
    gone = {coupling.name: 0 for coupling in couplings}
    most = limit
    while cost(counts) > target:
        best: tuple[float, Coupling, int] | None = None
        for coupling in couplings:
            width = counts[coupling.name]
            bundle = width % multiple or multiple
            ranking = rankings[coupling.name]
            left, whole = width - bundle, len(ranking.order)
            if left < min(multiple, whole) or left < (1 - most) * whole - multiple + 1:
                continue
            saved = cost(counts) - cost(without(coupling, counts, bundle))
            if saved <= 0:
                continue
            # what is saved beyond the target is worth nothing
            useful = min(saved, cost(counts) - target)
            score = float(ranking.rises[gone[coupling.name] :][:bundle].sum()) / useful
            if best is None or score < best[0]:
                best = score, coupling, bundle
        if best is None and most < 1:
            most = min(1.0, 2 * most)
            continue
        if best is None:
            least = cost(counts)
            raise UserError(
                f"the layers that may be slimmed leave {least / 1e6:.0f} million MACs at least, "
                f"more than the {target / 1e6:.0f} million asked for; raise the target, lower "
                "the multiple, or name more transforms."
            )
        _, coupling, bundle = best
        counts = without(coupling, counts, bundle)
        gone[coupling.name] += bundle
    return {
        coupling.name: np.sort(rankings[coupling.name].order[gone[coupling.name] :])
        for coupling in couplings
        if gone[coupling.name]
    }
