"""Networks and images that the codec's tests share."""

from __future__ import annotations

import numpy as np

from lichen.network.description import Network
from lichen.network.random import random_factorized, random_hyperprior

KINDS = ("factorized", "hyperprior", "mean-scale")


def make_network(kind: str) -> Network:
    """A small one with random weights."""
    if kind == "factorized":
        return random_factorized(7, n=4, m=6)
    return random_hyperprior(7, n=4, m=6, means=kind == "mean-scale")


def pattern(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Something between a ramp and noise, the same everywhere."""
    index = np.arange(height * width * channels, dtype=np.uint64).reshape(height, width, channels)
    return ((index * 2654435761 >> np.uint64(13)) % 97 + index % 120).astype(np.uint8)
