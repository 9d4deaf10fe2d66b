"""``lichen info``: what a .lic file says of itself."""

from __future__ import annotations

from pathlib import Path

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError


@click.command(cls=Command)
@click.argument("file", metavar="FILE.lic", type=click.Path(path_type=Path))
@_options.json_file
def command(file: Path, json_file: str | None) -> None:
    """Describe a .lic file: size, network, segments. Nothing is decoded but checksums."""
    from lichen import models
    from lichen.codec.container import ContainerError, inspect

    data = _options.read_bytes(file)
    try:
        header = inspect(data, truncated=True)
    except ContainerError as error:
        raise UserError(f"{file}: {error}") from None
    report = header.json()
    report["network"] = models.find_name(header.digest)
    report["intact"] = header.whole and all(row["intact"] for row in report["parts"])
    if json_file != "-":
        for row in report["parts"]:
            click.echo(
                f"{row['name']:16} {row['bytes']:>10} bytes at {row['offset']:>10}  "
                f"{'intact' if row['intact'] else 'DAMAGED'}"
            )
    extras = [name for name in ("grey", "srgb", "alpha") if report[name]]
    network = report["network"] or f"network {header.digest[:16]}… (not a shipped one)"
    _options.report(
        report,
        json_file,
        f"{file}: {header.width}x{header.height}{''.join(f', {name}' for name in extras)}, "
        f"version {header.version}, {header.size} bytes, {report['bpp']:.3f} bits per pixel, "
        f"{network}"
        f"{'' if report['intact'] else '; DAMAGED'}",
    )
    click.get_current_context().exit(0 if report["intact"] else 1)
