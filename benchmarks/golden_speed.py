"""Golden model against FP32 CompressAI: megapixels per second on this machine, in one run.

Encoding is g_a to integer latents, decoding is g_s to pixels of 8 bits; no entropy coding on
either side. Both run in turns, so that other load on the machine meets both; each figure is the
best of its rounds, each ratio compares those.

    python benchmarks/golden_speed.py --json -
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from lichen.files import write_atomically
from lichen.models import photograph
from lichen.network.random import random_factorized
from lichen.quant.float.architectures import new_model
from lichen.sim.golden import analysis, reconstruct
from lichen.sim.images import read_image


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


@click.command()
@click.option("--n", default=64, show_default=True, help="Channels of the inner layers.")
@click.option("--m", default=96, show_default=True, help="Channels of the latent.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=0, help="torch's threads (0: its own choice).")
@click.option("--json", "json_file", metavar="FILE", help="Write the result ('-': stdout).")
def main(n: int, m: int, rounds: int, threads: int, json_file: str | None) -> None:
    """Time both on the shipped photograph."""
    if threads:
        torch.set_num_threads(threads)
    image = read_image(photograph())
    height, width = image.shape[:2]
    # Weights do not matter for the time, but latents must not all be zero.
    network = random_factorized(0, n=n, m=m)
    model = new_model("bmshj2018-factorized", n, m).eval()
    x = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)[None] / 255)
    latents = analysis(network, image)
    with torch.no_grad():
        y = torch.round(model.g_a(x))

        def fp32_decode() -> object:
            return (model.g_s(y).clamp(0, 1) * 255).round().to(torch.uint8)

        pairs = {
            "encode": (lambda: analysis(network, image), lambda: torch.round(model.g_a(x))),
            "decode": (lambda: reconstruct(network, latents), fp32_decode),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
        for turn in range(rounds + 1):
            for name, (golden, fp32) in pairs.items():
                taken = (seconds(golden), seconds(fp32))
                if turn:  # the first one warms up
                    times[name].append(taken)
    megapixels = height * width / 1e6
    result: dict[str, object] = {
        "n": n, "m": m, "width": width, "height": height, "rounds": rounds,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    best = {
        name: tuple(min(column) for column in zip(*t, strict=True)) for name, t in times.items()
    }
    best["both"] = (best["encode"][0] + best["decode"][0], best["encode"][1] + best["decode"][1])
    for name, (golden_s, fp32_s) in best.items():
        result[name] = {
            "golden_megapixels_per_second": round(megapixels / golden_s, 3),
            "fp32_megapixels_per_second": round(megapixels / fp32_s, 3),
            "golden_over_fp32_time": round(golden_s / fp32_s, 3),
        }
        click.echo(
            f"{name:6} golden {megapixels / golden_s:6.2f} MP/s   FP32 {megapixels / fp32_s:6.2f} "
            f"MP/s   golden takes {golden_s / fp32_s:.2f} times as long",
            err=json_file == "-",
        )
    text = json.dumps(result, indent=2) + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
    elif json_file:
        write_atomically(Path(json_file), text.encode())


if __name__ == "__main__":
    main()
