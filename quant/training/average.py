"""Averages of weights along a run.

While the learning rate is high, weights wander around the middle of the valley that they lie in,
and the middle is better than where they are (Izmailov et al., "Averaging weights leads to wider
optima and better generalization", 2018).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def copy_of(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where an average starts: the parameters themselves."""
    return {name: parameter.detach().clone() for name, parameter in named.items()}


@torch.no_grad()
def average_in(
    average: dict[str, Tensor], named: Mapping[str, Tensor], decay: float, step: int
) -> None:
    """Let an exponential average follow parameters.

    Args:
        average, named: tensors of equal shapes by name; ``average`` is changed.
        decay: 0 .. 1: what the average keeps of itself in a step. 0 makes it the parameters.
        step: steps done, 1 and more. Early on, an average over 1 / (1 - decay) steps would be
            mostly what it started from: there it is one over a tenth of the steps.
    """
    part = 1 - min(decay, step / (step + 9)) if decay else 1.0
    for name, parameter in named.items():
        average[name].lerp_(parameter, part)
