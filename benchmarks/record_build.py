"""Put a build on record: plans take their clock from the builds kept here.

Copies the report.json of `lichen build` to benchmarks/builds/NAME.json and writes
boards/build/achieved.json anew from all of them.

    python benchmarks/record_build.py small-w6 out/report.json

When gateware or networks have changed, --renew builds what is on record again, network, board,
link and folding as they stand there, one after the other:

    python benchmarks/record_build.py --renew small-opt [--seed 3] [--seeds 5] [NAME ...]

With several seeds the slowest of them is what plans promise, and the fastest the bitstream.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from lichen.boards import board as boards
from lichen.boards.build.achieved import FILE, Achieved
from lichen.files import write_json
from lichen.models import shipped_network

HERE = Path(__file__).parent
BUILDS = HERE / "builds"
CHECKPOINTS = HERE / "checkpoints"
WORK = HERE.parent / "build" / "records"
RECORDS = HERE.parent / "boards" / "build" / FILE


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME [REPORT] | NAME ...]")
@click.option("--renew", is_flag=True, help="Build these again [default: all on record].")
@click.option("--seed", type=click.IntRange(min=0), default=1, help="With --renew: nextpnr's.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, help="With --renew: how many.")
def main(names: tuple[str, ...], renew: bool, seed: int, seeds: int) -> None:
    """Keep REPORT as NAME, and write the records; without arguments the latter only."""
    if renew:
        for name in names or sorted(path.stem for path in BUILDS.glob("*.json")):
            asked = range(seed, seed + seeds)
            keep(name, build_again(BUILDS / f"{name}.json", seed, seeds), asked)
    elif len(names) == 2:
        keep(names[0], Path(names[1]))
    elif names:
        raise click.UsageError("give a name and a report, or --renew")
    entries = []
    for path in sorted(BUILDS.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        entries.append(asdict(Achieved.of_report(kept, boards.find(kept["board"]))))
    write_json(RECORDS, entries)
    click.echo(f"{len(entries)} builds in {RECORDS.name}")


def keep(name: str, report: Path, asked: Sequence[int] = ()) -> None:
    """Copy a report to where the records are, with the command that made it.

    ``asked`` are the seeds that place and route was given: one that got stuck is not in the
    report, and yet the command names it. Without them those of the report stand for them.
    """
    kept = json.loads(report.read_text(encoding="utf-8"))
    Achieved.of_report(kept, boards.find(kept["board"]))
    BUILDS.mkdir(exist_ok=True)
    tried = [int(seed) for seed in kept["seeds"]]
    seeds = asked or range(min(tried), max(tried) + 1)
    several = f" --seeds {len(seeds)}" if len(seeds) > 1 else ""
    kept["command"] = f"python benchmarks/record_build.py --renew {name} --seed {seeds[0]}{several}"
    write_json(BUILDS / f"{name}.json", kept)


def build_again(record: Path, seed: int, seeds: int) -> Path:
    """Run `lichen build` with the network, board and folding of a record; returns the report."""
    report = json.loads(record.read_text(encoding="utf-8"))
    folder = WORK / record.stem
    net = report["network"]["name"]
    if shipped_network(net) is None:
        net = str(CHECKPOINTS / f"{net}.lichen")
    subprocess.run(
        [
            *(sys.executable, "-m", "lichen.cli", "build", net, "--board", report["board"]),
            *("--transform", report["transform"], "--folding", str(record)),
            *("--link", report.get("link_kind", "uart")),
            *("--weights", report.get("weights", "fixed")),
            *("--floorplan-seed", str((report.get("floorplan") or {"seed": 1})["seed"])),
            *("--seed", str(seed), "--seeds", str(seeds), "-o", str(folder)),
        ],
        check=True,
    )
    return folder / "report.json"


if __name__ == "__main__":
    main()
