"""State dicts as training scripts leave them, and the network that one of them holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lichen.errors import UserError
from lichen.quant.float.architectures import (
    ARCHS,
    channel_counts,
    layers_of,
    other_channel_counts,
    parameter_shapes,
)

WRAPPINGS = (
    "network",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "generator",
    "codec",
    "params",
    "weights",
    "checkpoint",
)
"""What training scripts call the network, in a file of several the first of these."""

PARAMETER_MAX = 1e6
"""No parameter of a network that was trained is nearly as large."""

MARK = "g_a.0.weight"
"""Every supported network has it, under whatever prefix."""

# What DataParallel, torch.compile, FSDP and activation checkpointing put between names.
_INSERTED = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# entropy_bottleneck._matrix0 (CompressAI 1.1 to 1.2.4) and ._matrices.0 (before) -> .matrices.0
_OLD = re.compile(r"(^|\.)_(matrix|bias|factor|matrices|biases|factors)\.?(\d+)$")
_PLURAL = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
# Constants and CDF tables: rebuilt, never read, whatever their size.
_BUFFER = re.compile(
    r"(^|\.)(_offset|_quantized_cdf|_cdf_length|scale_table|scale_bound|target|pedestal|bound)$"
)
# What other tools count: thop, ptflops, batch normalizations that have gone, averaged models.
_COUNTER = re.compile(
    r"(^|\.)(total_ops|total_params|num_batches_tracked|n_averaged"
    r"|__flops__|__params__|__batch_counter__)$"
)
_DEPTH = 8


class _Found(NamedTuple):
    """A mapping that holds a network: what it is called there, its prefix, the scalars beside."""

    names: tuple[str, ...]
    mapping: Mapping[Any, Any]
    prefix: str
    beside: dict[str, Any]


def _short(key: str) -> str:
    return _INSERTED.sub("", key)


def _normalise(key: str) -> str:
    """A key without its prefix, as CompressAI 1.2.8 spells it."""
    return _OLD.sub(lambda m: f"{m[1]}{_PLURAL.get(m[2], m[2])}.{m[3]}", key)


def _search(
    content: Any, names: tuple[str, ...], beside: dict[str, Any], seen: set[int]
) -> Iterator[_Found]:
    """All networks in nested mappings."""
    if not isinstance(content, Mapping) or id(content) in seen or len(names) > _DEPTH:
        return
    seen.add(id(content))
    plain = {str(k): v for k, v in content.items() if isinstance(v, str | int | float | bool)}
    prefixes = {
        _short(key).removesuffix(MARK)
        for key in content
        if isinstance(key, str) and f".{_short(key)}".endswith(f".{MARK}")
    }
    for prefix in sorted(prefixes):
        own = {k: v for k, v in plain.items() if not k.endswith(MARK)}
        yield _Found((*names, *prefix.split(".")[:-1]), content, prefix, beside | own)
    for key, value in content.items():
        yield from _search(value, (*names, str(key)), beside | plain, seen)


def find_state(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The one network in what a file holds: (its state dict, scalars that lay beside it).

    The names of the state dict are those of CompressAI 1.2.8, whatever prefix they had.

    Raises UserError when there is none, or more than one and no telling which is meant.
    """
    found = list(_search(content, (), {}, set()))
    known = [one for one in found if all(name in WRAPPINGS for name in one.names)]
    if known:
        found = [min(known, key=lambda one: [WRAPPINGS.index(name) for name in one.names])]
    if not found:
        raise UserError(_no_network(content, path))
    if len(found) > 1:
        names = ", ".join(".".join(one.names) for one in found)
        raise UserError(
            f"{path} holds {len(found)} networks ({names}); save the state_dict() of one alone."
        )
    _, mapping, prefix, beside = found[0]
    state: dict[str, Tensor] = {}
    for key, value in mapping.items():
        if not isinstance(key, str) or not _short(key).startswith(prefix):
            continue
        name = _normalise(_short(key).removeprefix(prefix))
        if not isinstance(value, Tensor):
            if "." not in name:
                continue  # a scalar beside the parameters
            raise UserError(
                f"{path} is not a state dict: its entry {key!r} is a {type(value).__name__}, "
                "not a tensor."
            )
        if name in state:
            raise UserError(f"{path} holds {name} twice, once as {key}.")
        state[name] = value
    return state, beside


