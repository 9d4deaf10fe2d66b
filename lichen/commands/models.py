"""``lichen models``: what ships."""

from __future__ import annotations

from typing import Any

import click

from lichen.commands import _options
from lichen.commands._command import Command


@click.command(cls=Command)
@_options.json_file
def command(json_file: str | None) -> None:
    """List the shipped networks.

    Every command takes these names; NAME.fp32 is the FP32 parent. MACs and bit operations (the
    sum over MACs of the product of their operand widths) are those of all transforms on one
    768x512 image.
    """
    from lichen import models

    rows = [_describe(name) for name in models.names()]
    if json_file != "-":
        click.echo(
            f"{'name':16} {'architecture':24} {'N':>4} {'M':>4} {'bits':>7} {'size':>8} "
            f"{'GMAC':>6} {'bpp':>6} {'dB':>6}  measured on"
        )
        for row in rows:
            bits = f"W{row['bits']['weight']}A{row['bits']['activation']}"
            rd = row["rd"] or {}
            click.echo(
                f"{row['name']:16} {row['arch']:24} {row['n']:>4} {row['m']:>4} {bits:>7} "
                f"{row['size_bytes'] / 1000:>5.0f} kB {row['macs'] / 1e9:>6.2f} "
                f"{_number(rd.get('bpp'), 3):>6} {_number(rd.get('psnr'), 2):>6}  "
                f"{rd.get('set', '')}"
            )
    summary = f"{len(rows)} networks in {models.folder()}"
    _options.report(rows, json_file, summary)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _describe(name: str) -> dict[str, Any]:
    from lichen import models
    from lichen.network.description import PHOTO

    path = models.shipped_network(name)
    assert path is not None
    network = models.load_network(str(path))
    transforms = network.transforms.values()
    parent = models.shipped_parent(name)
    return {
        "name": name,
        "arch": network.architecture,
        "n": network.n,
        "m": network.m,
        "size_bytes": path.stat().st_size,
        "bits": {
            "weight": max(s.convolution.weight_bits for t in transforms for s in t.stages),
            "activation": max(
                s.output.bits for t in transforms for s in t.stages if s is not t.stages[-1]
            ),
        },
        "macs": network.macs(*PHOTO),
        "bops": network.bops(*PHOTO),
        "rd": models.measured(name),
        "fp32": None
        if parent is None
        else {
            "name": f"{name}.fp32",
            "file": parent.name,
            "rd": models.measured(f"{name}.fp32"),
        },
    }
