"""Tiles of any transform join without a seam, by the golden model alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lichen.hw.plan.tiling import reach, tiles
from lichen.models import load_network
from lichen.sim.golden import run_transform
from tests.hw.cases import Case, random_case, random_upsampling


@pytest.mark.parametrize("make", [random_case, random_upsampling])
@pytest.mark.parametrize("seeds", [range(0, 8), range(8, 16), range(16, 26)])
def test_tiles_join_without_a_seam(make: Callable[..., Case], seeds: range) -> None:
    cut = 0
    for seed in seeds:
        case = make(seed, cycles=1 << 40)
        transform, rng = case.transform, np.random.default_rng(seed)
        step = transform.downsampling
        source = transform.input
        shape = (max(4, len(case.image)), int(rng.integers(40, 80)), transform.in_channels)
        tensor = rng.integers(source.lo, source.hi + 1, shape)
        try:
            whole = run_transform(transform, tensor)
        except ValueError:
            continue  # too few rows for this transform
        for own in (1, 5):
            room = (sum(-(-r // step) for r in reach(transform)) + own) * step
            parts = [
                run_transform(transform, tensor[:, tile.start : tile.stop])[
                    :, tile.skip : tile.skip + tile.out_stop - tile.out_start
                ]
                for tile in tiles(transform, shape[1], room)
            ]
            cut += len(parts) > 1
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole, f"seed {seed}")
    assert cut > len(seeds) // 2


@pytest.mark.parametrize(
    ("name", "sides"), [("g_a", (30, 15)), ("g_s", (1, 2)), ("h_a", (7, 4)), ("h_s", (1, 2))]
)
def test_halos_of_the_known_transforms(name: str, sides: tuple[int, int]) -> None:
    """Three latents beside its own serve a block of g_s, 48 pixels of a photograph."""
    assert reach(load_network("small-hyper-q2").transform(name)) == sides
