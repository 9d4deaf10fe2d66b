"""Numbers of a report: what stages cost, what they are sensitive to, how weights are spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from lichen.codec.container import Container
from lichen.network.description import PHOTO, Network, Stage, Transform
from lichen.sim.quality import PSNR_EXACT, psnr

LOST_BITS = 2
"""How many low bits of its weights a stage loses to show how sensitive it is."""


@dataclass(frozen=True)
class StageFacts:
    """A row of the table of stages.

    Attributes
    ----------
    transform, name, activation : str
    channels, unpruned : int
        Output channels, and those of the unpruned network where it is known.
    weight_bits, x_bits, output_bits : int
        ``x_bits`` in front of a normalization, else those of the output.
    gamma_bits : int or None
    macs, bops : int
        For a `PHOTO`, normalization included.
    """

    transform: str
    name: str
    activation: str
    channels: int
    unpruned: int
    weight_bits: int
    x_bits: int
    output_bits: int
    gamma_bits: int | None
    macs: int
    bops: int


def stages(network: Network) -> list[StageFacts]:
    """All stages of all transforms, in the order of the data."""
    rows = []
    for key, transform, size in _frames(network):
        for stage, source, out in zip(
            transform.stages, transform.sources, transform.sizes(*size)[1:], strict=True
        ):
            kept, norm = stage.kept_channels, stage.normalization
            macs = stage.convolution.macs(*out)
            bops = macs * stage.convolution.weight_bits * source.bits
            if norm is not None:
                own = norm.macs(*out)
                macs, bops = macs + own, bops + own * norm.gamma_bits * norm.u_bits
            channels = stage.convolution.out_channels
            rows.append(
                StageFacts(
                    transform=key,
                    name=stage.name,
                    activation=stage.activation.value,
                    channels=channels,
                    unpruned=channels if kept is None else max(channels, int(kept.max()) + 1),
                    weight_bits=stage.convolution.weight_bits,
                    x_bits=stage.requantizer.output.bits,
                    output_bits=stage.output.bits,
                    gamma_bits=None if norm is None else norm.gamma_bits,
                    macs=macs,
                    bops=bops,
                )
            )
    return rows


def _frames(network: Network) -> list[tuple[str, Transform, tuple[int, int]]]:
    """Every transform with the size of what it reads of a `PHOTO`."""
    frames = network.frames(*PHOTO)
    return [(name, network.transforms[name], size) for name, size in frames.items()]


def sensitivity(
    network: Network, pixels: npt.NDArray[np.uint8], progress: Callable[[str], None]
) -> dict[tuple[str, str], float]:
    """PSNR lost on an image when one stage's weights lose their `LOST_BITS` lowest bits.

    Noise of rounding falls by 6 dB a bit, so what two bits more would win is a sixteenth of the
    squared error that two bits less cost.
    """
    whole = _quality(network, pixels)
    found = {}
    for key, transform in network.transforms.items():
        if key not in ("g_a", "g_s"):
            continue
        for index, stage in enumerate(transform.stages):
            changed = list(transform.stages)
            changed[index] = _coarser(stage)
            other = transform.model_copy(update={"stages": changed})
            rough = network.model_copy(update={"transforms": {**network.transforms, key: other}})
            found[key, stage.name] = whole - _quality(rough, pixels)
            progress(f"{key}.{stage.name}")
    return found


def _coarser(stage: Stage) -> Stage:
    step = 1 << LOST_BITS
    limit = (1 << (stage.convolution.weight_bits - 1)) - 1
    weight = stage.convolution.weight.astype(np.int64)
    rounded = np.clip((weight + step // 2) // step * step, -limit, limit)
    convolution = stage.convolution.model_copy(update={"weight": rounded})
    return stage.model_copy(update={"convolution": convolution})


def _quality(network: Network, pixels: npt.NDArray[np.uint8]) -> float:
    """PSNR of what an image decodes to; finite for one that comes back as it was."""
    container = Container(network)
    decoded = container.decode(container.encode(pixels)).picture.pixels
    return min(PSNR_EXACT, psnr(pixels, decoded))


def weight_spread(network: Network, parent: Path | None) -> dict[str, dict[str, npt.NDArray]]:
    """Magnitudes of weights as shares of their output channel's greatest, by transform.

    ``after`` is the integer network, ``before`` its FP32 checkpoint where that is at hand.
    """
    spread: dict[str, dict[str, npt.NDArray]] = {}
    before = _parent_weights(parent)
    for key, transform in network.transforms.items():
        after = [_shares(stage.convolution.weight, axis=0) for stage in transform.stages]
        spread[key] = {"after": np.concatenate(after)}
        if key in before:
            spread[key]["before"] = before[key]
    return spread


def _shares(weight: npt.NDArray, axis: int) -> npt.NDArray[np.float64]:
    magnitude = np.abs(np.moveaxis(np.asarray(weight, np.float64), axis, 0))
    rows = magnitude.reshape(magnitude.shape[0], -1)
    return (rows / np.maximum(rows.max(axis=1, keepdims=True), 1e-30)).ravel()


def _parent_weights(parent: Path | None) -> dict[str, npt.NDArray[np.float64]]:
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    if parent is None:
        return {}
    try:
        with safe_open(parent, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                key, _, rest = name.partition(".")
                if not rest.endswith(".weight") or (w := tensors.get_tensor(name)).ndim != 4:
                    continue
                # PyTorch stores transposed convolutions (in, out, ky, kx)
                found.setdefault(key, []).append(_shares(w, axis=int(key.endswith("_s"))))
    except (OSError, SafetensorError):
        return {}
    return {key: np.concatenate(parts) for key, parts in found.items()}
