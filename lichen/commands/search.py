"""`lichen search`: bits for every stage, where they are worth what they cost."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.commands.quantize import TUNE, _import_quant, find_clip_factor
from lichen.errors import UserError


class Percent(click.ParamType):
    """A share such as ``1%`` or ``0.01``."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = math.nan
        if not -1 < share < 1:
            self.fail(f"{value!r} is no share below 1, such as 1% or 0.01.", param, ctx)
        return share


@click.command(
    cls=Command,
    name="search",
    help="Give every stage the bits that are worth what they cost (experimental).",
)
@click.argument("checkpoint", metavar="CKPT|NET.lichen")
@click.option(
    "-o", "--output", required=True, metavar="NET.lichen", type=click.Path(path_type=Path),
    help="Network file to write; the search keeps its state beside it.",
)  # fmt: skip
@click.option(
    "--start", "start_net", metavar="NET",
    help="Start from this integer network of the checkpoint, of `quantize --method draq` for "
    "example [default: quantize the checkpoint, 8 bits everywhere].",
)  # fmt: skip
@click.option(
    "--max-loss", type=Percent(), default="1%", show_default=True,
    help="End when no change is left that keeps R + lambda D within this share of the rate above "
    "the start's. Negative: so much is to be won by bits that cost little.",
)  # fmt: skip
@click.option(
    "--cost", "cost_name", type=click.Choice(["bops", "hardware"]),
    help="What to save: bit-operations of all transforms, or what --transform needs of the board "
    "[default: hardware with --board].",
)  # fmt: skip
@click.option("--board", "board_name",
              help="Board, such as ulx3s-85f; the search ends once the plan fits it.")  # fmt: skip
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), default=15.0, show_default=True,
              help="With --board: 768x512 images a second to reach.")  # fmt: skip
@click.option(
    "--width", type=click.IntRange(1, 65535), default=768, show_default=True, metavar="PIXELS",
    help="With --board: widest frame; wider images go through in tiles.",
)  # fmt: skip
@click.option(
    "--clock", type=float, metavar="MHZ",
    help="With --board: system clock [default: what a full build of this device has achieved].",
)  # fmt: skip
@_options.transform
@click.option("--layer", "layers", multiple=True, metavar="NAME",
              help="Change this stage only, such as g_a.conv2; may be repeated.")  # fmt: skip
@click.option(
    "--bits", "kinds", multiple=True,
    type=click.Choice(["weight", "activation", "gamma", "u", "gdn_input"]),
    help="Change bits of this only; may be repeated [default: all that the cost depends on].",
)  # fmt: skip
@click.option("--least-bits", type=click.IntRange(2, 8), default=2, show_default=True,
              help="Take nothing below so many bits.")  # fmt: skip
@click.option("--among", type=click.IntRange(2, 16), multiple=True, metavar="BITS",
              help="Take no other numbers of bits than this; may be repeated.")  # fmt: skip
@click.option("--tries", type=click.IntRange(min=1), default=4, show_default=True,
              help="Changes that are measured at a time.")  # fmt: skip
@click.option(
    "--calibrate", metavar="DIR",
    help="Folder of photographs [default: the ones that ship with Lichen].",
)  # fmt: skip
@click.option("--held-out", type=click.IntRange(min=2), default=3, show_default=True, metavar="N",
              help="Measure losses on every Nth of them, which is not calibrated on.")  # fmt: skip
@click.option(
    "--crop", type=click.IntRange(min=16),
    help="Pixels a side of each [default: 256, or 512 for a hyperprior].",
)  # fmt: skip
@click.option("--max-images", type=click.IntRange(min=2), metavar="N",
              help="Take N images at even distances [default: all].")  # fmt: skip
@click.option("--latent-bits", type=click.IntRange(2, 16), help="Symbols [default: 8].")
@click.option(
    "--clip-factor", type=click.FloatRange(0, 4, min_open=True),
    help="What the clipping ranges of least squared error are multiplied with [default: of 1, "
    "1.25, 1.5 and 2 what loses least on the calibration images].",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(min=100), default=24000, show_default=True,
              help="Positions per stage that weights are fitted on.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of everything random.")  # fmt: skip
@click.option("--train", "train_folder", metavar="DIR",
              help="Folder of photographs to fine-tune on.")  # fmt: skip
