"""Channels of FP32 networks: where each one is stored, what it costs, and taking some out.

A channel is not one number: it is a row of its convolution's weights and a bias, an entry of
beta, a row and a column of gamma, and a slice of each layer that reads it; of a latent also the
entropy bottleneck's distribution, or what h_s says about it. A `Coupling` lists all of that for the
channels that one layer makes, so that they come and go together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lichen.network.description import PHOTO
from lichen.network.flow import FEEDS, ORDER, TRANSFORMS
from lichen.network.geometry import Geometry, norm_macs
from lichen.quant.float.architectures import ARCHS, Layer, latents_of, layers_of

LATENTS = "latents"
"""The kind of couplings whose channels are symbols; those of others are their transform's name."""

KINDS = (*TRANSFORMS, LATENTS)


@dataclass(frozen=True)
class Slice:
    """A dimension of a parameter that runs over a coupling's channels, ``parts`` times in a row."""

    parameter: str
    axis: int
    parts: int = 1


@dataclass(frozen=True)
class Coupling:
    """The channels that a layer makes.

    Attributes
    ----------
    name : str
        Of the layer that makes them: ``g_a.conv1``.
    kind : str
        ``g_a``, ``g_s``, ``h_a`` or ``h_s``; ``latents`` for y and z.
    layer : Layer
    readers : tuple of Layer
        What reads them.
    slices : tuple of Slice
        All parameters of theirs; those that begin with ``entropy_bottleneck.`` stand for all of
        its parameters.
    layers : dict of str to int
        Layers whose output channels they are, and how many times: y's scales and means are
        outputs of h_s.
    """

    name: str
    kind: str
    layer: Layer
    readers: tuple[Layer, ...]
    slices: tuple[Slice, ...]
    layers: Mapping[str, int]


BOTTLENECK = "entropy_bottleneck."


def _made(layer: Layer, parts: int = 1) -> list[Slice]:
    """A layer's parameters by output channel, those of its normalization among them."""
    found = [
        Slice(f"{layer.module}.weight", layer.out_axis, parts),
        Slice(f"{layer.module}.bias", 0, parts),
    ]
    if layer.norm is not None:
        found += [Slice(f"{layer.norm}.beta", 0), Slice(f"{layer.norm}.gamma", 0)]
        found.append(Slice(f"{layer.norm}.gamma", 1))
    return found


@functools.cache
def couplings_of(arch: str) -> tuple[Coupling, ...]:
    """All couplings of an architecture whose channels may leave."""
    kind = ARCHS[arch]
    made_by = {latent.analysis: latent for latent in latents_of(arch)}
    sources = {latent.source: latent for latent in latents_of(arch)}
    layers: dict[str, list[Layer]] = {}
    for layer in layers_of(arch):
        layers.setdefault(layer.transform, []).append(layer)
    couplings = []
    for key, chain in layers.items():
        for i, layer in enumerate(chain):
            inner = i + 1 < len(chain)
            readers, slices, what = chain[i + 1 : i + 2], _made(layer), key
            outputs = {layer.name: 1}
            if not inner and key not in made_by:
                continue  # pixels, and what belongs to a latent of its own
            if not inner:
                what, latent = LATENTS, made_by[key]
                readers = [layers[latent.synthesis][0]]
                within = sources.get(latent.name)
                if within is not None:
                    readers.append(layers[within.analysis][0])
                    last, parts = layers[within.synthesis][-1], 2 if kind.means else 1
                    slices += _made(last, parts)
                    outputs[last.name] = parts
                else:
                    slices.append(Slice(BOTTLENECK, 0))
            slices += [Slice(f"{r.module}.weight", 1 - r.out_axis) for r in readers]
            couplings.append(
                Coupling(layer.name, what, layer, tuple(readers), tuple(slices), outputs)
            )
    return tuple(couplings)


