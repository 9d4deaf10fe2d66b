"""How to slim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lichen.errors import UserError
from lichen.network.flow import TRANSFORMS
from lichen.quant.float.channels import KINDS
from lichen.quant.training.trainer import TrainConfig

ChannelCounts = Mapping[str, int]
"""Output channels by layer."""

Cost = Callable[[ChannelCounts], float]
"""What a network of these counts (`lichen.quant.float.architectures.channel_counts`) costs."""

IMPORTANCES = ("taylor", "exact", "magnitude", "random")


COMPENSATIONS = ("linear", "mean", "none")


LIMIT = 0.25
"""The part of a layer's channels that may leave in one round, where that suffices."""


@dataclass(frozen=True, kw_only=True)
class SlimConfig:
    """How to slim; stored in the checkpoint.

    Attributes
    ----------
    macs : float
        The part of the MACs to keep, 0 .. 1.
    rounds : int
        In which to get there, by equal steps.
    steps : int
        Of fine-tuning after each round, and of the sparsity that comes before the first.
    final_steps : int or None
        After the last round; None: ``steps``.
    kinds : tuple of str
        Whose channels may leave: ``g_a``, ``g_s``, ``h_a``, ``h_s``, ``latents``.
    count : tuple of str
        The transforms whose MACs count.
    multiple : int
        Layers keep a multiple of this many channels, which lanes then divide.
    importance : str
        ``taylor``: mean over crops of the squared derivative of the loss by a gate on the
        channel. ``exact``: what the loss rises by when the gate closes. ``magnitude`` (of the
        weights) and ``random``: baselines, which take alike from all layers.
    compensation : str
        What moves into what stays: ``mean`` (into beta and the readers' biases), ``linear``
        (also what of the channel the others explain, into the readers' weights), ``none``.
    sparsity : float
        Weight of the factors' magnitudes, each counting as its channel's part of the cost.
    batches : int
        Of ``batch`` training crops, on which importance is measured.
    lmbda, lr, lr_adam, batch, patch, optimizer, precision, compile, seed
        As in `TrainConfig`.
    """

    macs: float
    rounds: int = 4
    steps: int = 500
    final_steps: int | None = None
    kinds: tuple[str, ...] = KINDS
    count: tuple[str, ...] = TRANSFORMS
    multiple: int = 8
    importance: str = "taylor"
    compensation: str = "linear"
    sparsity: float = 0.0
    batches: int = 16
    lmbda: float = 0.013
    lr: float = 3e-4
    lr_adam: float = 3e-4
    batch: int = 8
    patch: int = 128
    optimizer: str = "soap"
    precision: str = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for good, what in (
            (0 < self.macs < 1, f"macs must be above 0 and below 1, not {self.macs}"),
            (self.rounds >= 1, f"rounds must be at least 1, not {self.rounds}"),
            (self.steps >= 0, f"steps must not be negative, not {self.steps}"),
            (
                self.final_steps is None or self.final_steps >= 0,
                f"final steps must not be negative, not {self.final_steps}",
            ),
            (self.multiple >= 1, f"multiple must be at least 1, not {self.multiple}"),
            (self.batches >= 1, f"batches must be at least 1, not {self.batches}"),
            (self.sparsity >= 0, f"sparsity must not be negative, not {self.sparsity}"),
            (
                self.importance in IMPORTANCES,
                f"importance must be one of {', '.join(IMPORTANCES)}, not {self.importance}",
            ),
            (
                self.compensation in COMPENSATIONS,
                f"compensation must be one of {', '.join(COMPENSATIONS)}, not {self.compensation}",
            ),
            (
                bool(self.kinds) and set(self.kinds) <= set(KINDS),
                f"transforms must be of {', '.join(KINDS)}, not {', '.join(self.kinds)}",
            ),
            (
                bool(self.count) and set(self.count) <= set(TRANSFORMS),
                f"count must be of {', '.join(TRANSFORMS)}, not {', '.join(self.count)}",
            ),
        ):
            if not good:
                raise UserError(what + ".")

    def training(self, steps: int, **more: Any) -> TrainConfig:
        """A run of fine-tuning."""
        same = ("lmbda", "lr", "lr_adam", "batch", "patch", "optimizer", "precision", "compile")
        options = {name: getattr(self, name) for name in same}
        # the networks have long seen rounded latents
        warmup = min(50, steps // 4)
        return TrainConfig(
            **options, steps=steps, warmup=warmup, round_from=0.0, seed=self.seed, **more
        )
