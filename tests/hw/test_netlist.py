# amaranth: UnusedElaboratable=no
"""Synthesized netlists, in models of the device's cells, against the golden model, bit for bit."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lichen.hw.device.ecp5 import ECP5
from lichen.hw.engine.element import Backend
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import Activation, Transform
from lichen.network.random import StageShape, random_transform
from lichen.sim.golden import run_stages
from lichen.sim.harness import TOP
from lichen.sim.runner import SimulationResult, Simulator
from tests.hw.netlist import cell_models, synthesize

SIZES = ((3, 5), (1, 2))


def transform(activation: Activation, *, transposed: bool = False) -> Transform:
    """A strided convolution; 5-bit weights, two of which share a multiplier beside pixels."""
    shape = StageShape(
        out_channels=4,
        kernel=3,
        weight_bits=5,
        activation=activation,
        transposed=transposed,
        output_padding=int(transposed),
    )
    return random_transform(np.random.default_rng(8), [shape], in_channels=4)


def folding(convolution: Backend, normalization: Backend | None, pixels: int = 1) -> Folding:
    norm = None
    if normalization is not None:
        norm = ArrayFolding(chain_length=2, lanes=2, backend=normalization)
    conv = ArrayFolding(pixels=pixels, chain_length=2, lanes=2, backend=convolution)
    return Folding(
        max_width=8, stages=[StageFolding(chains=1, convolution=conv, normalization=norm)]
    )


def run(
    network: Transform, fold: Folding, folder: Path, break_it: bool = False
) -> tuple[SimulationResult, Counter[str], Pipeline]:
    """Two frames through the netlist; also the cells it has."""
    netlist = synthesize(Pipeline(network, fold, debug=True), TOP, folder)
    cells = Counter(re.findall(r"^  ([A-Z]\w+) (?:#\(|\\|\w)", netlist, re.MULTILINE))
    if break_it:
        netlist = broken(netlist)
    pipeline = Pipeline(network, fold, debug=True)
    simulator = Simulator(
        pipeline,
        simulator="icarus",
        taps=True,
        verilog=netlist + cell_models(),
        cache=folder / "cache",
    )
    rng = np.random.default_rng(9)
    frames = [rng.integers(0, 256, (*size, 4)) for size in SIZES]
    stages = [run_stages(network, frame) for frame in frames]
    result = simulator.run(
        frames,
        [outputs[-1] for outputs in stages],
        expected_taps={
            stage.name: [outputs[k] for outputs in stages] for k, stage in enumerate(network.stages)
        },
        drain=True,
    )
    return result, cells, pipeline


def broken(netlist: str) -> str:
    """The same with multipliers that take all their operands for unsigned."""
    assert ".SIGNEDA(1'h1)" in netlist
    return netlist.replace(".SIGNEDA(1'h1)", ".SIGNEDA(1'h0)")


def check(result: SimulationResult, cells: Counter[str], pipeline: Pipeline) -> None:
    assert result.ok, result.faults
    assert result.mismatches == 0
    assert result.frame_cycles == [pipeline.predicted_cycles(*size) for size in SIZES]
    planned = pipeline.resources(ECP5)
    assert (cells["MULT18X18D"], cells["DP16KD"]) == (planned.dsp, planned.bram)
    assert all(cells[name] for name in ("CCU2C", "LUT4", "TRELLIS_FF", "TRELLIS_DPR16X4"))


def test_engine_and_normalization(tmp_path: Path) -> None:
    """Two products a multiplier in the convolution, lookup tables in the GDN."""
    check(*run(transform(Activation.GDN), folding(Backend.PACKED, Backend.LUT), tmp_path))


@pytest.mark.slow
def test_transposed_engine_and_inverse_normalization(tmp_path: Path) -> None:
    """Phases of one, two and four taps; rows and columns that output_padding adds."""
    network = transform(Activation.IGDN, transposed=True)
    check(*run(network, folding(Backend.DSP, Backend.DSP, pixels=2), tmp_path))


@pytest.mark.slow
def test_a_broken_netlist_is_seen(tmp_path: Path) -> None:
    network, fold = transform(Activation.NONE), folding(Backend.DSP, None)
    result, _, _ = run(network, fold, tmp_path, break_it=True)
    assert result.mismatches > 0
    assert result.first_mismatch is not None and result.first_mismatch["stage"] == "conv1"


@pytest.mark.slow
@pytest.mark.parametrize("backend", list(Backend))
def test_engine_of_every_backend(backend: Backend, tmp_path: Path) -> None:
    check(*run(transform(Activation.NONE), folding(backend, None, pixels=2), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("backend", [Backend.PORTABLE, Backend.DSP])
@pytest.mark.parametrize("activation", [Activation.IGDN, Activation.GDN1])
def test_normalization_of_every_kind(
    activation: Activation, backend: Backend, tmp_path: Path
) -> None:
    check(*run(transform(activation), folding(Backend.LUT, backend), tmp_path))
