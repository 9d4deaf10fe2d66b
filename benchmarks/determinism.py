"""One hyperprior file on several machines in one: does every process decode it alike?

The integers of a Lichen network and the float32 of its CompressAI parent are computed by fresh
processes with different numbers of threads and different BLAS kernels. What h_s makes of the
same z decides on the tables of all symbols of y, so a decoder must make exactly what the encoder
made; for integers that is so by construction, for float32 it is luck.

    python benchmarks/determinism.py models/small-hyper-q3.lichen \\
        --fp32 models/small-hyper-q3.safetensors --image photo.png

Reported: whether pixels and table indices of the integer decoder agree in all processes, and for
float32 at how many of h_s's outputs the processes differ, and at how many symbols CompressAI
would have chosen another table.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from lichen.files import write_json

SETTINGS = [
    {"OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Prescott", "ONEDNN_MAX_CPU_ISA": "SSE41",
     "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    {"OMP_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell", "ONEDNN_MAX_CPU_ISA": "AVX2",
     "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
    {"OMP_NUM_THREADS": "3"},
]  # fmt: skip
"""Threads and kernels of each process; the last has the best kernels that the processor runs."""


def decode(network_file: str, stream: str) -> dict[str, Any]:
    """Digests of the pixels and of the table indices that integers make of a file."""
    from lichen.codec.container import decode as decode_file
    from lichen.network.file import load
    from lichen.sim.golden import analysis

    network = load(network_file)
    pixels = decode_file(Path(stream).read_bytes(), network)
    indices = analysis(network, pixels)["y"].indices
    return {
        "pixels": hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest(),
        "indices": hashlib.sha256(np.ascontiguousarray(indices, "<i4").tobytes()).hexdigest(),
    }


def float_parameters(checkpoint: str, symbols: str, output: str) -> None:
    """What float32 h_s makes of symbols z, and CompressAI's indices of it, into a file."""
    import torch

    from lichen.quant.float.architectures import build_model
    from lichen.quant.float.checkpoint import load_checkpoint
    from lichen.quant.training.evaluate import integer_grid

    loaded = load_checkpoint(checkpoint)
    model = integer_grid(build_model(loaded.arch, loaded.n, loaded.m, loaded.state_dict))
    z = torch.from_numpy(np.load(symbols)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        parameters = model.h_s(z)
        scales = parameters[:, : loaded.m]
        indices = model.gaussian_conditional.build_indexes(scales)
    np.savez(output, parameters=parameters.numpy(), indices=indices.numpy())


def in_processes(arguments: list[list[str]]) -> list[str]:
    """Run this file with arguments, each in its own surroundings; what they print."""
    found = []
    for settings, words in zip(SETTINGS, arguments, strict=True):
        done = subprocess.run(
            [sys.executable, __file__, "worker", *words],
            env=dict(os.environ) | settings,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sentence = f"with {settings} it ended with status {done.returncode}. "
            raise click.ClickException(sentence + done.stderr[-2000:])
        found.append(done.stdout)
    return found


def experiment(network_file: Path, image: Path, checkpoint: Path | None) -> dict[str, Any]:
    """See the top of this file."""
    from lichen.codec.container import encode as encode_file
    from lichen.network.file import load
    from lichen.sim.golden import analysis
    from lichen.sim.images import read_image

    network, pixels = load(network_file), read_image(image)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = folder / "image.lic"
        stream.write_bytes(encode_file(pixels, network))
        printed = in_processes([["decode", str(network_file), str(stream)]] * len(SETTINGS))
        decoded = [json.loads(text) for text in printed]
        report: dict[str, Any] = {
            "settings": SETTINGS,
            "bytes": stream.stat().st_size,
            "integer_identical": all(one == decoded[0] for one in decoded),
        }
        if checkpoint is not None:
            np.save(folder / "z.npy", analysis(network, pixels)["z"].symbols)
            outputs = [str(folder / f"{i}.npz") for i in range(len(SETTINGS))]
            in_processes([["float", str(checkpoint), str(folder / "z.npy"), o] for o in outputs])
            made = [np.load(output) for output in outputs]
            pairs = list(itertools.combinations(made, 2))
            report["float32"] = {
                "outputs": int(made[0]["parameters"].size),
                "differing_outputs": max(
                    int((a["parameters"] != b["parameters"]).sum()) for a, b in pairs
                ),
                "greatest_difference": max(
                    float(np.abs(a["parameters"] - b["parameters"]).max()) for a, b in pairs
                ),
                "symbols": int(made[0]["indices"].size),
                "differing_tables": max(
                    int((a["indices"] != b["indices"]).sum()) for a, b in pairs
                ),
            }
    return report


@click.command()
@click.argument("network")
@click.option("--fp32", type=click.Path(exists=True, path_type=Path), help="The FP32 checkpoint.")
@click.option("--image", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--json", "json_file", default="-", help="Where to ('-': stdout).")
def main(network: str, fp32: Path | None, image: Path, json_file: str) -> None:
    """Compare processes."""
    from lichen.models import shipped_network

    file = Path(network) if Path(network).exists() else shipped_network(network)
    if file is None:
        raise click.ClickException(f"there is no network {network}")
    found = experiment(file, image, fp32)
    if json_file == "-":
        click.echo(json.dumps(found, indent=2))
    else:
        write_json(json_file, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        kind, *words = sys.argv[2:]
        if kind == "decode":
            print(json.dumps(decode(*words)))
        else:
            float_parameters(*words)
    else:
        main()
