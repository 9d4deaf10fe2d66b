"""GDN-Slimming: channels leave a trained FP32 network where they are missed least.

After "network slimming" (Liu et al., "Learning efficient convolutional networks through network
slimming", ICCV 2017) and first-order importance (Molchanov et al., "Importance estimation for
neural network pruning", CVPR 2019), for networks whose channels also meet in each other's norms.

Round after round, the channels whose loss costs the least per multiplication saved leave
(`importances`, `choose`), what they did on average moves into what stays (`remove`), and the rest
is fine-tuned by `lichen.quant.training.train`; before and between, the loss may press on a factor
before each channel (`TrainConfig.sparsity`). The result is an ordinary checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor
from tqdm import tqdm

from lichen.errors import UserError
from lichen.files import temporary_name, write_atomically
from lichen.quant.calibration.calibrate import CalibrationImages
from lichen.quant.float.architectures import (
    ARCHS,
    TRANSFORMS,
    Layer,
    build_model,
    layers_of,
    other_widths,
    parameters_of,
    widths_of,
)
from lichen.quant.float.channels import KINDS, LATENTS, Group, groups_of, macs, take, without
from lichen.quant.float.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lichen.quant.float.state_dict import infer_architecture
from lichen.quant.training.data import CropSource
from lichen.quant.training.evaluate import integer_grid
from lichen.quant.training.train import (
    SLIMMED,
    TrainConfig,
    check_config,
    forward_train,
    rd_loss,
    state_path,
    train,
)

IMPORTANCES = ("taylor", "exact", "magnitude", "random")

COMPENSATIONS = ("linear", "mean", "none")

RIDGE = 1e-3
"""What holds regressions of channels on others down, relative to their mean variance."""

BETA_MIN = 1e-6
"""CompressAI's own least beta."""

LIMIT = 0.25
"""The part of a layer's channels that may leave in one round, where that suffices."""

