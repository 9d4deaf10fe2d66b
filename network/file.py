"""The ``.lichen`` file: safetensors whose header carries the description as JSON.

The JSON is `Network.model_dump` with each array replaced by ``{"tensor": NAME}``, and the number
of the format; the tensors lie beside it. Parts that format 1 lacks are left out where they say
nothing, and the format is the least that has all parts there are: equal networks give equal bytes,
and what an older Lichen could read stays as it was. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_save

from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.network.context import SINCE
from lichen.network.model import ValidationError
from lichen.network.names import printable
from lichen.network.network import Network

HEADER = "lichen"

FORMATS = (1, 2, 3, 4)
"""Formats that are read; what is written has the least that will do."""

TENSOR_TYPES = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F16", "F32", "F64")
"""Data types, by the names of safetensors, that a network's tensors may have."""

OLDER_PICTURES = frozenset(
    {
        "3d87a378cbbb94e67354f705ea743c07b593673ed04d37103cd4270b9b1e2af5",
        "c7f7c70793594575e4b590d1983d2ee75aaeb35613556f9d83e5d4b638dd34cc",
        "5e9f01131ce7aa1f5e6af76332bc175e5708490ef8730f12c01c2da85537905c",
    }
)
"""Digests of networks from before the format of g_s was looked at, which files name for ever: its
samples of 8 signed bits are taken for bytes. No other network may make them."""

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
    silent = set(Network.OPTIONAL_PARTS) - set(network.optional_parts())
    tree = _detach(network.model_dump(exclude=silent), "", tensors)
    tree["format"] = network.format
    header = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return safetensors_save(tensors, metadata={HEADER: header})


def digest(network: Network) -> str:
    """SHA-256 (hexadecimal) of the network's file: the one it was loaded from, if it was.

    A later Lichen might write the same network in other bytes, so those of the file count: what
    was coded with it is decoded by it.
    """
    return network.file_sha256 or hashlib.sha256(dumps(network)).hexdigest()


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
    try:
        regular = path.is_file()
        sha256 = _sha256(path) if regular or not path.exists() else ""
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; name a .lichen file or a shipped network."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}.") from None
    if not regular:
        kind = "a folder" if path.is_dir() else "no regular file"
        raise UserError(f"{path} is {kind}; name a .lichen file or a shipped network.")
    try:
        metadata, tensors = _read(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable Lichen network ({error}); it may be damaged or truncated."
        ) from None
    tree: Any = None
    try:
        tree = _attach(json.loads(metadata[HEADER]), tensors)
        _check_format(tree)
        older = sha256 in OLDER_PICTURES
        network = Network.of_any_picture(tree) if older else Network.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path} is not a valid network: {_first_error(error, tree)}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a valid network: {_shown(str(error))}.") from None
    network.came_from(sha256)
    return network


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and tensors of a safetensors file, which must be that of a network."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if not holds_network(metadata):
            raise UserError(
                f"{path} is a safetensors file but not a Lichen network; "
                "make one of a checkpoint with `lichen quantize`."
            )
        tensors = {}
        for name in file.keys():  # noqa: SIM118
            kind = file.get_slice(name).get_dtype()
            if kind not in TENSOR_TYPES:
                raise UserError(
                    f"{path} is not a valid network: tensor {_shown(name)} has the data type "
                    f"{kind}, and those of networks are {', '.join(TENSOR_TYPES)}."
                )
            tensors[name] = file.get_tensor(name)
        return metadata, tensors


def _check_format(tree: Any) -> None:
    """Take the number of the format out of the header; ValueError unless it is what it has."""
    if not isinstance(tree, dict):
        return
    parts = {part: since for part, since in Network.OPTIONAL_PARTS.items() if part in tree}
    parts |= _newer_fields(tree)
    needed = max([1, *parts.values()])
    found = tree.pop("format", 1)
    if isinstance(found, bool) or found not in FORMATS:
        known = " and ".join(str(number) for number in FORMATS)
        raise ValueError(
            f"format: this Lichen knows {known}, not {_shown(json.dumps(found, default=str))}"
        )
    if found != needed:
        newest = [part for part, since in parts.items() if since == needed]
        raise ValueError(
            f"format: it is {found}, but {' and '.join(newest)} come with format {needed}"
            if found < needed
            else f"format: it is {found}, but nothing in it is newer than format {needed}"
        )


def _newer_fields(tree: dict[str, Any]) -> dict[str, int]:
    """Fields of context models that format 2 lacks, in a header where nothing need be right, and
    the formats with which they came."""
    found: dict[str, int] = {}
    try:
        for name, model in tree["contexts"]["latents"].items():
            prefix = f"contexts.latents.{name}."
            found |= {prefix + key: since for key, since in SINCE.items() if key in model}
    except (KeyError, TypeError, AttributeError):
        pass
    return found


SHOWN = 400
"""Characters of what is wrong that a sentence shows."""


def _shown(text: str) -> str:
    return printable(text, most=SHOWN)


def _first_error(error: ValidationError, tree: Any) -> str:
    """Where and what the first error is, with the name of the stage where it is in one."""
    path, message = error.path, error.reason
    if len(path) > 3 and path[2] == "stages" and isinstance(path[3], int):
        name = _name_of(tree, path[1], path[3])
        message += f" (stage {printable(name)})" if name else ""
    return _shown(f"{error.where}: {message}" if error.where else message) + error.others


def _name_of(tree: Any, transform: Any, stage: int) -> str | None:
    """What a stage calls itself, in a header where nothing need be as it should."""
    try:
        name = tree["transforms"][transform]["stages"][stage]["name"]
    except (KeyError, IndexError, TypeError):
        return None
    return name if isinstance(name, str) else None
