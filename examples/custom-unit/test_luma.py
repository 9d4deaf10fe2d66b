# amaranth: UnusedElaboratable=no
"""The unit against its golden function, at full speed and with every kind of pause."""

from __future__ import annotations

import numpy as np
import pytest
from luma import Luma, luma

from lichen import models
from lichen.hw.verilog import emit
from lichen.sim.images import crop_middle, read_image
from lichen.sim.runner import Simulator


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(Luma(), simulator="icarus")


def photograph() -> np.ndarray:
    return crop_middle(read_image(models.photograph()), 12, 20)


def test_a_pixel_a_cycle(simulator: Simulator) -> None:
    image = photograph()
    result = simulator.run([image, 255 - image], [luma(image), luma(255 - image)])
    assert result.ok, result.faults
    pixels = image.shape[0] * image.shape[1]
    assert result.frame_cycles == [pixels + Luma.latency] * 2


@pytest.mark.parametrize(("idle", "backpressure"), [(0.5, 0.0), (0.0, 0.5), (0.3, 0.4)])
def test_whatever_pauses(simulator: Simulator, idle: float, backpressure: float) -> None:
    image = photograph()
    result = simulator.run([image], [luma(image)], idle=idle, backpressure=backpressure, seed=3)
    assert result.ok, result.faults


def test_black_and_white(simulator: Simulator) -> None:
    image = np.zeros((1, 2, 3), int)
    image[0, 1] = 255
    assert luma(image).tolist() == [[[0], [255]]]
    assert simulator.run([image], [luma(image)]).ok


def test_a_fault_is_found(simulator: Simulator) -> None:
    image = photograph()
    wrong = luma(image)
    wrong[3, 4] += 1
    result = simulator.run([image], [wrong])
    assert not result.ok
    assert "row 3, column 4" in result.faults[0]


def test_it_becomes_verilog() -> None:
    assert "module luma(" in emit(Luma(), "luma")
