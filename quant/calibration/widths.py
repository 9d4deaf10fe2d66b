"""Which tensors get more bits: those whose rounding costs most for what a bit of them costs.

Noise of rounding is additive over tensors and falls by 4 a bit. So one survey tells all:
every tensor is tried with `LESS` bits less, where its noise is far above what a measurement on a
few images can tell, and what each of its bits would win follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lichen.network.description import PHOTO, Network
from lichen.quant.calibration.calibrate import CalibrationImages
from lichen.quant.calibration.measure import RateDistortion, loss, measure
from lichen.quant.calibration.options import WIDTHS_MIN, Options, Widths
from lichen.quant.calibration.quantize import quantize, some_and_held_out
from lichen.quant.float.network import FloatNetwork

LESS = 2
"""Bits that a survey takes away."""

MOST = {"weight": 9, "activation": 10, "u": 10}
"""Bits that a tensor may get, by its kind.

A tenth bit of weights wins a quarter of what the ninth does, for as many block RAMs more: g_s of
`small` makes 3.9 photographs a second on a ULX3S with weights of 9 bits in its first stage, and 1.1
with 10 (``lichen plan``).
"""

EQUATIONS = 8
"""Positions a weight that trials are rounded on, at most: enough to compare widths by."""

KINDS = tuple(MOST)
"""What may get more, as fields of `Widths`: operands of multiplier arrays.

