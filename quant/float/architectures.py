"""The supported architectures: their layers, the shapes of their parameters, their models."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lichen.errors import UserError
from lichen.network.flow import FEEDS, TRANSFORMS, Latent, latents_among
from lichen.network.geometry import Geometry

with warnings.catch_warnings():
    # compressai's import decorates functions with the deprecated torch.jit.script.
    warnings.simplefilter("ignore")
    from compressai.entropy_models import EntropyBottleneck
    from compressai.layers import GDN
    from compressai.models import (
        FactorizedPrior,
        FactorizedPriorReLU,
        MeanScaleHyperprior,
        ScaleHyperprior,
    )


@dataclass(frozen=True)
class Arch:
    """One supported architecture: its CompressAI name, class and total downsampling factor."""

    name: str
    cls: Callable[[int, int], Any]
    factor: int
    gdn: bool
    hyperprior: bool = False
    means: bool = False


ARCHS = {
    arch.name: arch
    for arch in (
        Arch("bmshj2018-factorized", FactorizedPrior, 16, gdn=True),
        Arch("bmshj2018-factorized-relu", FactorizedPriorReLU, 16, gdn=False),
        Arch("bmshj2018-hyperprior", ScaleHyperprior, 64, gdn=True, hyperprior=True),
        Arch("mbt2018-mean", MeanScaleHyperprior, 64, gdn=True, hyperprior=True, means=True),
    )
}


@dataclass(frozen=True)
class Layer:
    """A convolution of an architecture.

    Attributes
    ----------
    name : str
        As stages are called: ``g_a.conv1``.
    module : str
        As state dicts call it: ``g_a.0``.
    free : bool
        Its output channels may be any number; those of others follow from M or the image.
    narrow : bool
        Has N channels unless said otherwise.
    norm : str or None
        Module of the normalization that follows.
    geometry : Geometry
    """

    name: str
    module: str
    free: bool
    narrow: bool
    norm: str | None
    geometry: Geometry

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, whose weights PyTorch stores (in, out, k, k)."""
        return self.geometry.transposed

    @property
    def transform(self) -> str:
        return self.module.partition(".")[0]

    @property
    def normalized(self) -> bool:
        """Whether a divisive normalization follows."""
        return self.norm is not None

    @property
    def out_axis(self) -> int:
        """The dimension of its weight that counts output channels; the input's is the other."""
        return int(self.transposed)


# Numbers that tell N from M, 3, M * 3 // 2 and 2 M in the layers of a model to look at.
_N, _M = 5, 7


@functools.cache
def _template(arch: str) -> Any:
    """A small model to look at; making it doesn't touch the generator of random numbers."""
    with torch.random.fork_rng(devices=[]):
        return ARCHS[arch].cls(_N, _M)


@functools.cache
def layers_of(arch: str) -> tuple[Layer, ...]:
    """The convolutions of an architecture, transform after transform."""
    model = _template(arch)
    found = []
    for key in TRANSFORMS:
        modules = getattr(model, key, ())
        norms = any(isinstance(module, GDN) for module in modules)
        number = 0
        for index, module in enumerate(modules):
            if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                continue
            number += 1
            last = all(
                not isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in modules[index + 1 :]
            )
            found.append(
                Layer(
                    name=f"{key}.conv{number}",
                    module=f"{key}.{index}",
                    free=not last or key == "h_a",
                    narrow=module.out_channels == _N,
                    norm=None if last or not norms else f"{key}.{index + 1}",
                    geometry=Geometry(
                        kernel=module.kernel_size[0],
                        stride=module.stride[0],
                        padding=int(module.padding[0]),
                        output_padding=module.output_padding[0],
                        transposed=isinstance(module, nn.ConvTranspose2d),
                    ),
                )
            )
    return tuple(found)


