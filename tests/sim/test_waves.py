# amaranth: UnusedElaboratable=no
"""Recorded waveforms hold every stage's beats, under names that people know."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from lichen.sim.runner import Simulator
from tests.sim.test_simulate import CHANNELS, LANES, Chain, frame, step

pywellen = pytest.importorskip("pywellen")

BEATS = -(-CHANNELS // LANES)  # of a pixel


def moved(variables: dict, scope: str, bits: int, *, signed: bool) -> np.ndarray:
    """What crossed a stream at rising edges of the clock, (beats, lanes)."""
    signals = {
        name: variables[f"lichen_bench.{scope}.{name}"].signal
        for name in ("valid", "ready", *(f"lane{k}" for k in range(LANES)))
    }
    found = []
    for time, level in variables["lichen_bench.clk"].signal:
        before = {name: signal.value_at(time - 1) for name, signal in signals.items() if level}
        if level and before["valid"] == 1 and before["ready"] == 1:
            found.append([before[f"lane{k}"] for k in range(LANES)])
    values = np.array(found)
    return np.where(values >> (bits - 1) & signed, values - (1 << bits), values)


def lanes(tensor: np.ndarray) -> np.ndarray:
    """A tensor as beats, without what fills the last lanes: (beats, lanes), masked."""
    pixels = np.ma.masked_all((tensor.shape[0] * tensor.shape[1], BEATS * LANES), int)
    pixels[:, :CHANNELS] = tensor.reshape(-1, CHANNELS)
    return pixels.reshape(-1, LANES)


@pytest.mark.parametrize("simulator", ["icarus", pytest.param("verilator", marks=pytest.mark.slow)])
def test_a_recording_and_what_to_show_of_it(simulator: str, tmp_path: Path) -> None:
    x = frame(0)
    built = Simulator(Chain(), simulator=simulator, taps=True, waves=True)
    result = built.run(
        [x],
        [step(step(x))],
        expected_taps={"first": [step(x)], "second": [step(step(x))]},
        idle=0.2,
        backpressure=0.3,
        waves=tmp_path / "run",
    )
    assert result.ok and result.waves == tmp_path / "run.fst"

    recording = pywellen.Waveform(str(result.waves))
    assert "fst" in str(recording.file_format).lower()
    variables = {variable.full_name: variable for variable in recording.all_vars()}
    assert np.array_equal(moved(variables, "stream_in", 8, signed=False)[:, 0], lanes(x)[:, 0])
    for scope, want in (
        ("stage_first", step(x)),
        ("stage_second", step(step(x))),
        ("stream_out", step(step(x))),
    ):
        got = moved(variables, scope, 16, signed=True)
        assert got.shape == lanes(want).shape, scope
        assert np.ma.allequal(lanes(want), got, fill_value=True), scope

    scopes = ["stream_in", "stage_first", "stage_second", "stream_out"]
    save = (tmp_path / "run.gtkw").read_text()
    assert save.startswith('[dumpfile] "run.fst"')
    assert re.findall(r"^@800200\n-(\w+)$", save, flags=re.M) == scopes
    commands = (tmp_path / "run.sucl").read_text()
    assert re.findall(r"^divider_add (\w+)$", commands, flags=re.M) == scopes
    shown = re.findall(r"^(lichen_bench\.\S+?)(?:\[\S+\])?$", save, flags=re.M)
    assert shown == re.findall(r"^variable_add (\S+)$", commands, flags=re.M)
    assert len(shown) == 1 + 4 * (3 + LANES)
    for name in shown:
        assert name in variables, name


def test_waves_want_a_simulator_that_records(tmp_path: Path) -> None:
    built = Simulator(Chain(), simulator="icarus")
    with pytest.raises(ValueError, match="waves were not asked for"):
        built.run([frame(0)], [step(step(frame(0)))], waves=tmp_path / "run")
