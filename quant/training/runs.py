"""Runs that can be interrupted and resumed: where their state lies, how it is written and read."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lichen.errors import UserError
from lichen.files import temporary_name
from lichen.network.description import Network
from lichen.network.file import dumps, load
from lichen.processes import SIGNALS
from lichen.quant.float.tensors import save_tensors

LAYOUT = "strides of transposed tensors"
"""Where `flatten` keeps the memory layout of what is not contiguous."""


def flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state of one parameter as tensors, and JSON values.

    An item i of a list of tensors is called KEY/i; an empty list in its place is left out, and
    the value KEY then says how long the list is. A matrix may lie transposed in memory (an
    eigenbasis does), and products of such round differently: that is kept as well.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(value, list | tuple):
            values[key] = len(value)
            for i, item in enumerate(value):
                if isinstance(item, Tensor):
                    tensors[f"{key}/{i}"] = item
        else:
            values[key] = value
    if tensors:
        values[LAYOUT] = {k: list(v.stride()) for k, v in tensors.items() if not v.is_contiguous()}
    return {k: v.detach().cpu().clone() for k, v in tensors.items()}, values


def unflatten(
    tensors: dict[str, Tensor], values: dict[str, Any], parameter: Tensor
) -> dict[str, Any]:
    """Undo `flatten`, on the parameter's device."""
    state: dict[str, Any] = dict(values)
    layout = state.pop(LAYOUT, None)
    for key in {k.split("/")[0] for k in tensors if "/" in k}:
        state[key] = [[] for _ in range(values[key])]
    for key, value in tensors.items():
        where, _, index = key.partition("/")
        # A copy in any case: what was read from a file may lie at odd addresses in memory, and
        # sums over it are then grouped, and rounded, in another way.
        if layout is None and value.shape == parameter.shape and not index:
            placed = torch.empty_like(parameter).detach()  # as older versions left it to be
        else:
            strides = (layout or {}).get(key, value.stride())
            placed = torch.empty_strided(
                value.shape, strides, dtype=value.dtype, device=parameter.device
            )
        placed.copy_(value)
        if index:
            state[where][int(index)] = placed
        else:
            state[key] = placed
    return state


def state_path(output: str | Path) -> Path:
    """Where the state of a run lies: RUN.safetensors -> RUN.state.safetensors."""
    output = Path(output)
    return output.with_name(temporary_name(output.stem, ".state.safetensors"))


def save_state(path: Path, kind: str, tensors: Mapping[str, Tensor], values: Any) -> None:
    """Write a state atomically: tensors, and JSON values under the header key ``kind``."""
    save_tensors(tensors, path, {kind: json.dumps(values)})


def read_state(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON values that `save_state` wrote.

    Raises UserError when there is no state, or it is damaged or one of another kind.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist, so there is nothing to resume; start a new run.")
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[kind])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if not isinstance(values, dict):
                raise TypeError
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError, OSError):
        raise not_a_state(path, kind) from None
    return tensors, values


_NAMES = {"lichen-train": "a training state", "lichen-draq": "the state of a DRAQ run"}


def not_a_state(path: Path, kind: str) -> UserError:
    """What to say of a file that isn't the state of this kind of run."""
    return UserError(f"{path} is not {_NAMES.get(kind, 'the state of a search')}; delete it.")


def check_same(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """UserError that names the first entry in which a resumed run differs from the saved one."""
    for name, value in given.items():
        if saved.get(name) != value:
            raise UserError(
                f"the saved run has {name} = {saved.get(name)}, not {value}; resume it with the "
                "same options or start anew."
            )


def network_tensor(network: Network) -> Tensor:
    """A network's file as a tensor of bytes, for a state."""
    return torch.frombuffer(bytearray(dumps(network)), dtype=torch.uint8)


def network_of(data: Tensor) -> Network:
    """Undo `network_tensor`; what comes of it is no longer that file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.lichen"
        path.write_bytes(data.numpy().tobytes())
        network = load(path)
    return network.model_copy(update={"name": network.name})


@contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Collect signals to end instead of dying in the middle of an optimizer step.

    One that is ignored (by ``nohup``) stays so.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {
        number: signal.signal(number, lambda signum, frame: received.append(signum))
        for number in SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
