"""`lichen search`: bits for every stage, where they are worth what they cost."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lichen import completion
from lichen.commands import _options
from lichen.commands._command import Command
from lichen.commands._quant import TUNE, find_clip_factor, import_quant
from lichen.commands._records import records
from lichen.errors import UserError

if TYPE_CHECKING:
    from lichen.boards.board import Board
    from lichen.network.description import Network
    from lichen.quant.float.network import FloatNetwork
    from lichen.quant.search.costs import Cost
    from lichen.quant.search.search import Search
    from lichen.quant.search.state import SearchResult


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


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is read and written, and how the command runs."""

    checkpoint: str
    output: Path
    start_net: str | None
    plot_file: Path | None
    log_file: Path | None
    name: str | None
    resume: bool
    overwrite: bool
    stop_after: int | None
    scheduler: str | None
    threads: int
    json_file: str | None
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be saved, and where."""

    cost_name: str | None
    board_name: str | None
    fps: float
    width: int
    clock: float | None
    transform_name: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which bits may go where, and when it ends."""

    max_loss: float
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    least_bits: int
    among: tuple[int, ...]
    tries: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What stages are requantized and measured on."""

    calibrate: str | None
    held_out: int
    crop: int | None
    max_images: int | None
    latent_bits: int | None
    clip_factor: float | None
    samples: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Fine-tuning between the steps."""

    train_folder: str | None
    steps_per_round: int
    tune_every: int
    lmbda: float | None
    lr: float
    batch: int
    patch: int
    device: str


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
@click.option("--board", "board_name", shell_complete=completion.boards,
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
def command(**values: Any) -> None:
    """Search, save, and say what was saved and lost."""
    request: Request
    target: Target
    request, target, rules, calibration, tuning = records(
        values, Request, Target, Rules, Calibration, Tuning
    )
    _check(request, target, tuning)
    import_quant()
    import torch

    from lichen.files import write_atomically
    from lichen.network.file import dumps, load
    from lichen.quant.search.plot import plot

    if request.threads:
        torch.set_num_threads(request.threads)
    started = time.monotonic()
    place = _place(target)
    search, result = _search(request, target, place, rules, calibration, tuning)
    integer = result.final.network
    write_atomically(request.output, dumps(integer))
    load(request.output)  # what was written is a valid network
    if request.plot_file is not None:
        what = "bit-operations" if search.cost.name == "bops" else "board needed"
        plot(result.log, request.plot_file, cost=what)
    if request.log_file is not None:
        lines = "".join(json.dumps(entry) + "\n" for entry in result.log)
        write_atomically(request.log_file, lines.encode())
    report = _report(request, search, result) | {
        "target": None if place is None else place.json() | {
            "fits": result.target is not None, "plan": result.target
        },
        "log": result.log,
        "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip
    last, verdict = result.log[-1], ""
    if place is not None and search.cost.name == "hardware":
        fits = "fits" if result.target is not None else "does not fit yet"
        verdict = (
            f"; {fits} {place.board.name} at width {target.width} with {target.fps:g} frames/s"
        )
    _options.report(
        report,
        request.json_file,
        f"{request.output}: {report['steps']} changes, {last['trials']} tried; "
        f"{report['bops_saved']:.1%} fewer bit-operations, {report['cost_saved']:.1%} less cost "
        f"({search.cost.name}), loss {last['loss']:.2%} of the rate on {len(search.held_out)} "
        f"crops held out{verdict}",
    )


def _check(request: Request, target: Target, tuning: Tuning) -> None:
    """UserError for options that don't go together."""
    for file in (request.output, request.plot_file, request.log_file):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"cannot write {file}: the folder {file.parent} does not exist.")
    if request.output.is_dir():
        raise UserError(f"cannot write {request.output}: it is a folder.")
    if (tuning.steps_per_round > 0) != (tuning.train_folder is not None):
        raise UserError("fine-tuning takes both --train DIR and --steps-per-round N.")
    if target.cost_name == "hardware" and target.board_name is None:
        raise UserError("--cost hardware needs a board; give it with --board.")
    if request.start_net is not None and Path(request.checkpoint).suffix == ".lichen":
        raise UserError("--start goes with a checkpoint; a network starts from itself.")


@dataclass(frozen=True)
class _Place:
    """The board that the result is for, and the clock it will have there."""

    board: Board
    target: Target
    clock_mhz: float

    def cost(self, start: Network) -> Cost:
        """What the board charges for a network."""
        from lichen.hw.plan.price import Pace
        from lichen.network.description import PHOTO
        from lichen.quant.search.costs import HardwareCost

        key = self.target.transform_name
        pace = Pace(
            budget=self.board.pipeline_budget,
            device=self.board.family,
            max_width=self.target.width,
            cycles_per_frame=int(self.clock_mhz * 1e6 / self.target.fps),
            frame=start.frames(*PHOTO).get(key, PHOTO),
        )
        return HardwareCost(start, key, pace)

    def json(self) -> dict[str, Any]:
        return {
            "board": self.board.name,
            "fps": self.target.fps,
            "width": self.target.width,
            "clock_mhz": self.clock_mhz,
        }


def _place(target: Target) -> _Place | None:
    """The board asked for, if any."""
    if target.board_name is None:
        return None
    from lichen.boards import board as boards
    from lichen.boards.build.achieved import expected_clock

    board = boards.find(target.board_name)
    limit = expected_clock(board, board.budget).limit_mhz
    pll = board.pll_below(limit) if target.clock is None else board.pll(target.clock)
    return _Place(board, target, pll.output_mhz)


def _networks(request: Request) -> tuple[FloatNetwork, Network | None]:
    """The real network, and the integers to start from, if they are given."""
    from lichen.models import load_network
    from lichen.quant.float.source import load_float_network
    from lichen.quant.search.parents import float_network

    if Path(request.checkpoint).suffix == ".lichen":
        start = load_network(request.checkpoint)
        return float_network(start), start
    start_net = request.start_net
    network = load_float_network(request.checkpoint)
    return network, None if start_net is None else load_network(start_net)


def _search(
    request: Request,
    target: Target,
    place: _Place | None,
    rules: Rules,
    calibration: Calibration,
    tuning: Tuning,
) -> tuple[Search, SearchResult]:
    """Search, with a progress bar."""
    from tqdm import tqdm

    from lichen.models import calibration_photographs
    from lichen.quant.calibration.calibrate import load_calibration, usual_size
    from lichen.quant.calibration.options import Options
    from lichen.quant.draq.draq import lambda_of
    from lichen.quant.search.costs import BopsCost
    from lichen.quant.search.executors import Cluster
    from lichen.quant.search.search import Search
    from lichen.quant.search.state import SearchOptions
    from lichen.quant.training.runs import state_path
    from lichen.quant.training.tune_config import TuneConfig
    from lichen.sim.images import list_images

    network, start = _networks(request)
    lmbda = lambda_of(network) if tuning.lmbda is None else tuning.lmbda
    lmbda = _options.known_lambda(lmbda, request.checkpoint)
    photographs = calibration.calibrate or calibration_photographs()
    size = calibration.crop or usual_size(network.hyper)
    images = load_calibration(photographs, network.factor, size=size, limit=calibration.max_images)
    tune = None
    if tuning.steps_per_round:
        tune = TuneConfig(
            steps=tuning.steps_per_round, batch=tuning.batch, patch=tuning.patch, lr=tuning.lr,
            lmbda=lmbda, penalty=0.0, seed=calibration.seed,
        )  # fmt: skip
    quantization = Options(
        latent_bits=calibration.latent_bits, samples=calibration.samples, seed=calibration.seed
    )
    factor = calibration.clip_factor
    if factor is None:
        factor, _ = find_clip_factor(network, images, quantization, lmbda, quiet=request.quiet)
    options = SearchOptions(
        quantization=replace(quantization, clip_factor=factor),
        lmbda=lmbda,
        max_loss=rules.max_loss,
        least=rules.least_bits,
        tries=rules.tries,
        held_out=calibration.held_out,
        layers=rules.layers,
        kinds=rules.kinds,
        among=rules.among,
        tune=tune,
        tune_every=tuning.tune_every,
        device=tuning.device,
    )
    state = state_path(request.output)
    _options.check_state(state, resume=request.resume, overwrite=request.overwrite)
    folder = tuning.train_folder
    with tqdm(desc="search", unit="trial", disable=request.quiet, mininterval=1) as bar:

        def watch(phrase: str, trials: int) -> None:
            bar.set_postfix_str(phrase)
            bar.update(trials)

        search = Search(
            network,
            images,
            options,
            BopsCost if place is None or target.cost_name == "bops" else place.cost,
            name=request.output.stem if request.name is None else request.name,
            start=start,
            train=[] if folder is None else list_images(folder),
            state=state,
            resume=request.resume,
            executor=None if request.scheduler is None else Cluster(request.scheduler),
            watch=watch,
        )
        return search, search.run(request.stop_after)


def _report(request: Request, search: Search, result: SearchResult) -> dict[str, Any]:
    """What is said of the search, as JSON values."""
    from lichen.quant.calibration.options import bits_of
    from lichen.quant.search.state import CHANGING

    integer, first, last = result.final.network, result.log[0], result.log[-1]
    return {
        "network": str(request.output),
        "name": integer.name,
        "architecture": integer.architecture,
        "layers": {layer: asdict(widths) for layer, widths in bits_of(integer).items()},
        "bops": last["bops"],
        "macs": last["macs"],
        "cost": last["cost"],
        "cost_counts": search.cost.json(),
        "ended": result.ended,
        "steps": sum(entry["step"] in CHANGING for entry in result.log),
        "trials": last["trials"],
        "before": {key: first[key] for key in _FIGURES},
        "after": {key: last[key] for key in _FIGURES},
        "bops_saved": 1 - last["bops"] / first["bops"],
        "cost_saved": 1 - last["cost"] / first["cost"],
        "rd": result.final.after.json(),
    }


_FIGURES = ("cost", "bops", "macs", "loss", "bpp", "psnr", "rd")
"""Of the log, what the report says of the start and of the end."""
