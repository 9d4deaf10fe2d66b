"""Seconds a training step takes, by precision, compilation, optimizer and threads.

    python benchmarks/train_speed.py --json -

Each figure is the median of the counted steps, on the photographs that ship for calibration.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
import time
from itertools import product
from statistics import median

import click
import torch

from lichen import models
from lichen.files import write_atomically
from lichen.quant.training.data import CropSource
from lichen.quant.training.trainer import TrainConfig, Trainer


@click.command()
@click.option("--arch", default="bmshj2018-factorized", show_default=True)
@click.option("--n", default=64, show_default=True)
@click.option("--m", default=96, show_default=True)
@click.option("--steps", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", "thread_counts", multiple=True, type=click.IntRange(min=1))
@click.option("--json", "json_file", metavar="FILE", help="Write the result ('-': stdout).")
def main(
    arch: str, n: int, m: int, steps: int, thread_counts: tuple[int, ...], json_file: str | None
) -> None:
    """Time training steps of a fresh network."""
    source = CropSource(models.calibration_photographs(), patch=128)
    rows = []
    for threads, optimizer, precision, compiled in product(
        thread_counts or (torch.get_num_threads(),),
        ("adam", "soap"),
        ("float32", "bfloat16"),
        (False, True),
    ):
        torch.set_num_threads(threads)
        torch.compiler.reset()
        config = TrainConfig(
            arch, n, m, steps=10**6, optimizer=optimizer, precision=precision, compile=compiled
        )
        trainer = Trainer(config, source)
        times = []
        for _ in range(steps + 3):
            start = time.perf_counter()
            trainer.train_step()
            times.append(time.perf_counter() - start)
        row = {
            "threads": threads,
            "optimizer": optimizer,
            "precision": precision,
            "compiled": compiled,
            "seconds_per_step": round(median(times[3:]), 4),
        }
        rows.append(row)
        click.echo(
            f"{threads} threads  {optimizer:4}  {precision:8}  "
            f"{'compiled' if compiled else '':8}  {row['seconds_per_step']:.3f} s",
            err=json_file == "-",
        )
    if json_file:
        text = json.dumps(rows, indent=2) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
        else:
            write_atomically(json_file, text.encode())


if __name__ == "__main__":
    main()
