# amaranth: UnusedElaboratable=no
"""The planner: inside its budget, honest when nothing fits, exact about cycles."""

from __future__ import annotations

import numpy as np
import pytest

from lichen import models
from lichen.errors import UserError
from lichen.hw.device.device import Resources
from lichen.hw.plan.planner import PHOTO, evaluate, fits, frame_cycles, plan, tile_widths
from lichen.hw.plan.tiling import tiles
from lichen.hw.stage.folding import Folding
from lichen.hw.stage.kinds import check_folding
from lichen.network.description import Activation, Transform
from lichen.network.random import StageShape, random_factorized, random_transform
from lichen.sim.transform import simulate_transform

BUDGETS = [
    Resources(dsp=d, bram=b, lut=lut) for d, b, lut in ((156, 208, 60_000), (60, 100, 40_000))
]


@pytest.fixture(scope="module")
def small() -> Transform:
    return random_factorized(0, n=6, m=6).transforms["g_a"]


@pytest.mark.parametrize(("budget", "width"), [(BUDGETS[0], 256), (BUDGETS[1], 768)])
def test_a_plan_keeps_to_its_budget(budget: Resources, width: int) -> None:
    tiny = models.load_network("tiny").transforms["g_a"]
    found = plan(tiny, budget, max_width=width)
    assert found.folding.max_width == width
    check_folding(found.folding, tiny)
    assert found.resources.dsp <= budget.dsp
    assert found.resources.bram <= budget.bram
    assert found.resources.lut <= budget.lut
    assert fits(found.resources, budget)
    # a hardware with fewer multipliers than MACs per cycle would be a miracle
    multipliers = sum(stage.multipliers for stage in found.folding.stages)
    assert multipliers * found.cycles_per_frame >= tiny.macs(*PHOTO)


def test_more_of_the_budget_is_never_slower(small: Transform) -> None:
    cycles = [
        plan(small, BUDGETS[0], max_width=256, multipliers=limit).cycles_per_frame
        for limit in (60, 100, 156)
    ]
    assert cycles == sorted(cycles, reverse=True) and cycles[-1] < cycles[0]


def test_what_does_not_fit_is_said(small: Transform) -> None:
    """The smallest folding is returned, with what it needs: more than there is."""
    budget = Resources(dsp=4, bram=3, lut=100)
    found = plan(small, budget, max_width=256)
    assert not fits(found.resources, budget)
    assert found.resources.dsp > budget.dsp and found.resources.lut > budget.lut


def test_narrow_tiles_where_memory_is_short(small: Transform) -> None:
    """Rows of wide tiles do not fit beside the weights, those of narrow ones do."""
    budget = Resources(dsp=60, bram=7, lut=13_000)
    found = plan(small, budget)
    assert fits(found.resources, budget)
    assert found.folding.max_width < min(tile_widths(small))
    (bound,) = [phrase for phrase in found.bounds(budget) if phrase.startswith("block RAMs")]
    rows = found.stages()
    weights, lines = (sum(row[key] for row in rows) for key in ("bram_weights", "bram_lines"))
    other = found.resources.bram - weights - lines
    assert other >= 0 and bound == (
        f"block RAMs (7 of 7 that a plan may use: {weights} for weights, {lines} for rows, "
        f"{other} for other things)"
    )


def test_windows_give_up_rows_where_block_rams_bind(small: Transform) -> None:
    """As few row slots as a kernel reads, and every block RAM more makes a plan no slower."""
    budgets = [Resources(dsp=60, bram=bram, lut=13_000) for bram in (8, 9, 12)]
    found = [plan(small, budget) for budget in budgets]
    cycles = [plan.cycles_per_frame for plan in found]
    assert cycles == sorted(cycles, reverse=True)
    for each, budget in zip(found, budgets, strict=True):
        rows = [stage.convolution.rows for stage in each.folding.stages]
        assert 5 in rows and set(rows) <= {5, None}
        stages = [
            stage.model_copy(
                update={"convolution": stage.convolution.model_copy(update={"rows": 6})}
            )
            for stage in each.folding.stages
        ]
        full = evaluate(small, each.folding.model_copy(update={"stages": stages}))
        assert not fits(full.resources, budget)


@pytest.mark.parametrize(
    ("slot", "rows", "sentence"),
    [
        ("convolution", 4, "stage conv1: rows must be at least 5, which an output reads"),
        ("normalization", 5, "rows are those of a convolution's window; a normalization has none"),
    ],
)
def test_row_slots_that_cannot_be_are_refused(
    small: Transform, slot: str, rows: int, sentence: str
) -> None:
    folding = plan(small, BUDGETS[0], max_width=256).folding
    tree = folding.model_dump(mode="json")
    assert all("rows" not in stage["convolution"] for stage in tree["stages"])
    tree["stages"][0][slot]["rows"] = rows
    wrong = Folding.model_validate(tree)
    assert wrong.model_dump(mode="json") == tree
    with pytest.raises(UserError, match=sentence):
        evaluate(small, wrong)


def test_what_almost_fits_is_close_to_the_budget(small: Transform) -> None:
    budget = Resources(dsp=60, bram=5, lut=13_000)
    found = plan(small, budget)
    assert not fits(found.resources, budget)
    assert found.resources.bram <= 7 and found.resources.lut <= 1.2 * budget.lut


def test_what_cannot_be_planned_is_refused(small: Transform) -> None:
    network = random_factorized(0, n=4, m=4)
    with pytest.raises(UserError, match="multiple of 16"):
        plan(small, BUDGETS[0], max_width=100)
    with pytest.raises(UserError, match="too narrow for tiles"):
        plan(small, BUDGETS[0], max_width=32)
    wrong = plan(network.transforms["g_a"], BUDGETS[0], max_width=256).folding
    with pytest.raises(UserError, match="does not suit the network"):
        evaluate(Transform(input=small.input, stages=small.stages[:2]), wrong)


def test_frames_are_the_sum_of_their_tiles(small: Transform) -> None:
    found = plan(small, BUDGETS[0], max_width=256)
    widths = [tile.stop - tile.start for tile in tiles(small, PHOTO[1], 256)]
    assert len(widths) > 3
    by_tile = [found.pipeline.predicted_cycles(PHOTO[0], width) for width in widths]
    assert found.cycles_per_frame == sum(by_tile) == frame_cycles(found.pipeline, *PHOTO)
    assert evaluate(small, found.folding).cycles_per_frame == found.cycles_per_frame


@pytest.mark.parametrize("width", [16, 40])
def test_planned_cycles_are_simulated_cycles(width: int) -> None:
    """A planned folding, in one tile and in several, takes the cycles that the plan counts."""
    transform = random_transform(
        np.random.default_rng(1),
        [
            StageShape(out_channels=4, kernel=3, activation=Activation.GDN),
            StageShape(out_channels=4, kernel=3),
        ],
    )
    found = plan(transform, Resources(dsp=40, bram=50, lut=20_000), max_width=16)
    image = np.random.default_rng(2).integers(0, 256, (8, width, 3))
    simulation = simulate_transform(transform, found.folding, image, simulator="icarus")
    assert not simulation.faults, simulation.faults
    assert simulation.cycles == frame_cycles(found.pipeline, 8, width)
    assert (simulation.tiles > 1) == (width > 16)
