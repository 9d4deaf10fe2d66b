"""What the transforms of a network read of an image, to run any of them on its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lichen.network.description import LATENTS, Network
from lichen.sim.golden import (
    Tensor,
    code_values,
    hyper_input,
    latent_values,
    run_transform,
    synthesis_input,
)
from lichen.sim.images import pad_image


def transform_inputs(network: Network, image: npt.NDArray[np.uint8]) -> dict[str, Tensor]:
    """What every transform of a network reads when an image is coded and decoded, by its name.

    Raises ValueError for a network that lacks one of the transforms in between.
    """
    first = network.transform(LATENTS[0].analysis)
    found: dict[str, Tensor] = {LATENTS[0].analysis: pad_image(image, network.factor)}
    values = latent_values(network, run_transform(first, found[LATENTS[0].analysis]))
    for latent, value in zip(network.latents[1:], values, strict=False):
        found[latent.analysis] = hyper_input(value, network.transform(latent.analysis).input)
    coded = code_values(network, values)
    for latent, (segment, parameters) in zip(reversed(network.latents), coded, strict=True):
        if latent.synthesis in network.transforms:
            source = network.transform(latent.synthesis).input
            found[latent.synthesis] = synthesis_input(
                segment.symbols, parameters.means, network.fraction(latent), source
            )
    return found


def transform_input(network: Network, name: str, image: npt.NDArray[np.uint8]) -> Tensor:
    """What one transform of a network reads of an image.

    The image transform itself needs no others; its input is padded to what it reduces alone.

    Raises ValueError when the image, or what is in the network, does not do.
    """
    first = LATENTS[0].analysis
    transform = network.transform(name)
    channels = network.transform(first).in_channels
    if image.shape[2] != channels:
        raise ValueError(f"{first} takes {channels} channels, but the image has {image.shape[2]}")
    if name == first:
        return pad_image(image, transform.downsampling)
    return transform_inputs(network, image)[name]
