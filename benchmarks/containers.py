"""Whole files of version 1 against version 2: the same networks, the same pixels, one run.

    python benchmarks/containers.py --images ../shared/data/kodak --images ../shared/data/clic-test

Each image's latents are coded in both versions; version 2 is decoded again and compared. Bytes are
those of whole files without metadata. The table goes to stdout; it and all images' bytes go to
--json, from which `make results` makes that of docs/notes/containers.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from lichen import models
from lichen.codec.container import Container, inspect
from lichen.files import write_json
from lichen.sim.golden import analysis
from lichen.sim.images import list_images, read_image


@dataclass(frozen=True)
class Row:
    """One image: bytes of both versions, of version 2 beside its streams, and its segments."""

    image: str
    pixels: int
    version_1: int
    version_2: int
    beside: int
    segments: int


def measure(name: str, files: list[Path]) -> list[Row]:
    """One network on images; AssertionError where symbols do not come back."""
    network = models.load_network(name)
    old, new = Container(network, version=1), Container(network, version=2)
    rows = []
    for file in files:
        latents = analysis(network, read_image(file))
        data = new.pack(latents)
        for one, two in zip(new.latents(data).segments, latents.segments, strict=True):
            assert np.array_equal(one.symbols, two.symbols), (name, file)
        header = inspect(data)
        rows.append(
            Row(
                file.name,
                latents.width * latents.height,
                len(old.pack(latents)),
                len(data),
                len(data) - header.stream_bytes,
                len(header.parts),
            )
        )
    return rows


def summary(name: str, images: str, rows: list[Row]) -> dict[str, Any]:
    """A line of the table: means of bits per pixel, bytes saved in all and by image (per cent),
    and the share of all but streams."""
    one, two = (
        float(np.mean([8 * getattr(row, key) / row.pixels for row in rows]))
        for key in ("version_1", "version_2")
    )
    total = [sum(getattr(row, key) for row in rows) for key in ("version_1", "version_2", "beside")]
    each = [100 * (row.version_2 / row.version_1 - 1) for row in rows]
    return {
        "network": name,
        "images": images,
        "version_1": round(one, 4),
        "version_2": round(two, 4),
        "bytes": round(100 * (total[1] / total[0] - 1), 1),
        "least": round(min(each), 1),
        "most": round(max(each), 1),
        "beside": round(100 * total[2] / total[1], 2),
    }


TITLES = "network | images | version 1, bpp | version 2, bpp | bytes | each image | beside streams"


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    return "\n".join(
        [
            f"| {TITLES} |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {x['network']} | {x['images']} | {x['version_1']:.4f} | {x['version_2']:.4f} "
                f"| {x['bytes']:+.1f} % | {x['least']:+.1f} .. {x['most']:+.1f} % "
                f"| {x['beside']:.2f} % |"
                for x in lines
            ),
        ]
    )


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--images", "folders", required=True, multiple=True, metavar="DIR")
@click.option("--json", "json_file", metavar="FILE")
def main(networks: tuple[str, ...], folders: tuple[str, ...], json_file: str | None) -> None:
    """Measure networks (default: all shipped ones) on folders of images."""
    chosen = networks or tuple(
        name for name in models.names() if models.load_network(name).contexts is not None
    )
    found: dict[str, Any] = {}
    lines = []
    for folder in folders:
        files, images = list_images(folder), Path(folder).resolve().name
        for name in chosen:
            rows = measure(name, files)
            lines.append(summary(name, images, rows))
            found.setdefault(images, {})[name] = [asdict(row) for row in rows]
    click.echo(table(lines))
    if json_file is not None:
        sets = " ".join(f"--images {name}" for name in found)
        report = {
            "command": f"python benchmarks/containers.py {sets} --json docs/notes/containers.json",
            "digests": {name: models.digests(models.load_network(name)) for name in chosen},
            "rows": lines,
            "files": found,
        }
        write_json(json_file, report)


if __name__ == "__main__":
    main()