def _no_network(content: Any, path: Path) -> str:
    """What to say of a file without a network."""
    while isinstance(content, Mapping):
        inner = next((v for v in content.values() if isinstance(v, Mapping) and v), None)
        tensors = [str(k) for k, v in content.items() if isinstance(v, Tensor)]
        if inner is None or tensors:
            break
        content = inner
    if not isinstance(content, Mapping) or not tensors:
        return (
            f"{path} holds a {type(content).__name__} and no state dict of a network "
            f"(looked for {MARK} under any prefix)."
        )
    near = [key for key in tensors if f".{key}".find(".g_a.") >= 0]
    seen = f"it has {near[0]} instead" if near else f"it begins with {tensors[0]}"
    return f"{path} has no {MARK} ({seen}); supported are {', '.join(ARCHS)} of CompressAI."


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

    shape(MARK)
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
    counts = {layer: shape(f"{layer.module}.weight")[layer.out_axis] for layer in layers_of(arch)}
    return arch, max(width for layer, width in counts.items() if layer.narrow), m


def checked_parameters(
    state: Mapping[str, Tensor], source: Path
) -> tuple[str, int, int, dict[str, Tensor]]:
    """Architecture, N, M and the parameters in float32; UserError names the key that is wrong."""
    for key, value in state.items():
        if not _BUFFER.search(key):
            _check_dense(value, key, source)
    arch, n, m = infer_architecture(state, source)
    expected = parameter_shapes(arch, channel_counts(arch, state))
    what = f"{arch} with N = {n}, M = {m}"
    others = other_channel_counts(arch, n, m, state)
    if others:
        what += " and " + ", ".join(f"{width} in {name}" for name, width in others.items())
    parameters = {}
    for key, shape in expected.items():
        if key not in state:
            raise UserError(f"{source} has no {key}, which {what} needs.")
        value = state[key]
        if tuple(value.shape) != shape:
            raise UserError(
                f"{source}: {key} has shape {tuple(value.shape)} where {what} needs {shape}."
            )
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{source}: {key} holds {kind}, not floating point numbers.")
        value = value.detach().to("cpu", torch.float32).contiguous()
        if not torch.isfinite(value).all():
            raise UserError(f"{source}: {key} holds values that are not finite.")
        if value.numel() and (most := float(value.abs().max())) > PARAMETER_MAX:
            raise UserError(
                f"{source}: {key} reaches {most:.3g}, where those of trained networks stay far "
                f"below {PARAMETER_MAX:.0e}; it is damaged, or its training diverged."
            )
        parameters[key] = value
    for key in state:
        if key not in expected and not (_BUFFER.search(key) or _COUNTER.search(key)):
            raise UserError(f"{source} has a parameter {key} that {what} does not know.")
    return arch, n, m, parameters


def _check_dense(value: Tensor, key: str, source: Path) -> None:
    """UserError unless a tensor is an array of numbers, all of which the file holds."""
    kind = None
    if value.is_nested:
        kind = "nested"
    elif value.layout is not torch.strided:
        kind = str(value.layout).removeprefix("torch.")
    elif value.is_quantized:
        kind = "quantized"
    elif value.is_meta:
        kind = "meta"
    if kind is not None:
        raise UserError(
            f"{source}: {key} is a {kind} tensor, which holds no plain numbers; "
            "save dense ones in floating point."
        )
    # A few bytes can claim any shape: with strides of 0, all numbers are one.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(
            f"{source}: {key} has shape {tuple(value.shape)}, more numbers than the file holds."
        )
