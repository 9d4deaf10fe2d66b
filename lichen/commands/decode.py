"""``lichen decode``: .lic files to images."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lichen.boards.host.engine import Engine
    from lichen.codec.container import Container, Decoded
    from lichen.codec.region import Region
    from lichen.network.description import Network
    from lichen.sim.golden import Latents, Synthesis, Tensor


@click.command(cls=Command)
@click.argument("files", metavar="FILE.lic...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option(
    "-o", "--output", required=True, metavar="IMAGE/DIR", type=click.Path(path_type=Path),
    help="Image to write; for several files or a folder of them, the folder for PNGs.",
)  # fmt: skip
@_options.network
@click.option(
    "--engine", default="golden", show_default=True,
    help="golden; verilator: pixels from simulated gateware, found equal to golden's; a board's "
    "port, as /dev/ttyUSB0, or auto: pixels from that board.",
)  # fmt: skip
@click.option(
    "--salvage", is_flag=True,
    help="Decode what is undamaged of a damaged file; the rest becomes magenta.",
)  # fmt: skip
@click.option(
    "--rows", metavar="A:B",
    help="Only these rows of the image, B left out: no more is decoded than they depend on.",
)  # fmt: skip
@click.option("--crop", metavar="WxH+X+Y", help="Only this part of the image, likewise.")
@click.option(
    "--latents", metavar="FILE.npy", type=click.Path(path_type=Path),
    help="Also write the symbols y as a NumPy array (those of z, if any, as FILE.z.npy).",
)  # fmt: skip
@click.option(
    "--max-pixels", type=click.IntRange(min=1), metavar="N",
    help="Refuse images that are larger, padding included: a guard against files from strangers "
    "[default: 268435456].",
)  # fmt: skip
@_options.coding_threads
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    files: tuple[Path, ...],
    output: Path,
    net: str | None,
    engine: str,
    salvage: bool,
    rows: str | None,
    crop: str | None,
    latents: Path | None,
    max_pixels: int | None,
    threads: int | None,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Decompress .lic files.

    The network is found among the shipped ones by the digest in the file, unless named. Files
    that are there already are replaced.

    Exit status: 0 only if every file was decoded whole; 1 if some were salvaged with losses; 2
    for unusable arguments or files.
    """
    from lichen.codec.region import Region
    from lichen.sim.images import PIXELS_MAX, image_format

    _options.check_engine(engine)
    if engine != "golden" and (rows is not None or crop is not None):
        raise UserError("the gateware decodes whole images; --rows and --crop are golden's.")
    tasks = _options.batch(files, output, ".png", extensions=(".lic",))
    if latents is not None:
        if len(tasks) > 1:
            raise UserError("--latents writes those of one file; name only one.")
        if latents.suffix != ".npy" or not latents.parent.is_dir():
            raise UserError(
                f"cannot write symbols to {latents}; use FILE.npy in a folder there is."
            )
    image_format(tasks[0][1])
    if rows is not None and crop is not None:
        raise UserError("--rows and --crop exclude each other; --crop says both.")
    region = None if rows is None else Region.of_rows(rows)
    if crop is not None:
        region = Region.of_crop(crop)
    options = _How(
        threads=threads,
        salvage=salvage,
        latents=latents is not None,
        max_pixels=PIXELS_MAX if max_pixels is None else max_pixels,
        region=region,
        engine=engine,
        quiet=quiet or len(tasks) > 1,
    )
    containers: dict[str, Container] = {}
    done: list[dict[str, Any]] = []
    failures: list[str] = []
    with ExitStack() as stack:
        board = _Board(engine, stack, options.quiet)
        for file, target in _options.with_progress(tasks, quiet=quiet):
            try:
                data = _options.read_bytes(file)
                decoded = _decode(containers, net, file, data, options, board)
                done.append(_write(decoded, file, target, latents, engine))
            except UserError as error:
                if len(tasks) == 1:
                    raise
                failures.append(str(error))
    lossy = any(row["lost"] for row in done)
    _options.batch_report(done, failures, json_file, _sentence)
    click.get_current_context().exit(1 if lossy else 0)


@dataclass(frozen=True)
class _How:
    """How to decode."""

    threads: int | None
    salvage: bool
    latents: bool
    max_pixels: int
    region: Region | None
    engine: str
    quiet: bool


