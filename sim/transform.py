"""A whole transform on a whole image, in simulation, held against the golden model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.hw.plan.tiling import Tile, tiles
from lichen.hw.stage import timing
from lichen.hw.stage.folding import Folding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import Transform
from lichen.sim.golden import run_stages, run_transform
from lichen.sim.runner import SimulationResult, Simulator


@dataclass(frozen=True, kw_only=True)
class Pauses:
    """Random interruptions of the input and the output; see `Simulator.run`."""

    idle: float
    backpressure: float
    hold: int
    seed: int

    @classmethod
    def from_seed(cls, seed: int) -> Pauses:
        """Rare or frequent, short or long ones: another kind for every seed."""
        rng = np.random.default_rng(seed)
        return cls(
            idle=round(float(rng.uniform(0, 0.6)), 3),
            backpressure=round(float(rng.uniform(0.1, 0.8)), 3),
            hold=1 << int(rng.integers(0, 9)),
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class ArrayUse:
    """What an array did with its cycles, as the simulation saw it.

    Attributes
    ----------
    name : str
        Of its unit.
    multipliers : int
        Products it can make a cycle.
    macs : int
        Products that the frames needed, halos of tiles included.
    busy_cycles : int
        Cycles in which the array took operands.
    cycles : int
        Of all frames, one after the other.
    """

    name: str
    multipliers: int
    macs: int
    busy_cycles: int
    cycles: int

    @property
    def busy(self) -> float:
        """Share of the cycles in which the array took operands."""
        return self.busy_cycles / self.cycles

    @property
    def efficiency(self) -> float:
        """Share of the products it could have made that were needed."""
        return self.macs / (self.multipliers * self.cycles)

    def to_json(self) -> dict[str, Any]:
        """As JSON-serialisable values."""
        fields = {key: value for key, value in vars(self).items() if key != "cycles"}
        return fields | {"busy": self.busy, "efficiency": self.efficiency}


def efficiency(arrays: list[ArrayUse]) -> float:
    """Products needed by all arrays together, as a share of those they could have made."""
    return sum(a.macs for a in arrays) / sum(a.multipliers * a.cycles for a in arrays)


@dataclass(frozen=True, kw_only=True)
class TransformSimulation:
    """What the simulation of a transform found.

    Attributes
    ----------
    result : SimulationResult
        Of all tiles, each a frame.
    output : int array (height, width, channels) or None
        Put together from the tiles; None if any is missing.
    compared, mismatches : int
        Values of the whole output.
    cycles : int or None
        Of all tiles, one after the other; None with pauses or where one never ended.
    predicted_cycles : int
        Likewise, by the pipeline's own account.
    tiles : int
    first_mismatch : dict or None
        As `SimulationResult`'s, but ``x`` counts columns of the whole tensor (at the stage's
        resolution) and ``tile`` says in which tile it was seen.
    arrays : list of ArrayUse
        In pipeline order; empty with pauses or where a tile never ended.
    deviation : str or None
        Where gateware and cycle model part first; see `deviation`.
    """

    result: SimulationResult
    output: npt.NDArray[np.int64] | None
    compared: int
    mismatches: int
    cycles: int | None
    predicted_cycles: int
    tiles: int
    first_mismatch: dict[str, Any] | None
    arrays: list[ArrayUse]
    deviation: str | None

    @property
    def bottleneck(self) -> ArrayUse:
        """The array that was busy longest."""
        return max(self.arrays, key=lambda use: use.busy_cycles)

    @property
    def faults(self) -> list[str]:
        """Everything that is wrong, one sentence each."""
        faults = list(self.result.faults)
        if self.mismatches and not faults:
            faults.append(f"{self.mismatches} values of the joined tiles differ")
        if self.cycles is not None and self.cycles != self.predicted_cycles:
            faults.append(
                f"it took {self.cycles} cycles instead of the predicted {self.predicted_cycles}"
            )
        if self.deviation is not None:
            faults.append(self.deviation)
        return faults


class TransformSimulator:
    """A transform's gateware in a simulator, built once for any number of tensors.

    Parameters
    ----------
    transform : Transform
    folding : Folding
        A tensor wider than its ``max_width`` goes through in tiles.
    simulator, waves, cache
        See `Simulator`.
    progress : callable
        Takes sentences for the user about what is happening.

    Raises UserError when a tool is missing, ValueError when the folding does not suit the
    transform, RuntimeError when the simulator cannot be built.
    """

    def __init__(
        self,
        transform: Transform,
        folding: Folding,
        *,
        simulator: str = "verilator",
        waves: bool = False,
        cache: Path | None = None,
        progress: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._transform, self._max_width = transform, folding.max_width
        self._name, self._progress = simulator, progress
        self._pipeline = Pipeline(transform, folding, debug=True)
        progress(f"{simulator}: building {sum(s.multipliers for s in folding.stages)} multipliers")
        self._simulator = Simulator(
            self._pipeline, simulator=simulator, taps=True, waves=waves, cache=cache
        )

    def run(
        self,
        tensor: npt.NDArray[np.integer],
        *,
        pauses: Pauses | None = None,
        waves: Path | None = None,
    ) -> TransformSimulation:
        """Send a tensor through and compare every stage with the golden model.

        Parameters
        ----------
        tensor : int array (height, width, channels)
            What the transform reads of an image (`lichen.sim.inputs`), in most cases.
        pauses : Pauses, optional
        waves : Path, optional
            See `Simulator.run`.

        Raises ValueError when the tensor does not suit the transform, RuntimeError when the
        simulator fails.
        """
        height, width, _ = tensor.shape
        cut = tiles(self._transform, width, self._max_width)
        predicted = sum(
            self._pipeline.predicted_cycles(height, tile.stop - tile.start) for tile in cut
        )
        frames = [tensor[:, tile.start : tile.stop] for tile in cut]
        stages = [run_stages(self._transform, frame) for frame in frames]
        self._progress(f"{self._name}: {predicted} cycles predicted for {width}x{height}")
        knobs: dict[str, Any] = {} if pauses is None else vars(pauses)
        result = self._simulator.run(
            frames,
            [outputs[-1] for outputs in stages],
            expected_taps={
                stage.name: [outputs[k] for outputs in stages]
                for k, stage in enumerate(self._transform.stages)
            },
            drain=True,
            waves=waves,
            **knobs,
        )
        return self._judged(result, tensor, cut, frames, predicted, paused=pauses is not None)

    def _judged(
        self,
        result: SimulationResult,
        tensor: npt.NDArray[np.integer],
        cut: list[Tile],
        frames: list[npt.NDArray[np.integer]],
        predicted: int,
        *,
        paused: bool,
    ) -> TransformSimulation:
        """What a run found, told of the whole tensor instead of its tiles."""
        complete = len(result.outputs) == len(cut)
        output, compared, mismatches = None, result.compared, result.mismatches
        if complete:
            output = join_tiles(result.outputs, cut)
            if len(cut) > 1:
                golden = run_transform(self._transform, tensor)
                compared, mismatches = golden.size, int(np.count_nonzero(golden != output))
        cycles = sum(result.frame_cycles) if complete and not paused else None
        pipeline = self._pipeline
        return TransformSimulation(
            result=result,
            output=output,
            compared=compared,
            mismatches=mismatches,
            cycles=cycles,
            predicted_cycles=predicted,
            tiles=len(cut),
            first_mismatch=_locate(result.first_mismatch, self._transform, cut),
            arrays=[] if cycles is None else _uses(pipeline, frames, result.busy, cycles),
            deviation=None if cycles is None else deviation(pipeline, result.marks, frames),
        )


def simulate_transform(
    transform: Transform,
    folding: Folding,
    tensor: npt.NDArray[np.integer],
    *,
    simulator: str = "verilator",
    pauses: Pauses | None = None,
    waves: Path | None = None,
    cache: Path | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
) -> TransformSimulation:
    """Run a transform's gateware on one tensor: a `TransformSimulator`, built and run once.

    Raises UserError when a tool is missing, ValueError when the tensor or the folding does not
    suit the transform, RuntimeError when the simulator fails.
    """
    tiles(transform, tensor.shape[1], folding.max_width)  # refuses before anything is built
    built = TransformSimulator(
        transform,
        folding,
        simulator=simulator,
        waves=waves is not None,
        cache=cache,
        progress=progress,
    )
    return built.run(tensor, pauses=pauses, waves=waves)


def deviation(
    pipeline: Pipeline,
    marks: list[dict[str, tuple[int, int]]],
    frames: list[npt.NDArray[np.integer]],
) -> str | None:
    """The unit whose cycles are the first to differ from the cycle model's, in a sentence.

    The first in time: a unit that is late makes those behind it late, and by its backpressure
    those before it. None if none differs. Of drained frames without pauses: ``marks`` are
    `SimulationResult.marks`.
    """
    what = {
        "starts": ("its first group starts", "its last group starts"),
        "beats": ("its first beat leaves", "its last beat leaves"),
    }
    for number, (seen, frame) in enumerate(zip(marks, frames, strict=True)):
        found: list[tuple[int, str]] = []
        for name, predicted in timing.marks(pipeline, *frame.shape[:2]).items():
            bit, _, unit = name.partition("_")
            for k, event in enumerate(what[bit]):
                right, cycle = predicted[k], seen[name][k] if name in seen else None
                if cycle != right:
                    where = f" of frame {number}" if number else ""
                    sentence = f"{unit}: {event} in cycle {cycle}{where} instead of {right}"
                    found.append((right if cycle is None else min(cycle, right), sentence))
        if found:
            return min(found, key=lambda item: item[0])[1]
    return None


def _uses(
    pipeline: Pipeline,
    frames: list[npt.NDArray[np.integer]],
    busy: dict[str, int],
    cycles: int,
) -> list[ArrayUse]:
    macs = [pipeline.macs(frame.shape[0], frame.shape[1]) for frame in frames]
    return [
        ArrayUse(
            name=name,
            multipliers=multipliers,
            macs=sum(needed[name] for needed in macs),
            busy_cycles=busy[name],
            cycles=cycles,
        )
        for name, multipliers in pipeline.multipliers().items()
    ]


def _locate(
    first: dict[str, Any] | None, transform: Transform, cut: list[Tile]
) -> dict[str, Any] | None:
    """A mismatch in a tile, told in columns of the whole tensor."""
    if first is None:
        return None
    tile = first["frame"]
    start = cut[tile].start
    for stage in transform.stages:
        stride = stage.convolution.stride
        start = start * stride if stage.convolution.transposed else start // stride
        if stage.name == first["stage"]:
            break
    return {**first, "frame": 0, "tile": tile, "x": first["x"] + start}


def join_tiles(outputs: Sequence[npt.NDArray[np.int64]], cut: list[Tile]) -> npt.NDArray[np.int64]:
    """The output of a tensor from those of its `tiles`, (height, width, channels) each."""
    parts = [
        output[:, tile.skip : tile.skip + tile.out_stop - tile.out_start]
        for output, tile in zip(outputs, cut, strict=True)
    ]
    return np.concatenate(parts, axis=1)
