"""``lichen weights``: what fills a core that was generated with ``--weights load``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from lichen.commands import _options
from lichen.commands._command import Command


@click.command(cls=Command)
@_options.net
@click.option(
    "--core", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path),
    help="Folder that `lichen generate --weights load` has made.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="File to write.",
)  # fmt: skip
@click.option(
    "--bench", is_flag=True,
    help="Also put NET into the folder's test bench, which then tests the core with it.",
)  # fmt: skip
@_options.json_file
def command(net: str, folder: Path, output: Path, bench: bool, json_file: str | None) -> None:
    """Make what fills a core with a network.

    NET is a network file or the name of a shipped network. It has to have the shape that the core
    was generated for: its stages, kernels, bits and formats. Stages with fewer channels are filled
    up with channels of zeros; shifts have to lie where interface.json says.

    FILE is text: comments, then for a core with AXI a line for every write, address and value of a
    register; for one with streams a line for every word of its stream `load`.
    """
    from lichen.boards.core import weights
    from lichen.boards.generate import add_network
    from lichen.files import write_text
    from lichen.models import load_network

    network = load_network(net)
    core = weights.core_for(network, folder)
    write_text(output, weights.text(core))
    if bench:
        name = re.sub(r"\W+", "_", network.title, flags=re.ASCII)
        add_network(core, folder / "test", f"net_{name}")
    result = {
        "core": core.top,
        "network": core.design.digest,
        "map": core.map_digest,
        "words": len(core.words),
        "crc": f"{core.checksum:08x}",
    }
    _options.report(
        result,
        json_file,
        f"wrote {output}: {network.title} for {core.top}, {result['words']} words, "
        f"CRC {result['crc']}",
    )
