"""Gates: a factor before every channel, whose gradients and moments tell what it is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lichen.quant.float.architectures import (
    ARCHS,
    Layer,
    layers_of,
)
from lichen.quant.float.channels import LATENTS, Coupling, couplings_of
from lichen.quant.training.loss import forward_train


@dataclass
class Moments:
    """What channels do on average over crops.

    Attributes
    ----------
    squares : dict of str to Tensor (channels,)
        ``E[u]`` of the squares ``u = x**2`` that each normalization sums, by layer. Positions
        count with what an error of their norms does to the output (as in
        `lichen.quant.calibration.ptq`): plain means would be those of the strongest edges.
    square_products : dict of str to Tensor (channels, channels)
        The same of ``u u'``.
    outputs : dict of str to Tensor (channels,)
        Means of what each coupling's readers read, by coupling.
    products : dict of str to Tensor (channels, channels)
        Means of its products.
    magnitudes : Tensor (channels,) or None
        ``E[|y|]``.
    """

    squares: dict[str, Tensor] = field(default_factory=dict)
    square_products: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Tensor] = field(default_factory=dict)
    magnitudes: Tensor | None = None

    def read_by(self, coupling: Coupling, reader: Layer, absolute: bool) -> Tensor:
        """Means of what a layer reads of a coupling's channels."""
        inner = coupling.layer.transform == reader.transform
        if absolute and reader.transform == "h_a" and not inner:
            assert self.magnitudes is not None
            return self.magnitudes
        return self.outputs[coupling.name]


def tap_sums(layer: Layer, weight: Tensor) -> Tensor:
    """What constants read by a convolution add to its outputs (out, in).

    A transposed one adds it to an output on average: each of them meets every stride-th tap.
    """
    sums = weight.sum(dim=(2, 3)) / (layer.geometry.stride**2 if layer.transposed else 1)
    return sums.T if layer.transposed else sums


