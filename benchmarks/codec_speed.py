"""The commands, whole files in a process that is running, and the entropy coder alone.

All of it codes the shipped photograph (768x512), in turns, so that other load on the machine meets
all alike; figures are the median and the best of the rounds. With --fp32 CompressAI's FP32 parents
code the same image beside it.

    python benchmarks/codec_speed.py small-q3 small-opt-q3 small-hyper-q3 \\
        --json docs/notes/codec_speed.json

Commands' caches are warm, and compiled Python is. Their processor time is that of all threads;
`import numpy` alone, in the same rounds, says what the machine is like. The main thread's share of
it comes in sequence, and two processors divide the rest: the sum is how long a command takes where
it has two to itself, waiting for the disk left out. `one thread` is all of `codec.decode` with BLAS
and segments on one thread.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from lichen import models
from lichen.codec.container import Container
from lichen.files import write_atomically
from lichen.network.identity import static_digest
from lichen.sim import golden
from lichen.sim.images import read_image

COMMANDS = ("encode", "encode --no-check", "decode")

COMMAND = """
import atexit, os, sys, time
atexit.register(lambda: os.write(2, f"{time.thread_time():.4f}".encode()))
from lichen.cli import main
main(sys.argv[1:])
"""
"""The command line, which tells the processor time of its main thread at its end."""


class Times:
    """Wall and processor seconds of each task, a value a round; ``alone`` where a task tells the
    processor time of its main thread: seconds with two processors of its own."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}
        self.alone: dict[str, list[float]] = {}

    def measure(self, name: str, run: Callable[[], object], children: bool = False) -> None:
        who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
        before, begin = resource.getrusage(who), time.perf_counter()
        found = run()
        wall, after = time.perf_counter() - begin, resource.getrusage(who)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.wall.setdefault(name, []).append(wall)
        self.processor.setdefault(name, []).append(cpu)
        if isinstance(found, float):
            self.alone.setdefault(name, []).append(found + (cpu - found) / 2)


