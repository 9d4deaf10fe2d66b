"""What files name a network by: digests of what a decoder reads.

Version 1 of the ``.lic`` file names the whole network file. Version 2 names the decoding half
alone: what g_a, h_a, names, scales for reports and provenance say changes no decoded pixel, so a
better encoder or a corrected card leaves every file decodable.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from lichen.network.context import Replaced
from lichen.network.file import digest
from lichen.network.model import Model
from lichen.network.network import Network

DIGEST_BYTES = 16

_REPORTS = {"name", "scales", "provenance", "replaced"}
"""Fields of any record that inference does not read."""


def static_digest(network: Network) -> str:
    """SHA-256 (hexadecimal) that version 1 has: of the network's file as it is without contexts.

    Fitting contexts to a network changes nothing in what version 1 reads of it.
    """
    if network.contexts is None:
        return digest(network)
    replaced = network.contexts.replaced
    if replaced is not None and replaced.decoder == static_decoder_digest(network).hex():
        return replaced.sha256
    return digest(network.model_copy(update={"contexts": None}))


def replacing(network: Network) -> Replaced:
    """What contexts say of the network that they are fitted to."""
    return Replaced(sha256=static_digest(network), decoder=static_decoder_digest(network).hex())


def decoding_half(network: Network) -> Network:
    """What decodes all files of a network and no more: it has no g_a, no h_a, and few words.

    Of networks with contexts; files name it as they name the network.
    """
    if network.contexts is None:
        raise ValueError(f"{network.title} has no contexts, so files name all of it")
    halves = {latent.synthesis for latent in network.latents}
    contexts = network.contexts.model_copy(update={"replaced": replacing(network)})
    return network.model_copy(
        update={
            "transforms": {k: v for k, v in network.transforms.items() if k in halves},
            "contexts": contexts,
            "provenance": {},
        }
    )


def decoder_digest(network: Network) -> bytes:
    """What version 2 has: the first 16 bytes of the SHA-256 of what decoding reads.

    Of transforms that synthesize, thresholds, fractions and contexts: names and values in order,
    integers as decimal digits, tensors as shape and 64-bit little-endian integers.
    """
    return _digest(network, "contexts")


def static_decoder_digest(network: Network) -> bytes:
    """The same of what decoding version 1 reads: static tables in place of contexts."""
    return _digest(network, "entropy")


def _digest(network: Network, tables: str) -> bytes:
    state = hashlib.sha256()
    halves = {latent.synthesis for latent in network.latents}
    fields = {
        "transforms": {key: value for key, value in network.transforms.items() if key in halves},
        "latent_fraction": network.latent_fraction,
        "scale_thresholds": network.scale_thresholds,
        "means": network.means,
        tables: getattr(network, tables),
    }
    _feed(state, fields)
    return state.digest()[:DIGEST_BYTES]


def _feed(state: Any, value: Any) -> None:
    """Hash a value without ambiguity: a mark of its kind and its length come first."""
    if isinstance(value, Model):
        value = {key: item for key, item in value if key not in _REPORTS}
    if isinstance(value, np.ndarray):
        state.update(f"a{value.shape};".encode())
        state.update(np.ascontiguousarray(value, "<i8").tobytes())
    elif isinstance(value, dict):
        present = {key: item for key, item in value.items() if item is not None}
        state.update(f"d{len(present)};".encode())
        for key in sorted(present):
            state.update(f"{key};".encode())
            _feed(state, present[key])
    elif isinstance(value, (list, tuple)):
        state.update(f"l{len(value)};".encode())
        for item in value:
            _feed(state, item)
    elif isinstance(value, (int, str)):
        text = str(int(value)) if isinstance(value, (bool, int)) else str(value)
        state.update(f"s{len(text)};{text}".encode())
    else:
        raise TypeError(f"cannot hash a {type(value).__name__}")
