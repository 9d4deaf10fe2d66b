# amaranth: UnusedElaboratable=no
"""What a unit of a stage is, before it is folded: the one interface of all kinds of units.

The planner, the cycle model, the pipeline and the builds of single units iterate over kinds
(`lichen.hw.stage.kinds`) and ask them; none of them knows which kinds there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Shape

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.memory import bit_information
from lichen.hw.engine.array import array_latency
from lichen.hw.engine.core import CoreShape, core_resources
from lichen.hw.engine.element import ELEMENTS, Backend, Element, packs
from lichen.hw.engine.feed import Phases
from lichen.hw.stage.folding import ArrayFolding
from lichen.hw.stage.loaded import template_of
from lichen.hw.stage.unit import StageUnit
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Format, Stage


@lru_cache(maxsize=4096)
def _element(backend: Backend, a: Shape, w: Shape, lanes: int) -> Element:
    return ELEMENTS[backend](a_shape=a, w_shape=w, lanes=lanes)


class UnitKind(ABC):
    """A kind of unit, for one stage.

    Parameters
    ----------
    stage : Stage
    source : Format
        Of the stage's input.

    Attributes
    ----------
    slot : str
        The field of a `StageFolding` that folds it.
    """

    slot: ClassVar[str]

    def __init__(self, stage: Stage, source: Format):
        self.stage, self.source = stage, source
        self._shapes: dict[tuple[ArrayFolding, int], CoreShape] = {}

    @staticmethod
    @abstractmethod
    def fits(stage: Stage) -> bool:
        """Whether the stage has a unit of this kind."""

    least_group: ClassVar[int] = 1
    """Cycles that its feeder wants a group to take at least."""

    @property
    def name(self) -> str:
        """Of the unit, within its transform: one of `Stage.units`, or its own."""
        return self.stage.name

    @property
    def channels(self) -> int:
        """Channels of its output."""
        return self.stage.out_channels

    @property
    @abstractmethod
    def in_channels(self) -> int:
        """Channels of its input."""

    @property
    @abstractmethod
    def operands(self) -> tuple[Shape, Shape]:
        """Of the array: an activation and a weight."""

    @property
    @abstractmethod
    def accumulator_bits(self) -> int:
        """Of the array."""

    @property
    @abstractmethod
    def weights(self) -> npt.NDArray[np.integer]:
        """Of the array, in any order."""

    @abstractmethod
    def phases(self, lanes: int) -> Phases:
        """Steps of a pass over so many reduction lanes."""

    @abstractmethod
    def macs(self, height: int, width: int) -> int:
        """Multiplications of a frame of which the unit makes so many rows and columns."""

    def problem(self, folding: ArrayFolding, chains: int, before: int | None) -> str | None:
        """What keeps this folding from fitting, if anything.

        ``before`` is the number of channels per beat of the input, None where they are free.
        """
        if folding.chain_length > ceil_div(self.channels, chains):
            return f"chains x chain_length must not exceed the {self.channels} output channels"
        if folding.backend is Backend.PACKED:
            ways = ELEMENTS[folding.backend].ways
            if folding.chain_length % ways:
                return f"chain_length must be a multiple of {ways} with the packed back-end"
            if not packs(*self.operands):
                a, w = self.operands
                return f"two products of {w} and {a} do not fit one multiplier, as packed wants it"
        return None

    def tight(self, folding: ArrayFolding) -> ArrayFolding:
        """The same array behind a buffer as small as can be, where it may be smaller."""
        return folding

    def shape(self, folding: ArrayFolding, chains: int) -> CoreShape:
        """The dimensions of its core."""
        key = folding, chains
        if key not in self._shapes:
            element = _element(folding.backend, *self.operands, folding.lanes)
            self._shapes[key] = CoreShape(
                channels=self.channels,
                phases=self.phases(folding.lanes),
                pixels=folding.pixels,
                chains=chains,
                chain_length=folding.chain_length,
                array_latency=array_latency(element, folding.chain_length),
                least_group=self.least_group,
            )
        return self._shapes[key]

    @cached_property
    def _information(self) -> float:
        return bit_information(self.weights, self.operands[1].width)

    def core_resources(self, device: Device, folding: ArrayFolding, chains: int) -> Resources:
        """What its core takes."""
        return core_resources(
            device,
            self.shape(folding, chains),
            _element(folding.backend, *self.operands, folding.lanes),
            accumulator_bits=self.accumulator_bits,
            information=self._information,
            loads=template_of(self.stage) is not None,
        )

    @abstractmethod
    def array_resources(
        self, device: Device, folding: ArrayFolding, chains: int, max_width: int
    ) -> Resources:
        """What its core takes with its buffers; regrouping of the stage's input left out."""

    @abstractmethod
    def output_resources(self, device: Device, chains: int) -> Resources:
        """What stands behind the array."""

    @abstractmethod
    def component(
        self, folding: ArrayFolding, *, chains: int, i_lanes: int, max_width: int
    ) -> StageUnit:
        """The unit, for inputs of ``i_lanes`` channels a beat and at most ``max_width`` columns."""
