"""Files of tensors: safetensors and PyTorch's own, read without trusting a byte of them.

Nothing is unpickled but tensors and plain data (`torch.load` with ``weights_only``). The zip
archives that `torch.save` writes hold a checksum of every member, which PyTorch never asks: they
are asked here, before it reads the first number. Its older format has none, nor have
safetensors, so damage to a number of theirs is seen only where the writer left a digest
(`save_tensors`) or the name holds one, as the names of torch's model zoos do.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lichen.errors import UserError
from lichen.files import write_atomically, writing
from lichen.network.file import HEADER

_ARCHIVE_END = b"PK\x05\x06"
"""Begins the last record of a zip archive, 22 bytes and a comment."""

DIGEST = "tensors_sha256"
"""Entry of a checkpoint's header: the digest of the tensors and of all that it says besides."""


@dataclass(frozen=True)
class TensorFile:
    """What a file holds.

    Attributes
    ----------
    content : object
        Nested mappings, lists, numbers, strings and tensors.
    header : dict
        The JSON object that safetensors of the project carry; empty for others.
    sha256 : str
        Of the file.
    checked : bool
        Whether a checksum vouches for every number of it.
    """

    content: Any
    header: dict[str, Any]
    sha256: str
    checked: bool


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a sentence."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".")[:160] if text else type(error).__name__


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a crash leaves either the old one or the new one.

    Folders that are missing are made. Raises UserError when it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({k: v.contiguous() for k, v in tensors.items()}, metadata))


def digest_of(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 of tensors and of a header, its own entry left out."""
    rest = json.loads(json.dumps(dict(header)))  # keys as a file has them, which sorts them
    rest.pop(DIGEST, None)
    sha = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def read_tensors(path: Path) -> TensorFile:
    """Read a file of tensors, whichever of the two kinds it is.

    Raises UserError when it cannot be read, is neither, is damaged, or holds pickled code.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file; give a checkpoint.")
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a checkpoint.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if not head:
                raise UserError(f"{path} is empty.")
            # By content, not by name: safetensors start with a length and a brace, torch's
            # files with a zip signature or a pickle opcode.
            if head[8:9] == b"{" or path.suffix == ".safetensors":
                return _read_safetensors(path, sha256)
            if head[:2] == b"PK":
                return _read_archive(path, file, sha256)
            if head[:1] == b"\x80":
                return _read_legacy(path, file, sha256)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}).") from None
    raise UserError(f"{path} is neither a safetensors file nor a PyTorch checkpoint.")


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged: {why}; fetch or save it again.")


def _read_safetensors(path: Path, sha256: str) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER, "{}")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    # Data types of later versions and claims beyond memory fail in ways of their own.
    except Exception as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file ({first_line(error)})."
        ) from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} has a damaged header: the entry '{HEADER}' is not a JSON object.")
    if not state:
        raise UserError(f"{path} holds no tensors.")
    told = header.get(DIGEST)
    if told is not None and told != digest_of(state, header):
        raise _damaged(path, "its numbers are not those that were written")
    header.pop(DIGEST, None)
    return TensorFile(state, header, sha256, told is not None or _named(path, sha256))


def _named(path: Path, sha256: str) -> bool:
    """Whether the file's name holds the beginning of its digest."""
    return any(sha256.startswith(word) for word in re.findall(r"(?<=-)[0-9a-f]{8,}", path.name))


