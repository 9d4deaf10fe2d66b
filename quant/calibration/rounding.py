"""Rounding real weights to integers so that sums of products, not weights, are preserved.

A linear layer with inputs ``x`` should keep ``w.x``; the error of integer weights is
``e^T H e`` with ``H = sum x x^T`` over calibration inputs. `round_rows` minimizes it in two
steps: the sequential rounding of Frantar et al., "GPTQ: accurate post-training quantization
for generative pre-trained transformers" (2023; after Hassibi and Stork's "Optimal brain
surgeon", 1993), and then coordinate descent over single integer steps, until none helps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def sequential_rounding(
    weight: FloatArray, scale: FloatArray, hessian: FloatArray, lo: int, hi: int, block: int = 64
) -> FloatArray:
    """Round column by column; what each rounding loses, the columns to come make good.

    Parameters
    ----------
    weight : (rows, features)
    scale : (rows,)
        Real value of one integer step.
    hessian : (features, features)
        Symmetric and positive definite.
    lo, hi : int
        Range of the integers.

    Returns integers as floats, shape (rows, features). Rows are independent, so the same
    weights may come several times with different scales.
    """
    order = np.argsort(-np.diag(hessian), kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    rest = weight[:, order] / scale[:, None]
    integers = np.empty_like(rest)
    features = rest.shape[1]
    for start in range(0, features, block):
        stop = min(start + block, features)
        errors = np.empty((len(rest), stop - start))
        for i in range(start, stop):
            integers[:, i] = np.clip(np.rint(rest[:, i]), lo, hi)
            error = (rest[:, i] - integers[:, i]) / upper[i, i]
            errors[:, i - start] = error
            rest[:, i + 1 : stop] -= error[:, None] * upper[i, i + 1 : stop]
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    result = np.empty_like(integers)
    result[:, order] = integers
    return result


def coordinate_descent(
    integers: FloatArray,
    weight: FloatArray,
    scale: FloatArray,
    hessian: FloatArray,
    lo: int,
    hi: int,
    sweeps: int = 4,
) -> FloatArray:
    """Move single integers to the value that minimizes the error, until nothing moves.

    Shapes as in `sequential_rounding`; ``hessian`` may also be (rows, features, features),
    one for each row. Never makes an error worse.
    """
    own = hessian.ndim == 3
    integers = integers.copy()
    error = integers * scale[:, None] - weight
    gradient = np.einsum("rf,rfg->rg", error, hessian) if own else error @ hessian
    diagonal = np.einsum("rff->rf", hessian) if own else np.diag(hessian)[None]
    diagonal = np.maximum(diagonal * scale[:, None], 1e-300)
    for _ in range(sweeps):
        moved = False
        for i in range(integers.shape[1]):
            best = np.clip(np.rint(integers[:, i] - gradient[:, i] / diagonal[:, i]), lo, hi)
            rows = np.flatnonzero(best != integers[:, i])
            if not len(rows):
                continue
            moved = True
            step = (best[rows] - integers[rows, i]) * scale[rows]
            integers[rows, i] = best[rows]
            gradient[rows] += step[:, None] * (hessian[rows, i] if own else hessian[i])
        if not moved:
            break
    return integers


def row_errors(
    integers: FloatArray, weight: FloatArray, scale: FloatArray, hessian: FloatArray
) -> FloatArray:
    """``e^T H e`` of each row."""
    error = integers * scale[:, None] - weight
    if hessian.ndim == 3:
        return np.einsum("rf,rfg,rg->r", error, hessian, error, optimize=True)
    return np.einsum("rf,rf->r", error @ hessian, error)


def nearest(weight: FloatArray, scale: FloatArray, lo: int, hi: int) -> FloatArray:
    """Each weight by itself."""
    return np.clip(np.rint(weight / scale[:, None]), lo, hi)
