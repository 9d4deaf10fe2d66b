"""The kinds of fields that descriptions are made of, and how a sentence refuses a value."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from lichen.network.names import printable

CHANNELS_MAX = 1 << 16
"""Most channels of a tensor, and most tables of a latent."""


def require(condition: bool, sentence: str) -> None:
    """Raise ValueError with the sentence unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


def require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the array has the shape."""
    require(array.shape == shape, f"{name} must have shape {shape}, not {array.shape}")


def require_range(name: str, array: np.ndarray, lo: int, hi: int) -> None:
    """Raise ValueError unless all values lie in ``lo .. hi``, both included."""
    if array.size and (int(array.min()) < lo or int(array.max()) > hi):
        raise ValueError(
            f"{name} must lie in {lo} .. {hi}, but spans {int(array.min())} .. {int(array.max())}"
        )


def _integer_array(value: Any) -> npt.NDArray[np.signedinteger]:
    """The integers in a signed type, so that no difference of any two wraps to a large value."""
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"must be an integer tensor, not {array.dtype}")
    if np.issubdtype(array.dtype, np.unsignedinteger):
        require_range("the integers", array, 0, np.iinfo(np.int64).max)
        wider = {1: np.int16, 2: np.int32}.get(array.dtype.itemsize, np.int64)
        array = array.astype(wider)
    return array


def _float_array(value: Any) -> npt.NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError("must be finite")
    return array


IntArray = Annotated[Any, _integer_array]
"""Integers of any type, kept in a signed one."""

FloatArray = Annotated[Any, _float_array]
"""Finite numbers, kept as float64."""

IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
"""What may become a name in Verilog, of a file or of a JSON key: plain letters, digits, _."""

ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
"""Names of architectures: CompressAI's, or others like them."""

DEPTH_MAX = 64
"""How deep objects and lists may be nested in what is there for reports only."""

NAME_MAX = 255
"""Most characters of a network's name."""


def _identifier(value: str) -> str:
    require(
        IDENTIFIER.fullmatch(value) is not None,
        "a name must be a letter followed by at most 62 letters, digits or underscores, "
        f"not {printable(value, quoted=True)}",
    )
    return value


def _architecture(value: str) -> str:
    require(
        ARCHITECTURE.fullmatch(value) is not None,
        "an architecture must be at most 63 letters, digits, dots, dashes, plusses or "
        f"underscores, not {printable(value, quoted=True)}",
    )
    return value


def _depth(value: Any, most: int) -> int:
    """How deep objects and lists are nested, counted up to ``most``."""
    inside = value.values() if isinstance(value, dict) else value
    if most == 0 or not isinstance(value, dict | list | tuple):
        return 0
    return 1 + max((_depth(item, most - 1) for item in inside), default=0)


def _json_object(value: dict[str, Any]) -> dict[str, Any]:
    require(_depth(value, DEPTH_MAX + 1) <= DEPTH_MAX, f"must not be nested {DEPTH_MAX} times")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("must hold nothing but finite JSON values") from None
    return value


Identifier = Annotated[str, _identifier]
Architecture = Annotated[str, _architecture]
JsonObject = Annotated[dict[str, Any], _json_object]
