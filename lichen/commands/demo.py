"""``lichen demo``: the whole path, on what ships."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lichen import completion
from lichen.commands import _options
from lichen.commands._command import Command

if TYPE_CHECKING:
    from lichen.boards.build.flow import Report
    from lichen.boards.design import Design
    from lichen.network.description import Network

BOARD = "ulx3s-85f"


@click.command(cls=Command)
@click.argument("net", metavar="[NET]", default="tiny", shell_complete=completion.networks)
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
    Verilog and a bitstream for the ULX3S. It and the synthesis transform run in Verilator on a
    crop, against the golden model. DIR gets the reconstruction, the Verilog, the bitstream and
    report.json.

    Exit status: 0 only if the gateware equals the golden model and the bitstream meets timing.
    """
    from lichen import models
    from lichen.files import write_json
    from lichen.sim.images import load_image

    walk = _Walk(context, output, to_stdout=json_file == "-")
    started = time.monotonic()
    network = models.load_network(net)
    photo = models.photograph() if image is None else image
    pixels, notes = load_image(photo)
    for text in notes:
        walk.note(f"{photo}: {text}")
    _options.made_folder(output)

    report: dict[str, Any] = {"golden": walk.golden(network, photo.name, pixels)}
    design, report["generate"] = walk.verilog(network, crop, multipliers)
    report["simulate"] = walk.simulate(design, pixels, crop)
    back = walk.decoder(network, crop, multipliers)
    report["simulate_decoder"] = walk.simulate(back, pixels, crop)
    built = walk.build(design)
    report["build"] = built.to_json()
    report["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "report.json", report)
    shortfall = built.shortfall()
    ending = f"Everything is in {output}, with report.json; {report['seconds']:.0f} seconds."
    _options.report(report, json_file, ending)
    if shortfall is not None:
        walk.fail(shortfall)


class _Walk:
    """The demo's steps; each says what it does, and ends the command where it fails."""

    def __init__(self, context: click.Context, output: Path, *, to_stdout: bool):
        from lichen.boards import board as boards

        self.context, self.output, self.to_stdout = context, output, to_stdout
        self.board = boards.find(BOARD)

    def say(self, text: str) -> None:
        click.echo(text, err=self.to_stdout)

    def note(self, text: str) -> None:
        click.echo(f"   {text}", err=True)

    def fail(self, text: str) -> NoReturn:
        click.echo(f"lichen: {text}", err=True)
        self.context.exit(1)

    def golden(self, network: Network, name: str, pixels: Any) -> dict[str, Any]:
        """Encode and decode the photograph; its part of the report."""
        from lichen.sim import golden
        from lichen.sim.images import write_image
        from lichen.sim.quality import psnr

        height, width = pixels.shape[:2]
        self.say(f"1. Golden model: {network.title} on {name}, {width}x{height}")
        begin = time.monotonic()
        latents = golden.analysis(network, pixels)
        encoded = time.monotonic()
        decoded = golden.reconstruct(network, latents)
        seconds = (round(encoded - begin, 2), round(time.monotonic() - encoded, 2))
        bpp = sum(golden.estimate_bits(network, latents).values()) / (height * width)
        quality = psnr(pixels, decoded)
        reconstruction = self.output / "reconstruction.png"
        write_image(reconstruction, decoded)
        self.say(
            f"   {bpp:.3f} bits per pixel (of 24) at {quality:.2f} dB; encoded in {seconds[0]} s, "
            f"decoded in {seconds[1]} s; {reconstruction}"
        )
        return {
            "image": name, "width": width, "height": height, "bpp": round(bpp, 4),
            "psnr": round(quality, 3), "encode_seconds": seconds[0], "decode_seconds": seconds[1],
            "reconstruction": reconstruction.name,
        }  # fmt: skip

    def verilog(
        self, network: Network, crop: int, multipliers: int
    ) -> tuple[Design, dict[str, Any]]:
        """Fold the analysis transform and write its Verilog; the design, and what describes it."""
        from lichen.boards.design import Design, fold
        from lichen.boards.generate import generate
        from lichen.hw.plan.planner import evaluate

        transform = network.transform("g_a")
        side = transform.downsampling * -(-crop // transform.downsampling)
        (folding,) = fold(network, ["g_a"], self.board, max_width=side, multipliers=multipliers)
        design = Design.make(network, "g_a", folding)
        self.say(
            f"2. Verilog: the analysis transform, folded into at most {multipliers} multipliers"
        )
        clock_hz = self.board.pll(None).output_hz
        for row in evaluate(transform, folding).describe(clock_hz)["stages"]:
            size = f"{row['pixels']} x {row['channels']} x {row['lanes']}"
            self.say(f"   {row['name']}: P x Q x S = {size}")
        folder = self.output / "verilog"
        description = generate(design, self.board, folder)
        self.say(f"   {folder / description['files'][0]} (module {description['top']})")
        return design, description

    def decoder(self, network: Network, crop: int, multipliers: int) -> Design:
        """Fold the synthesis transform as well."""
        from lichen.boards.design import Design, fold

        multiple = network.transform("g_a").downsampling
        side = multiple * -(-crop // multiple)
        (folding,) = fold(network, ["g_s"], self.board, max_width=side, multipliers=multipliers)
        return Design.make(network, "g_s", folding)

    def simulate(self, design: Design, pixels: Any, crop: int) -> dict[str, Any]:
        """The middle of the photograph through the gateware; its part of the report."""
        from lichen.sim.images import crop_middle, pad_image
        from lichen.sim.inputs import transform_input
        from lichen.sim.transform import simulate_transform

        height, width = pixels.shape[:2]
        middle = crop_middle(pixels, min(crop, height), min(crop, width))
        name, network = design.transform_name, design.network
        self.say(f"3. Verilator: {name}, the middle {middle.shape[1]}x{middle.shape[0]} pixels")
        padded = pad_image(middle, network.transform("g_a").downsampling)
        tensor = transform_input(network, name, padded)
        try:
            run = simulate_transform(design.transform, design.folding, tensor, progress=self.note)
        except RuntimeError as error:
            self.fail(str(error))
        if run.faults:
            self.fail(f"the gateware is wrong: {run.faults[0]}")
        self.say(
            f"   {run.compared} values compared, {run.mismatches} mismatches; {run.cycles} "
            "cycles, as predicted"
        )
        return {
            "crop": {"width": middle.shape[1], "height": middle.shape[0]},
            "mismatches": run.mismatches,
            "compared": run.compared,
            "first_mismatch": run.first_mismatch,
            "cycles": run.cycles,
            "predicted_cycles": run.predicted_cycles,
            "faults": run.faults,
        }

    def build(self, design: Design) -> Report:
        """The bitstream; its report."""
        from lichen.boards.build.flow import BuildFailedError, build
        from lichen.boards.build.tools import Progress
        from lichen.boards.design import Bitstream

        board, pll = self.board, self.board.pll(None)
        self.say(f"4. Bitstream: {board.title}")
        try:
            built = build(
                top=Bitstream(designs=(design,)).top(board, pll), board=board, pll=pll,
                folder=self.output / board.name,
                cycles_per_frame=design.cycles_per_frame, details=design.describe(),
                progress=Progress(sys.stderr),
            )  # fmt: skip
        except BuildFailedError as error:
            self.fail(str(error))
        have = board.budget
        self.say(
            f"   {self.output / board.name / built.bitstream}: {built.fmax_mhz:g} MHz for a clock "
            f"of {built.clock_mhz:g}; {built.dsp} of {have.dsp} multipliers, {built.bram} of "
            f"{have.bram} block RAMs, {built.lut} of {have.lut} LUTs"
        )
        return built