def summary(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Median and best of each task."""
    return {
        task: {"median": round(median(found), 4), "best": round(min(found), 4)}
        for task, found in values.items()
    }


def started(arguments: list[str]) -> Callable[[], float | None]:
    """Runs Python in a process of its own; returns what that writes on its standard error."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run() -> float | None:
        done = subprocess.run(
            [sys.executable, *arguments], check=True, capture_output=True, env=environment
        )
        return float(done.stderr) if done.stderr else None

    return run


def on_one_thread(run: Callable[[], object]) -> Callable[[], object]:
    """The same with BLAS, and what goes by its number of threads, on one."""
    blas = golden._blas()

    def alone() -> object:
        before = blas.threads
        blas.threads = 1
        try:
            with blas.single_threaded():
                return run()
        finally:
            blas.threads = before

    return alone


def commands(name: str, folder: Path) -> dict[str, Callable[[], object]]:
    """The commands that a user types."""
    coded, photo = folder / "photo.lic", models.photograph()
    command = ["-c", COMMAND]
    encode = [*command, "encode", str(photo), "-o", str(coded), "-m", name]
    found = {
        "encode": encode,
        "encode --no-check": [*encode, "--no-check"],
        "decode": [*command, "decode", str(coded), "-o", str(folder / "photo.png")],
        "import numpy": ["-c", "import numpy"],
    }
    return {key: started(arguments) for key, arguments in found.items()}


def float_tasks(name: str, threads: int) -> dict[str, Callable[[], object]]:
    """CompressAI's own encoder and decoder."""
    import torch

    from lichen.quant.float.architectures import build_model
    from lichen.quant.float.checkpoint import load_checkpoint
    from lichen.quant.training.evaluate import FloatCodec

    if threads:
        torch.set_num_threads(threads)
    image = read_image(models.photograph())
    codec = FloatCodec(build_model(*load_checkpoint(f"{name}{models.PARENT_SUFFIX}")[:4]))
    streams = codec.encode(image)
    return {
        "fp32 encode": lambda: codec.encode(image),
        "fp32 decode": lambda: codec.decode(streams, *image.shape[:2]),
    }


def measure(name: str, rounds: int, fp32: bool, threads: int) -> dict[str, Any]:
    """The times of one network."""
    image = read_image(models.photograph())
    container = Container(models.load_network(name))
    alone = Container(container.network, threads=1)
    latents, data = golden.analysis(container.network, image), container.encode(image)
    symbols = sum(segment.symbols.size for segment in latents.segments)
    inside: dict[str, Callable[[], object]] = {
        "codec.encode": lambda: container.encode(image),
        "codec.decode": lambda: container.decode(data),
        "codec.encode, one thread": on_one_thread(lambda: alone.encode(image)),
        "codec.decode, one thread": on_one_thread(lambda: alone.decode(data)),
    }
    # hyperpriors run h_s between their latents: the symbols' share is what is left without it
    entropy: dict[str, Callable[[], object]] = {
        "symbols encode, one thread": on_one_thread(lambda: alone.pack(latents)),
        "symbols decode, one thread": on_one_thread(lambda: alone.latents(data)),
    }
    if fp32:
        inside |= float_tasks(name, threads)
    times, load = Times(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        outside = commands(name, Path(folder))
        outside["encode"]()  # warms caches, and leaves a file to decode
        outside["decode"]()
        for _ in range(rounds):
            for task, run in outside.items():
                times.measure(task, run, children=True)
            for task, run in (inside | entropy).items():
                times.measure(task, run)
    processor = summary(times.processor)
    numpy = processor["import numpy"]["median"]
    return {
        "network": name, "width": image.shape[1], "height": image.shape[0], "symbols": symbols,
        "bytes": len(data), "load": [round(load, 2), round(os.getloadavg()[0], 2)],
        "seconds": summary(times.wall), "processor_seconds": processor,
        "two_processors_seconds": summary(times.alone),
        "commands_to_import_numpy": {
            task: round(processor[task]["median"] / numpy, 2) for task in COMMANDS
        },
        "entropy_symbols_per_second_one_thread": {
            task: round(symbols / processor[task]["best"]) for task in entropy
        },
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """The commands' times, in Markdown."""
    kinds = ("wall", "processor", "two processors", "to `import numpy`")
    titles = [f"{kind}, {what}" for what in COMMANDS for kind in kinds]
    lines = ["| network | " + " | ".join([*titles, "`import numpy`"]) + " |",
             "|---" * (len(titles) + 2) + "|"]  # fmt: skip
    for one in report["networks"]:
        cells = []
        for task in COMMANDS:
            for found in (
                one["seconds"], one["processor_seconds"], one["two_processors_seconds"],
            ):  # fmt: skip
                cells.append(f"{found[task]['median']:.2f} ({found[task]['best']:.2f})")
            cells.append(f"{one['commands_to_import_numpy'][task]:.1f}")
        cells.append(f"{one['processor_seconds']['import numpy']['median']:.2f}")
        lines.append(f"| {one['network']} | " + " | ".join(cells) + " |")
    loads = [load for one in report["networks"] for load in one["load"]]
    return "\n".join(
        [
            *lines,
            "",
            f"Seconds, median (best) of {report['rounds']} rounds; processor time is that of all "
            "threads, and stands to that of `import numpy` in the same rounds; with two processors "
            "of its own a command takes the main thread's share and half of the others'. "
            f"{report['processors']} processors, of which other work kept "
            f"{min(loads):.1f} to {max(loads):.1f} busy.",
        ]
    )


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1))
@click.option("--fp32", is_flag=True, help="Beside the FP32 parents; needs the quant extra.")
@click.option("--threads", default=0, help="torch's threads (0: its own choice).")
@click.option("--json", "json_file", metavar="FILE", help="Write the result ('-': stdout).")
def main(
    names: tuple[str, ...], rounds: int, fp32: bool, threads: int, json_file: str | None
) -> None:
    """Time shipped networks."""
    names = names or (models.DEFAULT,)
    command = f"python benchmarks/codec_speed.py {' '.join(names)} --rounds {rounds}"
    report: dict[str, Any] = {
        "command": command + " --fp32" * fp32, "rounds": rounds, "processors": os.cpu_count(),
        "digests": {name: static_digest(models.load_network(name)) for name in names},
        "networks": [],
    }  # fmt: skip
    for name in names:
        found = measure(name, rounds, fp32, threads)
        report["networks"].append(found)
        click.echo(f"{name:28} {'wall':>9} {'processor':>10}", err=json_file == "-")
        rates = found["entropy_symbols_per_second_one_thread"]
        for task, wall in found["seconds"].items():
            rate = f"{rates[task] / 1e6:8.1f} Msymbols/s" if task in rates else ""
            if task in COMMANDS:
                alone = found["two_processors_seconds"][task]["median"]
                rate = f"{found['commands_to_import_numpy'][task]:8.1f} times import numpy, "
                rate += f"{1000 * alone:.0f} ms with two processors"
            cpu = found["processor_seconds"][task]["median"]
            text = f"{task:28} {1000 * wall['median']:6.0f} ms {1000 * cpu:7.0f} ms {rate}"
            click.echo(text, err=json_file == "-")
    text = json.dumps(report, indent=1) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
    elif json_file:
        write_atomically(Path(json_file), text.encode())


if __name__ == "__main__":
    main()
