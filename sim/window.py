"""Part of what a transform makes, from the part of its input that this depends on."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lichen.network.description import Transform
from lichen.sim.golden import Tensor, run_transform

Span = tuple[int, int]
"""First row or column, and the one behind the last."""


def needed(transform: Transform, span: Span, size: int) -> Span:
    """Rows (or columns) of an input of this size that rows ``span`` of the output depend on."""
    sizes = [size]
    for stage in transform.stages:
        sizes.append(stage.convolution.output_size(sizes[-1]))
    first, last = span[0], span[1] - 1
    for stage, below in zip(reversed(transform.stages), reversed(sizes[:-1]), strict=True):
        first = min(max(stage.convolution.reach(first)[0], 0), below - 1)
        last = max(min(stage.convolution.reach(last)[1], below - 1), first)
    return first, last + 1


def run_window(transform: Transform, x: Tensor, rows: Span, columns: Span) -> npt.NDArray[np.int32]:
    """Rows and columns of `run_transform`, from no more of x than they depend on.

    The part of x that is read is cut out and run by itself: what lies near the cuts comes out
    wrong, but nothing that is wanted reads it.

    Parameters
    ----------
    transform : Transform
    x : int array (height, width, in)
        Of the whole input; what is not needed may hold anything.
    rows, columns : tuple of int

    Returns
    -------
    int32 array (rows, columns, out)
    """
    strides = [s.convolution.stride for s in transform.stages if not s.convolution.transposed]
    step = math.prod(strides)
    up = transform.upsampling
    cuts, offsets = [], []
    for span, size in zip((rows, columns), x.shape[:2], strict=True):
        first, last = needed(transform, span, size)
        # a cut at a multiple of all strides, so that outputs fall on outputs
        first -= first % step
        cuts.append(slice(first, last))
        offsets.append(first // step * up)
    made = run_transform(transform, np.ascontiguousarray(x[cuts[0], cuts[1]]))
    (top, bottom), (left, right) = rows, columns
    return made[top - offsets[0] : bottom - offsets[0], left - offsets[1] : right - offsets[1]]
