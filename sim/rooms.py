"""Memory that strips use again and again.

What is asked for anew comes page by page from the system, which takes longer than filling it.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt

ROOM_BYTES_MAX = 1 << 24
"""Largest array of a strip that is kept: those of very wide images take more."""

WINDOW_BYTES_MAX = 1 << 26
"""The same of a band's."""

_local = threading.local()


def room(
    name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, most: int = ROOM_BYTES_MAX
) -> npt.NDArray:
    """An array of the thread's own under this name, with anything in it.

    It is good until the thread asks for the name again, so nothing may keep it. Arrays of more than
    ``most`` bytes are made anew.
    """
    kind = np.dtype(dtype)
    wanted = math.prod(shape) * kind.itemsize
    held: npt.NDArray[np.uint8] | None = getattr(_local, name, None)
    if held is None or held.nbytes < wanted:
        # not of zeros: those come in small pages
        held = np.empty(wanted, np.uint8)
        if wanted <= most:
            setattr(_local, name, held)
    return held[:wanted].view(kind).reshape(shape)