class Convolutional(Protocol):
    """What `output_sizes` and `transform_macs` know of a layer, real or described."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def normalized(self) -> bool: ...


def output_sizes(layers: Sequence[Convolutional], height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns that each layer of a transform makes of an input of this size."""
    sizes = []
    for layer in layers:
        height, width = layer.geometry.output_size(height), layer.geometry.output_size(width)
        sizes.append((height, width))
    return sizes


def transform_macs(
    layers: Sequence[Convolutional],
    sizes: Sequence[tuple[int, int]],
    inputs: int,
    outputs: Sequence[int],
) -> int:
    """Multiplications of a transform whose layers make so many channels of these sizes."""
    total = 0
    for layer, (height, width), out in zip(layers, sizes, outputs, strict=True):
        total += layer.geometry.macs(inputs, out, height * width)
        if layer.normalized:
            total += norm_macs(out, height * width)
        inputs = out
    return total


def macs(
    arch: str, counts: Mapping[str, int], transforms: Iterable[str] = TRANSFORMS
) -> dict[str, int]:
    """Multiplications of each transform for one image of `PHOTO`, normalizations included.

    ``counts`` are the output channels of all layers
    (`lichen.quant.float.architectures.channel_counts`).
    The same as `lichen.network.description.Transform.macs` of the integer network.
    """
    # channels and size of what each transform makes, and of the image
    made: dict[str | None, tuple[int, tuple[int, int]]] = {None: (3, PHOTO)}
    result = {}
    for key in ORDER:
        layers = [layer for layer in layers_of(arch) if layer.transform == key]
        if not layers:
            continue
        inputs, size = made[FEEDS[key]]
        sizes = output_sizes(layers, *size)
        outputs = [counts[layer.name] for layer in layers]
        made[key] = outputs[-1], sizes[-1]
        if key in transforms:
            result[key] = transform_macs(layers, sizes, inputs, outputs)
    return {key: result[key] for key in TRANSFORMS if key in result}


def without(coupling: Coupling, counts: Mapping[str, int], count: int) -> dict[str, int]:
    """The counts when ``count`` channels of a coupling have gone."""
    return {**counts} | {
        name: counts[name] - parts * count for name, parts in coupling.layers.items()
    }


def take(state: Mapping[str, Tensor], kept: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Parameters with only the ``kept`` channels (indices, rising) of the couplings named."""
    result = dict(state)
    for coupling in couplings_of(arch):
        if coupling.name not in kept:
            continue
        channels = kept[coupling.name]
        count = state[f"{coupling.layer.module}.bias"].shape[0]
        for item in coupling.slices:
            chosen = torch.cat([channels + part * count for part in range(item.parts)])
            names = [k for k in state if k.startswith(item.parameter)]
            for name in names if item.parameter == BOTTLENECK else [item.parameter]:
                result[name] = result[name].index_select(item.axis, chosen)
    return {name: value.contiguous() for name, value in result.items()}


# Scales --------------------------------------------------------------------------------------

SCALE = ".scale"


def add_scales(model: nn.Module, arch: str, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Give the layers' convolutions a factor for each output channel, all 1; by layer name.

    They are parameters of the model, called ``g_a.0.scale`` and so on, until `fold_scales`.
    """
    scales = {}
    for layer in layers_of(arch):
        if layer.name not in names:
            continue
        module = model.get_submodule(layer.module)
        scale = nn.Parameter(torch.ones_like(model.get_parameter(f"{layer.module}.bias")))
        module.register_parameter(SCALE[1:], scale)
        module.register_forward_hook(_scaled)
        scales[layer.name] = scale
    return scales


def _scaled(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * module.scale[:, None, None]  # type: ignore[index]


def fold_scales(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """The parameters of the same network without scales."""
    result = {name: value for name, value in state.items() if not name.endswith(SCALE)}
    for layer in layers_of(arch):
        scale = state.get(f"{layer.module}{SCALE}")
        if scale is not None:
            shape = [1, 1, 1, 1]
            shape[layer.out_axis] = -1
            weight, bias = f"{layer.module}.weight", f"{layer.module}.bias"
            result[weight] = result[weight] * scale.view(shape)
            result[bias] = result[bias] * scale
    return result
