"""``lichen models``: what ships."""

from __future__ import annotations

import math
from typing import Any

import click

from lichen.commands import _options
from lichen.commands._command import Command


@click.command(cls=Command)
@click.option("--all", "everything", is_flag=True, help="Also those that only decode by now.")
@_options.json_file
def command(everything: bool, json_file: str | None) -> None:
    """List the shipped networks.

    Every command takes these names; NAME.fp32 is the FP32 parent. Bits are those of weights (W)
    and of activations within the transforms (A), from the fewest to the most. MACs and bit
    operations (the sum over MACs of the product of their operand widths) are those of all
    transforms on one 768x512 image; `mean` in the JSON is the width that all operands would have
    with as many bit operations. Rates are of whole files.

    NAME@1 (--all) is the decoding half of the first network of that name, for the files that it
    made; `decode` finds it by itself.
    """
    from lichen import models

    names = [*models.names(), *(models.retired_names() if everything else ())]
    rows = [_describe(name) for name in names]
    if json_file != "-":
        click.echo(
            f"{'name':16} {'architecture':24} {'N':>4} {'M':>4} {'bits':>11} {'size':>8} "
            f"{'GMAC':>6} {'bpp':>6} {'dB':>6}  measured on"
        )
        for row in rows:
            bits = _span("W", row["bits"]["weights"]) + _span("A", row["bits"]["activations"])
            rd = row["rd"] or {}
            click.echo(
                f"{row['name']:16} {row['arch']:24} {row['n']:>4} {row['m']:>4} {bits:>11} "
                f"{row['size_bytes'] / 1000:>5.0f} kB {row['macs'] / 1e9:>6.2f} "
                f"{_number(rd.get('bpp'), 3):>6} {_number(rd.get('psnr'), 2):>6}  "
                f"{rd.get('set', '')}"
            )
    summary = f"{len(rows)} networks in {models.folder()}"
    _options.report(rows, json_file, summary)


def _span(letter: str, widths: list[int]) -> str:
    """For example W8, or W4-10 where stages differ."""
    return letter + "-".join(str(width) for width in dict.fromkeys(widths))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _describe(name: str) -> dict[str, Any]:
    from lichen import models
    from lichen.network.description import PHOTO

    path = models.shipped_network(name)
    assert path is not None
    network = models.load_network(str(path))
    stages = [s for t in network.transforms.values() for s in t.stages]
    inner = [s for t in network.transforms.values() for s in t.stages[:-1]]
    weights = [s.convolution.weight_bits for s in stages]
    activations = [s.output.bits for s in inner]
    macs, bops = network.macs(*PHOTO), network.bops(*PHOTO)
    parent = models.shipped_parent(name)
    return {
        "name": name,
        "arch": network.architecture,
        "n": network.n,
        "m": network.m,
        "size_bytes": path.stat().st_size,
        "bits": {
            "weight": max(weights),
            "activation": max(activations, default=0),
            "weights": [min(weights), max(weights)],
            "activations": [min(activations, default=0), max(activations, default=0)],
            "mean": round(math.sqrt(bops / macs), 2),
        },
        "macs": macs,
        "bops": bops,
        "rd": models.measured(name),
        "fp32": None
        if parent is None
        else {
            "name": f"{name}.fp32",
            "file": parent.name,
            "rd": models.measured(f"{name}.fp32"),
        },
    }
