"""FP32 checkpoints: the project's own safetensors and CompressAI's `.pth`, however wrapped."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lichen import caches
from lichen.errors import UserError
from lichen.files import write_atomically, writing
from lichen.models import shipped_parent
from lichen.network.arithmetic import convolution_output_size, transposed_output_size
from lichen.network.file import FP32_FORMAT

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

VERSION = 1


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


class Checkpoint(NamedTuple):
    """What `load_checkpoint` returns; `state_dict` holds parameters only, as float32."""

    arch: str
    n: int
    m: int
    state_dict: dict[str, Tensor]
    metadata: dict[str, Any]


TRANSFORMS = ("g_a", "g_s", "h_a", "h_s")
"""CompressAI's attributes that hold a transform's layers."""


@dataclass(frozen=True)
class Layer:
    """A convolution of an architecture.

    Attributes
    ----------
    name : str
        As stages are called: ``g_a.conv1``.
    module : str
        As state dicts call it: ``g_a.0``.
    transposed : bool
        PyTorch then stores weights (in, out, k, k).
    free : bool
        Its output channels may be any number; those of others follow from M or the image.
    narrow : bool
        Has N channels unless said otherwise.
    norm : str or None
        Module of the normalization that follows.
    kernel, stride, padding, output_padding : int
    """

    name: str
    module: str
    transposed: bool
    free: bool
    narrow: bool
    norm: str | None
    kernel: int
    stride: int
    padding: int
    output_padding: int

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

    def output_size(self, size: int) -> int:
        """Rows (or columns) made of ``size`` rows (or columns)."""
        if self.transposed:
            return transposed_output_size(
                size, self.kernel, self.stride, self.padding, self.output_padding
            )
        return convolution_output_size(size, self.kernel, self.stride, self.padding)


def _template(arch: str, n: int, m: int) -> Any:
    """A model to look at, which doesn't touch the generator of random numbers."""
    with torch.random.fork_rng(devices=[]):
        return ARCHS[arch].cls(n, m)


@functools.cache
def layers_of(arch: str) -> tuple[Layer, ...]:
    """The convolutions of an architecture, transform after transform."""
    model = _template(arch, 5, 7)  # numbers that tell N from M, 3, M * 3 / 2 and 2 M
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
                    transposed=isinstance(module, nn.ConvTranspose2d),
                    free=not last or key == "h_a",
                    narrow=module.out_channels == 5,
                    norm=None if last or not norms else f"{key}.{index + 1}",
                    kernel=module.kernel_size[0],
                    stride=module.stride[0],
                    padding=int(module.padding[0]),
                    output_padding=module.output_padding[0],
                )
            )
    return tuple(found)


def stated_lambda(metadata: Mapping[str, Any]) -> float | None:
    """The lambda that a checkpoint's header says it was trained with, if it does."""
    value = metadata.get("lmbda")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def new_model(arch: str, n: int, m: int, widths: Mapping[str, int] | None = None) -> Any:
    """A freshly initialised CompressAI model of `arch` with n and m channels.

    Args:
        widths: output channels of inner layers (`Layer.free`) that have another number, as in
            networks that have been slimmed, under names such as `g_a.conv1`.
    """
    if arch not in ARCHS:
        raise UserError(f"unknown architecture {arch!r}; choose one of {', '.join(ARCHS)}.")
    if n < 1 or m < 1:
        raise UserError(f"N and M must be at least 1, not {n} and {m}.")
    model = ARCHS[arch].cls(n, m)
    if widths:
        _resize(model, arch, widths)
    return model


def _resize(model: Any, arch: str, widths: Mapping[str, int]) -> None:
    """Replace the layers that have other numbers of channels than the model's."""
    layers = {layer.module: layer for layer in layers_of(arch)}
    unknown = sorted(set(widths) - {layer.name for layer in layers.values() if layer.free})
    if unknown:
        raise UserError(f"{arch} has no layer {unknown[0]} whose channels could be chosen.")
    channels = {"g_a": 3, "g_s": model.M, "h_a": model.M}
    for key in TRANSFORMS:
        modules = getattr(model, key, None)
        if modules is None:
            continue
        inputs = channels[key]
        for index, module in enumerate(modules):
            layer = layers.get(f"{key}.{index}")
            if layer is not None:
                out = widths.get(layer.name, module.out_channels)
                if out < 1:
                    raise UserError(f"{layer.name} must have at least one channel, not {out}.")
                if (inputs, out) != (module.in_channels, module.out_channels):
                    modules[index] = _convolution_like(module, inputs, out)
                inputs = out
            elif isinstance(module, GDN) and len(module.beta) != inputs:
                modules[index] = GDN(inputs, inverse=module.inverse)
        if key == "h_a":
            channels["h_s"] = inputs
            if model.entropy_bottleneck.channels != inputs:
                model.entropy_bottleneck = EntropyBottleneck(inputs)


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


