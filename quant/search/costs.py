"""What bits cost: bit-operations, or what a board charges at a pace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from lichen.hw.plan import planner
from lichen.hw.plan.price import Pace, with_widths
from lichen.network.description import PHOTO, Network
from lichen.quant.calibration.options import (
    Widths,
)


class Cost(Protocol):
    """What an assignment of bits costs.

    Attributes
    ----------
    name : str
    kinds : tuple of str
        Fields of `Widths` that it depends on.
    free : tuple of str
        Fields that it does not depend on: what may have more bits if that helps.
    transforms : tuple of str
        Keys of the transforms that it counts.
    """

    name: str
    kinds: tuple[str, ...]
    free: tuple[str, ...]
    transforms: tuple[str, ...]

    def __call__(self, widths: Mapping[str, Widths]) -> float:
        """The cost of the bits of all stages."""
        ...

    def reached(self, network: Network, cost: float) -> dict[str, Any] | None:
        """What says that the search may end, or None."""
        ...

    def json(self) -> dict[str, Any]: ...


class BopsCost:
    """Bit-operations of all transforms for one `PHOTO`, as `Network.bops` counts them."""

    name = "bops"
    kinds: tuple[str, ...] = ("weight", "activation", "gamma", "u")
    free: tuple[str, ...] = ("gdn_input",)

    def __init__(self, network: Network) -> None:
        self.transforms = tuple(network.transforms)
        # each product of two operands: MACs, whose weights, and whose output is the input
        self._terms: list[tuple[int, str, str | None, int]] = []
        for key, size in network.frames(*PHOTO).items():
            transform = network.transforms[key]
            sizes, before = transform.sizes(*size), None
            for stage, (h, w) in zip(transform.stages, sizes[1:], strict=True):
                layer, norm = f"{key}.{stage.name}", stage.normalization
                macs = stage.convolution.macs(h, w)
                self._terms.append((macs, layer, before, transform.input.bits))
                if norm is not None:
                    self._terms.append((norm.macs(h, w), layer, layer, 0))
                before = layer

    def __call__(self, widths: Mapping[str, Widths]) -> float:
        total = 0
        for macs, layer, before, bits in self._terms:
            own = widths[layer]
            if before == layer:
                total += macs * own.gamma * own.u
            else:
                total += macs * own.weight * (bits if before is None else widths[before].activation)
        return float(total)

    def reached(self, network: Network, cost: float) -> dict[str, Any] | None:
        return None

    def json(self) -> dict[str, Any]:
        return {"name": self.name}


class HardwareCost:
    """The share of a board that a transform needs at a pace, by fixed prices.

    Parameters
    ----------
    network : Network
        Supplies the shapes, and the prices: those that suit it.
    transform : str
        Which transform is to be built.
    pace : Pace
    """

    name = "hardware"
    kinds: tuple[str, ...] = ("weight", "activation", "gamma", "u", "gdn_input")
    free: tuple[str, ...] = ()

    def __init__(self, network: Network, transform: str, pace: Pace) -> None:
        self.transforms: tuple[str, ...] = (transform,)
        self.pace = pace
        self.shape = network.transform(transform)
        self._found: dict[tuple[Widths, ...], float] = {}
        self.prices = pace.prices(self.shape)

    def __call__(self, widths: Mapping[str, Widths]) -> float:
        (key,) = self.transforms
        own = {stage.name: widths[f"{key}.{stage.name}"] for stage in self.shape.stages}
        known = tuple(own.values())
        if known not in self._found:
            self._found[known] = self.pace.cost(with_widths(self.shape, own), self.prices)
        return self._found[known]

    def reached(self, network: Network, cost: float) -> dict[str, Any] | None:
        """The plan, once one keeps the pace and fits: with a cost above 1 none can."""
        transform, pace = network.transforms[self.transforms[0]], self.pace
        if cost > 1 or pace.reach(transform) is None:
            return None
        plan = planner.plan(transform, pace.budget, device=pace.device, max_width=pace.max_width)
        if plan.cycles_per_frame > pace.cycles_per_frame or not planner.fits(
            plan.resources, pace.budget
        ):
            return None
        return {
            "cycles_per_frame": plan.cycles_per_frame,
            "dsp": plan.resources.dsp,
            "bram": plan.resources.bram,
            "lut": plan.resources.lut,
            "folding": plan.folding.model_dump(mode="json"),
        }

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "transform": self.transforms[0],
            "max_width": self.pace.max_width,
            "cycles_per_frame": self.pace.cycles_per_frame,
            "prices": asdict(self.prices),
        }
