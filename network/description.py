"""The integer network: one typed description, from which everything else derives.

A `Network` holds transforms (``g_a``, ``g_s``, ...); a `Transform` is an ordered list of
stages; a `Stage` is one convolution, its requantizer and, where the activation is a divisive
normalization, a `Normalization`. Everything inference needs is an integer; `scales` and
`provenance` are for reports only.

Tensors are laid out channel first inside the description (weights ``(out, in, ky, kx)`` for
plain and transposed convolutions alike), images and activations are ``(height, width,
channels)``.

All constructors validate; a ValidationError has the path of the offending field, and
`lichen.network.file.load` turns that into a sentence for the user. What must hold of a network
as a whole stands in `lichen.network.validation`, its data flow in `lichen.network.flow`.
"""

from lichen.network.flow import IMAGE, LATENTS, ORDER, TRANSFORMS, Latent
from lichen.network.network import PHOTO, Network
from lichen.network.stage import (
    ACCUMULATOR_BITS_MAX,
    IMAGE_FORMAT,
    SHIFT_MAX,
    Activation,
    Convolution,
    Format,
    Normalization,
    Requantizer,
    Stage,
)
from lichen.network.tables import EntropyTables
from lichen.network.transform import Transform

__all__ = [
    "ACCUMULATOR_BITS_MAX",
    "IMAGE",
    "IMAGE_FORMAT",
    "LATENTS",
    "ORDER",
    "PHOTO",
    "SHIFT_MAX",
    "TRANSFORMS",
    "Activation",
    "Convolution",
    "EntropyTables",
    "Format",
    "Latent",
    "Network",
    "Normalization",
    "Requantizer",
    "Stage",
    "Transform",
]
