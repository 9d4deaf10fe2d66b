"""What narrow weights are worth: 4 bits against 8, with the same multipliers and lookup tables.

Plans one network's shape with both widths under the same budget of DSPs and LUTs (block RAM as much
as they like, so that the comparison is of arithmetic alone), and runs both in Verilator against
the golden model, bit for bit. Weights are random; cycles depend on shapes only.

    python benchmarks/narrow_weights.py                   # N = 64, M = 96, all of an LFE5U-85F
    python benchmarks/narrow_weights.py --n 32 --m 48 --share 0.5
    python benchmarks/narrow_weights.py --plan-only       # seconds, no simulator
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from lichen.boards.board import ULX3S_85F
from lichen.files import write_json
from lichen.hw.plan.planner import PHOTO, Plan, frame_cycles, plan
from lichen.network.random import random_factorized
from lichen.sim.transform import efficiency, simulate_transform

FLOOR = 1.4
"""How much faster the narrow network must be."""

NO_LIMIT = 10**6


def planned(bits: int, n: int, m: int, width: int, share: float) -> Plan:
    """The plan of a network whose weights have ``bits`` bits, gamma included."""
    network = random_factorized(0, n=n, m=m, weight_bits=bits, gamma_bits=bits)
    have = ULX3S_85F.pipeline_budget
    budget = type(have)(dsp=int(have.dsp * share), bram=NO_LIMIT, lut=int(have.lut * share))
    return plan(network.transform("g_a"), budget, max_width=width)


def simulated(found: Plan, rows: int, columns: int) -> dict[str, Any]:
    """Cycles of a random image in Verilator; fails where anything differs."""
    image = np.random.default_rng(0).integers(0, 256, (rows, columns, 3))
    run = simulate_transform(
        found.pipeline.transform,
        found.folding,
        image,
        progress=lambda sentence: click.echo(sentence, err=True),
    )
    if run.faults:
        raise click.ClickException(run.faults[0])
    return {
        "cycles": run.cycles,
        "predicted_cycles": run.predicted_cycles,
        "compared": run.compared,
        "mismatches": run.mismatches,
        "efficiency": efficiency(run.arrays),
        "bottleneck": run.bottleneck.to_json(),
    }


@click.command()
@click.option("--n", type=int, default=64, show_default=True)
@click.option("--m", type=int, default=96, show_default=True)
@click.option(
    "--width", default=288, show_default=True, help="Columns of a tile, and of the image."
)
@click.option("--rows", default=64, show_default=True, help="Of the simulated image.")
@click.option("--share", default=1.0, show_default=True, help="Of the device's DSPs and LUTs.")
@click.option("--plan-only", is_flag=True, help="Believe the planned cycles.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    n: int, m: int, width: int, rows: int, share: float, plan_only: bool, json_file: Path | None
) -> None:
    """Compare 4-bit with 8-bit weights; exit status 1 below the floor."""
    results: dict[int, dict[str, Any]] = {}
    for bits in (8, 4):
        found = planned(bits, n, m, width, share)
        results[bits] = {
            "dsp": found.resources.dsp,
            "lut": found.resources.lut,
            "bram": found.resources.bram,
            "products_per_cycle": sum(s.multipliers for s in found.folding.stages),
            "cycles_per_frame": frame_cycles(found.pipeline, *PHOTO),
            "folding": found.folding.model_dump(mode="json"),
        }
        if not plan_only:
            results[bits]["simulation"] = simulated(found, rows, width)
    click.echo(f"{'weights':>7} {'dsp':>4} {'lut':>6} {'bram':>5} {'MACs a cycle':>12} "
               f"{'cycles, photo':>13} {'cycles, simulated':>17}")  # fmt: skip
    for bits, row in results.items():
        seen = row["simulation"]["cycles"] if "simulation" in row else "-"
        click.echo(
            f"{bits:>7} {row['dsp']:>4} {row['lut']:>6} {row['bram']:>5} "
            f"{row['products_per_cycle']:>12} {row['cycles_per_frame']:>13} {seen:>17}"
        )
    ratios = {"planned": results[8]["cycles_per_frame"] / results[4]["cycles_per_frame"]}
    if not plan_only:
        cycles = [results[bits]["simulation"]["cycles"] for bits in (8, 4)]
        ratios["simulated"] = cycles[0] / cycles[1]
    for kind, ratio in ratios.items():
        click.echo(f"4-bit weights are {ratio:.2f} times as fast, {kind} (floor {FLOOR})")
    if json_file is not None:
        write_json(json_file, {"bits": results, "ratios": ratios})
    sys.exit(min(ratios.values()) < FLOOR)


if __name__ == "__main__":
    main()
