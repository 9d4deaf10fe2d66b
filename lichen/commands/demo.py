"""``lichen demo``: the whole path, on what ships."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from lichen.commands import _options
from lichen.commands._command import Command

BOARD = "ulx3s-85f"


@click.command(cls=Command)
@click.argument("net", metavar="[NET]", default="tiny")
@click.option(
    "--image", metavar="IMAGE", type=click.Path(path_type=Path),
    help="Any PNG, JPEG or WebP [default: the shipped photograph].",
)  # fmt: skip
@click.option(
    "-o", "--output", default="lichen-demo", show_default=True, metavar="DIR",
    type=click.Path(path_type=Path), help="Folder for everything that is made.",
)  # fmt: skip
@click.option(
    "--crop", default=256, show_default=True, type=click.IntRange(min=16),
    help="Rows and columns of the middle of the image that are simulated.",
)  # fmt: skip
@click.option(
    "--multipliers", default=32, show_default=True, type=click.IntRange(min=1), metavar="N",
    help="Size of the pipeline: few multipliers simulate and build fast.",
)  # fmt: skip
@_options.json_file
@click.pass_context
def command(
    context: click.Context,
    net: str,
    image: Path | None,
    output: Path,
    crop: int,
    multipliers: int,
    json_file: str | None,
) -> None:
    """Walk the whole path on a shipped network and photograph.

    The golden model encodes and decodes the photograph; the network's analysis transform becomes
    Verilog, runs in Verilator on a crop against the golden model, and becomes a bitstream for the
    ULX3S. DIR gets the reconstruction, the Verilog, the bitstream and report.json.

    Exit status: 0 only if the gateware equals the golden model and the bitstream meets timing.
    """
    from lichen import models
    from lichen.boards import board as boards
    from lichen.boards.build.flow import BuildFailedError, build
    from lichen.boards.build.tools import Progress
    from lichen.boards.design import Bitstream, Design, fold
    from lichen.boards.generate import generate
    from lichen.files import write_json
    from lichen.hw.plan.planner import evaluate
    from lichen.sim import golden
    from lichen.sim.images import crop_middle, load_image, pad_image, write_image
    from lichen.sim.transform import simulate_transform

    def say(text: str) -> None:
        click.echo(text, err=json_file == "-")

    def note(text: str) -> None:
        click.echo(f"   {text}", err=True)

    started = time.monotonic()
    report: dict[str, Any] = {}
    board = boards.find(BOARD)
    network = models.load_network(net)
    photo = models.photograph() if image is None else image
    pixels, notes = load_image(photo)
    for text in notes:
        note(f"{photo}: {text}")
    _options.made_folder(output)

    height, width = pixels.shape[:2]
    say(f"1. Golden model: {network.title} on {photo.name}, {width}x{height}")
    begin = time.monotonic()
    latents = golden.analysis(network, pixels)
    encoded = time.monotonic()
    decoded = golden.reconstruct(network, latents)
    seconds = (round(encoded - begin, 2), round(time.monotonic() - encoded, 2))
    bpp = sum(golden.estimate_bits(network, latents).values()) / (height * width)
    quality = golden.psnr(pixels, decoded)
    reconstruction = output / "reconstruction.png"
    write_image(reconstruction, decoded)
    report["golden"] = {
        "image": photo.name, "width": width, "height": height, "bpp": round(bpp, 4),
        "psnr": round(quality, 3), "encode_seconds": seconds[0], "decode_seconds": seconds[1],
        "reconstruction": reconstruction.name,
    }  # fmt: skip
    say(
        f"   {bpp:.3f} bits per pixel (of 24) at {quality:.2f} dB; encoded in {seconds[0]} s, "
        f"decoded in {seconds[1]} s; {reconstruction}"
    )

    transform = network.transform("g_a")
    side = transform.downsampling * -(-crop // transform.downsampling)
    (folding,) = fold(network, ["g_a"], board, max_width=side, multipliers=multipliers)
    design = Design.make(network, "g_a", folding)
    say(f"2. Verilog: the analysis transform, folded into at most {multipliers} multipliers")
    for row in evaluate(transform, folding).describe(board.pll(None).output_hz)["stages"]:
        say(f"   {row['name']}: P x Q x S = {row['pixels']} x {row['channels']} x {row['lanes']}")
    description = generate(design, board, output / "verilog")
    report["generate"] = description
    say(f"   {output / 'verilog' / description['files'][0]} (module {description['top']})")

    middle = crop_middle(pixels, min(crop, height), min(crop, width))
    say(f"3. Verilator: the middle {middle.shape[1]}x{middle.shape[0]} pixels")
    try:
        run = simulate_transform(
            transform, folding, pad_image(middle, transform.downsampling), progress=note
        )
    except RuntimeError as error:
        click.echo(f"lichen: {error}", err=True)
        context.exit(1)
    report["simulate"] = {
        "crop": {"width": middle.shape[1], "height": middle.shape[0]},
        "mismatches": run.mismatches,
        "compared": run.compared,
        "first_mismatch": run.first_mismatch,
        "cycles": run.cycles,
        "predicted_cycles": run.predicted_cycles,
        "faults": run.faults,
    }
    if run.faults:
        click.echo(f"lichen: the gateware is wrong: {run.faults[0]}", err=True)
        context.exit(1)
    say(
        f"   {run.compared} latents compared, {run.mismatches} mismatches; {run.cycles} cycles, "
        "as predicted"
    )

    say(f"4. Bitstream: {board.title}")
    pll = board.pll(None)
    try:
        built = build(
            top=Bitstream(designs=(design,)).top(board, pll), board=board, pll=pll,
            folder=output / board.name,
            cycles_per_frame=design.cycles_per_frame, details=design.describe(),
            progress=Progress(sys.stderr),
        )  # fmt: skip
    except BuildFailedError as error:
        click.echo(f"lichen: {error}", err=True)
        context.exit(1)
    report["build"] = built.to_json()
    have = board.budget
    say(
        f"   {output / board.name / built.bitstream}: {built.fmax_mhz:g} MHz for a clock of "
        f"{built.clock_mhz:g}; {built.dsp} of {have.dsp} multipliers, {built.bram} of {have.bram} "
        f"block RAMs, {built.lut} of {have.lut} LUTs"
    )
    report["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "report.json", report)
    shortfall = built.shortfall()
    ending = f"Everything is in {output}, with report.json; {report['seconds']:.0f} seconds."
    _options.report(report, json_file, ending)
    if shortfall is not None:
        click.echo(f"lichen: {shortfall}", err=True)
        context.exit(1)