@click.option(
    "--steps-per-round", type=click.IntRange(min=0), default=0, show_default=True,
    help="Steps of fine-tuning in a round; needs --train.",
)  # fmt: skip
@click.option("--tune-every", type=click.IntRange(min=1), default=8, show_default=True,
              metavar="K", help="Fine-tune after every K changes.")  # fmt: skip
@click.option("--lmbda", type=click.FloatRange(min=0, min_open=True),
              help="Weight of the distortion [default: the checkpoint's].")  # fmt: skip
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=TUNE["lr"],
              show_default=True, help="Peak learning rate of a round.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True,
              help="Crops per step.")  # fmt: skip
@click.option("--patch", type=click.IntRange(min=16), default=128, show_default=True,
              help="Size of a crop in pixels.")  # fmt: skip
@click.option("--device", default="auto", show_default=True,
              help="Of fine-tuning: cpu, cuda, or auto.")  # fmt: skip
@click.option(
    "--scheduler", metavar="ADDRESS",
    help="Try changes on the workers of this Dask scheduler (pip install 'lichen[cluster]'), for "
    "example tcp://host:8786 [default: in this process].",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the state beside NET.")
@click.option("--overwrite", is_flag=True, help="Start anew though a state exists.")
@click.option("--stop-after", type=click.IntRange(min=1), metavar="N",
              help="End after N steps; --resume goes on.")  # fmt: skip
@click.option("--plot", "plot_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Plot of loss against cost, with the path.")  # fmt: skip
@click.option("--log", "log_file", metavar="FILE", type=click.Path(path_type=Path),
              help="Write every step as a line of JSON.")  # fmt: skip
@click.option("--name", help="Name of the network [default: of the file].")
@_options.torch_threads
@_options.json_file
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    checkpoint: str,
    output: Path,
    start_net: str | None,
    max_loss: float,
    cost_name: str | None,
    board_name: str | None,
    fps: float,
    width: int,
    clock: float | None,
    transform_name: str,
    layers: tuple[str, ...],
    kinds: tuple[str, ...],
    least_bits: int,
    among: tuple[int, ...],
    tries: int,
    calibrate: str | None,
    held_out: int,
    crop: int | None,
    max_images: int | None,
    latent_bits: int | None,
    clip_factor: float | None,
    samples: int,
    seed: int,
    train_folder: str | None,
    steps_per_round: int,
    tune_every: int,
    lmbda: float | None,
    lr: float,
    batch: int,
    patch: int,
    device: str,
    scheduler: str | None,
    resume: bool,
    overwrite: bool,
    stop_after: int | None,
    plot_file: Path | None,
    log_file: Path | None,
    name: str | None,
    threads: int,
    json_file: str | None,
    quiet: bool,
) -> None:
    """Search, save, and say what was saved and lost."""
    for file in (output, plot_file, log_file):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"cannot write {file}: the folder {file.parent} does not exist.")
    if output.is_dir():
        raise UserError(f"cannot write {output}: it is a folder.")
    if (steps_per_round > 0) != (train_folder is not None):
        raise UserError("fine-tuning takes both --train DIR and --steps-per-round N.")
    if cost_name == "hardware" and board_name is None:
        raise UserError("--cost hardware needs a board; give it with --board.")
    _import_quant()
    import torch
    from tqdm import tqdm

    from lichen.files import write_atomically
    from lichen.models import calibration_photographs, load_network
    from lichen.network.file import dumps, load
    from lichen.quant.calibration.calibrate import load_calibration, usual_size
    from lichen.quant.calibration.ptq import Options, bits_of
    from lichen.quant.draq.draq import lambda_of
    from lichen.quant.float.source import load_float_network
    from lichen.quant.search import search
    from lichen.quant.training.finetune import TuneConfig, state_path
    from lichen.sim.images import list_images

    if threads:
        torch.set_num_threads(threads)
    started = time.monotonic()
    board = None
    if board_name is not None:
        from lichen.boards import board as boards

        board = boards.find(board_name)
    start: Any = None
    if Path(checkpoint).suffix == ".lichen":
        if start_net is not None:
            raise UserError("--start goes with a checkpoint; a network starts from itself.")
        start = load_network(checkpoint)
        network = search.float_network(start)
    else:
        if start_net is not None:
            start = load_network(start_net)
        network = load_float_network(checkpoint)
    weight = _options.known_lambda(lambda_of(network) if lmbda is None else lmbda, checkpoint)
    source = calibration_photographs() if calibrate is None else calibrate
    size = crop or usual_size(network.hyper)
    images = load_calibration(source, network.factor, size=size, limit=max_images)
    tune = None
    if steps_per_round:
        tune = TuneConfig(
            steps=steps_per_round, batch=batch, patch=patch, lr=lr, lmbda=weight, penalty=0.0,
            seed=seed,
        )  # fmt: skip
    quantization = Options(latent_bits=latent_bits, samples=samples, seed=seed)
    if clip_factor is None:
        clip_factor, _ = find_clip_factor(network, images, quantization, weight, quiet=quiet)
    quantization = replace(quantization, clip_factor=clip_factor)
    options = search.SearchOptions(
        quantization=quantization,
        lmbda=weight,
        max_loss=max_loss,
        least=least_bits,
        tries=tries,
        held_out=held_out,
        layers=layers,
        kinds=kinds,
        among=among,
        tune=tune,
        tune_every=tune_every,
        device=device,
    )
    state = state_path(output)
    _options.check_state(state, resume=resume, overwrite=overwrite)
    clock_mhz = 0.0
    if board is not None:
        from lichen.boards.build.achieved import expected_clock

        limit = expected_clock(board, board.budget).limit_mhz
        pll = board.pll_below(limit) if clock is None else board.pll(clock)
        clock_mhz = pll.output_mhz

    def make_cost(start: Any) -> search.Cost:
        if board is None or cost_name == "bops":
            return search.BopsCost(start)
        from lichen.hw.plan.price import Pace
        from lichen.network.description import PHOTO

        pace = Pace(
            budget=board.pipeline_budget,
            device=board.family,
            max_width=width,
            cycles_per_frame=int(clock_mhz * 1e6 / fps),
            frame=start.frames(*PHOTO).get(transform_name, PHOTO),
        )
        return search.HardwareCost(start, transform_name, pace)

    with tqdm(desc="search", unit="trial", disable=quiet, mininterval=1) as bar:

        def watch(phrase: str, trials: int) -> None:
            bar.set_postfix_str(phrase)
            bar.update(trials)

        run = search.Search(
            network,
            images,
            options,
            make_cost,
            name=output.stem if name is None else name,
            start=start,
            train=[] if train_folder is None else list_images(train_folder),
            state=state,
            resume=resume,
            executor=None if scheduler is None else search.Cluster(scheduler),
            watch=watch,
        )
        result = run.run(stop_after)
    integer = result.final.network
    write_atomically(output, dumps(integer))
    load(output)  # what was written is a valid network
    first, last = result.log[0], result.log[-1]
    if plot_file is not None:
        what = "bit-operations" if run.cost.name == "bops" else "board needed"
        search.plot(result.log, plot_file, cost=what)
    if log_file is not None:
        lines = "".join(json.dumps(entry) + "\n" for entry in result.log)
        write_atomically(log_file, lines.encode())
    report = {
        "network": str(output),
        "name": integer.name,
        "architecture": integer.architecture,
        "layers": {layer: asdict(widths) for layer, widths in bits_of(integer).items()},
        "bops": last["bops"],
        "macs": last["macs"],
        "cost": last["cost"],
        "cost_counts": run.cost.json(),
        "ended": result.ended,
        "steps": sum(entry["step"] in search.CHANGING for entry in result.log),
        "trials": last["trials"],
        "before": {key: first[key] for key in _FIGURES},
        "after": {key: last[key] for key in _FIGURES},
        "bops_saved": 1 - last["bops"] / first["bops"],
        "cost_saved": 1 - last["cost"] / first["cost"],
        "rd": result.final.after.json(),
        "target": None
        if board is None
        else {"board": board.name, "fps": fps, "width": width, "clock_mhz": clock_mhz,
              "fits": result.target is not None, "plan": result.target},
        "log": result.log,
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip
    verdict = ""
    if board is not None and run.cost.name == "hardware":
        fits = "fits" if result.target is not None else "does not fit yet"
        verdict = f"; {fits} {board.name} at width {width} with {fps:g} frames/s"
    _options.report(
        report,
        json_file,
        f"{output}: {report['steps']} changes, {last['trials']} tried; "
        f"{report['bops_saved']:.1%} fewer bit-operations, {report['cost_saved']:.1%} less cost "
        f"({run.cost.name}), loss {last['loss']:.2%} of the rate on {len(run.held_out)} crops "
        f"held out{verdict}",
    )


_FIGURES = ("cost", "bops", "macs", "loss", "bpp", "psnr", "rd")
"""Of the log, what the report says of the start and of the end."""
