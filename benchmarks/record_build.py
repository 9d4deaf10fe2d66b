"""Put a build on record: plans take their clock from the builds kept here.

Copies the report.json of `lichen build` to benchmarks/builds/NAME.json and writes
boards/build/achieved.json anew from all of them.

    python benchmarks/record_build.py small-w6 out/report.json
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from lichen.boards import board as boards
from lichen.boards.build.achieved import FILE, Achieved

HERE = Path(__file__).parent
BUILDS = HERE / "builds"
RECORDS = HERE.parent / "boards" / "build" / FILE


@click.command()
@click.argument("name", required=False)
@click.argument("report", required=False, type=click.Path(exists=True, path_type=Path))
def main(name: str | None, report: Path | None) -> None:
    """Keep REPORT as NAME, and write the records; without arguments the latter only."""
    if name is not None and report is not None:
        kept = json.loads(report.read_text(encoding="utf-8"))
        Achieved.of_report(kept, boards.find(kept["board"]))
        BUILDS.mkdir(exist_ok=True)
        (BUILDS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    entries = []
    for path in sorted(BUILDS.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        entries.append(asdict(Achieved.of_report(kept, boards.find(kept["board"]))))
    RECORDS.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    click.echo(f"{len(entries)} builds in {RECORDS.name}")


if __name__ == "__main__":
    main()
