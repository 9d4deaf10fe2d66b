"""What foldings would gain that the generator does not make: resources saved, and what they buy.

For each idea, the primitives it would save in the planner's folding of a transform, by the cost
model, and how much faster the planner makes the transform on a board with so much more. Windows of
few row slots, which the generator makes, are compared with full ones likewise.

    python benchmarks/folding_ideas.py                    # small-opt-q3's g_a on a ULX3S-85F
    python benchmarks/folding_ideas.py small-q3 --json -
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from lichen import models
from lichen.boards.board import ULX3S_85F
from lichen.files import write_json
from lichen.hw.device.device import Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.engine.array import array_latency
from lichen.hw.engine.core import CoreShape, core_resources
from lichen.hw.engine.element import ELEMENTS, Backend
from lichen.hw.engine.feed import Phases
from lichen.hw.engine.normalize import Normalize
from lichen.hw.engine.requantize import Requantize
from lichen.hw.plan.planner import Plan, evaluate, plan
from lichen.hw.stage.kinds import transform_units
from lichen.network.arithmetic import ceil_div

LUT_INPUTS = 4
NARROW = 8
"""Bits of values whose squares a table may hold."""


def squares_in_tables(found: Plan) -> Resources:
    """Squares of narrow values from tables of magnitudes instead of multipliers."""
    saved = Resources()
    for unit in found.pipeline.units:
        post = unit.post
        if not isinstance(post, Requantize) or post.normalization is None:
            continue
        if not post.normalization.kind.squares or post.x_shape.width > NARROW:
            continue
        words = 1 << (post.x_shape.width - 1)
        table = post.normalization.u_bits * max(1, words >> LUT_INPUTS) + post.x_shape.width
        saved += Resources(dsp=1, lut=-table) * post.lanes
    return saved


def shared_roots(found: Plan) -> Resources:
    """One root unit for normalizations that together make less than a value a cycle; the arbiter
    is not counted."""
    load, posts = 0.0, []
    transform = found.pipeline.transform
    sizes, stages = transform.sizes(*found.frame), [stage.name for stage in transform.stages]
    for kinds, unit in zip(_kinds(found), found.pipeline.units, strict=True):
        if isinstance(unit.post, Normalize):
            height, width = sizes[stages.index(kinds.stage.name) + 1]
            values = height * width * kinds.channels
            posts.append((values / found.cycles_per_frame, unit.post))
    saved = Resources()
    for share, post in sorted(posts, key=lambda p: p[0]):
        load += share
        if load > 1:
            break
        saved += post.resources(found.device)
    kept = posts and max((p for _, p in posts), key=lambda p: p.resources(found.device).lut)
    if not kept or saved.lut <= kept.resources(found.device).lut:
        return Resources()
    one = kept.resources(found.device)
    return Resources(dsp=saved.dsp - one.dsp, bram=saved.bram - one.bram, lut=saved.lut - one.lut)


def lanes_over_columns(found: Plan) -> Resources:
    """A first layer whose lanes are all channels of a kernel's row: the least core that is as fast.
    What the wider window takes is not counted."""
    kind, unit = _kinds(found)[0], found.pipeline.units[0]
    geometry = kind.stage.convolution.geometry
    lanes = kind.in_channels * geometry.kernel
    height, width = (geometry.output_size(side) for side in found.frame)
    chains = unit.core.shape.chains
    now = unit.core.resources(found.device)
    limit = unit.core.shape.frame_cycles(height, width)
    best = now
    for pixels in (1, 2, 3, 4):
        for length in range(1, ceil_div(kind.channels, chains) + 1):
            element = ELEMENTS[Backend.LUT](
                a_shape=kind.operands[0], w_shape=kind.operands[1], lanes=lanes
            )
            shape = CoreShape(
                channels=kind.channels,
                phases=Phases.one(geometry.kernel),
                pixels=pixels,
                chains=chains,
                chain_length=length,
                array_latency=array_latency(element, length),
                least_group=kind.least_group,
            )
            if shape.frame_cycles(height, width) > limit:
                continue
            need = core_resources(
                found.device,
                shape,
                element,
                accumulator_bits=kind.accumulator_bits,
                information=kind._information,
            )
            if need.lut < best.lut:
                best = need
    return Resources(dsp=now.dsp - best.dsp, bram=now.bram - best.bram, lut=now.lut - best.lut)


def few_rows(found: Plan) -> tuple[Resources, int]:
    """All windows with as few row slots as can be: what that saves, and the cycles of a frame."""
    stages = []
    for kinds, stage in zip(
        transform_units(found.pipeline.transform), found.folding.stages, strict=True
    ):
        conv = kinds[0].tight(stage.convolution)
        stages.append(stage.model_copy(update={"convolution": conv}))
    folding = found.folding.model_copy(update={"stages": stages})
    tight = evaluate(found.pipeline.transform, folding, found.frame, device=found.device)
    before, after = found.resources, tight.resources
    saved = Resources(bram=before.bram - after.bram, lut=before.lut - after.lut)
    return saved, tight.cycles_per_frame


def _kinds(found: Plan) -> list[Any]:
    return [kind for kinds in transform_units(found.pipeline.transform) for kind in kinds]


@click.command()
@click.argument("net", default="small-opt-q3")
@click.option("--json", "json_file", metavar="FILE", help="Write the result ('-': stdout).")
def main(net: str, json_file: str | None) -> None:
    """Tell what ideas would save in NET's encoder, and what that buys."""
    budget = ULX3S_85F.roomy_budget
    transform = models.load_network(net).transforms["g_a"]
    found = plan(transform, budget, device=ECP5)
    rows = []
    for idea in (squares_in_tables, shared_roots, lanes_over_columns):
        saved = idea(found)
        more = Resources(
            dsp=budget.dsp + saved.dsp, bram=budget.bram + saved.bram, lut=budget.lut + saved.lut
        )
        cycles = plan(transform, more, device=ECP5, max_width=found.folding.max_width)
        rows.append(_row(idea.__name__, saved, found.cycles_per_frame, cycles.cycles_per_frame))
    saved, cycles = few_rows(found)
    rows.append(_row(few_rows.__name__, saved, found.cycles_per_frame, cycles))
    report = {"net": net, "budget": asdict(budget), "ideas": rows}
    if json_file:
        write_json(json_file, report)
    if json_file != "-":
        for row in rows:
            click.echo(
                f"{row['idea']:20} saves {row['saved']['dsp']:3} DSPs, {row['saved']['bram']:3} "
                f"block RAMs, {row['saved']['lut']:5} LUTs: {row['cycles_before']} cycles a frame "
                f"become {row['cycles']} ({row['faster']:+.1%})"
            )


def _row(idea: str, saved: Resources, before: int, cycles: int) -> dict[str, Any]:
    return {
        "idea": idea,
        "saved": asdict(saved),
        "cycles_before": before,
        "cycles": cycles,
        "faster": before / cycles - 1,
    }


if __name__ == "__main__":
    main()
