# amaranth: UnusedElaboratable=no
"""The planner's promises: what it counts is what the pipeline answers, and budgets hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lichen.hw.device.device import Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.engine.element import Backend
from lichen.hw.plan.planner import fits, plan, tile_widths
from lichen.hw.plan.prices import Prices
from lichen.hw.plan.search import BACKENDS, Part, Search, undominated
from lichen.hw.plan.tiling import tiles
from lichen.hw.stage.folding import Folding
from lichen.hw.stage.pipeline import Pipeline
from lichen.models import load_network
from lichen.network.description import Transform
from lichen.network.random import random_factorized


@pytest.fixture(scope="module")
def tiny() -> Transform:
    return load_network("tiny").transform("g_a")


@pytest.fixture(scope="module")
def narrow() -> Transform:
    """Weights that two products per multiplier can be made of."""
    return random_factorized(3, n=16, m=24, weight_bits=6).transform("g_a")


@pytest.mark.parametrize("limit", [400_000, 2_000_000])
@pytest.mark.parametrize(
    "prices", [Prices(dsp=1, bram=1, lut=1e-4), Prices(dsp=1e-3, bram=1, lut=1)]
)
def test_the_search_counts_what_the_pipeline_answers(narrow, limit, prices):
    search = Search([Part(narrow, 288)], BACKENDS, device=ECP5)
    used, stages = search.fold([limit] * 4, prices)
    assert Pipeline(narrow, Folding(max_width=288, stages=stages)).resources(ECP5) == used


def test_what_is_left_out_is_never_the_cheapest():
    rng = np.random.default_rng(0)
    needs = rng.integers(0, 6, (200, 3)).astype(float)
    lanes = rng.integers(1, 4, 200)
    kept = undominated(needs, lanes)
    assert len(set(kept)) == len(kept) < 60
    for _ in range(50):
        prices = rng.random(3) + 0.01
        found = needs @ prices
        for count in (1, 2, 3):
            least = found[lanes == count].min()
            assert min(found[i] for i in kept if lanes[i] == count) == least


def test_budgets_hold_and_more_is_faster(narrow):
    small = Resources(dsp=60, bram=120, lut=25_000)
    large = Resources(dsp=120, bram=120, lut=50_000)
    plans = [plan(narrow, budget, max_width=288) for budget in (small, large)]
    for found, budget in zip(plans, (small, large), strict=True):
        assert fits(found.resources, budget)
    assert plans[1].cycles_per_frame < plans[0].cycles_per_frame / 1.3


def test_without_lookup_tables_for_multipliers(tiny):
    budget = Resources(dsp=156, bram=208, lut=52_000)
    found = plan(tiny, budget, max_width=288, multipliers=60)
    assert found.resources.dsp <= 60
    arrays = [a for s in found.folding.stages for a in (s.convolution, s.normalization) if a]
    assert all(array.backend is not Backend.LUT for array in arrays)


def test_tile_widths_are_the_least_for_their_number_of_tiles(tiny):
    widths = tile_widths(tiny)
    assert widths[:3] == [768, 416, 288]
    for width in widths:
        count = len(tiles(tiny, 768, width))
        assert len(tiles(tiny, 768, width - tiny.downsampling)) > count


def test_what_fits_nothing_is_the_smallest(tiny):
    found = plan(tiny, Resources(dsp=5, bram=5, lut=100), max_width=96)
    assert not fits(found.resources, Resources(dsp=5, bram=5, lut=100))
    assert found.cycles_per_frame > 0


def test_what_cannot_fit_is_not_searched_for(narrow):
    """And what fits is never taken for something that cannot."""
    search = Search([Part(narrow, 288)], BACKENDS, device=ECP5)
    (least,) = search.smallest()
    used = Pipeline(narrow, least).resources(ECP5)
    assert search.may_fit(used)
    plenty = Resources(dsp=120, bram=120, lut=50_000)
    assert search.may_fit(plan(narrow, plenty, max_width=288).resources)
    assert not search.may_fit(replace(used, bram=used.bram // 2))
    assert not search.may_fit(Resources(dsp=1, bram=1, lut=1))
