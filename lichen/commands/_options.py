"""Options and endings that commands share."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lichen import completion, files
from lichen.errors import UserError
from lichen.network.names import lines

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lichen.boards.board import Board
    from lichen.boards.design import Design
    from lichen.boards.host.engine import Engine
    from lichen.network.description import Network

_T = TypeVar("_T")

net = click.argument("net", metavar="NET", shell_complete=completion.networks)
board = click.option(
    "--board", "board_name", required=True, shell_complete=completion.boards,
    help="Board, for example ulx3s-85f.",
)  # fmt: skip
transform = click.option(
    "--transform", "transform_name", default="g_a", show_default=True,
    help="Which transform: g_a or h_a of the encoder, g_s or h_s of the decoder.",
)  # fmt: skip
transforms = click.option(
    "--transform", "transform_name", default="g_a", show_default=True, metavar="NAME[,NAME...]",
    help="Which transform: g_a or h_a of the encoder, g_s or h_s of the decoder; g_a,g_s puts "
    "several side by side.",
)  # fmt: skip
link = click.option(
    "--link", "link_kind", type=click.Choice(["uart", "usb"]), default="uart", show_default=True,
    help="What leads to the host: the board's serial line, or USB of the FPGA's own, which takes "
    "the extra lichen[usb].",
)  # fmt: skip
max_width = click.option(
    "--max-width", type=click.IntRange(1, 65535), metavar="PIXELS",
    help="Widest frame, in pixels of the image whatever the transform reads; wider images go "
    "through in overlapping tiles [default: what is fastest for a 768x512 image].",
)  # fmt: skip
folding = click.option(
    "--folding", "folding_file", metavar="FILE", type=click.Path(path_type=Path),
    help="Folding as JSON, or a report that holds one, instead of planning; it brings its own "
    "maximum width.",
)  # fmt: skip
weights = click.option(
    "--weights", type=click.Choice(["fixed", "load"]), default="fixed", show_default=True,
    help="Where the weights and all other constants are: in the gateware, or filled in at run "
    "time, so that one core takes every network of its shape.",
)  # fmt: skip
json_file = click.option(
    "--json", "json_file", metavar="FILE", help="Write the result as JSON (- for stdout)."
)


torch_threads = click.option(
    "--threads", type=click.IntRange(min=0), default=0,
    help="Threads to compute with (0: torch's choice).",
)  # fmt: skip


@contextmanager
def quant_extra(what: str) -> Iterator[None]:
    """Around imports of `lichen.quant`: UserError that ``what`` needs the extra, if it does."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} needs the quant extra ({error.name} is missing); "
            "install it with: pip install 'lichen[quant]'"
        ) from None


def remark_on_precision(precision: str, device: str = "auto") -> None:
    """Say on stderr that the precision is one that the device is slow with, where it is."""
    from lichen.quant.training.device import precision_remark

    remark = precision_remark(precision, device)
    if remark is not None:
        click.echo(f"lichen: {remark}", err=True)


def known_lambda(lmbda: float | None, checkpoint: str) -> float:
    """The lambda, or UserError where it is neither given nor stated by the checkpoint."""
    if lmbda is None:
        raise UserError(f"{checkpoint} does not say its lambda; give it with --lmbda.")
    return lmbda


def check_state(state: Path, *, resume: bool, overwrite: bool) -> None:
    """UserError where an earlier run has left its state and nobody says what to do with it."""
    if state.exists() and not (resume or overwrite):
        raise UserError(
            f"{state} is the state of an earlier run; add --resume to go on with it or "
            "--overwrite to start anew."
        )


multipliers = click.option(
    "--multipliers", type=click.IntRange(min=1), metavar="N",
    help="Plan with at most N of the board's multipliers, and none of lookup tables "
    "[default: all there is room for].",
)  # fmt: skip


network = click.option(
    "-m", "--network", "net", metavar="NET", shell_complete=completion.networks,
    help="Network file, or the name of a shipped network.",
)  # fmt: skip
coding_threads = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N",
    help="Segments coded at a time [default: one per processor].",
)  # fmt: skip


