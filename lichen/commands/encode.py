"""``lichen encode``: images to .lic files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.commands._config import Size
from lichen.errors import UserError

if TYPE_CHECKING:
    from lichen.boards.host.engine import Engine
    from lichen.codec.container import Container
    from lichen.codec.picture import Picture
    from lichen.sim.golden import Latents


@click.command(cls=Command)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option(
    "-o", "--output", required=True, metavar="FILE.lic/DIR", type=click.Path(path_type=Path),
    help="File to write; for several images or a folder of them, the folder to write to.",
)  # fmt: skip
@_options.network
@click.option(
    "--engine", default="golden", show_default=True,
    help="golden; verilator: the analysis transform in simulated gateware; a board's port, as "
    "/dev/ttyUSB0, or auto: on that board; the rest in the golden model. The file is the same.",
)  # fmt: skip
@click.option(
    "--size", type=Size(), metavar="WxH", help="Of the image that symbols (.npy) belong to."
)
@click.option(
    "--check/--no-check", default=True, show_default=True,
    help="Decode the file again, and measure its PSNR.",
)  # fmt: skip
@click.option(
    "--container", "version", type=click.IntRange(1, 2), metavar="1|2",
    help="Version of the file [default: 2, or 1 for networks without context models].",
)  # fmt: skip
@click.option("--strip", is_flag=True, help="Leave out EXIF and XMP; the profile stays.")
@_options.coding_threads
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    images: tuple[Path, ...],
    output: Path,
    net: str | None,
    engine: str,
    size: tuple[int, int] | None,
    check: bool,
    version: int | None,
    strip: bool,
    threads: int | None,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Compress images.

    IMAGE is an image file or a folder of images. Alpha is kept without loss, grey images stay
    grey, EXIF orientation is applied; an ICC profile, EXIF and XMP are kept (version 1 of the file
    has no room for the last two). An IMAGE of symbols, FILE.npy as
    lichen decode --latents writes it, is coded as it is (with --size; a hyperprior model's z lie
    beside it as FILE.z.npy). Files that are there already are replaced.

    Exit status: 0 only if every image was coded; 2 for unusable arguments or images.
    """
    from lichen import models
    from lichen.codec.container import Container, check_network
    from lichen.files import write_atomically

    _options.check_engine(engine)
    tasks = _options.batch(images, output, ".lic")
    if tasks[0][1].suffix.lower() != ".lic":
        raise UserError(f"{output} is no name for a compressed file; use FILE.lic.")
    named = None if net is None else models.load_network(net)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with _options.board_engine(engine, named) as board:
        if named is None:
            named = models.load_network(models.DEFAULT) if board is None else board.network
        if not all(source.suffix == ".npy" for source, _ in tasks):
            check_network(named)
        container = Container(named, threads, version=version)
        how = _How(engine, board, size, check, strip, quiet or len(tasks) > 1)
        for image, target in _options.with_progress(tasks, quiet=quiet):
            try:
                row = _encode(container, image, target, how)
                write_atomically(target, row.pop("data"))
                rows.append(row)
            except UserError as error:
                if len(tasks) == 1:
                    raise
                failures.append(str(error))
    _options.batch_report(rows, failures, json_file, _sentence)


@dataclass(frozen=True)
class _How:
    """How to encode."""

    engine: str
    board: Engine | None
    size: tuple[int, int] | None
    check: bool
    strip: bool
    quiet: bool


def _encode(container: Container, source: Path, target: Path, how: _How) -> dict[str, Any]:
    """The file of one image, under ``data``, and what is to be said of it."""
    from dataclasses import replace

    from lichen.codec.container import inspect
    from lichen.codec.picture import Picture
    from lichen.network.flow import LATENTS
    from lichen.sim.golden import analysis
    from lichen.sim.quality import PSNR_EXACT, psnr

    picture, latents = None, None
    if source.suffix == ".npy":
        latents = _symbols(container, source, how.size)
        begin = time.monotonic()
    else:
        picture = Picture.read(source)
        for note in picture.notes:
            _options.note(f"{source}: {note}")
        if how.strip:
            picture = replace(picture, exif=None, xmp=None)
        begin = time.monotonic()
        if how.board is not None:
            _options.fill(how.board, LATENTS[0].analysis, quiet=how.quiet)
            with _options.link_progress(source.name, quiet=how.quiet) as progress:
                latents = how.board.analyze(picture, progress=progress)
        elif how.engine == "golden":
            latents = analysis(container.network, picture.pixels)
        else:
            latents = _gateware(container, picture)
    data = container.pack(latents, picture)
    seconds = time.monotonic() - begin
    header = inspect(data)
    pixels = latents.width * latents.height
    row: dict[str, Any] = {
        "image": str(source),
        "file": str(target),
        "network": container.network.name,
        "engine": how.engine,
        "width": latents.width,
        "height": latents.height,
        "bytes": len(data),
        "bpp": 8 * header.image_bytes / pixels,
        "bpp_streams": 8 * header.stream_bytes / pixels,
        "container": header.version,
        "psnr": None,
        "seconds": round(seconds, 3),
        "data": data,
    }
    if how.check:
        decoded = container.decode(data).picture
        if picture is not None:
            row["psnr"] = min(psnr(picture.opaque(), decoded.opaque()), PSNR_EXACT)
    return row


def _symbols(container: Container, source: Path, size: tuple[int, int] | None) -> Latents:
    """Latents from .npy files."""
    import numpy as np

    from lichen.network.description import IMAGE

    if size is None:
        raise UserError(f"{source} holds symbols; give their image's size, as --size 768x512.")
    symbols = {}
    files = {
        latent.name: source if latent.source == IMAGE else source.with_suffix(f".{latent.name}.npy")
        for latent in container.network.latents
    }
    for key, file in files.items():
        try:
            # mapped, so that a header that claims more than there is takes no memory
            symbols[key] = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{file} does not exist; it should hold the symbols {key}.") from None
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise UserError(f"{file} cannot be read as an array ({error}).") from None
    return container.from_symbols(symbols, size[1], size[0])


def _gateware(container: Container, picture: Picture) -> Latents:
    """Latents from g_a in Verilator, found equal to the golden model's."""
    from lichen.sim.golden import code_latent
    from lichen.sim.images import pad_image

    pixels = pad_image(picture.pixels, container.network.factor)
    output = _options.run_gateware(container.network, "g_a", pixels)
    return code_latent(container.network, output, picture.height, picture.width)


def _sentence(row: dict[str, Any]) -> str:
    quality = "" if row["psnr"] is None else f" at {row['psnr']:.2f} dB"
    return (
        f"{row['file']}: {row['bytes']} bytes, {row['bpp']:.3f} bits per pixel{quality}, "
        f"{row['width']}x{row['height']}, {row['seconds']:.2f} s with {row['network']}"
    )