def _read_archive(path: Path, file: BinaryIO, sha256: str) -> TensorFile:
    """A zip archive of `torch.save`, after all its checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = {m.filename for m in members}
            stored = all(m.compress_type == zipfile.ZIP_STORED for m in members)
            # Where checksums are left out, all of them are 0 (set_crc32_options(False)).
            checked = any(m.CRC for m in members)
            bad = archive.testzip() if stored and checked else None
            file.seek(-len(_ARCHIVE_END + archive.comment) - 18, 2)
            whole = file.read(len(_ARCHIVE_END)) == _ARCHIVE_END
            whole &= min((m.header_offset for m in members), default=0) == 0
    except Exception as error:
        # zipfile fails in a dozen ways on damaged input; all of them mean the same here.
        raise _damaged(path, f"its archive cannot be read ({first_line(error)})") from None
    if not stored:
        raise UserError(f"{path} is a compressed archive, which torch.save never writes.")
    if bad is not None:
        raise _damaged(path, f"the checksum of {bad!r} is wrong")
    if not whole:
        raise _damaged(path, "something precedes its archive or follows its end")
    if len(names) < len(members):
        raise _damaged(path, "two members of its archive have the same name")
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} is a TorchScript archive; save the state_dict() of its module.")
    return TensorFile(_load(path, file), {}, sha256, checked or _named(path, sha256))


def _read_legacy(path: Path, file: BinaryIO, sha256: str) -> TensorFile:
    """The format of `torch.save` before 1.6: pickles, then the numbers, and no checksum."""
    content = _load(path, file)
    if file.tell() != path.stat().st_size:
        raise _damaged(path, f"{path.stat().st_size - file.tell()} bytes follow its end")
    return TensorFile(content, {}, sha256, _named(path, sha256))


def _load(path: Path, file: BinaryIO) -> Any:
    """`torch.load` of tensors and plain data."""
    file.seek(0)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")
            return _plain(torch.load(file, map_location="cpu", weights_only=True), {})
    # It fails in a dozen ways on damaged input; all of them mean the same here.
    except Exception as error:
        code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if code is not None:
            raise UserError(
                f"{path} holds pickled objects other than tensors ({code[1]}), which are refused "
                "because unpickling runs code; save its state_dict() alone."
            ) from None
        raise UserError(f"{path} is damaged or not a checkpoint ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    """torch's sentence, without its advice on trusting files."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return first_line(ValueError(text)) if text else first_line(error)


# What training scripts leave beside the weights. The pickle names these classes and functions;
# what runs are the stand-ins below, which look at nothing but what they are given.


class _Inert:
    """Stands for an object whose value is of no use here."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _DataType:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """The type, if it is one of numbers; ValueError otherwise."""
        if not re.fullmatch(r"[biufc][0-9]{1,2}", str(self.name)) or self.order not in "<>=|":
            raise ValueError(f"numpy's type {str(self.name)[:20]!r} is not one of numbers")
        return np.dtype(self.order + self.name)


class _Array:
    """Stands for `numpy.ndarray`; `value` is the array."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, bytes):
            flat = np.frombuffer(data, kind.numpy())
            self.value = flat.reshape(shape, order="F" if fortran else "C")


def _new_array(*_: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    return b""


def _scalar(kind: _DataType, data: bytes) -> bool | int | float | complex:
    return np.frombuffer(data, kind.numpy(), count=1)[0].item()


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """Arrays as tensors, in nested mappings, each of them once."""
    if isinstance(value, Mapping):
        if id(value) not in seen:
            result = seen[id(value)] = {}
            result |= {key: _plain(inner, seen) for key, inner in value.items()}
        return seen[id(value)]
    if isinstance(value, _Array):
        array = value.value
        # PyTorch has no byte order but the machine's
        return None if array is None else torch.tensor(array.astype(array.dtype.newbyteorder("=")))
    return value


_HARMLESS: list[Any] = [
    (_Array, "numpy.ndarray"),
    (_DataType, "numpy.dtype"),
    (_no_bytes, "builtins.bytes"),
    (_no_bytes, "__builtin__.bytes"),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((_scalar, "scalar"), (_new_array, "_reconstruct"))
    ),
    *(
        (_Inert, name)
        for name in (
            "argparse.Namespace",
            "types.SimpleNamespace",
            "datetime.datetime",
            "datetime.timedelta",
            "pathlib.Path",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib.PurePosixPath",
            "pathlib.PureWindowsPath",
        )
    ),
]
