"""A well-trained third-party GDN network, built through the Python API.

"End-to-end Optimized Image Compression" (Ballé, Laparra, Simoncelli, 2017) with 128
channels, in the raw float files of the X-LIC project: a first layer of 9x9 with stride 4,
the simplified normalizations GDN1 and IGDN1, and no entropy model. It shows what an import
of a network takes that is not CompressAI's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from lichen.errors import UserError
from lichen.network.description import Activation
from lichen.quant.float.network import FloatNetwork, FloatStage, FloatTransform

CHANNELS = 128
FILES = ("ana_w.bin", "ana_b.bin", "syn_w.bin", "syn_b.bin")


class _Reader:
    """Takes arrays off a raw little-endian float32 file, in order."""

    def __init__(self, path: Path) -> None:
        try:
            self.bytes = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}.") from None
        if len(self.bytes) % 4:
            raise UserError(f"{path} is not a file of float32 values; it may be truncated.")
        self.path = path
        self.values = np.frombuffer(self.bytes, "<f4").astype(np.float64)
        if not np.isfinite(self.values).all():
            raise UserError(f"{path} holds values that are not finite; it may be damaged.")

    def take(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        if count > len(self.values):
            raise UserError(f"{self.path} is too short; it may be truncated.")
        taken, self.values = self.values[:count], self.values[count:]
        return taken.reshape(shape)

    def finish(self) -> None:
        if len(self.values):
            raise UserError(f"{self.path} holds {len(self.values)} values too many.")


def load_bls2017(folder: str | Path) -> FloatNetwork:
    """The network of ``ana_w.bin``, ``ana_b.bin``, ``syn_w.bin`` and ``syn_b.bin``.

    Raises UserError when a file is missing or has the wrong length.
    """
    ana_w, ana_b, syn_w, syn_b = readers = [_Reader(Path(folder) / name) for name in FILES]
    c = CHANNELS

    def analysis(name: str, kernel: int, inputs: int, stride: int, last: bool) -> FloatStage:
        weight = ana_w.take(kernel, kernel, inputs, c).transpose(3, 2, 0, 1)
        norm = {}
        if not last:
            norm = {"gamma": ana_w.take(c, c).T, "bias": ana_b.take(c), "beta": ana_b.take(c)}
        return FloatStage(
            name=name,
            weight=weight,
            stride=stride,
            padding=kernel // 2,
            activation=Activation.NONE if last else Activation.GDN1,
            **({"bias": np.zeros(c)} | norm),
        )

    def synthesis(name: str, kernel: int, outputs: int, stride: int, last: bool) -> FloatStage:
        # Stored for correlation with zeros inserted after each sample; a transposed
        # convolution is the same with the kernel turned by 180 degrees.
        weight = syn_w.take(kernel, kernel, c, outputs)[::-1, ::-1].transpose(3, 2, 0, 1)
        return FloatStage(
            name=name,
            weight=np.ascontiguousarray(weight),
            bias=syn_b.take(outputs),
            stride=stride,
            padding=kernel // 2,
            output_padding=stride - 1,
            transposed=True,
            activation=Activation.NONE if last else Activation.IGDN1,
            gamma=None if last else syn_w.take(c, c).T,
            beta=None if last else syn_b.take(c),
        )

    g_a = [
        analysis("conv1", 9, 3, 4, False),
        analysis("conv2", 5, c, 2, False),
        analysis("conv3", 5, c, 2, True),
    ]
    g_s = [
        synthesis("conv1", 5, c, 2, False),
        synthesis("conv2", 5, c, 2, False),
        synthesis("conv3", 9, 3, 4, True),
    ]
    for reader in readers:
        reader.finish()
    digest = hashlib.sha256(b"".join(reader.bytes for reader in readers)).hexdigest()
    return FloatNetwork(
        name="bls2017",
        architecture="custom",
        n=c,
        m=c,
        transforms={"g_a": FloatTransform(g_a, name="g_a"), "g_s": FloatTransform(g_s, name="g_s")},
        provenance={"source": {"sha256": digest, "paper": "bls2017", "lmbda": 0.125}},
    )
