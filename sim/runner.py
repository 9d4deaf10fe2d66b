"""Simulates a streaming component on whole frames, through cocotb, and says what came of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.lib import wiring

from lichen import processes
from lichen.errors import UserError
from lichen.files import reason, writing
from lichen.sim import verilator
from lichen.sim import waves as waveforms
from lichen.sim.beats import Recording
from lichen.sim.harness import BENCH, COUNTED, Stream, make_bench
from lichen.sim.report import EXPECTED, JOB, REPORT, STARTED

Tensor = npt.NDArray[np.integer]
Wanted = Tensor | tuple[int, int, int]

QUIET_CYCLES = 100_000
"""Cycles without any beat after which a component that predicts nothing counts as stuck."""
LINGER_CYCLES = (1024, 8192)
"""How long late beats are waited for, at least and at most, after a run as long as that."""

START_SECONDS = 900.0
"""Wall-clock time after which a simulator that is still at time zero will never leave it."""

SLOWEST = {"verilator": 200, "icarus": 5}
"""Cycles a second that any machine simulates, whatever else it does. What takes longer hangs."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a simulation found.

    Attributes
    ----------
    simulator : str
    compared, mismatches : int
        Values of the output (taps not counted).
    first_mismatch : dict or None
        ``stage``, ``frame``, ``y``, ``x``, ``channel``, ``expected`` and ``actual`` (None where
        bits were unknown) of the first wrong value of the first stage that went wrong. Without
        taps the stage is called ``output``.
    cycles : int or None
        Of the first frame, from its first beat accepted to its last beat out, both included;
        None if stalls were asked for or it never ended.
    frame_cycles : list of int
        Likewise for every frame that ended, stalls or not.
    clocks : int
        Cycles simulated in all.
    seconds : float
        Wall-clock time of the simulation proper, without start-up and comparison.
    deadlock, stuck_stage : str or None
        A sentence that names the streams that stopped, and the stage at fault.
    endless : str or None
        A sentence that names the streams of a run that came to no end, and the stage at fault.
    faults : list of str
        Everything that is wrong, one sentence each; empty if all is well.
    streams : list of dict
        Per observed stream, the output last: ``name``, ``compared``, ``mismatches``,
        ``first_mismatch``, ``beats``, ``expected_beats``, ``first_cycle``, ``last_cycle``.
    busy : dict of str to int
        Cycles in which each of the component's bits ``busy_NAME`` was 1, over all frames.
    marks : list of dict of str to (int, int)
        For every frame that ended, from its first beat accepted: the first and the last cycle in
        which each of the bits ``starts_NAME`` and ``beats_NAME`` was 1. Of use where frames are
        drained.
    outputs : list of int array (height, width, channels)
        The frames that came out whole.
    waves : Path or None
    """

    simulator: str
    compared: int
    mismatches: int
    first_mismatch: dict[str, Any] | None
    cycles: int | None
    frame_cycles: list[int]
    clocks: int
    seconds: float
    deadlock: str | None
    stuck_stage: str | None
    faults: list[str]
    streams: list[dict[str, Any]] = field(repr=False)
    busy: dict[str, int]
    marks: list[dict[str, tuple[int, int]]] = field(repr=False)
    outputs: list[npt.NDArray[np.int64]] = field(repr=False)
    endless: str | None = None
    waves: Path | None = None

    @property
    def ok(self) -> bool:
        """Everything came, everything was right, and all streams kept the rules."""
        return not self.faults

    @property
    def kcycles_per_second(self) -> float:
        return self.clocks / self.seconds / 1e3 if self.seconds else 0.0


class Simulator:
    """A component built into a simulator, ready to run frames.

    Parameters
    ----------
    component : wiring.Component
        See `lichen.sim.harness.make_bench`; elaborated here, so it cannot be used again.
    simulator : str
        ``verilator`` or ``icarus``.
    taps : bool
        Observe the component's ``tap_NAME`` ports too.
    waves : bool
        Able to record waveforms.
    cache : Path, optional
        Folder that keeps builds; the user's cache folder without.
    verilog : str, optional
        What to simulate in place of the component as it is emitted; see `make_bench`.

    Raises UserError when a tool is missing.
    """

    def __init__(
        self,
        component: wiring.Component,
        *,
        simulator: str = "verilator",
        taps: bool = False,
        waves: bool = False,
        cache: Path | None = None,
        verilog: str | None = None,
    ):
        self.simulator, self.waves = simulator, waves
        self._predict = getattr(component, "predicted_cycles", None)
        self._bench = make_bench(component, taps=taps, waves=waves, verilog=verilog)
        self._folder = verilator.build(
            self._bench, simulator=simulator, waves=waves, cache=cache
        ).absolute()

    @property
    def taps(self) -> list[str]:
        """Names of the observed taps, in pipeline order."""
        return [stream.name for stream in self._bench.taps]

    def run(
        self,
        frames: Sequence[Tensor],
        expected: Sequence[Wanted],
        *,
        expected_taps: Mapping[str, Sequence[Tensor]] | None = None,
        idle: float = 0.0,
        backpressure: float = 0.0,
        hold: int = 1,
        seed: int = 0,
        drain: bool = False,
        watchdog: int | None = None,
        waves: Path | None = None,
    ) -> SimulationResult:
        """Send frames through and compare what comes out.

        Frames follow each other without a gap, whatever their sizes, unless ``drain`` is set. A
        frame's size stands at ``width`` and ``height`` with its first beat, and only then. When
        all has come, the bench goes on for a while, to see what comes too late; what comes to no
        end is ended.

        Parameters
        ----------
        frames : sequence of int array (height, width, channels)
        expected : sequence of int array (height', width', channels')
            What should come out; a shape instead of an array collects without comparing.
        expected_taps : mapping of tap name to such sequences
            For every observed tap.
        idle, backpressure : float
            Probabilities, 0 <= p < 1, that the source pauses and that the sink is not ready.
        hold : int
            Pauses last 1 .. hold cycles, ``hold`` a power of two up to 65536.
        seed : int
            Of the pauses.
        drain : bool
            Every frame waits until the one before has left.
        watchdog : int, optional
            Cycles without any beat that count as a deadlock. Without, what the component
            predicts for a whole frame (more with pauses), or `QUIET_CYCLES`.
        waves : Path, optional
            Record waveforms there; the suffix .fst is added. Save files for GTKWave (.gtkw) and
            Surfer (.sucl) are written beside.

        Returns
        -------
        SimulationResult

        Raises ValueError for arguments that make no sense, RuntimeError when the simulator
        itself fails.
        """
        _check_pauses(idle, backpressure, hold)
        if waves is not None and not self.waves:
            raise ValueError("waves were not asked for when this simulator was built")
        if not frames or len(frames) != len(expected):
            raise ValueError(
                f"there must be as many expected tensors as frames, and at least one, "
                f"not {len(expected)} for {len(frames)}"
            )
        wanted: dict[str, Sequence[Wanted]] = {"o": expected}
        for stream in self._bench.taps:
            wanted[stream.port] = (expected_taps or {}).get(stream.name, ())
            if len(wanted[stream.port]) != len(frames):
                raise ValueError(f"tap {stream.name} needs an expected tensor for every frame")
        if watchdog is None:
            watchdog = self._watchdog(frames, idle or backpressure, hold)
        with _scratch() as folder:
            self._write_job(folder, frames, wanted, watchdog)
            plusargs = {
                "idle": round(idle * 65536),
                "stall": round(backpressure * 65536),
                "idle_seed": _lane_seed(seed, 1),
                "stall_seed": _lane_seed(seed, 2),
                "hold": hold - 1,
                "drain": int(drain),
                "watchdog": watchdog,
                **self._bounds(frames, wanted["o"], idle, backpressure, hold, watchdog),
            }
            for stream in self._bench.observed:
                plusargs[f"{stream.port}__want"] = _beats(stream, wanted[stream.port])
            arguments = [f"+{key}={value}" for key, value in plusargs.items()]
            if waves is not None:
                arguments.append("+waves")
            self._execute(folder, arguments, plusargs["limit"])
            result = self._read(folder, stalled=bool(idle or backpressure))
            if waves is not None:
                target = waves.with_name(waves.name + waveforms.SUFFIX)
                with writing(target):
                    shutil.move(folder / f"waves{waveforms.SUFFIX}", target)
                shown = [self._bench.source, *self._bench.observed]
                waveforms.write_saves(target, BENCH, shown)
                result = replace(result, waves=target)
        return result

    def _bounds(
        self,
        frames: Sequence[Tensor],
        expected: Sequence[Wanted],
        idle: float,
        backpressure: float,
        hold: int,
        watchdog: int,
    ) -> dict[str, int]:
        """When a run ends whatever moves, and how long late beats are waited for; in cycles.

        Without pauses a run should take what is predicted, and is watched until then even where
        it has ended earlier. Of one with pauses no more is known than what they cost at most.
        """
        least, most = LINGER_CYCLES
        if self._predict is None:
            return {"limit": 0, "least_cycles": 0, "linger_least": least, "linger_most": most}
        predicted = sum(self._predict(*frame.shape[:2]) for frame in frames)
        linger = max(least, min(predicted, most), predicted // 8)
        pauses = idle / (1 - idle) * _beats(self._bench.source, frames)
        pauses += backpressure / (1 - backpressure) * _beats(self._bench.output, expected)
        return {
            "limit": 2 * (predicted + round(2 * hold * pauses)) + watchdog,
            "least_cycles": predicted + linger,
            "linger_least": linger,
            "linger_most": linger,
        }

    def _watchdog(self, frames: Sequence[Tensor], pauses: float, hold: int) -> int:
        if self._predict is None:
            cycles = QUIET_CYCLES
        else:
            sizes = {frame.shape[:2] for frame in frames}
            cycles = max(1000, *(self._predict(*size) for size in sizes))
        return min(cycles * (4 + hold if pauses else 1), 2**31)

    def _write_job(
        self,
        folder: Path,
        frames: Sequence[Tensor],
        wanted: Mapping[str, Sequence[Wanted]],
        watchdog: int,
    ) -> None:
        (folder / "memories").symlink_to(self._folder / "memories")
        source = self._bench.source
        with (folder / source.file).open("wb") as file:
            for frame in frames:
                file.write(source.lanes.pack(frame))
        sizes = [f"{f.shape[1]} {f.shape[0]} {source.lanes.beats(_shape(f))}\n" for f in frames]
        (folder / "frames.txt").write_text("".join(sizes), encoding="ascii")
        beats = [f"{_beats(self._bench.output, [item])}\n" for item in wanted["o"]]
        (folder / "frames_out.txt").write_text("".join(beats), encoding="ascii")
        tensors: dict[str, Tensor] = {}
        streams = []
        for stream in self._bench.observed:
            items = wanted[stream.port]
            compare = not any(isinstance(item, tuple) for item in items)
            if compare:
                tensors |= {f"{stream.port}_{k}": np.asarray(item) for k, item in enumerate(items)}
            streams.append(
                {
                    "port": stream.port,
                    "name": stream.name,
                    "file": stream.file,
                    "lanes": asdict(stream.lanes),
                    "shapes": [_shape(item) for item in items],
                    "compare": compare,
                }
            )
        np.savez(folder / EXPECTED, **tensors)
        job = {
            "streams": streams,
            "counters": {name: f"{COUNTED}{name}" for name in self._bench.counters},
            "source_beats": sum(source.lanes.beats(_shape(f)) for f in frames),
            "watchdog": watchdog,
        }
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")

    def _execute(self, folder: Path, arguments: Sequence[str], most_cycles: int) -> None:
        """Run the simulator in a prepared folder, for so many cycles or, if 0, who knows how many.

        Two blocks that wake each other within a moment of simulated time would do so for ever, and
        no bound in cycles sees that: hence those by the clock on the wall.
        """
        if self.simulator == "verilator":
            command = [str(self._folder / "simulator")]
        else:
            library = verilator.cocotb_libraries() / "libcocotbvpi_icarus.so"
            command = [verilator.find_tool("vvp", "iverilog"), "-n", "-m", str(library)]
            command += [str(self._folder / "simulator.vvp"), "-fst"]
        log = folder / "simulator.log"
        environment = _environment(folder)
        began = time.monotonic()

        def look() -> None:
            seconds = time.monotonic() - began
            if seconds <= START_SECONDS:
                return
            if not (folder / STARTED).exists():
                raise RuntimeError(
                    f"the {self.simulator} simulation is still at time zero after {seconds:.0f} s "
                    "and was ended: blocks of the Verilog that wake each other never come to rest."
                )
            if most_cycles and seconds > START_SECONDS + most_cycles / SLOWEST[self.simulator]:
                raise RuntimeError(
                    f"the {self.simulator} simulation has not done its {most_cycles} cycles in "
                    f"{seconds:.0f} s and was ended: its time stands still, or this machine does."
                )

        with log.open("wb") as output:
            done = processes.run(
                [*command, *arguments], cwd=folder, env=environment, output=output, tick=look
            )
        # what a full disk has cut short is no fault of the gateware
        (folder / "probe").write_bytes(bytes(1 << 16))
        if not (folder / REPORT).exists():
            text = log.read_text(encoding="utf-8", errors="replace")
            if os.strerror(errno.ENOSPC) in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            tail = "\n".join(text.splitlines()[-30:])
            raise RuntimeError(
                f"the {self.simulator} simulation ended early ({done.status}):\n{tail}"
            )

    def _read(self, folder: Path, *, stalled: bool) -> SimulationResult:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        streams = report["streams"]
        output = self._bench.output
        recording = Recording(folder / output.file, output.lanes, streams[-1]["beats"])
        job = json.loads((folder / JOB).read_text(encoding="utf-8"))
        outputs, start = [], 0
        for shape in job["streams"][-1]["shapes"]:
            tensor = recording.tensor(start, tuple(shape))
            if tensor is not None:
                outputs.append(tensor)
            start += output.lanes.beats(tuple(shape))
        frame_cycles = report["frame_cycles"]
        return SimulationResult(
            simulator=self.simulator,
            compared=streams[-1]["compared"],
            mismatches=streams[-1]["mismatches"],
            first_mismatch=next(
                (s["first_mismatch"] for s in streams if s["first_mismatch"] is not None), None
            ),
            cycles=frame_cycles[0] if frame_cycles and not stalled else None,
            frame_cycles=frame_cycles,
            clocks=report["clocks"],
            seconds=report["seconds"],
            deadlock=report["deadlock"],
            endless=report["endless"],
            stuck_stage=report["stuck_stage"],
            faults=report["faults"],
            streams=streams,
            busy=report["busy"],
            marks=[{k: (v[0], v[1]) for k, v in frame.items()} for frame in report["marks"]],
            outputs=outputs,
        )


def simulate(
    component: wiring.Component,
    frames: Sequence[Tensor],
    expected: Sequence[Wanted],
    *,
    simulator: str = "verilator",
    expected_taps: Mapping[str, Sequence[Tensor]] | None = None,
    idle: float = 0.0,
    backpressure: float = 0.0,
    hold: int = 1,
    seed: int = 0,
    drain: bool = False,
    watchdog: int | None = None,
    waves: Path | None = None,
    cache: Path | None = None,
) -> SimulationResult:
    """Build a component and run frames through it; see `Simulator` and `Simulator.run`.

    The component's taps are observed if ``expected_taps`` is given.
    """
    built = Simulator(
        component,
        simulator=simulator,
        taps=expected_taps is not None,
        waves=waves is not None,
        cache=cache,
    )
    return built.run(
        frames,
        expected,
        expected_taps=expected_taps,
        idle=idle,
        backpressure=backpressure,
        hold=hold,
        seed=seed,
        drain=drain,
        watchdog=watchdog,
        waves=waves,
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder; UserError that names it when it cannot be made or is full."""
    place = Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryDirectory(prefix="lichen-simulation-") as name:
            yield Path(name)
    except OSError as error:
        raise UserError(
            f"cannot simulate in {place}: {reason(error)}; TMPDIR can name another folder."
        ) from None


def _check_pauses(idle: float, backpressure: float, hold: int) -> None:
    for name, value in (("idle", idle), ("backpressure", backpressure)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be a probability below 1, not {value}")
    if not 1 <= hold <= 65536 or hold & (hold - 1):
        raise ValueError(f"hold must be a power of two in 1 .. 65536, not {hold}")


def _shape(item: Wanted) -> tuple[int, int, int]:
    shape = item if isinstance(item, tuple) else item.shape
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"tensors must have shape (height, width, channels), not {shape}")
    return shape[0], shape[1], shape[2]


def _beats(stream: Stream, items: Sequence[Wanted]) -> int:
    return sum(stream.lanes.beats(_shape(item)) for item in items)


def _lane_seed(seed: int, purpose: int) -> int:
    """A seed of 32 bits, never 0: the bench's generator would stay there."""
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1)[0]) | 1


def python_library() -> str:
    """The shared library of this Python, which the simulator embeds; UserError without one."""
    import find_libpython

    library = find_libpython.find_libpython()
    if library is None:
        version = sysconfig.get_python_version()
        raise UserError(
            "the shared library of Python is not installed; "
            f"on Debian or Ubuntu: sudo apt-get install libpython{version}"
        )
    return str(library)


def _environment(folder: Path) -> dict[str, str]:
    """Environment of a simulator that embeds this Python."""
    from cocotb_tools.config import pygpi_entry_point

    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("COCOTB_", "GPI_"))}
    return inherited | {
        "GPI_USERS": f"{python_library()};{pygpi_entry_point()}",
        "PYGPI_PYTHON_BIN": sys.executable,
        # the simulator runs elsewhere; an empty entry is where this process was started
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),
        "COCOTB_TOPLEVEL": BENCH,
        "COCOTB_TEST_MODULES": "lichen.sim.testbench",
        "COCOTB_RESULTS_FILE": str(folder / "results.xml"),
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
        "TOPLEVEL_LANG": "verilog",
        # The comparison is small; BLAS threads would only fight over the cores.
        "OPENBLAS_NUM_THREADS": "1",
    }