Gamma loses next to nothing at 8 bits, and x, which no array reads, costs no bit-operations.
"""


@dataclass(frozen=True)
class Tensor:
    """An operand of a multiplier array.

    Attributes
    ----------
    layer : str
        The stage that it belongs to: ``g_s.conv1``; an activation is that stage's output.
    kind : str
        Of `KINDS`.
    bits : int
        What it has.
    most : int
        What it may get.
    stored : int
        How many integers of it a gateware keeps: those of weights.
    noise : float
        What it costs at 0 bits (a `loss`): at b bits, ``4**-b`` of it.
    """

    layer: str
    kind: str
    bits: int
    most: int = 10
    stored: int = 0
    noise: float = 0.0

    @property
    def name(self) -> str:
        """``g_s.conv1.weight``."""
        return f"{self.layer}.{self.kind}"

    def won(self) -> float:
        """What one more bit wins."""
        return self.noise * (4.0**-self.bits - 4.0 ** -(self.bits + 1))


@dataclass(frozen=True)
class Product:
    """Products of two operands, for one `PHOTO`: their number, and what each operand is.

    An operand is a `Tensor`'s name, or a number of bits that nothing changes.
    """

    macs: int
    operands: tuple[str | int, str | int]

    def bops(self, bits: Mapping[str, int]) -> int:
        """Bit-operations, with these bits of tensors."""
        left, right = (o if isinstance(o, int) else bits[o] for o in self.operands)
        return self.macs * left * right


def operands(network: Network) -> tuple[list[Tensor], list[Product]]:
    """All tensors that may get more bits, and the products that the network forms of them."""
    tensors, products = [], []
    for key, size in network.frames(*PHOTO).items():
        transform = network.transforms[key]
        source: str | int = transform.input.bits
        last = transform.stages[-1]
        for stage, (height, width) in zip(
            transform.stages, transform.sizes(*size)[1:], strict=True
        ):
            layer, convolution, norm = f"{key}.{stage.name}", stage.convolution, stage.normalization
            weight = Tensor(
                layer,
                "weight",
                convolution.weight_bits,
                MOST["weight"],
                stored=convolution.weight.size,
            )
            tensors.append(weight)
            products.append(Product(convolution.macs(height, width), (weight.name, source)))
            if norm is not None:
                # u that nothing is cut from has no more bits to give
                most = MOST["u"] if norm.u_shift else norm.u_bits
                u = Tensor(layer, "u", norm.u_bits, most)
                tensors.append(u)
                products.append(Product(norm.macs(height, width), (norm.gamma_bits, u.name)))
            if stage is not last:  # whose format is that of latents, pixels or parameters
                output = Tensor(layer, "activation", stage.output.bits, MOST["activation"])
                tensors.append(output)
                source = output.name
    return tensors, products


def survey(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options,
    lmbda: float,
    progress: Callable[[str], None] = lambda tensor: None,
) -> tuple[list[Tensor], list[Product], Network]:
    """`operands`, the tensors measured on images that nothing is calibrated on, and the
    network with the widths of ``options``."""
    some, held = some_and_held_out(network, images)
    fewer_equations = replace(options, equations=min(options.equations, EQUATIONS))

    def quantized(name: str, widths: Mapping[str, Widths]) -> tuple[Network, RateDistortion]:
        trial = quantize(network, some, replace(fewer_equations, per_stage=widths)).network
        found = measure(trial, held)
        progress(name)
        return trial, found

    start, before = quantized("start", options.per_stage)
    found, products = operands(start)
    tensors = []
    for tensor in found:
        own = options.per_stage.get(tensor.layer, options.widths)
        fewer = max(tensor.bits - LESS, WIDTHS_MIN)
        noise = 0.0
        if fewer < tensor.bits:
            trial = dict(options.per_stage)
            trial[tensor.layer] = replace(own, **{tensor.kind: fewer})
            lost = loss(quantized(tensor.name, trial)[1], before, lmbda)
            noise = max(lost, 0.0) / (4.0**-fewer - 4.0**-tensor.bits)
        tensors.append(replace(tensor, noise=noise))
    return tensors, products, start


def allocate(tensors: Sequence[Tensor], products: Sequence[Product], budget: float) -> list[Tensor]:
    """Bits given one by one where they win most for their price.

    ``budget`` is what may be spent in all. A price is the share of the bit-operations that a bit
    adds, and that of the bits which weights take: what holds boards back is often the memory for
    these.
    """
    start = {tensor.name: tensor.bits for tensor in tensors}
    operations = sum(product.bops(start) for product in products)
    memory = sum(tensor.stored * tensor.bits for tensor in tensors)
    result, spent = list(tensors), 0.0
    while True:
        bits = {tensor.name: tensor.bits for tensor in result}
        able = []
        for i, tensor in enumerate(result):
            more = bits | {tensor.name: tensor.bits + 1}
            added = sum(p.bops(more) - p.bops(bits) for p in products if tensor.name in p.operands)
            price = added / operations + (tensor.stored / memory if memory else 0.0)
            if tensor.bits < tensor.most and spent + price <= budget and tensor.won() > 0:
                able.append((tensor.won() / price, i, price))
        if not able:
            return result
        _, i, price = max(able)
        spent += price
        result[i] = replace(result[i], bits=result[i].bits + 1)


def widen(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options,
    lmbda: float,
    part: float,
    *,
    progress: Callable[[str], None] = lambda tensor: None,
) -> tuple[Options, dict[str, Any]]:
    """Options with more bits for operands of multipliers where they win most.

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
        What may be spent at most; see `allocate`.
    progress : callable
        Called with a tensor's name after each trial.

    Returns the options, and as JSON values what was measured and given.
    """
    tensors, products, start = survey(network, images, options, lmbda, progress)
    before = start.bops(*PHOTO)
    after = allocate(tensors, products, part)
    per_stage = dict(options.per_stage)
    for old, new in zip(tensors, after, strict=True):
        if new.bits != old.bits:
            own = per_stage.get(new.layer, options.widths)
            per_stage[new.layer] = replace(own, **{new.kind: new.bits})
    bits = {new.name: new.bits for new in after}
    report = {
        "part": part,
        "bops_added": sum(product.bops(bits) for product in products) / before - 1,
        "weight_bits_added": sum(t.stored * t.bits for t in after)
        / sum(t.stored * t.bits for t in tensors)
        - 1,
        "tensors": {
            new.name: {"from": old.bits, "to": new.bits, "won": old.won()}
            for old, new in zip(tensors, after, strict=True)
        },
    }
    return replace(options, per_stage=per_stage), report
