# amaranth: UnusedElaboratable=no
"""What bit-widths cost on a board: one number for a transform that has to keep a pace.

A pipeline that keeps the pace is priced by what it takes of the board, each primitive's price
being such that the whole board costs 1; the planner's shortest path finds the cheapest one. Since
whatever fits the board costs at most 1, a cost above it says that nothing fits, and how far off it
is. A cost takes milliseconds where only a stage or two have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lichen.errors import UserError
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.plan.prices import Prices
from lichen.hw.plan.search import BACKENDS, PRICE_ROUNDS, Known, Part, Search
from lichen.hw.stage.folding import Folding
from lichen.network.description import PHOTO, Format, Stage, Transform

LATENCY = 0.04
"""Share of a tile's cycles in which the slowest array waits for its first rows, or has ended."""


class Widths(Protocol):
    """Bits of a stage; `lichen.quant.calibration.options.Widths` is one."""

    @property
    def weight(self) -> int: ...

    @property
    def activation(self) -> int: ...

    @property
    def gamma(self) -> int: ...

    @property
    def u(self) -> int: ...

    @property
    def gdn_input(self) -> int: ...


def _scaled(values: npt.NDArray, by: float, lo: int, hi: int) -> npt.NDArray[np.int64]:
    return np.clip(np.rint(values * by), lo, hi).astype(np.int64)


def _resized(fmt: Format, bits: int) -> Format:
    """The whole range of another number of bits, symmetric if signed."""
    hi = (1 << (bits - fmt.signed)) - 1
    return Format(bits=bits, signed=fmt.signed, lo=-hi if fmt.signed else 0, hi=hi)


def _stand_in(stage: Stage, grown: float, widths: Widths, last: bool) -> Stage:
    """A stage with other widths; its input has become ``grown`` times as large."""
    conv, norm, requantizer = stage.convolution, stage.normalization, stage.requantizer
    limit = (1 << (widths.weight - 1)) - 1
    by = limit / ((1 << (conv.weight_bits - 1)) - 1)
    bound = 1 << 44
    convolution = conv.model_copy(
        update={
            "weight_bits": widths.weight,
            "weight": _scaled(conv.weight, by, -limit, limit),
            "bias": _scaled(conv.bias, by * grown, -bound, bound),
        }
    )
    x = requantizer.output
    if norm is not None:
        x = _resized(x, widths.gdn_input)
        y = norm.output if last else _resized(norm.output, widths.activation)
        peak = x.magnitude**2 if norm.kind.squares else x.magnitude
        shift = max(0, peak.bit_length() - widths.u)
        top = (1 << widths.gamma) - 1
        norm = norm.model_copy(
            update={
                "gamma_bits": widths.gamma,
                "gamma": _scaled(norm.gamma, top / ((1 << norm.gamma_bits) - 1), 0, top),
                "u_bits": max((peak >> shift).bit_length(), 2),
                "u_shift": shift,
                "output": y,
            }
        )
    elif not last:
        x = _resized(x, widths.activation)
    return stage.model_copy(
        update={
            "convolution": convolution,
            "requantizer": requantizer.model_copy(update={"output": x}),
            "normalization": norm,
        }
    )


def with_widths(transform: Transform, widths: Mapping[str, Widths]) -> Transform:
    """A transform of the same shape with other bits, for its costs only.

    Integers are scaled to what their new bits hold, so that accumulators and biases get about
    the sizes that a quantization would give them; nothing computes with them. The formats of the
    input and the last output stay.
    """
    stages, grown = [], 1.0
    for i, stage in enumerate(transform.stages):
        last = i == len(transform.stages) - 1
        stages.append(_stand_in(stage, grown, widths[stage.name], last))
        grown = stages[-1].output.magnitude / stage.output.magnitude
    return Transform(input=transform.input, stages=stages)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """A board, and how fast a transform must be on it.

    Attributes
    ----------
    budget : Resources
        What the pipeline may use.
    max_width : int
        Widest image, or tile, in pixels.
    cycles_per_frame : int
        At most, tiles and halos included.
    frame : (int, int)
        Height and width of what the transform reads of an image (`Network.frames`).
    device : Device
    """

    budget: Resources
    max_width: int
    cycles_per_frame: int
    frame: tuple[int, int] = PHOTO
    device: Device = ECP5
    _known: Known = field(default_factory=Known, compare=False, repr=False)

    def _search(self, transform: Transform) -> tuple[Search, list[int]]:
        """The planner at this width, and the cycles that an array may take, by stage."""
        multiple = transform.downsampling
        if self.max_width < multiple or self.max_width % multiple:
            raise UserError(f"the width must be a multiple of {multiple}, not {self.max_width}.")
        part = Part(transform, self.max_width, self.frame)
        try:
            limit = int(self.cycles_per_frame / part.stretch * (1 - LATENCY))
        except ValueError as error:
            raise UserError(f"{error}.") from None
        search = Search([part], BACKENDS, self._known, device=self.device)
        return search, [limit] * len(search.arrays)

    def normalized(self, prices: Prices) -> Prices:
        """The same prices in other units: the whole board costs 1."""
        whole = prices.of(self.budget)
        return Prices(prices.dsp / whole, prices.bram / whole, prices.lut / whole)

    def need(self, transform: Transform, prices: Prices) -> Resources:
        """What the cheapest pipeline takes that keeps the pace.

        Raises UserError when none does, whatever it takes.
        """
        search, limits = self._search(transform)
        found = search.fold(limits, prices)
        if found is None:
            raise UserError(
                f"no folding takes as little as {self.cycles_per_frame} cycles a frame; "
                "ask for fewer frames per second or a faster clock."
            )
        return found[0]

    def cost(self, transform: Transform, prices: Prices) -> float:
        """The price of that pipeline, the whole board being 1."""
        return prices.of(self.need(transform, prices))

    def prices(self, transform: Transform) -> Prices:
        """Prices by which the pipeline takes about equal shares of whatever is scarce.

        Of all prices, those by which the cheapest pipeline costs most, among the ones found on
        the way: they say most about whether it fits.
        """
        prices = best = self.normalized(Prices.start(self.budget))
        most = 0.0
        for _ in range(PRICE_ROUNDS):
            used = self.need(transform, prices)
            if prices.of(used) > most:
                most, best = prices.of(used), prices
            prices = self.normalized(prices.adjusted(used, self.budget))
        return best

    def reach(self, transform: Transform) -> Folding | None:
        """A folding that keeps the pace within the budget, by the cycles of its arrays alone."""
        search, limits = self._search(transform)
        found = search.reach(limits, self.budget)
        return None if found is None else found[0]
