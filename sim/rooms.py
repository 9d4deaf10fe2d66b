"""Memory that strips use again and again.

What is asked for anew comes page by page from the system, which takes longer than filling it.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

ROOM_BYTES_MAX = 1 << 24
"""Largest array that is kept: strips of very wide images take more."""

_local = threading.local()


def room(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray:
    """An array of the thread's own under this name; what the last one of it held is in it still.

    It is good until the thread asks for the name again, so nothing may keep it.
    """
    kind = np.dtype(dtype)
    wanted = math.prod(shape) * kind.itemsize
    held: npt.NDArray[np.uint8] | None = getattr(_local, name, None)
    if held is None or held.nbytes < wanted:
        held = np.zeros(wanted, np.uint8)
        if wanted <= ROOM_BYTES_MAX:
            setattr(_local, name, held)
    return held[:wanted].view(kind).reshape(shape)