def usual_channel_counts(arch: str, n: int, m: int) -> dict[str, int]:
    """Output channels of all layers by name, in a network of N = n and M = m."""
    of = {3: 3, _N: n, _M: m, _M * 3 // 2: m * 3 // 2, 2 * _M: 2 * m}
    modules = dict(_template(arch).named_modules())
    return {layer.name: of[modules[layer.module].out_channels] for layer in layers_of(arch)}


def parameter_shapes(arch: str, counts: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by name, from the counts of all layers (`channel_counts`)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, out) in zip(layers_of(arch), _channels(arch, counts), strict=True):
        ends = (inputs, out) if layer.transposed else (out, inputs)
        shapes[f"{layer.module}.weight"] = (*ends, layer.geometry.kernel, layer.geometry.kernel)
        shapes[f"{layer.module}.bias"] = (out,)
        if layer.norm is not None:
            shapes |= {f"{layer.norm}.beta": (out,), f"{layer.norm}.gamma": (out, out)}
    coded = _coded(arch, counts)
    for name, parameter in _template(arch).entropy_bottleneck.named_parameters():
        shapes[f"entropy_bottleneck.{name}"] = (coded, *parameter.shape[1:])
    return shapes


def _last(arch: str, transform: str) -> str:
    """The name of a transform's last layer."""
    return [layer.name for layer in layers_of(arch) if layer.transform == transform][-1]


@functools.cache
def latents_of(arch: str) -> tuple[Latent, ...]:
    """The latents of an architecture, from the image inwards."""
    return latents_among({layer.transform for layer in layers_of(arch)})


def _coded(arch: str, counts: Mapping[str, int]) -> int:
    """Channels of the innermost latent, which the entropy bottleneck codes."""
    return counts[_last(arch, latents_of(arch)[-1].analysis)]


def _channels(arch: str, counts: Mapping[str, int]) -> list[tuple[int, int]]:
    """Channels that each layer reads and makes."""
    found, before = [], ""
    for layer in layers_of(arch):
        if layer.transform != before:
            feed = FEEDS[layer.transform]
            inputs = 3 if feed is None else counts[_last(arch, feed)]
        found.append((inputs, counts[layer.name]))
        before, inputs = layer.transform, counts[layer.name]
    return found


def new_model(arch: str, n: int, m: int, counts: Mapping[str, int] | None = None) -> Any:
    """A freshly initialised CompressAI model of `arch` with n and m channels.

    Args:
        counts: output channels of inner layers (`Layer.free`) that have another number, as in
            networks that have been slimmed, under names such as `g_a.conv1`.
    """
    if arch not in ARCHS:
        raise UserError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHS)}.")
    if n < 1 or m < 1:
        raise UserError(f"N and M must be at least 1, not {n} and {m}.")
    if not counts:
        return ARCHS[arch].cls(n, m)
    unknown = sorted(set(counts) - {layer.name for layer in layers_of(arch) if layer.free})
    if unknown:
        raise UserError(f"{arch} has no layer {unknown[0]} whose channels could be chosen.")
    for name, width in counts.items():
        if width < 1:
            raise UserError(f"{name} must have at least one channel, not {width}.")
    # A uniform model could be many times the size of this one.
    model = ARCHS[arch].cls(1, 1)
    model.N, model.M = n, m
    _resize(model, arch, usual_channel_counts(arch, n, m) | dict(counts))
    return model


def _resize(model: Any, arch: str, counts: Mapping[str, int]) -> None:
    """Give all layers these numbers of output channels."""
    for layer, (inputs, out) in zip(layers_of(arch), _channels(arch, counts), strict=True):
        modules = getattr(model, layer.transform)
        index = int(layer.module.rpartition(".")[2])
        modules[index] = _convolution_like(modules[index], inputs, out)
        if layer.norm is not None:
            modules[index + 1] = GDN(out, inverse=modules[index + 1].inverse)
    model.entropy_bottleneck = EntropyBottleneck(_coded(arch, counts))


def _convolution_like(module: Any, inputs: int, outputs: int) -> Any:
    """A new convolution of the same geometry."""
    more = {"output_padding": module.output_padding} if module.transposed else {}
    return type(module)(
        inputs,
        outputs,
        kernel_size=module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        **more,
    )


def channel_counts(arch: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Output channels of all layers by name, from the shapes of a state dict that has them."""
    return {
        layer.name: state[f"{layer.module}.weight"].shape[layer.out_axis]
        for layer in layers_of(arch)
    }


def other_channel_counts(arch: str, n: int, m: int, state: Mapping[str, Tensor]) -> dict[str, int]:
    """The counts of inner layers that are not those of N = n and M = m."""
    usual, found = usual_channel_counts(arch, n, m), channel_counts(arch, state)
    return {
        layer.name: found[layer.name]
        for layer in layers_of(arch)
        if layer.free and found[layer.name] != usual[layer.name]
    }


def build_model(arch: str, n: int, m: int, state_dict: Mapping[str, Tensor]) -> Any:
    """The CompressAI model with these parameters, in evaluation mode, CDF tables not built.

    The counts of inner layers are those of the parameters.
    """
    model = new_model(arch, n, m, other_channel_counts(arch, n, m, state_dict))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state_dict[name])
    return model.eval()


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, detached float32 copies (no buffers, no CDF tables)."""
    return {k: p.detach().to("cpu", torch.float32).clone() for k, p in model.named_parameters()}
