"""Whole files, image to bytes and back, and the entropy coder alone, beside FP32 CompressAI.

Both code the shipped photograph with the same network, in turns, so that other load on the
machine meets both; each figure is the best of its rounds.

    python benchmarks/codec_speed.py small-q3 --json -
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from lichen import models
from lichen.codec.container import Container, Kind, inspect, segment_bounds
from lichen.codec.entropy import EntropyCoder
from lichen.files import write_atomically
from lichen.quant.float.architectures import build_model
from lichen.quant.float.checkpoint import load_checkpoint
from lichen.quant.training.evaluate import FloatCodec
from lichen.sim.golden import Latents, analysis
from lichen.sim.images import read_image


def unpacking(container: Container, latents: Latents, data: bytes) -> Callable[[], object]:
    """What decodes all segments of a file, and nothing else, on one thread."""
    tasks = []
    for segment in latents.segments:
        coder = EntropyCoder(container.network.entropy[segment.name])
        parts = inspect(data).of_kind(Kind[segment.name.upper()])
        rows = segment.indices.reshape(-1)
        for part, (first, last) in zip(parts, segment_bounds(rows.size), strict=True):
            payload = data[part.offset : part.offset + part.length]
            tasks.append((coder, payload, rows[first:last]))
    return lambda: [coder.decode(payload, rows) for coder, payload, rows in tasks]


@click.command()
@click.argument("name", default="small-q3")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=0, help="torch's threads (0: its own choice).")
@click.option("--json", "json_file", metavar="FILE", help="Write the result ('-': stdout).")
def main(name: str, rounds: int, threads: int, json_file: str | None) -> None:
    """Time a shipped network and its FP32 parent."""
    if threads:
        torch.set_num_threads(threads)
    image = read_image(models.photograph())
    height, width = image.shape[:2]
    container = Container(models.load_network(name))
    one_thread = Container(container.network, threads=1)
    parent = load_checkpoint(f"{name}{models.PARENT_SUFFIX}")
    fp32 = FloatCodec(build_model(*parent[:4]))

    latents = analysis(container.network, image)
    symbols = sum(segment.symbols.size for segment in latents.segments)
    data, streams = container.encode(image), fp32.encode(image)
    tasks: dict[str, Callable[[], object]] = {
        "encode": lambda: container.encode(image),
        "fp32_encode": lambda: fp32.encode(image),
        "decode": lambda: container.decode(data),
        "fp32_decode": lambda: fp32.decode(streams, height, width),
        "entropy_encode": lambda: one_thread.pack(latents),
        "entropy_decode": unpacking(container, latents, data),
    }
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for task, run in tasks.items():
            begin = time.perf_counter()
            run()
            best[task] = min(best[task], time.perf_counter() - begin)
    result: dict[str, Any] = {
        "network": name, "width": width, "height": height, "rounds": rounds, "symbols": symbols,
        "bytes": len(data), "fp32_bytes": sum(map(len, streams)),
        "threads": torch.get_num_threads(),
        "seconds": {task: round(seconds, 4) for task, seconds in best.items()},
        "entropy_symbols_per_second_one_thread": {
            task.removeprefix("entropy_"): round(symbols / seconds)
            for task, seconds in best.items()
            if task.startswith("entropy_")
        },
    }  # fmt: skip
    for task, seconds in best.items():
        rate = f"{symbols / seconds / 1e6:6.1f} Msymbols/s" if task.startswith("entropy_") else ""
        click.echo(f"{task:15} {1000 * seconds:8.1f} ms  {rate}", err=json_file == "-")
    text = json.dumps(result, indent=2) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
    elif json_file:
        write_atomically(Path(json_file), text.encode())


if __name__ == "__main__":
    main()
