"""The float network: what quantization starts from, whichever way the weights came.

A `FloatNetwork` mirrors `lichen.network.description.Network` stage by stage with real
weights. It is read from a CompressAI model (`from_compressai`) or built by hand (see
`lichen.quant.float.bls2017`), and runs in PyTorch as the FP32 reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from lichen.errors import UserError
from lichen.network.description import Activation, Convolution
from lichen.network.flow import LATENTS, TRANSFORMS, Latent, inward, latents_among, outward
from lichen.network.geometry import Geometry
from lichen.sim.images import pad_image

FloatArray = npt.NDArray[np.float64]


def _require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite")


def convolve(conv: FloatStage | Convolution, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, in, H, W) to (B, out, H', W'), weights (out, in, k, k), geometry of ``conv``."""
    if conv.transposed:
        return functional.conv_transpose2d(
            x,
            weight.transpose(0, 1),
            bias,
            stride=conv.stride,
            padding=conv.padding,
            output_padding=conv.output_padding,
        )
    return functional.conv2d(x, weight, bias, stride=conv.stride, padding=conv.padding)


@dataclass(frozen=True, kw_only=True)
class FloatStage:
    """One convolution with its activation, in real numbers.

    Attributes
    ----------
    name : str
    weight : float array (out, in, kernel, kernel)
        For transposed convolutions too, where PyTorch stores (in, out, kernel, kernel).
    bias : float array (out,)
    stride, padding, output_padding, transposed
        Geometry as in PyTorch.
    activation : Activation
    beta : float array (out,) or None
        Effective (not re-parametrized) offset of the norm; divisive normalizations only.
    gamma : float array (out, out) or None
        Row i holds the weights of ``x**2`` (or ``|x|``) in the norm of channel i.
    negative_slope : float
        LeakyReLU only.
    kept_channels : int array (out,) or None
        Which output channels of the unpruned model these are.
    copy_of : int array (out,) or None
        Which output channel each one repeats, its own number if none
        (`lichen.quant.calibration.split`).

    Raises ValueError when shapes do not fit each other or a norm could reach zero.
    """

    name: str
    weight: FloatArray
    bias: FloatArray
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    transposed: bool = False
    activation: Activation = Activation.NONE
    beta: FloatArray | None = None
    gamma: FloatArray | None = None
    negative_slope: float = 0.01
    kept_channels: npt.NDArray[np.int64] | None = None
    copy_of: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        out, k = self.weight.shape[0], self.weight.shape[-1]
        _require_shape(f"{self.name}.weight", self.weight, (out, self.in_channels, k, k))
        _require_shape(f"{self.name}.bias", self.bias, (out,))
        if self.activation.norm is None:
            if self.beta is not None or self.gamma is not None:
                raise ValueError(f"{self.name}: {self.activation} takes no beta and gamma")
            return
        if self.beta is None or self.gamma is None:
            raise ValueError(f"{self.name}: {self.activation} needs beta and gamma")
        _require_shape(f"{self.name}.beta", self.beta, (out,))
        _require_shape(f"{self.name}.gamma", self.gamma, (out, out))
        if self.beta.min() <= 0 or self.gamma.min() < 0:
            raise ValueError(f"{self.name}: beta must be positive and gamma non-negative")

    @property
    def kernel(self) -> int:
        return int(self.weight.shape[-1])

    @property
    def normalized(self) -> bool:
        """Whether a divisive normalization follows the convolution."""
        return self.activation.norm is not None

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1])

    @property
    def origins(self) -> npt.NDArray[np.int64]:
        """Number of the channel that each output channel repeats, or its own (out,)."""
        return np.arange(self.out_channels) if self.copy_of is None else self.copy_of

    @property
    def ranks(self) -> npt.NDArray[np.int64]:
        """How many copies of the same channel come before each output channel (out,)."""
        origins = self.origins
        return np.tril(origins[:, None] == origins[None], -1).sum(axis=1)

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            transposed=self.transposed,
        )

    def convolve(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W'), in the precision of ``x``."""
        weight = torch.as_tensor(self.weight, dtype=x.dtype)
        bias = torch.as_tensor(self.bias, dtype=x.dtype)
        return convolve(self, x, weight, bias)

    def norm(self, x: Tensor) -> Tensor:
        """``beta + sum gamma x**2`` (``|x|`` for GDN1, IGDN1) of each channel."""
        kind = self.activation.norm
        assert kind is not None and self.beta is not None and self.gamma is not None
        gamma = torch.as_tensor(self.gamma, dtype=x.dtype)[:, :, None, None]
        beta = torch.as_tensor(self.beta, dtype=x.dtype)
        return functional.conv2d(x * x if kind.squares else x.abs(), gamma, beta)

    def activate(self, x: Tensor) -> Tensor:
        """The activation of (B, out, H, W)."""
        kind = self.activation.norm
        if kind is not None:
            norm = self.norm(x)
            if kind.squares:
                norm = norm.sqrt()
            return x * norm if kind.inverse else x / norm
        if self.activation is Activation.RELU:
            return functional.relu(x)
        if self.activation is Activation.LEAKY_RELU:
            return functional.leaky_relu(x, self.negative_slope)
        return x

    def run(self, x: Tensor, transform: str) -> tuple[Tensor, Tensor]:
        """What the convolution and then the activation make of (B, in, H, W).

        Raises UserError, naming the stage of ``transform``, when either isn't finite.
        """
        before = self.convolve(x)
        after = self.activate(before)
        if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
            most = float(np.abs(self.weight).max())
            raise UserError(
                f"{transform}.{self.name} of the FP32 network makes values that are not finite "
                f"(its weights reach {most:.3g}); the checkpoint is damaged, or its training "
                "diverged."
            )
        return before, after


Observer = Callable[[FloatStage, Tensor, Tensor], None]
"""Called with a stage, its convolution's output and its activation's output."""


@dataclass(frozen=True)
class FloatTransform:
    """An ordered list of stages.

    Attributes
    ----------
    stages : list of FloatStage
    absolute_input : bool
        The transform reads the magnitude of its input (h_a of scale hyperpriors).
    name : str
        For errors: ``g_a``.
    """

    stages: list[FloatStage]
    absolute_input: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a transform needs at least one stage")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if before.out_channels != after.in_channels:
                raise ValueError(
                    f"stage {after.name} takes {after.in_channels} channels, "
                    f"but {before.name} makes {before.out_channels}"
                )

    @property
    def in_channels(self) -> int:
        return self.stages[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.stages[-1].out_channels

    @property
    def downsampling(self) -> int:
        """Product of the strides of the plain convolutions."""
        return math.prod(s.stride for s in self.stages if not s.transposed)

    @torch.no_grad()
    def __call__(self, x: Tensor, observe: Observer | None = None) -> Tensor:
        """Run (B, in, H, W); ``observe`` sees every stage's two results.

        Raises UserError when a stage makes values that are not finite.
        """
        if self.absolute_input:
            x = x.abs()
        for stage in self.stages:
            before, x = stage.run(x, self.name)
            if observe is not None:
                observe(stage, before, x)
        return x


def to_torch(x: np.ndarray) -> Tensor:
    """(H, W, C) to float32 (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(x).astype(np.float32)).permute(2, 0, 1)[None]


def _from_torch(x: Tensor) -> FloatArray:
    """(1, C, H, W) to float64 (H, W, C)."""
    return x[0].permute(1, 2, 0).double().numpy()


@dataclass(frozen=True)
class FloatLatents:
    """What the FP32 network codes of an image: integers, but for the scales and means.

    Attributes
    ----------
    y : int64 array (h, w, m)
        Symbols: ``round(y - means)``.
    z : int64 array (h / 4, w / 4, n) or None
        Symbols of the hyperprior.
    scales : float array (h, w, m) or None
        Standard deviations of the symbols y, hyperprior models only.
    means : float array (h, w, m) or None
        Mean-scale hyperpriors only.
    """

    y: npt.NDArray[np.int64]
    z: npt.NDArray[np.int64] | None = None
    scales: FloatArray | None = None
    means: FloatArray | None = None

    @property
    def read(self) -> npt.NDArray:
        """What g_s reads (h, w, m)."""
        return self.y if self.means is None else self.y + self.means


@dataclass(frozen=True, kw_only=True)
class FloatNetwork:
    """A network in real numbers.

    Attributes
    ----------
    name : str
    architecture : str
        CompressAI's zoo name, or ``custom``.
    n, m : int
        Channels of the transforms and of the latent.
    transforms : dict of str to FloatTransform
        ``g_a`` and ``g_s``; ``h_a`` and ``h_s`` for hyperpriors. Images are 0 .. 1.
    bottlenecks : dict of str to dict of str to float array
        Parameters of the entropy bottleneck of each latent, under CompressAI's names
        (see `lichen.quant.calibration.entropy.Bottleneck`): ``y`` for factorized priors, ``z`` for
        hyperpriors, none when the network comes without an entropy model.
    provenance : dict
        JSON values: where the weights come from.
    """

    name: str = ""
    architecture: str = "custom"
    n: int
    m: int
    transforms: dict[str, FloatTransform]
    bottlenecks: dict[str, dict[str, FloatArray]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def factor(self) -> int:
        """Sides of an image must be a multiple of this."""
        return math.prod(self.transforms[one.analysis].downsampling for one in self.latents)

    @property
    def hyper(self) -> bool:
        """Whether the network has a hyperprior."""
        return "h_s" in self.transforms

    @property
    def means(self) -> bool:
        """Whether h_s makes means beside the scales."""
        return self.hyper and (
            self.transforms["h_s"].out_channels == 2 * self.transforms["g_a"].out_channels
        )

    @property
    def stage_names(self) -> list[str]:
        """Names such as ``g_a.conv1``."""
        return [f"{k}.{stage.name}" for k, part in self.transforms.items() for stage in part.stages]

    @property
    def latents(self) -> tuple[Latent, ...]:
        """The latents that the network has transforms of, from the image inwards."""
        return latents_among(self.transforms)

    def through(self, image: Tensor, run: Callable[[str, Tensor], Tensor]) -> Tensor:
        """What the last synthesis makes of an image (1, 3, H, W) of 0 .. 1, not padded.

        ``run(key, x)`` is what a transform makes; symbols lie on the integer grid.
        """

        def read(latent: Latent, said: Tensor | None) -> Tensor:
            means: Tensor | float = 0.0
            if said is not None and self.means:
                means = said.chunk(2, dim=1)[1]
            return torch.round(values[latent.name] - means) + means

        values = inward(self.latents, image, lambda latent, source: source, run)
        return outward(self.latents, read, run)

    def entropy_parameters(
        self, y: FloatArray
    ) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray | None]:
        """Symbols z, scales and means that the hyperprior makes of latents ``y`` (h, w, m)."""
        h_a, h_s = self.transforms["h_a"], self.transforms["h_s"]
        z = torch.round(h_a(to_torch(y)))
        parameters = _from_torch(h_s(z))
        scales, means = parameters, None
        if self.means:
            scales, means = np.split(parameters, 2, axis=2)
        return _from_torch(z).astype(np.int64), scales, means

    def code(self, image: npt.NDArray[np.uint8]) -> FloatLatents:
        """The symbols of an image (H, W, 3), as CompressAI codes them on the integer grid."""
        y = self.analyze(image)
        if not self.hyper:
            return FloatLatents(np.rint(y).astype(np.int64))
        z, scales, means = self.entropy_parameters(y)
        symbols = np.rint(y if means is None else y - means).astype(np.int64)
        return FloatLatents(symbols, z, scales, means)

    def reconstruct(self, latents: FloatLatents, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The image (height, width, 3) that FP32 makes of what `code` coded."""
        return self.synthesize(latents.read, height, width)

    def analyze(self, image: npt.NDArray[np.uint8]) -> FloatArray:
        """FP32 latents ``y`` (h, w, m), not rounded, of an image (H, W, 3), padded."""
        x = pad_image(image, self.factor).astype(np.float32) / 255
        return _from_torch(self.transforms["g_a"](to_torch(x)))

    def synthesize(self, symbols: np.ndarray, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The image (height, width, 3) that FP32 g_s makes of latents (h, w, m)."""
        x = self.transforms["g_s"](to_torch(symbols))[0].permute(1, 2, 0)
        pixels = torch.round(x * 255).clamp(0, 255).to(torch.uint8).numpy()
        return pixels[:height, :width]


# CompressAI's modules are recognized by what they compute, not by import, so that a network
# of the same layers from elsewhere reads the same way.
def _activation_of(module: Any, where: str) -> dict[str, Any]:
    if isinstance(module, nn.LeakyReLU):
        return {"activation": Activation.LEAKY_RELU, "negative_slope": module.negative_slope}
    if isinstance(module, nn.ReLU):
        return {"activation": Activation.RELU}
    if hasattr(module, "beta_reparam") and hasattr(module, "gamma_reparam"):
        simple = type(module).__name__ == "GDN1"
        name = ("i" if module.inverse else "") + ("gdn1" if simple else "gdn")
        beta = module.beta_reparam(module.beta).detach().double().numpy()
        gamma = module.gamma_reparam(module.gamma).detach().double().numpy()
        # The re-parametrization computes max(p, bound)**2 - pedestal in float32, which can
        # come out a rounding error below its own minimum.
        beta = np.maximum(beta, 1e-9)
        gamma = np.maximum(gamma, 0.0).reshape(len(beta), len(beta))
        return {"activation": Activation(name), "beta": beta, "gamma": gamma}
    raise UserError(
        f"{where} is a {type(module).__name__}, which Lichen does not know; "
        "it takes convolutions followed by GDN, ReLU or LeakyReLU."
    )


def transform_from_modules(modules: nn.Sequential, where: str) -> FloatTransform:
    """The stages of a sequence of convolutions and activations.

    Raises UserError naming the layer (``where`` and its index) that is not supported.
    """
    parts: list[dict[str, Any]] = []
    for index, module in enumerate(modules):
        name = f"layer {where}.{index}"
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(module, nn.ConvTranspose2d)
            square = all(
                len(set(pair)) == 1
                for pair in (module.kernel_size, module.stride, module.padding)
                if not isinstance(pair, str)
            )
            if (
                not square
                or isinstance(module.padding, str)
                or module.groups != 1
                or set(module.dilation) != {1}
                or module.padding_mode != "zeros"
            ):
                raise UserError(
                    f"{name} must be a square convolution without groups and dilation, "
                    "padded with zeros."
                )
            weight = module.weight.detach().double().numpy()
            if transposed:
                weight = weight.transpose(1, 0, 2, 3)
            out = weight.shape[0]
            bias = module.bias
            parts.append(
                {
                    "name": f"conv{len(parts) + 1}",
                    "weight": np.ascontiguousarray(weight),
                    "bias": np.zeros(out) if bias is None else bias.detach().double().numpy(),
                    "stride": module.stride[0],
                    "padding": module.padding[0],
                    "output_padding": module.output_padding[0] if transposed else 0,
                    "transposed": transposed,
                }
            )
        elif not parts or "activation" in parts[-1]:
            raise UserError(f"{name} must be a convolution, not a {type(module).__name__}.")
        else:
            parts[-1].update(_activation_of(module, name))
    try:
        return FloatTransform([FloatStage(**part) for part in parts], name=where)
    except ValueError as error:
        raise UserError(f"{where} cannot be used: {error}.") from None


def from_compressai(
    model: nn.Module,
    architecture: str,
    n: int,
    m: int,
    *,
    name: str = "",
    provenance: Mapping[str, Any] | None = None,
    kept_channels: Mapping[str, Sequence[int]] | None = None,
) -> FloatNetwork:
    """The float network of a CompressAI model.

    ``kept_channels`` are those of stages (``g_a.conv1``) that some have left.

    GDN's beta and gamma are taken as CompressAI computes with them, after its
    re-parametrization (Ballé, "Efficient nonlinear transforms for lossy image compression",
    2018, section 2.1).

    Raises UserError naming the layer when it is not a supported one, or when a weight is
    not finite.
    """
    transforms, kept = {}, kept_channels or {}
    for key in TRANSFORMS:
        modules = getattr(model, key, None)
        if isinstance(modules, nn.Sequential):
            transform = transform_from_modules(modules, key)
            # CompressAI's ScaleHyperprior takes the magnitude outside h_a; mbt2018-mean
            # reads y with its sign.
            absolute = key == "h_a" and architecture == "bmshj2018-hyperprior"
            stages = [
                replace(stage, kept_channels=np.array(kept[f"{key}.{stage.name}"], np.int64))
                if f"{key}.{stage.name}" in kept
                else stage
                for stage in transform.stages
            ]
            transforms[key] = replace(transform, stages=stages, absolute_input=absolute)
    bottlenecks = {}
    bottleneck = getattr(model, "entropy_bottleneck", None)
    if bottleneck is not None:
        innermost = [latent.name for latent in LATENTS if latent.analysis in transforms][-1]
        bottlenecks[innermost] = {
            key: parameter.detach().double().numpy()
            for key, parameter in bottleneck.named_parameters()
        }
    return FloatNetwork(
        name=name,
        architecture=architecture,
        n=n,
        m=m,
        transforms=transforms,
        bottlenecks=bottlenecks,
        provenance=dict(provenance or {}),
    )
