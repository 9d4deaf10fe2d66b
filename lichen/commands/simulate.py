"""``lichen simulate``: the gateware on an image, against the golden model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen import completion
from lichen.commands import _options
from lichen.commands._command import Command
from lichen.commands._config import Size
from lichen.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@click.command(cls=Command)
@click.argument("net", metavar="NET", required=False, shell_complete=completion.networks)
@click.option(
    "--image", metavar="IMAGE", type=click.Path(path_type=Path), help="Any PNG, JPEG or WebP."
)
@click.option(
    "--bench", metavar="DIR", type=click.Path(path_type=Path),
    help="Run the test bench of a folder that `lichen generate` has made, in place of a network; "
    "with --simulator and --json alone.",
)  # fmt: skip
@click.option(
    "--crop", type=Size(), metavar="WxH", help="Take so many columns and rows from the middle."
)
@_options.transform
@click.option(
    "--simulator", type=click.Choice(["verilator", "icarus"]), default="verilator",
    show_default=True, help="Icarus is some hundred times slower.",
)  # fmt: skip
@click.option(
    "--backpressure", "pauses_seed", type=click.IntRange(min=0), metavar="SEED",
    help="Interrupt input and output at random; frequency and length depend on the seed, too.",
)  # fmt: skip
@click.option(
    "--waves", is_flag=True,
    help="Record all signals into NET_TRANSFORM.fst, with what GTKWave (.gtkw) and Surfer (.sucl) "
    "are to show beside it; use --crop.",
)  # fmt: skip
@click.option(
    "--board", "board_name", default="ulx3s-85f", show_default=True,
    shell_complete=completion.boards,
    help="Board whose size the folding is planned for.",
)  # fmt: skip
@_options.max_width
@_options.multipliers
@_options.folding
@click.option(
    "--build-dir", metavar="DIR", type=click.Path(path_type=Path),
    help="Where built simulators are kept [default: the user's cache folder].",
)  # fmt: skip
@_options.json_file
@click.pass_context
def command(
    context: click.Context,
    net: str | None,
    image: Path | None,
    bench: Path | None,
    crop: tuple[int, int] | None,
    transform_name: str,
    simulator: str,
    pauses_seed: int | None,
    waves: bool,
    board_name: str,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
    build_dir: Path | None,
    json_file: str | None,
) -> None:
    """Run the gateware on an image and compare it with the golden model.

    NET is a network file or the name of a shipped network. Every value of every stage's output
    is compared; an image wider than the gateware goes through in tiles. Simulators are built
    once per network and folding.

    g_a reads the image; h_a, h_s and g_s read what the golden model makes of it on the way there.

    Without --backpressure it also says what the arrays did with their cycles: ``busy`` is the
    share in which an array took operands, ``efficiency`` the products that the image needed (halos
    of tiles included) as a share of those the array could have made.

    Through cocotb in either case: this command starts a bench of Verilog that moves all beats by
    itself and compares afterwards, which is fast; the bench of a generated folder (--bench) drives
    and watches every cycle from Python, which is slow, and there to be read and extended.

    Exit status: 0 only when nothing differs, nothing gets stuck and the cycles are the predicted
    ones (without --backpressure); 1 otherwise; 2 for unusable arguments.
    """
    if bench is not None:
        if net is not None or image is not None:
            raise UserError("--bench runs a folder's own frames; leave NET and --image out.")
        context.exit(_run_bench(bench, simulator, json_file))
    if net is None or image is None:
        raise UserError("give NET and --image, or a generated folder with --bench.")
    from lichen.boards import board as boards
    from lichen.sim.images import load_image
    from lichen.sim.inputs import transform_input
    from lichen.sim.transform import Pauses, efficiency, simulate_transform

    design = _options.design(
        net, transform_name, boards.find(board_name), max_width, multipliers, folding_file
    )
    pixels, notes = load_image(image)
    for note in notes:
        click.echo(f"{image}: {note}", err=True)
    if crop is not None:
        pixels = _cropped(pixels, crop)
    height, width, _ = pixels.shape
    try:
        tensor = transform_input(design.network, transform_name, pixels)
    except ValueError as error:
        raise UserError(f"{transform_name} cannot run on {image}: {error}.") from None
    # short enough for any suffix
    name = re.sub(r"[^\w.-]+", "_", Path(net).stem, flags=re.ASCII)[:200]
    stem = f"{name}_{transform_name}"
    pauses = None if pauses_seed is None else Pauses.from_seed(pauses_seed)
    try:
        run = simulate_transform(
            design.transform,
            design.folding,
            tensor,
            simulator=simulator,
            pauses=pauses,
            waves=Path(stem) if waves else None,
            cache=build_dir,
            progress=lambda sentence: click.echo(sentence, err=True),
        )
    except ValueError as error:
        raise UserError(f"{error}.") from None
    except RuntimeError as error:
        click.echo(f"lichen: {error}", err=True)
        context.exit(1)
    result = run.result
    report = {
        "network": design.name,
        "transform": transform_name,
        "image": str(image),
        "width": width,
        "height": height,
        "tiles": run.tiles,
        "simulator": simulator,
        "mismatches": run.mismatches,
        "compared": run.compared,
        "first_mismatch": run.first_mismatch,
        "cycles": run.cycles,
        "predicted_cycles": run.predicted_cycles,
        "deadlock": result.deadlock,
        "stuck_stage": result.stuck_stage,
        "faults": run.faults,
        "clocks": result.clocks,
        "seconds": round(result.seconds, 3),
        "kcycles_per_second": round(result.kcycles_per_second, 1),
        "multipliers": sum(stage.multipliers for stage in design.folding.stages),
        "efficiency": efficiency(run.arrays) if run.arrays else None,
        "arrays": [use.to_json() for use in run.arrays],
        "folding": design.folding.model_dump(mode="json"),
        "pauses": None if pauses is None else vars(pauses),
        "stages": [
            {key: value for key, value in stream.items() if key not in ("port", "valid", "ready")}
            for stream in result.streams
        ],
        "waves": None if result.waves is None else str(result.waves),
    }
    if result.waves is not None:
        shown = result.waves.with_suffix(".gtkw")
        click.echo(f"waves: {result.waves}; gtkwave {shown} shows them by stage", err=True)
    if json_file != "-":
        _print_table(report)
    _options.report(report, json_file, _verdict(report))
    context.exit(1 if run.faults else 0)


def _run_bench(folder: Path, simulator: str, json_file: str | None) -> int:
    """Run a folder's bench and say what came of it; the exit status."""
    from lichen.sim.bench import interface_of, run_bench

    top = interface_of(folder)["top"]
    run = run_bench(folder, simulator)
    if run.problem:
        verdict = f"FAIL: {run.problem}"
    elif not run.ok:
        name, problem = next((n, p) for n, p in run.tests.items() if p)
        verdict = f"FAIL: {name}: {problem}"
    else:
        verdict = f"ok: {len(run.tests)} tests of {top} passed on {simulator}"
        if run.skipped:
            verdict += f"; {len(run.skipped)} are left out of it, test/share.py says why"
    _options.report({"top": top, **run.to_json()}, json_file, verdict)
    return 0 if run.ok else 1


