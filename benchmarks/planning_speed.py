"""How long planning takes, and emitting the Verilog of what was planned.

Wall-clock and processor seconds, without the start of Python: at most 20 s for a plan and 60 s for
the Verilog of a design that fills the device, on a core of its own.

    python benchmarks/planning_speed.py              # shipped networks, and one with 6-bit weights
    python benchmarks/planning_speed.py --emit-only  # the folding by hand, benchmarks/foldings
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lichen.boards.board import ULX3S_85F
from lichen.boards.design import Design, fold, read_folding
from lichen.hw.device import ecp5
from lichen.hw.verilog import emit
from lichen.models import load_network
from lichen.network.random import random_factorized

PLAN_SECONDS, EMIT_SECONDS = 20.0, 60.0
FOLDING = Path(__file__).with_name("foldings") / "small-w6.json"


def timed(what: str, limit: float, run: Callable[[], Any]) -> bool:
    """Run and report; returns whether the limit on processor time was kept."""
    wall, used = time.perf_counter(), time.process_time()
    run()
    wall, used = time.perf_counter() - wall, time.process_time() - used
    click.echo(f"{what}: {wall:.1f} s, {used:.1f} s of this process (at most {limit:g})")
    return used <= limit


@click.command()
@click.option("--emit-only", is_flag=True, help="Leave planning out.")
def main(emit_only: bool) -> None:
    """Measure; exit status 1 where a limit is not kept."""
    narrow = random_factorized(0, n=64, m=96, weight_bits=6)
    kept = True
    if not emit_only:
        small, optimized = load_network("small-q3"), load_network("small-opt-q3")
        for name, network, transform in (
            ("small-q3", small, "g_a"),
            ("small-q3, which does not fit", small, "g_s"),
            ("small-opt-q3", optimized, "g_s"),
            ("6-bit weights", narrow, "g_a"),
        ):
            kept &= timed(
                f"plan of {transform} of {name}",
                PLAN_SECONDS,
                lambda net=network, what=transform: fold(net, [what], ULX3S_85F),
            )
    design = Design.make(narrow, "g_a", read_folding(FOLDING, "g_a"))
    kept &= timed(
        "Verilog of the folding by hand",
        EMIT_SECONDS,
        lambda: emit(design.pipeline(), platform=ecp5.Target()),
    )
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
