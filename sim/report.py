"""What a finished simulation says: comparison, cycle counts, deadlocks, broken stream rules.

Used inside the simulator's process by `lichen.sim.testbench`; light on imports for that reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lichen.sim.beats import Lanes, Recording

JOB, EXPECTED, REPORT = "job.json", "expected.npz", "report.json"
"""Files of a simulation's working directory: what to do, what should come, what came."""

STARTED = "started"
"""A file there once simulated time has passed zero."""


def _examine_stream(
    folder: Path, stream: dict[str, Any], summary: Sequence[str], expected: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A stream's entry of `examine`'s ``streams``, and what is wrong with it."""
    port, name = stream["port"], stream["name"]
    lanes = Lanes(**stream["lanes"])
    count, valid, ready, first_cycle, last_cycle, broken, broken_at = summary
    recording = Recording(folder / stream["file"], lanes, int(count))
    tensors = (
        [expected[f"{port}_{k}"] for k in range(len(stream["shapes"]))] if stream["compare"] else []
    )
    comparison = recording.compare(tensors)
    wanted = sum(lanes.beats(tuple(shape)) for shape in stream["shapes"])
    first = asdict(comparison.first) if comparison.first is not None else None
    entry = {
        "port": port,
        "name": name,
        "compared": comparison.compared,
        "mismatches": comparison.mismatches,
        "first_mismatch": None if first is None else {"stage": name, **first},
        "beats": len(recording),
        "expected_beats": wanted,
        "first_cycle": int(first_cycle),
        "last_cycle": int(last_cycle),
        "valid": valid,
        "ready": ready,
    }
    faults = []
    if int(broken):
        faults.append(f"{name} withdrew or changed a beat that was waiting, at cycle {broken_at}")
    if first is not None:
        faults.append(
            f"{name}: {comparison.mismatches} of {comparison.compared} values differ, "
            + _mismatch(first)
        )
    if len(recording) > wanted:
        faults.append(
            f"{name} gave {len(recording) - wanted} beats too many, the last at cycle {last_cycle}"
        )
    return entry, faults


def examine(
    folder: Path, *, clocks: int, stuck: bool, endless: bool, seconds: float
) -> dict[str, Any]:
    """Compare what a run left in its working directory with what was expected.

    Parameters
    ----------
    folder : Path
        With ``job.json``, ``expected.npz`` and what the bench wrote.
    clocks : int
        Clock cycles simulated.
    stuck : bool
        The watchdog ended the run: nothing moved.
    endless : bool
        A bound ended the run: something moved, but it came to no end.
    seconds : float
        Wall-clock time of the simulation proper.

    Returns
    -------
    dict
        JSON-compatible: ``streams`` (in pipeline order, the output last; per stream ``name``,
        ``compared``, ``mismatches``, ``first_mismatch``, ``beats``, ``expected_beats``,
        ``first_cycle``, ``last_cycle``), ``busy`` (cycles, by counter), ``frame_cycles``,
        ``marks``, ``clocks``, ``seconds``, ``deadlock`` and ``endless`` (a sentence or null),
        ``stuck_stage`` and ``faults`` (sentences).
    """
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    summary = _summary(folder / "summary.txt")
    expected = np.load(folder / EXPECTED)
    streams: list[dict[str, Any]] = []
    faults: list[str] = []
    for stream in job["streams"]:
        entry, wrong = _examine_stream(folder, stream, summary[stream["port"]], expected)
        streams.append(entry)
        faults += wrong
    deadlock, unending, stage = None, None, None
    if stuck or endless:
        accepted, valid, ready = summary["i"]
        source = {"port": "i", "name": "input i", "beats": int(accepted), "valid": valid}
        source |= {"ready": ready, "expected_beats": job["source_beats"]}
        stage, where, states = _standstill([source, *streams])
        if stuck:
            quiet = job["watchdog"]
            deadlock = f"deadlock{where}: nothing moved for {quiet} cycles; {states}"
            faults.insert(0, deadlock)
        else:
            unending = f"no end{where}: still moving after {clocks} cycles; {states}"
            faults.insert(0, unending)
    frame_cycles, marks = _events(folder / "events.txt")
    return {
        "streams": streams,
        "busy": {name: int(summary[port][0]) for name, port in job["counters"].items()},
        "frame_cycles": frame_cycles,
        "marks": marks,
        "clocks": clocks,
        "seconds": seconds,
        "deadlock": deadlock,
        "endless": unending,
        "stuck_stage": stage,
        "faults": faults,
    }


def _mismatch(first: dict[str, Any]) -> str:
    frame = f"frame {first['frame']}, " if first["frame"] else ""
    actual = "unknown bits" if first["actual"] is None else first["actual"]
    return (
        f"first at {frame}row {first['y']}, column {first['x']}, channel {first['channel']}: "
        f"{actual} instead of {first['expected']}"
    )


def _summary(path: Path) -> dict[str, list[str]]:
    """What the bench says about each port when it ends."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line.split()[0]: line.split()[1:] for line in lines}


def _events(path: Path) -> tuple[list[int], list[dict[str, tuple[int, int]]]]:
    """What happened when in each frame that ended.

    The cycles from its first beat accepted to its last one out, both included; and from that first
    beat on, the first and the last cycle of each of the component's bits ``starts_NAME`` and
    ``beats_NAME`` since the frame before had ended.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [line.split() for line in lines]
    firsts = {frame: int(cycle) for event, frame, cycle, *_ in rows if event == "first"}
    lasts = [(frame, int(cycle)) for event, frame, cycle, *_ in rows if event == "last"]
    marks: dict[str, dict[str, tuple[int, int]]] = {frame: {} for frame, _ in lasts}
    for event, frame, *cycles in rows:
        if len(cycles) == 2 and frame in marks:
            first, last = (int(cycle) - firsts[frame] for cycle in cycles)
            marks[frame][event] = first, last
    return [cycle - firsts[frame] + 1 for frame, cycle in lasts], list(marks.values())


def _standstill(chain: Sequence[dict[str, Any]]) -> tuple[str | None, str, str]:
    """The stage at fault, the same as words, and how each unfinished stream of a chain stands.

    The stage at fault is the first that gave more than it should. Where none did, it is the last
    one that is fed, or has had everything, and yet neither finishes nor offers anything.
    """
    stage = None
    for before, after in itertools.pairwise(chain):
        offered = before["valid"] != "0" or before["beats"] >= before["expected_beats"]
        if before["port"] == "i":
            offered = True  # the bench itself withholds nothing for good
        if offered and after["valid"] != "1" and after["beats"] < after["expected_beats"]:
            stage = after["name"]
    chatty = [s["name"] for s in chain[1:] if s["beats"] > s["expected_beats"]]
    stage = chatty[0] if chatty else stage
    states = []
    for stream in chain:
        count = f"{stream['beats']} of {stream['expected_beats']} beats"
        if stream["beats"] == stream["expected_beats"]:
            continue
        state = {
            "10": "is offered and not taken",
            "00": "has nothing to offer",
            "01": "has nothing to offer",
            "11": "is on the move",
        }.get(stream["valid"] + stream["ready"])
        if state is None:
            state = f"shows valid {stream['valid']} and ready {stream['ready']}"
        states.append(f"{stream['name']} {state} after {count}")
    where = f" in stage {stage}" if stage is not None and len(chain) > 2 else ""
    return stage, where, ", ".join(states)
