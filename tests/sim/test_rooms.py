"""Threads that stay, and memory that is used again: results are nobody else's."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lichen.network.description import Activation
from lichen.network.random import StageShape, random_transform, symmetric
from lichen.sim import golden
from lichen.sim.rooms import ROOM_BYTES_MAX, room

SHAPES = [
    StageShape(out_channels=6, kernel=5, stride=2, activation=Activation.GDN),
    StageShape(out_channels=3, kernel=5, stride=2, transposed=True, output_padding=1,
               activation=Activation.NONE),
]  # fmt: skip
TRANSFORM = random_transform(np.random.default_rng(1), SHAPES, in_channels=4, source=symmetric(8))


def tensors(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(-127, 128, (20 + i, 30, 4)) for i in range(count)]


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden._blas(), "threads", 2)
    monkeypatch.setattr(golden, "STRIP_BYTES", 1 << 12)


def test_a_room_is_the_same_memory_again() -> None:
    one = room("test", (4, 5), np.float32)
    assert one.shape == (4, 5) and one.dtype == np.float32
    one[...] = 7
    assert np.shares_memory(one, room("test", (3,), np.int64))
    assert not np.shares_memory(one, room("other", (4, 5), np.float32))
    with ThreadPoolExecutor(1) as pool:
        assert not np.shares_memory(one, pool.submit(room, "test", (4, 5), np.float32).result())
    large = room("test", (ROOM_BYTES_MAX + 1,), np.uint8)
    assert not np.shares_memory(large, room("test", (ROOM_BYTES_MAX + 1,), np.uint8))


def test_nothing_that_is_returned_changes_later(two_threads: None) -> None:
    """What `run_stages`, `run_transform` and `trace_stage` gave is still that after other work."""
    stage, x = TRANSFORM.stages[0], tensors(1)[0]
    given = [*golden.run_stages(TRANSFORM, x), golden.run_transform(TRANSFORM, x)]
    trace = golden.trace_stage(stage, TRANSFORM.input, x)
    given += [trace.accumulator, trace.x, trace.norm, trace.output]
    before = [array.copy() for array in given]
    for other in tensors(3):
        golden.run_transform(TRANSFORM, other[::-1])
        golden.trace_stage(stage, TRANSFORM.input, -other)
    for array, then in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, then)
    np.testing.assert_array_equal(trace.output, given[0])


def test_many_threads_at_once(two_threads: None) -> None:
    inputs = tensors(12)
    alone = [golden.run_transform(TRANSFORM, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: golden.run_transform(TRANSFORM, x), inputs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def _in_a_child(x: np.ndarray) -> np.ndarray:
    return golden.run_transform(TRANSFORM, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(two_threads: None) -> None:
    """Those of its parent are not in it."""
    (x,) = tensors(1)
    expected = golden.run_transform(TRANSFORM, x)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        made = pool.apply_async(_in_a_child, (x,)).get(timeout=120)
    np.testing.assert_array_equal(made, expected)