class _Board:
    """The board at the port that --engine names, opened when its network is known."""

    def __init__(self, port: str, stack: ExitStack, quiet: bool):
        self._port, self._stack, self._quiet = port, stack, quiet
        self._engine: Engine | None = None

    def synthesize(
        self, network: Network, symbols: Tensor, means: Tensor | None, height: int, width: int
    ) -> npt.NDArray[np.uint8]:
        """Pixels from g_s on the board."""
        from lichen.boards.host.engine import Engine
        from lichen.network.flow import LATENTS

        if self._engine is None:
            context = _options.board_engine(self._port, network)
            self._engine = self._stack.enter_context(context)
            assert self._engine is not None
        # which says so where this file's network is another one
        engine = Engine(self._engine.connection, network)
        _options.fill(engine, LATENTS[0].synthesis, quiet=self._quiet)
        with _options.link_progress(self._port, quiet=self._quiet) as progress:
            return engine.synthesize(symbols, means, height, width, progress=progress)


@dataclass(frozen=True)
class _Result:
    """What came of it."""

    decoded: Decoded
    symbols: Latents | None
    network: str
    seconds: float


def _container(
    containers: dict[str, Container], net: str | None, wanted: str, threads: int | None
) -> Container:
    """The network that is named, or else the shipped one with this digest."""
    from lichen import models
    from lichen.codec.container import Container

    key = wanted if net is None else net
    if key not in containers:
        network = models.find(wanted) if net is None else models.load_network(net)
        if network is None:
            raise UserError(
                f"the file needs the network {wanted[:16]}…, which is none of the shipped "
                f"ones ({', '.join(models.names())}); name its file with -m."
            )
        containers[key] = Container(network, threads)
    return containers[key]


def _decode(
    containers: dict[str, Container],
    net: str | None,
    file: Path,
    data: bytes,
    how: _How,
    board: _Board,
) -> _Result:
    """Decode the bytes of one file."""
    from lichen.codec.container import ContainerError, inspect
    from lichen.sim.golden import synthesis

    makers: dict[str, Synthesis] = {"golden": synthesis, "verilator": _gateware}
    try:
        header = inspect(data, truncated=how.salvage)
        container = _container(containers, net, header.digest, how.threads)
        begin = time.monotonic()
        decoded = container.decode(
            data,
            salvage=how.salvage,
            max_pixels=how.max_pixels,
            region=how.region,
            synthesize=makers.get(how.engine, board.synthesize),
        )
        seconds = time.monotonic() - begin
        symbols = container.latents(data, max_pixels=how.max_pixels) if how.latents else None
    except ContainerError as error:
        raise UserError(f"{file}: {error}") from None
    return _Result(decoded, symbols, container.network.title, seconds)


def _write(
    result: _Result, file: Path, target: Path, latents: Path | None, engine: str
) -> dict[str, Any]:
    """Write the image and the symbols, and return what is to be said of them."""
    import io

    import numpy as np

    from lichen.files import write_atomically
    from lichen.network.flow import LATENTS
    from lichen.sim.images import write_image

    decoded = result.decoded
    write_image(target, decoded.marked().image())
    if latents is not None and result.symbols is not None:
        for segment in result.symbols.segments:
            buffer = io.BytesIO()
            np.save(buffer, segment.symbols)
            outer = segment.name == LATENTS[0].name
            path = latents if outer else latents.with_suffix(f".{segment.name}.npy")
            write_atomically(path, buffer.getvalue())
    return {
        "file": str(file),
        "image": str(target),
        "network": result.network,
        "engine": engine,
        "width": decoded.picture.width,
        "height": decoded.picture.height,
        "lost": list(decoded.lost),
        "damaged": 0.0 if decoded.damaged is None else float(decoded.damaged.mean()),
        "seconds": round(result.seconds, 3),
    }


def _gateware(
    network: Network, symbols: Tensor, means: Tensor | None, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Pixels from g_s in Verilator, found equal to the golden model's."""
    from lichen.sim.golden import picture_input

    tensor = picture_input(network, symbols, means, height, width)
    output = _options.run_gateware(network, "g_s", tensor)
    return output[:height, :width].astype("uint8")


def _sentence(row: dict[str, Any]) -> str:
    lost = ""
    if row["lost"]:
        lost = f"; LOST {row['damaged']:.1%} of its pixels: {', '.join(row['lost'])}"
    return (
        f"{row['image']}: {row['width']}x{row['height']}, {row['seconds']:.2f} s "
        f"with {row['network']}{lost}"
    )