Widths = Mapping[str, int]
Cost = Callable[[Widths], float]
"""What a network of these widths (`widths_of`) costs."""


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
            (0 < self.macs < 1, f"--macs must be above 0 and below 1, not {self.macs}"),
            (self.rounds >= 1, f"--rounds must be at least 1, not {self.rounds}"),
            (self.steps >= 0, f"--steps must not be negative, not {self.steps}"),
            (
                self.final_steps is None or self.final_steps >= 0,
                f"--final-steps must not be negative, not {self.final_steps}",
            ),
            (self.multiple >= 1, f"--multiple must be at least 1, not {self.multiple}"),
            (self.batches >= 1, f"--batches must be at least 1, not {self.batches}"),
            (self.sparsity >= 0, f"--sparsity must not be negative, not {self.sparsity}"),
            (
                self.importance in IMPORTANCES,
                f"--importance must be one of {', '.join(IMPORTANCES)}, not {self.importance}",
            ),
            (
                self.compensation in COMPENSATIONS,
                f"--compensation must be one of {', '.join(COMPENSATIONS)}, "
                f"not {self.compensation}",
            ),
            (
                bool(self.kinds) and set(self.kinds) <= set(KINDS),
                f"--transforms must be of {', '.join(KINDS)}, not {', '.join(self.kinds)}",
            ),
            (
                bool(self.count) and set(self.count) <= set(TRANSFORMS),
                f"--count must be of {', '.join(TRANSFORMS)}, not {', '.join(self.count)}",
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


# Gates -----------------------------------------------------------------------------------------


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
        Means of what each group's readers read, by group.
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

    def read_by(self, group: Group, reader: Layer, absolute: bool) -> Tensor:
        """Means of what a layer reads of a group's channels."""
        inner = group.layer.transform == reader.transform
        if absolute and reader.transform == "h_a" and not inner:
            assert self.magnitudes is not None
            return self.magnitudes
        return self.outputs[group.name]


def tap_sums(layer: Layer, weight: Tensor) -> Tensor:
    """What constants read by a convolution add to its outputs (out, in).

    A transposed one adds it to an output on average: each of them meets every stride-th tap.
    """
    sums = weight.sum(dim=(2, 3)) / (layer.stride**2 if layer.transposed else 1)
    return sums.T if layer.transposed else sums


class Gates:
    """A model's transforms with a factor 0 .. 1 on every channel of the groups that have one.

    For `lichen.quant.training.train.forward_train`. At 1 nothing changes; at 0 the channel has
    left: its convolution's output is 0 to itself and to its neighbours' norms. With ``moments``,
    its place is taken by means, as `remove` does: in the norms by ``E[u]``, in front of its
    readers by a bias. Gates of latents stand before their readers, and in front of their rate
    (`loss`).

    Attributes
    ----------
    values : dict of str to Tensor (batch, channels) or (1, channels)
        By group.
    """

    def __init__(self, model: Any, arch: str, moments: Moments | None = None):
        self.model, self.arch, self.moments = model, arch, moments
        self.values: dict[str, Tensor] = {}
        self._layers = {layer.module: layer for layer in layers_of(arch)}
        self._inner = {group.name for group in groups_of(arch) if group.kind != LATENTS}
        self._source = {reader.name: g for g in groups_of(arch) for reader in g.readers}
        self._coded = {
            "y" if group.layer.transform == "g_a" else "z": group.name
            for group in groups_of(arch)
            if group.kind == LATENTS
        }
        self._absolute = ARCHS[arch].hyperprior and not ARCHS[arch].means
        self._seen: dict[str, list[Tensor]] | None = None

    def _shift(self, layer: Layer, group: Group, gate: Tensor) -> Tensor:
        """What means in place of closed channels add to a reader's outputs."""
        assert self.moments is not None
        means = self.moments.read_by(group, layer, self._absolute)
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

    def _see(self, group: Group, reader: Layer, x: Tensor) -> None:
        if self._seen is None:
            return
        if self._absolute and reader.transform == "h_a" and group.layer.transform == "g_a":
            self._add("magnitudes", x.mean(dim=(0, 2, 3)))
            return
        if reader is not group.readers[0]:
            return
        flat = x.transpose(0, 1).flatten(1)
        self._add(f"outputs {group.name}", flat.mean(dim=1))
        self._add(f"products {group.name}", flat.double() @ flat.T.double() / flat.shape[1])

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


# Importance ------------------------------------------------------------------------------------


def slimmable(arch: str, kinds: Sequence[str]) -> list[Group]:
    """The groups of these kinds."""
    return [group for group in groups_of(arch) if group.kind in kinds]


def importances(
    model: Any,
    arch: str,
    groups: Sequence[Group],
    batches: Sequence[Tensor],
    *,
    method: str,
    lmbda: float,
    moments: Moments | None,
    cost: Cost,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, npt.NDArray[np.float64]]:
    """What the loss is estimated to lose by each channel (channels,), by group.

    See `SlimConfig.importance`; ``progress`` is called once a batch.
    """
    state = parameters_of(model)
    count = {group.name: len(state[f"{group.layer.module}.bias"]) for group in groups}
    if method in ("magnitude", "random"):
        return _baseline(arch, state, groups, method, cost, seed)
    gates = Gates(model, arch, moments)
    result = {name: np.zeros(channels) for name, channels in count.items()}
    for i, x in enumerate(batches):
        if method == "taylor":
            for name, channels in count.items():
                gates.values[name] = torch.ones(len(x), channels, requires_grad=True)
            gates.loss(x, lmbda, seed + i).backward()
            for name, gate in gates.values.items():
                assert gate.grad is not None
                # each crop's own derivative: the loss is their mean
                squares = (len(x) * gate.grad.double()) ** 2
                result[name] += squares.mean(dim=0).numpy() / len(batches)
        else:
            with torch.no_grad():
                gates.values = {}
                whole = gates.loss(x, lmbda, seed + i).item()
                for name, channels in count.items():
                    for c in range(channels):
                        gate = torch.ones(1, channels)
                        gate[0, c] = 0
                        gates.values = {name: gate}
                        rise = gates.loss(x, lmbda, seed + i).item() - whole
                        result[name][c] += rise / len(batches)
        progress()
    return result


def _baseline(
    arch: str,
    state: Mapping[str, Tensor],
    groups: Sequence[Group],
    method: str,
    cost: Cost,
    seed: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Importances that say nothing across layers: each layer's mean is what a channel costs."""
    rng = np.random.default_rng(seed)
    widths, result = widths_of(arch, state), {}
    for group in groups:
        weight = state[f"{group.layer.module}.weight"].transpose(0, group.layer.out_axis)
        values = weight.flatten(1).norm(dim=1).double().numpy()
        if method == "random":
            values = rng.random(len(values))
        saved = cost(widths) - cost(without(group, widths, 1))
        result[group.name] = values / values.mean() * saved
    return result


@dataclass(frozen=True)
class Ranking:
    """The channels of a group in the order in which they leave, and what each then costs."""

    order: npt.NDArray[np.int64]
    rises: npt.NDArray[np.float64]

    @classmethod
    def by_value(cls, values: npt.NDArray[np.float64]) -> Ranking:
        """The least important first."""
        order = np.argsort(values, kind="stable")
        return cls(order, values[order])

    @classmethod
    def by_elimination(
        cls, values: npt.NDArray[np.float64], products: Tensor, means: Tensor
    ) -> Ranking:
        """Those first whose part that the rest does not explain is the least important.

        Of a channel that leaves, the linear compensation puts what the others explain into the
        readers, so its importance counts by the part of its variance that it does not; and as
        others leave, less of those that have gone is explained. Every step takes the channel
        with the least rise of the sum.
        """
        products_, means_ = products.double().numpy(), means.double().numpy()
        covariance = products_ - np.outer(means_, means_)
        count = len(values)
        covariance += RIDGE * max(covariance.trace() / count, 1e-12) * np.eye(count)
        weights = np.maximum(values, 0) / covariance.diagonal()
        precision = np.linalg.inv(covariance)
        # what of those that have gone (rows) is in those that are there (columns)
        shares = np.zeros((count, count))
        there = np.ones(count, bool)
        order, rises = [], []
        for _ in range(count):
            rise = np.full(count, np.inf)
            lost = weights + (weights[~there, None] * shares[~there] ** 2).sum(axis=0)
            rise[there] = lost[there] / precision.diagonal()[there]
            c = int(rise.argmin())
            order.append(c)
            rises.append(rise[c])
            share = -precision[c] / precision[c, c]
            share[c] = 0
            shares += np.outer(shares[:, c], share)
            shares[:, c] = 0
            shares[c] = share
            precision = precision - np.outer(precision[:, c], precision[c]) / precision[c, c]
            precision[c], precision[:, c] = 0, 0
            there[c] = False
        return cls(np.array(order, np.int64), np.array(rises))


def choose(
    arch: str,
    widths: Widths,
    rankings: Mapping[str, Ranking],
    groups: Sequence[Group],
    *,
    target: float,
    multiple: int,
    cost: Cost,
    limit: float = LIMIT,
) -> dict[str, npt.NDArray[np.int64]]:
    """The channels to keep (indices, rising) by group, so that the cost is at most ``target``.

    The bundle of channels that costs the least loss for what it saves leaves, again and again;
    bundles bring a layer's width to a multiple of ``multiple``, and at least one of them stays.
    At most the part ``limit`` of a layer leaves, or more if that is not enough.

    Raises UserError when the target cannot be reached.
    """
    widths = dict(widths)
    gone = {group.name: 0 for group in groups}
    most = limit
    while cost(widths) > target:
        best: tuple[float, Group, int] | None = None
        for group in groups:
            width = widths[group.name]
            bundle = width % multiple or multiple
            ranking = rankings[group.name]
            left, whole = width - bundle, len(ranking.order)
            if left < min(multiple, whole) or left < (1 - most) * whole - multiple + 1:
                continue
            saved = cost(widths) - cost(without(group, widths, bundle))
            if saved <= 0:
                continue
            # what is saved beyond the target is worth nothing
            useful = min(saved, cost(widths) - target)
            score = float(ranking.rises[gone[group.name] :][:bundle].sum()) / useful
            if best is None or score < best[0]:
                best = score, group, bundle
        if best is None and most < 1:
            most = min(1.0, 2 * most)
            continue
        if best is None:
            least = cost(widths)
            raise UserError(
                f"the layers that may be slimmed leave {least / 1e6:.0f} million MACs at least, "
                f"more than the {target / 1e6:.0f} million asked for; raise --macs, lower "
                "--multiple, or name more --transforms."
            )
        _, group, bundle = best
        widths = without(group, widths, bundle)
        gone[group.name] += bundle
    return {
        group.name: np.sort(rankings[group.name].order[gone[group.name] :])
        for group in groups
        if gone[group.name]
    }


# Surgery ---------------------------------------------------------------------------------------


def remove(
    model: Any,
    arch: str,
    kept: Mapping[str, npt.NDArray[np.int64]],
    moments: Moments | None,
    compensation: str,
) -> dict[str, Tensor]:
    """The parameters of a model with only the ``kept`` channels of the groups named.

    Removed channels are replaced by what they were on average (see `SlimConfig.compensation`).
    """
    state = parameters_of(model)
    chosen = {name: torch.from_numpy(channels) for name, channels in kept.items()}
    if compensation != "none":
        assert moments is not None
        absolute = ARCHS[arch].hyperprior and not ARCHS[arch].means
        for group in groups_of(arch):
            if group.name in chosen:
                _compensate(model, state, group, chosen[group.name], moments, absolute,
                            linear=compensation == "linear")  # fmt: skip
    return take(state, chosen, arch)


def _compensate(
    model: Any,
    state: dict[str, Tensor],
    group: Group,
    kept: Tensor,
    moments: Moments,
    absolute: bool,
    linear: bool,
) -> None:
    """Move what all but the ``kept`` channels did on average into what reads them."""
    layer = group.layer
    gone = torch.ones(len(state[f"{layer.module}.bias"]), dtype=torch.bool)
    gone[kept] = False
    if layer.norm is not None:
        module = model.get_submodule(layer.norm)
        with torch.no_grad():
            gamma = module.gamma_reparam(module.gamma).cpu()
            beta = module.beta_reparam(module.beta).cpu()
            squares = moments.squares[layer.name]
            means = squares[gone]
            if linear:
                products = moments.square_products[layer.name]
                ratios = _explain(products, squares, kept, gone, positive=True).float()
                means = means - ratios @ squares[kept]
                gamma = gamma.index_add(1, kept, gamma[:, gone] @ ratios)
                state[f"{layer.norm}.gamma"] = module.gamma_reparam.init(gamma)
            beta = (beta + gamma[:, gone] @ means).clamp(min=BETA_MIN)
            state[f"{layer.norm}.beta"] = module.beta_reparam.init(beta)
    for reader in group.readers:
        means = moments.read_by(group, reader, absolute)
        weight = state[f"{reader.module}.weight"]
        axis = 1 - reader.out_axis
        sums = tap_sums(reader, weight).double()
        shift = means.double()[gone]
        # what h_a reads as magnitudes is no linear function of what others read
        if linear and means is not moments.magnitudes:
            ratios = _explain(moments.products[group.name], means, kept, gone)
            shift = shift - ratios @ means.double()[kept]
            leaving = weight.index_select(axis, gone.nonzero()[:, 0])
            moved = torch.tensordot(ratios.float(), leaving, ([0], [axis])).movedim(0, axis)
            state[f"{reader.module}.weight"] = weight.index_add(axis, kept, moved)
        bias = state[f"{reader.module}.bias"].double() + sums[:, gone] @ shift
        state[f"{reader.module}.bias"] = bias.float()


def _explain(
    products: Tensor, means: Tensor, kept: Tensor, gone: Tensor, *, positive: bool = False
) -> Tensor:
    """Coefficients (gone, kept) of the least-squares estimate of channels by others, and a mean."""
    means = means.double()
    covariance = products.double() - means[:, None] * means[None]
    inner, cross = covariance[kept][:, kept], covariance[gone][:, kept]
    ridge = RIDGE * max(float(inner.diagonal().mean()), 1e-12)
    inner = inner + ridge * torch.eye(len(kept), dtype=torch.float64)
    if not positive:
        return torch.linalg.solve(inner, cross.T).T
    # |L' a - L^-1 c|**2 is the squared error but for a constant
    lower = torch.linalg.cholesky(inner)
    targets = torch.linalg.solve_triangular(lower, cross.T, upper=False).T
    matrix = lower.T.numpy()
    return torch.from_numpy(np.stack([nnls(matrix, target)[0] for target in targets.numpy()]))


# The whole -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """Means over crops: ``R + lambda D``, bits per pixel, squared error of 0 .. 255, PSNR in dB."""

    loss: float
    bpp: float
    mse: float
    psnr: float


@torch.no_grad()
def evaluate_loss(model: Any, arch: str, crops: Sequence[npt.NDArray], lmbda: float) -> Loss:
    """FP32 on crops (H, W, 3): symbols on the integer grid, bits as CompressAI estimates them."""
    model = integer_grid(model)
    rows = []
    for crop in crops:
        x = _images(crop[None])
        out = forward_train(model, arch, x, True)
        _, bpp, mse = (value.item() for value in rd_loss(out, x, lmbda))
        mse *= 255**2
        rows.append((lmbda * mse + bpp, bpp, mse, 10 * math.log10(255**2 / max(mse, 1e-9))))
    return Loss(*(round(float(value), 6) for value in np.mean(rows, axis=0)))


def _images(crops: npt.NDArray) -> Tensor:
    """Bytes (B, H, W, 3) as images 0 .. 1, (B, 3, H, W)."""
    x = torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class SlimResult:
    """What `slim` has done.

    Attributes
    ----------
    checkpoint : Checkpoint
        As written.
    kept : dict of str to list of int
        Channels of the unpruned network that each layer has kept, by layer.
    macs_before, macs_after : dict of str to int
        By transform, for one image of `lichen.network.description.PHOTO`.
    before, after : Loss
    rounds : list of dict
        Of each round: ``macs``, ``widths``, and losses ``pruned`` and ``tuned``.
    """

    checkpoint: Checkpoint
    kept: dict[str, list[int]]
    macs_before: dict[str, int]
    macs_after: dict[str, int]
    before: Loss
    after: Loss
    rounds: list[dict[str, Any]]

    def json(self) -> dict[str, Any]:
        c = self.checkpoint
        return {
            "arch": c.arch,
            "n": c.n,
            "m": c.m,
            "widths": widths_of(c.arch, c.state_dict),
            "kept_channels": self.kept,
            "macs": {
                "before": sum(self.macs_before.values()),
                "after": sum(self.macs_after.values()),
                "transforms_before": self.macs_before,
                "transforms_after": self.macs_after,
            },
            "loss": {"before": asdict(self.before), "after": asdict(self.after)},
            "rounds": self.rounds,
        }


def work_folder(output: str | Path) -> Path:
    """Where a run keeps what `--resume` goes on from: NET.safetensors -> NET.slim/."""
    output = Path(output)
    return output.with_name(temporary_name(output.stem, ".slim"))


LOG = "log.json"


class _Run:
    """A run on disk: a log of what is done, and checkpoints of the round under way."""

    def __init__(self, folder: Path, identity: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        self.log: dict[str, Any] = {**identity, "rounds": []}
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                raise UserError(f"{folder} cannot be made ({error.strerror}).") from None
            self.save()
            return
        try:
            self.log = json.loads((folder / LOG).read_text(encoding="utf-8"))
            saved = {key: self.log[key] for key in identity}
            self.log["rounds"][:0] = []
        except FileNotFoundError:
            raise UserError(
                f"{folder} holds no run to resume; leave out --resume to start."
            ) from None
        except (ValueError, KeyError, TypeError, OSError):
            raise UserError(f"{folder} is not the state of a run; delete it.") from None
        for key, value in json.loads(json.dumps(identity)).items():
            if saved[key] != value:
                mine, theirs = value, saved[key]
                if isinstance(value, dict):
                    key = next(k for k in value if theirs.get(k) != value[k])
                    mine, theirs = value[key], theirs.get(key)
                raise UserError(
                    f"the saved run has {key} = {theirs}, not {mine}; resume it with the same "
                    "options or start anew without --resume."
                )

    def save(self) -> None:
        write_atomically(self.folder / LOG, (json.dumps(self.log, indent=1) + "\n").encode())

    def file(self, number: int, what: str) -> Path:
        return self.folder / f"round-{number}-{what}.safetensors"

    def record(self, number: int, **values: Any) -> dict[str, Any]:
        """Add to a round's entry and save; returns the entry."""
        rounds = self.log["rounds"]
        while len(rounds) <= number:
            rounds.append({})
        rounds[number] |= values
        if values:
            self.save()
        return rounds[number]


def slim(
    start: Checkpoint,
    config: SlimConfig,
    source: CropSource,
    crops: CalibrationImages,
    output: str | Path,
    *,
    resume: bool = False,
    half: bool = False,
    cost: Cost | None = None,
    progress: bool = True,
    stop_after: int | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> SlimResult:
    """Slim a network, write ``output``; what it needs to go on lies in `work_folder` meanwhile.

    Parameters
    ----------
    start : Checkpoint
    config : SlimConfig
    source : CropSource
        Training crops, on which importance is measured, too.
    crops : CalibrationImages
        Held-out crops, on which losses are reported.
    output : path
        Ends in ``.safetensors``.
    resume : bool
        Go on from what an interrupted run has left; ends at the same network.
    half : bool
        Store float16.
    cost : callable or None
        What a network of given widths costs; ``config.macs`` is the part of it to keep. None
        takes the MACs of ``config.count``.
    stop_after : int or None
        Stop, as an interruption would, after this many training steps of a round.
    log : callable
        Called with a line after each round.

    Raises UserError for unusable options; KeyboardInterrupt after a signal, once all is saved.
    """
    output = Path(output)
    if output.suffix != ".safetensors":
        raise UserError(f"the output {output} must end in .safetensors.")
    arch = start.arch
    check_config(config.training(1, arch=arch, n=start.n, m=start.m))
    groups = slimmable(arch, config.kinds)
    if not groups:
        raise UserError(f"{arch} has no {' and no '.join(config.kinds)} to slim.")

    def of_macs(widths: Widths) -> float:
        return float(sum(macs(arch, widths, config.count).values()))

    cost = cost or of_macs
    widths = widths_of(arch, start.state_dict)
    whole = cost(widths)
    if not whole:
        raise UserError(f"{arch} has no {' and no '.join(config.count)} to count the MACs of.")
    even = {group.name: Ranking.by_value(np.ones(widths[group.name])) for group in groups}
    target = config.macs * whole
    choose(arch, widths, even, groups, target=target, multiple=config.multiple, cost=cost)

    identity = {
        "config": asdict(config),
        "sha256": start.metadata.get("sha256", ""),
        "images": source.digest,
        "crops": crops.digest,
    }
    run = _Run(work_folder(output), identity, resume)
    model = build_model(*start[:4])
    if "before" not in run.log:
        run.log["before"] = asdict(evaluate_loss(model, arch, crops.crops, config.lmbda))
        run.save()
    current = start
    for number in range(config.rounds + 1):
        last = number == config.rounds
        steps = config.final_steps if last and config.final_steps is not None else config.steps
        press = config.sparsity > 0 and not last
        if number == 0 and not (press and steps):
            run.record(0)
            continue
        if "tuned" in run.record(number):
            current = load_checkpoint(run.file(number, "tuned"))
            continue
        pruned = run.file(number, "pruned")
        if "pruned" not in run.record(number):
            part = 1 - (1 - config.macs) * number / config.rounds
            current = _prune(
                current, config, groups, source, number, part * whole, cost, progress=progress
            )
            save_checkpoint(
                pruned, arch, current.n, current.m, current.state_dict, current.metadata
            )
            after = evaluate_loss(build_model(*current[:4]), arch, crops.crops, config.lmbda)
            now = widths_of(arch, current.state_dict)
            run.record(
                number,
                widths=now,
                macs=sum(macs(arch, now).values()),
                cost=cost(now) / whole,
                pruned=asdict(after),
            )
        current = load_checkpoint(pruned)
        tuned = run.file(number, "tuned")
        if steps:
            now = widths_of(arch, current.state_dict)
            options = config.training(
                steps,
                arch=arch,
                n=current.n,
                m=current.m,
                widths=other_widths(*current[:4]) or None,
                sparsity=_pressures(config, groups, now, cost) if press else None,
            )
            trainer = train(
                options,
                source,
                tuned,
                init=current,
                resume=state_path(tuned).exists(),
                progress=progress,
                stop_after=stop_after,
            )
            if trainer.step < steps:
                raise KeyboardInterrupt
        else:
            write_atomically(tuned, pruned.read_bytes())
        current = load_checkpoint(tuned)
        after = evaluate_loss(build_model(*current[:4]), arch, crops.crops, config.lmbda)
        entry = run.record(number, tuned=asdict(after))
        # the tuned network is all that the next round needs
        for file in (pruned, state_path(tuned), run.file(number - 1, "tuned")):
            file.unlink(missing_ok=True)
        log(
            f"round {number}: {100 * entry['cost']:.1f} % of the cost, R + lambda D "
            f"{entry['pruned']['loss']:.4f} pruned, {after.loss:.4f} after {steps} steps"
        )

    kept = current.metadata["kept_channels"]
    before = macs(arch, widths)
    after_macs = macs(arch, widths_of(arch, current.state_dict))
    rounds = [{"round": i, **entry} for i, entry in enumerate(run.log["rounds"]) if entry]
    metadata = {
        **{k: v for k, v in start.metadata.items() if k not in ("source", "sha256", "format")},
        **{k: current.metadata[k] for k in (*SLIMMED, "init") if k in current.metadata},
        "slim": {
            **asdict(config),
            "source": start.metadata.get("source"),
            "sha256": start.metadata.get("sha256"),
            "macs_before": sum(before.values()),
            "macs_after": sum(after_macs.values()),
            "rounds": rounds,
        },
    }
    save_checkpoint(output, arch, current.n, current.m, current.state_dict, metadata, half=half)
    shutil.rmtree(run.folder, ignore_errors=True)
    return SlimResult(
        checkpoint=load_checkpoint(output),
        kept=kept,
        macs_before=before,
        macs_after=after_macs,
        before=Loss(**run.log["before"]),
        after=Loss(**rounds[-1]["tuned"]),
        rounds=rounds,
    )


def _pressures(
    config: SlimConfig, groups: Sequence[Group], widths: Widths, cost: Cost
) -> dict[str, float]:
    """What the magnitude of a channel's factor weighs in the loss, by layer."""
    whole = cost(widths)
    return {
        group.name: config.sparsity * (whole - cost(without(group, widths, 1))) / whole
        for group in groups
    }


IMPORTANCE_STEP = 1_000_000_000
"""Where the numbers of the crops that importance is measured on begin, beyond all training's."""


def _prune(
    current: Checkpoint,
    config: SlimConfig,
    groups: Sequence[Group],
    source: CropSource,
    number: int,
    target: float,
    cost: Cost,
    *,
    progress: bool,
) -> Checkpoint:
    """The network of a round before its fine-tuning."""
    arch, state = current.arch, current.state_dict
    widths = widths_of(arch, state)
    before = current.metadata.get("kept_channels", {})
    kept = {name: list(before.get(name, range(width))) for name, width in widths.items()}
    if cost(widths) > target:
        model = build_model(*current[:4]).train().requires_grad_(False)
        model.to(memory_format=torch.channels_last)
        first = IMPORTANCE_STEP + number * config.batches
        batches = [
            _images(source.batch(config.seed, first + i, config.batch).transpose(0, 2, 3, 1))
            for i in range(config.batches)
        ]
        moments = Gates(model, arch).measure(batches)
        with tqdm(
            total=config.batches, disable=not progress, unit="batch", desc=f"importance {number}"
        ) as bar:
            values = importances(
                model,
                arch,
                groups,
                batches,
                method=config.importance,
                lmbda=config.lmbda,
                moments=None if config.compensation == "none" else moments,
                cost=cost,
                seed=config.seed + number,
                progress=bar.update,
            )
        rankings = {name: Ranking.by_value(value) for name, value in values.items()}
        if config.compensation == "linear" and config.importance in ("taylor", "exact"):
            # latents that leave take their rate with them, whatever explains them
            for group in groups:
                if group.kind != LATENTS:
                    rankings[group.name] = Ranking.by_elimination(
                        values[group.name],
                        moments.products[group.name],
                        moments.outputs[group.name],
                    )
        chosen = choose(
            arch, widths, rankings, groups, target=target, multiple=config.multiple, cost=cost
        )
        state = remove(model, arch, chosen, moments, config.compensation)
        for group in groups:
            if group.name in chosen:
                for name, parts in group.layers.items():
                    width = widths[group.name]
                    kept[name] = [
                        kept[name][part * width + c]
                        for part in range(parts)
                        for c in chosen[group.name]
                    ]
    _, n, m = infer_architecture(state, "the slimmed network")
    metadata = dict(current.metadata)
    metadata.setdefault("unpruned_n", current.n)
    metadata.setdefault("unpruned_m", current.m)
    metadata["kept_channels"] = kept
    return Checkpoint(arch, n, m, state, metadata)
