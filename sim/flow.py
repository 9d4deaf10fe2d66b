"""The whole way of an image: through all transforms, inwards and back outwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from lichen.network.arithmetic import latent_symbol
from lichen.network.description import Network
from lichen.network.flow import IMAGE, Latent, inward, outward
from lichen.sim.golden import choose_tables, hyper_input, synthesis_input

Tensor = npt.NDArray[Any]


def through(
    network: Network, image: Tensor, run: Callable[[str, Tensor], Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """An image (height, width, 3), not padded, coded and decoded without a file.

    ``run(name, x)`` is what the named transform makes of integers (height, width, channels).
    Returns the values of the latents by name, from the image inwards, and what the last synthesis
    makes.
    """

    def seen(latent: Latent, source: Tensor) -> Tensor:
        if latent.source == IMAGE:
            return source
        return hyper_input(source, network.transform(latent.analysis).input)

    def read(latent: Latent, said: Tensor | None) -> Tensor:
        means = None if said is None else choose_tables(network, latent, said).means
        fraction = network.fraction(latent)
        symbols = latent_symbol(values[latent.name], 0 if means is None else means, fraction)
        source = network.transform(latent.synthesis).input
        return synthesis_input(symbols, means, fraction, source)

    values = inward(network.latents, image, seen, run)
    return values, outward(network.latents, read, run)
