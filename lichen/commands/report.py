"""``lichen report``: one page about a network, a build, or two of them."""

from __future__ import annotations

from pathlib import Path

import click

from lichen import completion
from lichen.commands._command import Command
from lichen.errors import UserError

PARTS = 16
"""Steps of the progress bar for a network of two transforms; a longer one just goes on."""


@click.command(cls=Command)
@click.argument("sources", metavar="NET|DIR [NET|DIR]", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, metavar="FILE.html", type=click.Path(path_type=Path),
    help="Page to write; an earlier one is replaced.",
)  # fmt: skip
@click.option(
    "--board", "board_name", default="ulx3s-85f", show_default=True,
    shell_complete=completion.boards,
    help="Board that networks are planned for.",
)  # fmt: skip
@click.option(
    "--image", "image_file", metavar="IMAGE", type=click.Path(path_type=Path),
    help="What is coded to show pictures [default: the photograph that ships with Lichen].",
)  # fmt: skip
@click.option(
    "--crop", "size", metavar="PIXELS", type=click.IntRange(64, 4096), default=256,
    show_default=True, help="Side of the square in the middle of the image that is used.",
)  # fmt: skip
@click.option(
    "--quick",
    is_flag=True,
    help="Leave out what takes long: plans, and sensitivity, which codes once a stage.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    sources: tuple[str, ...],
    output: Path,
    board_name: str,
    image_file: Path | None,
    size: int,
    quick: bool,
    quiet: bool,
) -> None:
    """Write one self-contained HTML page about a network, a build, or two of them.

    NET is a network file or the name of a shipped network, DIR a folder that lichen build made (or
    its report.json). The page needs no network: rate and distortion beside published codecs, bits,
    products and sensitivity of every stage, the spread of weights before and after quantization,
    the plan for a board with the timeline of a frame, what a build achieved, and a picture
    beside its reconstruction.
    """
    from tqdm import tqdm

    from lichen import models
    from lichen.boards import board as boards
    from lichen.files import write_text
    from lichen.report.make import make
    from lichen.report.subject import find
    from lichen.sim.images import crop_middle, read_image

    if len(sources) > 2:
        raise UserError(f"a report is about one or two networks or builds, not {len(sources)}.")
    board = boards.find(board_name)
    subjects = find(sources)
    pixels = read_image(image_file or models.photograph())
    height, width = pixels.shape[:2]
    pixels = crop_middle(pixels, min(size, height), min(size, width))
    with tqdm(total=PARTS, unit="part", disable=quiet, leave=False) as bar:

        def progress(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        page = make(subjects, board=board, pixels=pixels, quick=quick, progress=progress)
    write_text(output, page)
    click.echo(
        f"{output}: {len(page) / 1000:.0f} kB, about {' and '.join(s.title for s in subjects)}"
    )
