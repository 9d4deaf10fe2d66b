"""Which activations get more bits: those whose rounding costs most for what a bit of them costs.

Noise of rounding is additive over tensors and falls by 4 a bit. So one survey tells all:
every tensor is tried with `LESS` bits less, where its noise is far above what a measurement on a
few images can tell, and what each of its bits would win follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lichen.network.description import PHOTO, Network
from lichen.quant.calibration.calibrate import CalibrationImages
from lichen.quant.calibration.measure import measure
from lichen.quant.calibration.options import WIDTHS_MIN, Options, Widths
from lichen.quant.calibration.quantize import quantize, some_and_held_out
from lichen.quant.float.network import FloatNetwork

LESS = 2
"""Bits that a survey takes away."""

MOST = 10
"""Bits that an activation may get."""


@dataclass(frozen=True)
class Tensor:
    """What a stage makes for the next one.

    Attributes
    ----------
    layer : str
        The stage that makes it: ``g_s.conv1``.
    bits : int
        What it has.
    noise : float
        What it loses of ``R + lambda D`` at 0 bits: at b bits, ``4**-b`` of it.
    price : int
        Bit-operations of one more bit, for one `PHOTO`.
    """

    layer: str
    bits: int
    noise: float
    price: int

    def won(self) -> float:
        """What one more bit wins."""
        return self.noise * (4.0**-self.bits - 4.0 ** -(self.bits + 1))


def prices(network: Network) -> dict[str, int]:
    """Bit-operations of one more bit of each activation that another stage reads, by its maker."""
    result = {}
    for key, size in network.frames(*PHOTO).items():
        transform = network.transforms[key]
        sizes = transform.sizes(*size)[1:]
        for maker, reader, made in zip(
            transform.stages, transform.stages[1:], sizes[1:], strict=False
        ):
            conv = reader.convolution
            result[f"{key}.{maker.name}"] = conv.macs(*made) * conv.weight_bits
    return result


def survey(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options,
    lmbda: float,
    progress: Callable[[str], None] = lambda layer: None,
) -> tuple[list[Tensor], Network]:
    """All activations between stages, measured on images that nothing is calibrated on, and the
    network with the widths of ``options``."""
    some, held = some_and_held_out(network, images)

    def quantized(layer: str, widths: Mapping[str, Widths]) -> tuple[Network, float]:
        trial = quantize(network, some, replace(options, per_stage=widths)).network
        found = measure(trial, held)
        progress(layer)
        return trial, found.bpp + lmbda * found.mse

    start, before = quantized("start", options.per_stage)
    tensors = []
    for layer, price in prices(start).items():
        own = options.per_stage.get(layer, options.widths)
        fewer = max(own.activation - LESS, WIDTHS_MIN)
        noise = 0.0
        if fewer < own.activation:
            trial = dict(options.per_stage) | {layer: replace(own, activation=fewer)}
            lost = quantized(layer, trial)[1] - before
            noise = max(lost, 0.0) / (4.0**-fewer - 4.0**-own.activation)
        tensors.append(Tensor(layer, own.activation, noise, price))
    return tensors, start


def allocate(tensors: list[Tensor], budget: float, most: int = MOST) -> list[Tensor]:
    """Bits given one by one where they win most for their price, until the budget is spent."""
    left, result = budget, list(tensors)
    while True:
        able = [
            (tensor.won() / tensor.price, i)
            for i, tensor in enumerate(result)
            if tensor.bits < most and tensor.price <= left and tensor.won() > 0
        ]
        if not able:
            return result
        _, i = max(able)
        left -= result[i].price
        result[i] = replace(result[i], bits=result[i].bits + 1)


def widen(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options,
    lmbda: float,
    part: float,
    *,
    progress: Callable[[str], None] = lambda layer: None,
) -> tuple[Options, dict[str, Any]]:
    """Options with more bits for activations where they win most.

    Parameters
    ----------
    network : FloatNetwork
    images : CalibrationImages
        Some are calibrated on, others measured.
    options : Options
        Widths to start from.
    lmbda : float
        Weight of the mean squared error of 8-bit pixels against bits per pixel.
    part : float
        Bit-operations to add at most, of those that the network has.
    progress : callable
        Called with a stage's name after each trial.

    Returns the options, and as JSON values what was measured and given.
    """
    tensors, start = survey(network, images, options, lmbda, progress)
    after = allocate(tensors, part * start.bops(*PHOTO))
    per_stage = dict(options.per_stage)
    for old, new in zip(tensors, after, strict=True):
        if new.bits != old.bits:
            own = per_stage.get(new.layer, options.widths)
            per_stage[new.layer] = replace(own, activation=new.bits)
    report = {
        "part": part,
        "bops_added": sum(
            (new.bits - old.bits) * new.price for old, new in zip(tensors, after, strict=True)
        )
        / start.bops(*PHOTO),
        "layers": {
            new.layer: {"from": old.bits, "to": new.bits, "won": old.won(), "price": old.price}
            for old, new in zip(tensors, after, strict=True)
        },
    }
    return replace(options, per_stage=per_stage), report
