"""Slim, search and fine-tune a family of networks, one command for all.

    python benchmarks/optimize.py --first small-q3.fp32 --others small-q1.fp32 small-q2.fp32 \
        --train TRAIN --calibrate CALIBRATE -o optimized/

The first network is slimmed and searched. The others keep its channels, trained on from its
weights at their own lambda, and take its bits over; all are fine-tuned through their integers.
Every command is printed before it runs. What is there already is skipped and what was interrupted
goes on, so that the same line may be given again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def lichen(arguments: Sequence[str | Path], *, dry: bool) -> None:
    """Run a command of Lichen's; an error ends this program."""
    words = [str(word) for word in arguments]
    print("lichen " + shlex.join(words), flush=True)
    if not dry:
        done = subprocess.run([sys.executable, "-m", "lichen.cli", *words])
        if done.returncode:
            sys.exit(done.returncode)


def stem(checkpoint: str) -> str:
    """The name of a checkpoint: ``small-q3`` of ``small-q3.fp32`` or ``small-q3.safetensors``."""
    name = Path(checkpoint).name
    return name.removesuffix(".fp32").removesuffix(".safetensors").removesuffix(".pth.tar")


def commands(options: argparse.Namespace) -> list[tuple[Path, list[str | Path], Path | None]]:
    """What to make, the command that makes it, and what an interrupted one leaves behind."""
    folder = options.output
    photos: list[str | Path] = ["--calibrate", options.calibrate] if options.calibrate else []
    train: list[str | Path] = ["--train", options.train]
    board: list[str | Path] = []
    if options.board:
        board = ["--board", options.board, "--fps", options.fps, "--width", options.width]
    names = {stem(network): network for network in (options.first, *options.others)}
    first = stem(options.first)
    result: list[tuple[Path, list[str | Path], Path | None]] = []

    parents: dict[str, str | Path] = dict(names)
    if options.macs < 1:
        slimmed = folder / f"{first}.slim.safetensors"
        slim = ["slim", options.first, "-o", slimmed, "--macs", str(options.macs), *train]
        slim += ["--steps", options.slim_steps]
        result.append((slimmed, slim, folder / f"{first}.slim.slim"))
        parents[first] = slimmed
        for name, lmbda in zip(list(names)[1:], options.lmbdas, strict=True):
            parents[name] = folder / f"{name}.slim.safetensors"
            again = ["train", "--init", slimmed, "--images", options.train, "--lmbda", lmbda]
            again += ["--steps", options.train_steps, "--round-from", "0.1", "-o", parents[name]]
            state = folder / f"{name}.slim.state.safetensors"
            result.append((Path(parents[name]), again, state))

    bits = folder / f"{first}.search.lichen"
    search = ["search", parents[first], "-o", bits, "--max-loss", options.max_loss, *photos, *board]
    search += ["--plot", folder / f"{first}.search.png", "--log", folder / f"{first}.search.jsonl"]
    if options.steps_per_round != "0":
        search += [*train, "--steps-per-round", options.steps_per_round]
    result.append((bits, search, folder / f"{first}.search.state.safetensors"))

    for name, parent in parents.items():
        made = folder / f"{name}.lichen"
        tune = ["quantize", parent, "-o", made, "--bits-from", bits, "--method", "draq", *train]
        tune += [*photos, "--steps", options.steps, "--penalty", "0", "--clip-factor", "1.5"]
        result.append((made, tune, folder / f"{name}.state.safetensors"))
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--first", required=True, help="network that is slimmed and searched")
    parser.add_argument("--others", nargs="*", default=[], help="the rest of the family")
    parser.add_argument("--lmbdas", nargs="*", default=[], help="of the others, where slimmed")
    parser.add_argument("--train", required=True, help="folder of photographs")
    parser.add_argument("--calibrate", help="folder of photographs; default: those that ship")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder for everything")
    parser.add_argument("--macs", type=float, default=0.75, help="part to keep; 1 slims nothing")
    parser.add_argument("--slim-steps", default="500", help="of each round of slimming")
    parser.add_argument("--train-steps", default="3000", help="of each other network, slimmed")
    parser.add_argument("--max-loss", default="1%", help="of the search")
    parser.add_argument("--steps-per-round", default="100", help="of fine-tuning in the search")
    parser.add_argument("--board", help="search for this board instead of bit-operations")
    parser.add_argument("--fps", default="15")
    parser.add_argument("--width", default="768")
    parser.add_argument("--steps", default="1500", help="of the fine-tuning at the end")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    options = parser.parse_args(argv)
    if options.macs < 1 and len(options.lmbdas) != len(options.others):
        parser.error("slimming takes the lambda of each other network: --lmbdas")
    if not options.dry_run:
        options.output.mkdir(parents=True, exist_ok=True)
    for made, command, state in commands(options):
        if made.exists() and not options.dry_run:
            continue
        if state is not None and state.exists():
            if "--init" in command:  # a resumed training has begun already
                where = command.index("--init")
                command = command[:where] + command[where + 2 :]
            command = [*command, "--resume"]
        lichen(command, dry=options.dry_run)


if __name__ == "__main__":
    main()
