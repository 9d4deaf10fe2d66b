"""The ``.lichen`` file: safetensors whose header carries the description as JSON.

The JSON is `Network.model_dump` with each array replaced by ``{"tensor": NAME}``; the
tensors lie beside it. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_save

from lichen.errors import UserError
from lichen.network.description import Network

HEADER = "lichen"

FP32_FORMAT = "lichen-fp32"
"""What the headers of FP32 checkpoints, under the same key, give as their format."""


def _detach(value: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        tensors[path] = np.ascontiguousarray(value)
        return {"tensor": path}
    if isinstance(value, dict):
        return {k: _detach(v, f"{path}.{k}" if path else k, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_detach(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _attach(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"} and isinstance(value["tensor"], str):
            if value["tensor"] not in tensors:
                raise ValueError(f"tensor {value['tensor']} is missing")
            return tensors[value["tensor"]]
        return {k: _attach(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_attach(v, tensors) for v in value]
    return value


def dumps(network: Network) -> bytes:
    """The network as the bytes of a ``.lichen`` file; equal networks give equal bytes."""
    tensors: dict[str, np.ndarray] = {}
    tree = _detach(network.model_dump(), "", tensors)
    header = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return safetensors_save(tensors, metadata={HEADER: header})


def digest(network: Network) -> str:
    """SHA-256 (hexadecimal) of the network's file: the one it was loaded from, if it was.

    A later Lichen might write the same network in other bytes, so those of the file count: what
    was coded with it is decoded by it.
    """
    return network.file_sha256 or hashlib.sha256(dumps(network)).hexdigest()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that its name never holds half of it.

    Raises UserError when the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}.") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}.") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save(network: Network, path: str | Path) -> None:
    """Write a network file, atomically."""
    write_atomically(path, dumps(network))


def holds_network(metadata: dict[str, str]) -> bool:
    """Whether a safetensors header is that of a network, not of an FP32 checkpoint."""
    if HEADER not in metadata:
        return False
    try:
        header = json.loads(metadata[HEADER])
    except (ValueError, RecursionError):
        return True  # a damaged one, which `load` names so
    return not (isinstance(header, dict) and header.get("format") == FP32_FORMAT)


def load(path: str | Path) -> Network:
    """Read and validate a network file.

    Raises UserError with one sentence that names the file and, where it applies, the
    transform, stage and field that is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; name a .lichen file or a shipped network.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a .lichen file or a shipped network.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if not holds_network(metadata):
                raise UserError(
                    f"{path} is a safetensors file but not a Lichen network; "
                    "make one of a checkpoint with `lichen quantize`."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable Lichen network ({error}); it may be damaged or truncated."
        ) from None
    try:
        tree = _attach(json.loads(metadata[HEADER]), tensors)
        network = Network.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path} is not a valid network: {_first_error(error)}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a valid network: {error}.") from None
    network.came_from(hashlib.sha256(path.read_bytes()).hexdigest())
    return network


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {message}{more}" if where else message + more