class Gates:
    """A model's transforms with a factor 0 .. 1 on every channel of the couplings that have one.

    For `lichen.quant.training.loss.forward_train`. At 1 nothing changes; at 0 the channel has
    left: its convolution's output is 0 to itself and to its neighbours' norms. With ``moments``,
    its place is taken by means, as `remove` does: in the norms by ``E[u]``, in front of its
    readers by a bias. Gates of latents stand before their readers, and in front of their rate
    (`loss`).

    Attributes
    ----------
    values : dict of str to Tensor (batch, channels) or (1, channels)
        By coupling.
    """

    def __init__(self, model: Any, arch: str, moments: Moments | None = None):
        self.model, self.arch, self.moments = model, arch, moments
        self.values: dict[str, Tensor] = {}
        self._layers = {layer.module: layer for layer in layers_of(arch)}
        self._inner = {coupling.name for coupling in couplings_of(arch) if coupling.kind != LATENTS}
        self._source = {reader.name: g for g in couplings_of(arch) for reader in g.readers}
        self._coded = {
            "y" if coupling.layer.transform == "g_a" else "z": coupling.name
            for coupling in couplings_of(arch)
            if coupling.kind == LATENTS
        }
        self._absolute = ARCHS[arch].hyperprior and not ARCHS[arch].means
        self._seen: dict[str, list[Tensor]] | None = None

    def _shift(self, layer: Layer, coupling: Coupling, gate: Tensor) -> Tensor:
        """What means in place of closed channels add to a reader's outputs."""
        assert self.moments is not None
        means = self.moments.read_by(coupling, layer, self._absolute)
        weight = self.model.get_submodule(layer.module).weight
        return ((1 - gate) * means) @ tap_sums(layer, weight).T

    def __call__(self, key: str, x: Tensor) -> Tensor:
        layer, gate = None, None
        for index, module in enumerate(getattr(self.model, key)):
            if f"{key}.{index}" in self._layers:
                layer = self._layers[f"{key}.{index}"]
                x = self._convolve(layer, module, x)
                gate = self.values.get(layer.name) if layer.name in self._inner else None
                if gate is not None:
                    x = x * gate[:, :, None, None]
            elif layer is not None and layer.norm == f"{key}.{index}":
                x = self._normalize(layer, module, x, gate)
            else:
                x = module(x)
        return x

    def _convolve(self, layer: Layer, module: Any, x: Tensor) -> Tensor:
        source = self._source.get(layer.name)
        if source is None:
            return module(x)
        gate = self.values.get(source.name)
        if gate is not None and source.kind == LATENTS:
            x = x * gate[:, :, None, None]
        self._see(source, layer, x)
        x = module(x)
        if gate is not None and self.moments is not None:
            x = x + self._shift(layer, source, gate)[:, :, None, None]
        return x

    def _normalize(self, layer: Layer, module: Any, x: Tensor, gate: Tensor | None) -> Tensor:
        u = x * x
        if gate is not None and self.moments is not None:
            u = u + ((1 - gate**2) * self.moments.squares[layer.name])[:, :, None, None]
        gamma = module.gamma_reparam(module.gamma)[:, :, None, None]
        norm = torch.nn.functional.conv2d(u, gamma, module.beta_reparam(module.beta))
        y = x * (torch.sqrt(norm) if module.inverse else torch.rsqrt(norm))
        if self._seen is not None:
            steep = (y / norm) ** 2
            steep = steep / steep.mean(dim=(0, 2, 3), keepdim=True).clamp(min=1e-30)
            weight = steep.mean(dim=1).flatten()
            weight = (weight / weight.sum().clamp(min=1e-30)).double()
            flat = u.transpose(0, 1).flatten(1).double()
            self._add(f"squares {layer.name}", flat @ weight)
            self._add(f"square_products {layer.name}", (flat * weight) @ flat.T)
        return y

    # Moments ---------------------------------------------------------------------------------

    def _add(self, name: str, value: Tensor) -> None:
        assert self._seen is not None
        self._seen.setdefault(name, []).append(value.double())

    def _see(self, coupling: Coupling, reader: Layer, x: Tensor) -> None:
        if self._seen is None:
            return
        if self._absolute and reader.transform == "h_a" and coupling.layer.transform == "g_a":
            self._add("magnitudes", x.mean(dim=(0, 2, 3)))
            return
        if reader is not coupling.readers[0]:
            return
        flat = x.transpose(0, 1).flatten(1)
        self._add(f"outputs {coupling.name}", flat.mean(dim=1))
        self._add(f"products {coupling.name}", flat.double() @ flat.T.double() / flat.shape[1])

    @torch.no_grad()
    def measure(self, batches: Sequence[Tensor]) -> Moments:
        """The moments of a model without gates on batches of images, 0 .. 1."""
        self._seen = {}
        for i, x in enumerate(batches):
            torch.manual_seed(i)
            forward_train(self.model, self.arch, x, True, self)  # type: ignore[arg-type]
        seen = {name: torch.stack(v).mean(dim=0).float() for name, v in self._seen.items()}
        self._seen = None

        def part(kind: str) -> dict[str, Tensor]:
            return {n.split()[1]: v for n, v in seen.items() if n.startswith(f"{kind} ")}

        return Moments(
            squares=part("squares"),
            square_products=part("square_products"),
            outputs=part("outputs"),
            products=part("products"),
            magnitudes=seen.get("magnitudes"),
        )

    def loss(self, x: Tensor, lmbda: float, seed: int) -> Tensor:
        """``R + lambda D`` of images; closed latents cost no rate."""
        torch.manual_seed(seed)
        out = forward_train(self.model, self.arch, x, True, self)  # type: ignore[arg-type]
        nats = x.new_zeros(())
        for name, likelihood in out["likelihoods"].items():
            part = -torch.log(likelihood)
            gate = self.values.get(self._coded[name])
            nats = nats + (part if gate is None else part * gate[:, :, None, None]).sum()
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        mse = torch.mean((out["x_hat"] - x) ** 2)
        return lmbda * 255**2 * mse + nats / (math.log(2) * pixels)
