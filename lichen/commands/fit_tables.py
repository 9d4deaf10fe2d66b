"""``lichen fit-tables``: context models for a network that has none, or better ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt


@click.command(cls=Command, name="fit-tables")
@_options.net
@click.option(
    "-o", "--output", required=True, metavar="NET.lichen", type=click.Path(path_type=Path),
    help="Network file to write.",
)  # fmt: skip
@click.option("--train", "train_folder", required=True, metavar="DIR",
              help="Folder of photographs to fit to.")  # fmt: skip
@click.option(
    "--calibrate", "held_folder", metavar="DIR",
    help="Folder of others to choose and measure on [default: every 8th of DIR is held out].",
)  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), metavar="N",
              help="Take at most N images of each folder, evenly.")  # fmt: skip
@click.option("--passes", type=click.IntRange(min=2), default=6, show_default=True,
              help="Passes over the images while weights are learned.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True,
              help="Of the learning; equal seeds give equal networks.")  # fmt: skip
@_options.torch_threads
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    net: str,
    output: Path,
    train_folder: str,
    held_folder: str | None,
    count: int | None,
    passes: int,
    seed: int,
    threads: int,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Fit context models and their tables to the latents that a network makes.

    They are what version 2 of the .lic file codes with. Everything else of the network stays what
    it is: the same pixels, and files that were made with it before are still decoded by it.
    """
    from tqdm import tqdm

    from lichen import models
    from lichen.codec.container import check_network
    from lichen.network.file import save
    from lichen.sim.images import list_images

    with _options.quant_extra("fitting context models"):
        import torch

        from lichen.quant.contexts.fit import HELD_SHARE, collect, fit_network
        from lichen.quant.contexts.weights import Schedule
    if output.suffix != ".lichen" or not output.parent.is_dir():
        raise UserError(f"cannot write a network to {output}; use NET.lichen in a folder there is.")
    network = models.load_network(net)
    check_network(network)
    files = _evenly(list_images(train_folder), count)
    if held_folder is not None:
        held = _evenly(list_images(held_folder), count)
    elif len(files) >= 2:
        held = files[::HELD_SHARE]
        files = [file for file in files if file not in held]
    else:
        raise UserError(f"{train_folder} has one image; give another folder with --calibrate.")
    if threads:
        torch.set_num_threads(threads)
    schedule = Schedule(passes=passes, rounded=max(1, passes // 3), seed=seed)
    total = len(files) + len(held)
    with tqdm(total=total, unit="image", disable=quiet) as bar:
        trained = collect(network, _read(files), lambda _: bar.update() and None)
        chosen = collect(network, _read(held), lambda _: bar.update() and None)
        bar.set_description("fitting")
        provenance = {
            "images": len(files),
            "held": len(held),
            "passes": passes,
            "seed": seed,
        }
        try:
            fit = fit_network(network, trained, chosen, schedule=schedule, provenance=provenance)
        except ValueError as error:
            raise UserError(f"{network.title}: {error}.") from None
    save(fit.network, output)
    report: dict[str, Any] = {"network": str(output), **fit.json(), **provenance}
    _options.report(
        report,
        json_file,
        f"{output}: {report['saved']:.1%} fewer bits than static tables on {len(held)} images "
        f"({sum(fit.before.values()):.4f} to {sum(fit.after.values()):.4f} bits per pixel), "
        f"{report['entries']} entries in {report['tables']} tables, {report['bits']} bits of "
        "weights and edges",
    )


def _evenly(files: Sequence[Path], count: int | None) -> list[Path]:
    """At most so many of them."""
    if count is None or count >= len(files):
        return list(files)
    return [files[-(-i * len(files) // count)] for i in range(count)]


def _read(files: Sequence[Path]) -> Iterator[npt.NDArray[np.uint8]]:
    from lichen.sim.images import read_image

    for file in files:
        yield read_image(file)
