# amaranth: UnusedElaboratable=no
"""The transposed convolution of one layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Shape

from lichen.hw.device.device import Device, Resources
from lichen.hw.engine.feed import Phases
from lichen.hw.engine.transposed_window import (
    TransposedWindow,
    Upsampling,
    transposed_row_words,
    transposed_window_resources,
)
from lichen.hw.stage.conv import Convolution, ConvUnit, reduction_order
from lichen.hw.stage.folding import ArrayFolding
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Stage


def upsampling_of(stage: Stage) -> Upsampling:
    """The geometry of a stage's transposed convolution."""
    convolution = stage.convolution
    return Upsampling(
        kernel=convolution.kernel,
        stride=convolution.stride,
        padding=convolution.padding,
        output_padding=convolution.output_padding,
    )


def transposed_phases(stage: Stage, lanes: int) -> Phases:
    """Steps of a pass of a stage's transposed convolution."""
    return upsampling_of(stage).phases(ceil_div(stage.convolution.in_channels, lanes))


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

    @staticmethod
    def _check(stage: Stage) -> None:
        if not stage.convolution.transposed:
            raise ValueError(f"stage {stage.name} must be a transposed convolution")

    def _phases(self, lanes: int) -> Phases:
        return transposed_phases(self.stage, lanes)

    def _ordered_weights(self, lanes: int) -> npt.NDArray[np.int64]:
        convolution = self.stage.convolution
        return phase_order(convolution.weight, convolution.stride, lanes)

    def _make_window(self, shape: Shape, max_width: int) -> TransposedWindow:
        core = self.core.shape
        return TransposedWindow(
            upsampling=upsampling_of(self.stage),
            channels=self.stage.convolution.in_channels,
            shape=shape,
            lanes=self.core.lanes,
            pixels=core.pixels,
            passes=core.passes,
            chain_length=core.chain_length,
            max_width=max_width,
        )


class TransposedConvolution(Convolution):
    """A transposed convolution, computed phase by phase."""

    unit = TransposedUnit

    @staticmethod
    def fits(stage: Stage) -> bool:
        return stage.convolution.transposed

    def phases(self, lanes: int) -> Phases:
        return transposed_phases(self.stage, lanes)

    def window_resources(self, device: Device, folding: ArrayFolding, max_width: int) -> Resources:
        beats = ceil_div(self.in_channels, folding.lanes)
        row = transposed_row_words(max_width=max_width, beats=beats, pixels=folding.pixels)
        upsampling = upsampling_of(self.stage)
        return transposed_window_resources(
            device,
            upsampling,
            upsampling.rows * row,
            lanes=folding.lanes,
            bits=self.operands[0].width,
            pixels=folding.pixels,
        )
