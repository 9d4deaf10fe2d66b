"""The cycle model of a pipeline: its units' parameters, and what comes of them.

The model itself is `lichen.hw.engine.cycles`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lichen.hw.engine.cycles import STATE, UNIT, run

if TYPE_CHECKING:
    from lichen.hw.stage.pipeline import Pipeline


def _parameters(pipeline: Pipeline, height: int, width: int) -> npt.NDArray[np.void]:
    """Rows of `UNIT`, one a unit."""
    rows = np.zeros(len(pipeline.units), dtype=UNIT)
    size = height, width
    for row, unit in zip(rows, pipeline.units, strict=True):
        for name, value in unit.timing(*size).items():
            if isinstance(value, tuple):
                row[name][: len(value)] = value
            else:
                row[name] = value
        size = unit.output_size(*size)
    return rows


def cycles(pipeline: Pipeline, height: int, width: int) -> int:
    """Cycles of one frame from the first beat accepted to the last beat out, both included.

    Raises RuntimeError if the model stops moving, which would be a deadlock of the gateware.
    """
    return int(simulate(pipeline, height, width)[0])


def occupancy(
    pipeline: Pipeline, height: int, width: int, slice_cycles: int
) -> npt.NDArray[np.float64]:
    """How busy every unit's array is over a frame: (units, slices), shares from 0 to 1.

    Slices have ``slice_cycles`` cycles each; the last one reaches beyond the end of the frame.
    """
    slices = -(-cycles(pipeline, height, width) // slice_cycles)
    spent = np.zeros((len(pipeline.units), slices), dtype=np.int64)
    _simulate(pipeline, height, width, spent, slice_cycles)
    return spent / slice_cycles


def simulate(pipeline: Pipeline, height: int, width: int) -> tuple[int, list[dict[str, int]]]:
    """The cycle count, and per unit how its array spent the cycles.

    Each dictionary holds ``busy`` (cycles with a group on the array), ``stall_input`` and
    ``stall_drain`` (idle cycles waiting for pixels, and for a drain bank).
    """
    nothing = np.zeros((len(pipeline.units), 0), dtype=np.int64)
    total, state = _simulate(pipeline, height, width, nothing, 1)
    names = {"busy": "spent", "stall_input": "stall_input", "stall_drain": "stall_drain"}
    return total, [{key: int(s[name]) for key, name in names.items()} for s in state]


def marks(pipeline: Pipeline, height: int, width: int) -> dict[str, tuple[int, int]]:
    """When the first and the last group of every unit start, and its first and last beat leave.

    By the name of the pipeline's bit that shows it, ``starts_NAME`` and ``beats_NAME``, in the
    order of the units; in cycles from the first beat accepted. What of gateware and model parts
    first is where a difference of cycles comes from.
    """
    nothing = np.zeros((len(pipeline.units), 0), dtype=np.int64)
    _, state = _simulate(pipeline, height, width, nothing, 1)
    found: dict[str, tuple[int, int]] = {}
    for name, s in zip(pipeline.names, state, strict=True):
        found[f"starts_{name}"] = int(s["start_first"]), int(s["start_last"])
        found[f"beats_{name}"] = int(s["out_first"]), int(s["out_last"])
    return found


def _simulate(
    pipeline: Pipeline, height: int, width: int, slices: npt.NDArray[np.int64], slice_cycles: int
) -> tuple[int, npt.NDArray[np.void]]:
    """The cycle count, and the units' `STATE` at the end."""
    par = _parameters(pipeline, height, width)
    state = np.zeros(len(par), dtype=STATE)
    (h, w) = pipeline.transform.sizes(height, width)[-1]
    in_beats = height * width * pipeline.units[0].i_beats
    out_beats = h * w * pipeline.units[-1].core.shape.beats
    total, left = run(par, state, in_beats, out_beats, slices, slice_cycles)
    if total < 0:
        raise RuntimeError(f"the cycle model stopped after {left} of {out_beats} beats")
    return int(total), state
