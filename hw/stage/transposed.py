# amaranth: UnusedElaboratable=no
"""The transposed convolution of one layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lichen.hw.engine.transposed_window import TransposedWindow
from lichen.hw.stage.conv import Convolution, ConvUnit, reduction_order
from lichen.network.description import Stage


def phase_order(weight: npt.NDArray[np.integer], stride: int, lanes: int) -> npt.NDArray[np.int64]:
    """`reduction_order` of every phase's taps, one after the other, rows outermost.

    A phase without taps has a step of zeros.
    """
    parts = [
        reduction_order(weight[:, :, ry::stride, rx::stride], lanes)
        for ry in range(stride)
        for rx in range(stride)
    ]
    nothing = np.zeros((len(weight), 1, lanes), dtype=np.int64)
    return np.concatenate([part if part.shape[1] else nothing for part in parts], axis=1)


class TransposedUnit(ConvUnit):
    """A transposed convolution with its requantizer; parameters and members are `ConvUnit`'s."""

    window = TransposedWindow
    transposed = True

    def _ordered_weights(self, lanes: int) -> npt.NDArray[np.int64]:
        convolution = self.stage.convolution
        return phase_order(convolution.weight, convolution.stride, lanes)


class TransposedConvolution(Convolution):
    """A transposed convolution, computed phase by phase."""

    unit = TransposedUnit

    @staticmethod
    def fits(stage: Stage) -> bool:
        return stage.convolution.transposed