def _cropped(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The middle of an image; UserError, too, for a size that was meant as it once was written."""
    from lichen.sim.images import crop_middle

    width, height = size
    rows, columns = pixels.shape[:2]
    if (width > columns or height > rows) and width <= rows and height <= columns:
        raise UserError(
            f"--crop takes width x height now, and {width}x{height} does not fit an image of "
            f"{columns}x{rows}; for {height} columns and {width} rows, give {height}x{width}."
        )
    return crop_middle(pixels, height, width)


def _print_table(report: dict[str, Any]) -> None:
    """What the arrays did with their cycles, one line each."""
    if not report["arrays"]:
        return
    click.echo(
        f"{'array':14} {'multipliers':>11} {'needed MACs':>13} {'busy':>6} {'efficiency':>10}"
    )
    total = {
        "name": "all",
        "multipliers": report["multipliers"],
        "macs": sum(use["macs"] for use in report["arrays"]),
    }
    for use in (*report["arrays"], total):
        busy = f"{use['busy']:.1%}" if "busy" in use else ""
        share = use.get("efficiency", report["efficiency"])
        click.echo(
            f"{use['name']:14} {use['multipliers']:>11} {use['macs']:>13} {busy:>6} {share:>10.1%}"
        )


def _verdict(report: dict[str, Any]) -> str:
    """One line for the user."""
    speed = f"{report['kcycles_per_second']:g} kcycles/s on {report['simulator']}"
    faults = report["faults"]
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        return f"FAIL: {faults[0]}{more} ({speed})"
    cycles = (
        f"{report['clocks']} cycles with pauses"
        if report["cycles"] is None
        else f"{report['cycles']} cycles as predicted"
    )
    what = {"g_a": "latents", "g_s": "samples"}.get(report["transform"], "values")
    return (
        f"ok: {report['compared']} {what} of {report['network']} compared, 0 mismatches; "
        f"{cycles}; {speed}"
    )