def widths_of(arch: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """Output channels of all layers by name, from the shapes of a state dict that has them."""
    return {
        layer.name: state[f"{layer.module}.weight"].shape[layer.out_axis]
        for layer in layers_of(arch)
    }


def other_widths(arch: str, n: int, m: int, state: Mapping[str, Tensor]) -> dict[str, int]:
    """The widths of inner layers that are not those of N = n and M = m."""
    uniform = dict(_template(arch, n, m).named_parameters())
    usual, found = widths_of(arch, uniform), widths_of(arch, state)
    return {
        layer.name: found[layer.name]
        for layer in layers_of(arch)
        if layer.free and found[layer.name] != usual[layer.name]
    }


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, detached float32 copies (no buffers, no CDF tables)."""
    return {k: p.detach().to("cpu", torch.float32).clone() for k, p in model.named_parameters()}


def save_atomically(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a crash leaves either the old one or the new one.

    Folders that are missing are made. Raises UserError when it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata))


def save_checkpoint(
    path: str | Path,
    arch: str,
    n: int,
    m: int,
    state_dict: Mapping[str, Tensor],
    metadata: dict[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write the project's FP32 checkpoint: safetensors, JSON under the header key `lichen`.

    `half` stores float16 (relative error 2^-11); reading makes float32 of it again.
    """
    dtype = torch.float16 if half else torch.float32
    header = {"format": FP32_FORMAT, "version": VERSION, **metadata, "arch": arch, "n": n, "m": m}
    save_atomically(
        {k: v.detach().to("cpu", dtype) for k, v in state_dict.items()},
        Path(path),
        {"lichen": json.dumps(header)},
    )


# Where training scripts put the parameters, outermost first.
WRAPPINGS = ("network", "state_dict", "model_state_dict", "model")
# Prefixes of DataParallel and torch.compile.
_PREFIX = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
# entropy_bottleneck._matrix0 (CompressAI 1.1 to 1.2.4) and ._matrices.0 (before) -> .matrices.0
_OLD = re.compile(r"(^|\.)_(matrix|bias|factor|matrices|biases|factors)\.?(\d+)$")
_PLURAL = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
# Constants and CDF tables: rebuilt, never read, whatever their size.
_BUFFER = re.compile(
    r"(^|\.)(_offset|_quantized_cdf|_cdf_length|scale_table|scale_bound|target|pedestal|bound)$"
)


def _normalise(key: str) -> str:
    """A state-dict key as CompressAI 1.2.8 spells it."""
    key = _PREFIX.sub("", key)
    return _OLD.sub(lambda m: f"{m[1]}{_PLURAL.get(m[2], m[2])}.{m[3]}", key)


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Peel the wrappings off a loaded `.pth`: (state dict, scalars that lay beside it)."""
    extra: dict[str, Any] = {}
    while isinstance(content, Mapping):
        inner = next((k for k in WRAPPINGS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        extra |= {str(k): v for k, v in content.items() if isinstance(v, str | int | float | bool)}
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f"{path} holds a {type(content).__name__} and no state dict "
            f"(looked for {', '.join(WRAPPINGS)} and a bare one)."
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} is not a state dict: its entry {key!r} is a {type(value).__name__}, "
                "not a tensor."
            )
    return dict(content), extra


def infer_architecture(state: Mapping[str, Tensor], source: str | Path) -> tuple[str, int, int]:
    """Architecture name, N and M from the keys and shapes of a (normalised) state dict.

    Where layers differ in width, N is the greatest of those that could have N channels.

    Raises UserError naming the key that none of the supported architectures has.
    """

    def shape(key: str) -> torch.Size:
        tensor = state.get(key)
        if tensor is None:
            near = [k for k in state if k.startswith(key.split(".")[0] + ".")]
            seen = (
                f" (it has {near[0]} instead)" if near else f" (it begins with {next(iter(state))})"
            )
            raise UserError(
                f"{source} has no {key}{seen}; supported are {', '.join(ARCHS)} of CompressAI."
            )
        if tensor.ndim != 4:
            raise UserError(
                f"{source}: {key} has shape {tuple(tensor.shape)}, not four dimensions."
            )
        return tensor.shape

    shape("g_a.0.weight")
    m = shape("g_a.6.weight")[0]
    for key in state:
        if key.startswith(("context_prediction.", "entropy_parameters.")):
            raise UserError(
                f"{source} has an autoregressive context model ({key}), which is not supported; "
                f"supported are {', '.join(ARCHS)}."
            )
    gdn = "g_a.1.beta" in state
    arch = "bmshj2018-factorized" if gdn else "bmshj2018-factorized-relu"
    if any(k.startswith("h_a.") for k in state):
        if not gdn:
            raise UserError(f"{source} has h_a but no g_a.1.beta: a hyperprior model needs GDN.")
        outputs = shape("h_s.4.weight")[0]
        if outputs not in (m, 2 * m):
            raise UserError(
                f"{source}: h_s.4.weight has {outputs} output channels, where M = {m} (scales) "
                f"or {2 * m} (scales and means) were expected."
            )
        arch = "mbt2018-mean" if outputs == 2 * m else "bmshj2018-hyperprior"
    narrow = [layer for layer in layers_of(arch) if layer.narrow]
    n = max(shape(f"{layer.module}.weight")[layer.out_axis] for layer in narrow)
    return arch, n, m


def _checked(state: dict[str, Tensor], source: Path) -> tuple[str, int, int, dict[str, Tensor]]:
    """Normalise keys, infer the architecture, check every parameter; UserError names the key."""
    state = {_normalise(k): v for k, v in state.items()}
    arch, n, m = infer_architecture(state, source)
    for layer in layers_of(arch):
        weight = state.get(f"{layer.module}.weight")
        if weight is None or weight.ndim != 4:
            found = "no" if weight is None else f"a {weight.ndim}-dimensional"
            raise UserError(f"{source} has {found} {layer.module}.weight, which {arch} needs.")
    widths = other_widths(arch, n, m, state)
    expected = dict(new_model(arch, n, m, widths).named_parameters())
    what = f"{arch} with N = {n}, M = {m}"
    if widths:
        what += " and " + ", ".join(f"{width} in {name}" for name, width in widths.items())
    parameters = {}
    for key, like in expected.items():
        if key not in state:
            raise UserError(f"{source} has no {key}, which {what} needs.")
        value = state[key]
        if value.shape != like.shape:
            raise UserError(
                f"{source}: {key} has shape {tuple(value.shape)} where {what} needs "
                f"{tuple(like.shape)}."
            )
        if not value.is_floating_point():
            raise UserError(f"{source}: {key} holds {value.dtype}, not floating point numbers.")
        value = value.detach().to("cpu", torch.float32).contiguous()
        if not torch.isfinite(value).all():
            raise UserError(f"{source}: {key} holds values that are not finite.")
        parameters[key] = value
    for key in state:
        if key not in expected and not _BUFFER.search(key):
            raise UserError(f"{source} has a parameter {key} that {what} does not know.")
    return arch, n, m, parameters


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("lichen", "{}")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file ({_first_line(error)})."
        ) from None
    try:
        metadata = json.loads(header)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError(f"{path} has a damaged header: the entry 'lichen' is not a JSON object.")
    if not state:
        raise UserError(f"{path} holds no tensors.")
    return state, metadata


def _read_pth(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # torch.load fails in a dozen ways on damaged input; all of them mean the same here.
        if "weights" in str(error).lower() and "only" in str(error).lower():
            raise UserError(
                f"{path} holds pickled objects other than tensors, which are refused because "
                "unpickling runs code; save its state_dict() alone."
            ) from None
        raise UserError(f"{path} is damaged or not a checkpoint ({_first_line(error)}).") from None
    return _unwrap(content, path)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".")[:160] if text else type(error).__name__


def zoo_checkpoint(name: str) -> Path | None:
    """Download (or find in torch's cache) CompressAI's pretrained `ARCH:Q`, e.g.
    `bmshj2018-hyperprior:3` or `mbt2018-mean-q5`, trained for MSE; None for other names.
    """
    match = re.fullmatch(r"(.+?)(?::|-)q?(\d)", name)
    if not match or match[1] not in ARCHS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressai.zoo.image import model_urls
    urls = model_urls.get(match[1], {}).get("mse", {})
    quality = int(match[2])
    if quality not in urls:
        known = f"qualities {min(urls)} to {max(urls)}" if urls else "no pretrained weights"
        raise UserError(f"CompressAI's zoo has {known} for {match[1]}, not {quality}.")
    url = urls[quality]
    caches.prepare()
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The name ends with the start of the file's digest, as in all of torch's archives.
            digest = re.search(r"-([0-9a-f]{8,})\.", file.name)
            torch.hub.download_url_to_file(
                url, str(file), hash_prefix=digest[1] if digest else None, progress=False
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{name} could not be downloaded from CompressAI's zoo ({_first_line(error)}); "
                f"fetch {url} where there is a network and put it at {file}."
            ) from None
    return file


def load_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """Read an FP32 checkpoint: `(arch, n, m, state_dict, metadata)`.

    Args:
        path_or_name: the project's safetensors, a bare safetensors state dict, a
            CompressAI `.pth`/`.pth.tar` (bare or under `network`, `state_dict`,
            `model_state_dict` or `model`; with DataParallel's prefixes; with old or new
            names of the entropy bottleneck's parameters; CDF tables of any size), the name
            of a shipped network, or a CompressAI zoo name such as `bmshj2018-factorized-3`.

    Returns:
        Architecture, N and M as found in keys and shapes (layers may have widths of their own:
        `other_widths`); parameters in float32 under the names of CompressAI 1.2.8; metadata
        from the file plus `source` (file name) and `sha256` (of the file).

    Raises:
        UserError: the file is missing, damaged, holds pickled code, or is another network;
            the sentence names the key.
    """
    path = Path(path_or_name)
    if not path.exists():
        found = shipped_parent(str(path_or_name)) or zoo_checkpoint(str(path_or_name))
        if found is None:
            raise UserError(f"{path_or_name} is neither a file nor the name of a shipped network.")
        path = found
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a checkpoint.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}).") from None
    if not head:
        raise UserError(f"{path} is empty.")
    # By content, not by name: safetensors start with a length and a brace, torch's files
    # with a zip signature or a pickle opcode.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    elif head[:2] == b"PK" or head[:1] == b"\x80":
        state, metadata = _read_pth(path)
    else:
        raise UserError(f"{path} is neither a safetensors file nor a PyTorch checkpoint.")
    arch, n, m, parameters = _checked(state, path)
    keys = ("arch", "n", "m")
    if metadata.get("format") == FP32_FORMAT and [metadata[k] for k in keys] != [arch, n, m]:
        raise UserError(f"{path}: its header says another network than its tensors ({arch}).")
    _check_kept(metadata.get("kept_channels", {}), widths_of(arch, parameters), path)
    metadata |= {"source": path.name, "sha256": digest}
    return Checkpoint(arch, n, m, parameters, metadata)


def _check_kept(kept: Any, widths: Mapping[str, int], path: Path) -> None:
    """UserError unless a header's kept channels (see `lichen.quant.slim.slim`) are the layers'."""
    if not isinstance(kept, Mapping):
        raise UserError(f"{path} has a damaged header: kept_channels is no object.")
    for name, channels in kept.items():
        good = isinstance(channels, list) and all(type(c) is int and c >= 0 for c in channels)
        if not good or sorted(set(channels)) != channels or len(channels) != widths.get(name):
            raise UserError(
                f"{path} has a damaged header: kept_channels does not say which "
                f"{widths.get(name, 0)} channels {name} has kept."
            )


def build_model(arch: str, n: int, m: int, state_dict: Mapping[str, Tensor]) -> Any:
    """The CompressAI model with these parameters, in evaluation mode, CDF tables not built.

    The widths of inner layers are those of the parameters.
    """
    model = new_model(arch, n, m, other_widths(arch, n, m, state_dict))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state_dict[name])
    return model.eval()