def batch(
    sources: Sequence[Path],
    output: Path,
    suffix: str,
    extensions: Sequence[str] | None = None,
) -> list[tuple[Path, Path]]:
    """Files to read and to write: one and one, or many into a folder, which is made.

    Folders among the sources stand for their files with these extensions (None: images'), not
    for those of folders within. Of files that differ in nothing but their extension, it becomes
    part of the new name.

    Raises UserError for sources that are not there, and where two would make the same file.
    """
    from lichen.sim.images import EXTENSIONS, list_images

    wanted = EXTENSIONS if extensions is None else extensions
    inputs: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = list_images(source, wanted)
            inputs += found
            others = {p.name for p in source.iterdir() if p.is_file() and p.name[0] != "."}
            others -= {p.name for p in found}
            if others:
                some = ", ".join(sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
                kind = "an image" if extensions is None else " or ".join(extensions)
                click.echo(lines(f"{source}: left alone, not {kind} by name: {some}"), err=True)
        else:
            inputs.append(source)
    if len(sources) == 1 and not sources[0].is_dir() and not output.is_dir():
        if not output.parent.is_dir():
            raise UserError(f"cannot write {output}: the folder {output.parent} does not exist.")
        return [(inputs[0], output)]
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; several files or a folder need a folder to go to.")
    # what a file system may take for the same name counts as the same
    stems = Counter(file.stem.casefold() for file in inputs)
    tasks = []
    made: dict[str, Path] = {}
    for file in inputs:
        name = file.name if stems[file.stem.casefold()] > 1 else file.stem
        tasks.append((file, output / f"{name}{suffix}"))
        if name.casefold() in made:
            raise UserError(f"{made[name.casefold()]} and {file} would both become {tasks[-1][1]}.")
        made[name.casefold()] = file
    made_folder(output)
    return tasks


def made_folder(path: Path) -> None:
    """Make a folder if it is not there; UserError if it cannot be made or written."""
    with files.writing(path):
        path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: the folder is write-protected.")


def batch_report(
    rows: list[dict[str, Any]],
    failures: list[str],
    json_file: str | None,
    sentence: Callable[[dict[str, Any]], str],
) -> None:
    """Report what `batch` gave: one file's JSON as it is, several as a list under ``files``.

    Failed files have been skipped; they are told in the end.

    Raises UserError when there are any.
    """
    if len(rows) == 1 and not failures:
        report(rows[0], json_file, sentence(rows[0]))
        return
    for row in rows:
        click.echo(lines(sentence(row)), err=json_file == "-")
    for failure in failures:
        click.echo(f"lichen: {lines(failure)}", err=True)
    seconds = sum(row["seconds"] for row in rows)
    report(
        {"files": rows, "failures": failures, "seconds": round(seconds, 3)},
        json_file,
        f"{len(rows)} files in {seconds:.1f} s",
    )
    if failures:
        raise UserError(f"{len(failures)} of {len(rows) + len(failures)} files failed.")


def with_progress(tasks: Sequence[_T], *, quiet: bool) -> Iterable[_T]:
    """Tasks, with a bar where there are several and somebody sees it."""
    if quiet or len(tasks) == 1 or not sys.stderr.isatty():
        return tasks
    from tqdm import tqdm

    return tqdm(tasks, unit="image")


def note(sentence: str) -> None:
    """Say something beside a progress bar."""
    if "tqdm" not in sys.modules:
        click.echo(lines(sentence), err=True)
        return
    from tqdm import tqdm

    tqdm.write(lines(sentence), file=sys.stderr)


def read_bytes(path: Path) -> bytes:
    """A file's bytes; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None


def design(
    net: str,
    transform_name: str,
    board: Board,
    max_width: int | None,
    multipliers: int | None,
    folding_file: Path | None,
) -> Design:
    """The network's transform, folded by the planner or as the file says."""
    from lichen.models import load_network

    network = load_network(net)
    return design_of(network, transform_name, board, max_width, multipliers, folding_file)


def design_of(
    network: Network,
    transform_name: str,
    board: Board,
    max_width: int | None = None,
    multipliers: int | None = None,
    folding_file: Path | None = None,
) -> Design:
    """`design` of a network that has been read."""
    return designs_of(network, [transform_name], board, max_width, multipliers, folding_file)[0]


def designs_of(
    network: Network,
    transform_names: Sequence[str],
    board: Board,
    max_width: int | None = None,
    multipliers: int | None = None,
    folding_file: Path | None = None,
    *,
    loads: bool = False,
) -> list[Design]:
    """Transforms that share a board; their constants are in the gateware or, ``loads``, not."""
    from lichen.boards.design import Design, fold, read_folding
    from lichen.hw.stage.loaded import templates

    if folding_file is not None:
        foldings = [read_folding(folding_file, name) for name in transform_names]
    else:
        limits = {"max_width": max_width, "multipliers": multipliers}
        foldings = fold(network, transform_names, board, **limits, loads=loads)
    designs = [
        Design.make(network, name, folding)
        for name, folding in zip(transform_names, foldings, strict=True)
    ]
    if not loads:
        return designs
    return [
        Design.make(network, design.transform_name, design.folding, templates(design.transform))
        for design in designs
    ]


def names_of(transforms: str) -> list[str]:
    """The transforms of a list like ``g_a,g_s``; UserError where one is empty or named twice."""
    names = [name.strip() for name in transforms.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"--transform takes different transforms, as g_a,g_s; not {transforms!r}.")
    return names


SIMULATED, SIMULATED_WIDTH = "ulx3s-85f", 768
"""What gateware is planned for that only runs in simulation: board, and width of images."""


def run_gateware(
    network: Network, transform_name: str, tensor: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """What a transform in Verilator makes of a tensor, found equal to the golden model's.

    Raises UserError when it is not, or nothing can be simulated.
    """
    from lichen.boards import board as boards
    from lichen.sim.transform import simulate_transform

    design = design_of(network, transform_name, boards.find(SIMULATED), SIMULATED_WIDTH)
    try:
        run = simulate_transform(design.transform, design.folding, tensor, progress=note)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the gateware could not be simulated: {error}.") from None
    if run.faults or run.output is None:
        raise UserError(f"the simulated gateware is at fault: {'; '.join(run.faults)}.")
    note(
        f"{transform_name} ran in simulated gateware ({run.cycles} cycles in Verilator), "
        "the rest in the golden model."
    )
    return run.output


ENGINES = ("golden", "verilator")
"""Values of --engine that are no port."""


def check_engine(engine: str) -> None:
    """UserError for what is neither one of `ENGINES` nor looks like a port."""
    if engine not in (*ENGINES, "auto") and not engine.startswith(("/", "COM")):
        raise UserError(
            f"there is no engine {engine}; use golden, verilator, auto (whichever board there is) "
            "or a board's port, as /dev/ttyUSB0."
        )


@contextmanager
def board_engine(engine: str, network: Network | None) -> Iterator[Engine | None]:
    """The board at the port that --engine names; None where it names no port."""
    if engine in ENGINES:
        yield None
        return
    from lichen import boards

    with boards.open(engine, network) as found:
        yield found


def fill(board: Engine, transform: str, *, quiet: bool) -> None:
    """Load the network into a transform of the board where it holds another one, and say so."""
    if board.holds(transform):
        return
    title, port = board.network.title, board.connection.line.name
    with link_progress(title, quiet=quiet) as progress:
        board.fill(transform, progress=progress)
    note(f"loaded {transform} of {title} into the board on {port}.")


@contextmanager
def link_progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int], object]]:
    """A bar of what has gone over a link, where somebody sees it; takes bytes and their total."""
    from tqdm import tqdm

    with tqdm(desc=what, unit="B", unit_scale=True, leave=False, disable=quiet or None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def report(result: Any, json_file: str | None, summary: str) -> None:
    """Write the JSON where it is wanted, and the summary where the JSON is not.

    Raises UserError when the JSON's file is one that this command has just written.
    """
    text = files.json_text(result)
    if json_file == "-":
        click.echo(text, nl=False)
    elif json_file is not None:
        # a build's own report may be named: it is the same
        if files.written_here(json_file) and Path(json_file).read_bytes() != text.encode():
            raise UserError(
                f"{json_file} is a result of this command; name another file with --json."
            )
        files.write_text(json_file, text)
    click.echo(lines(summary), err=json_file == "-")
