"""A transform: stages one after the other, from one activation tensor to another."""

from __future__ import annotations

import math

from lichen.network.fields import require
from lichen.network.geometry import receptive_field
from lichen.network.model import Field, Model
from lichen.network.stage import ACCUMULATOR_BITS_MAX, Format, Stage

STAGES_MAX = 64
"""Most stages of a transform."""


class Transform(Model):
    """An ordered list of stages, from one activation tensor to another."""

    input: Format
    stages: list[Stage] = Field(min_length=1, max_length=STAGES_MAX)

    def _check(self) -> None:
        source, channels = self.input, self.in_channels
        names = [stage.name for stage in self.stages]
        require(len(set(names)) == len(names), f"stage names must be unique, not {names}")
        units = [name for stage in self.stages for name in stage.units]
        for name in units:
            same = [other for other in units if other.casefold() == name.casefold()]
            require(
                len(same) == 1,
                f"stages must not share names of their units (a normalization's is STAGE_norm, and "
                f"capitals don't count), as {' and '.join(same)} do",
            )
        for stage in self.stages:
            require(
                stage.convolution.in_channels == channels,
                f"stage {stage.name} takes {stage.convolution.in_channels} channels, "
                f"but its input has {channels}",
            )
            bits = stage.convolution.accumulator_bits(source)
            require(
                bits <= ACCUMULATOR_BITS_MAX,
                f"stage {stage.name} needs an accumulator of {bits} bits, "
                f"more than {ACCUMULATOR_BITS_MAX}",
            )
            source, channels = stage.output, stage.out_channels

    @property
    def in_channels(self) -> int:
        return self.stages[0].convolution.in_channels

    @property
    def out_channels(self) -> int:
        return self.stages[-1].out_channels

    @property
    def output(self) -> Format:
        """Format of the last stage's output."""
        return self.stages[-1].output

    @property
    def sources(self) -> list[Format]:
        """The input format of each stage."""
        return [self.input, *(stage.output for stage in self.stages[:-1])]

    @property
    def downsampling(self) -> int:
        """Product of the strides of the plain convolutions."""
        return math.prod(s.convolution.stride for s in self.stages if not s.convolution.transposed)

    @property
    def upsampling(self) -> int:
        """Product of the strides of the transposed convolutions."""
        return math.prod(s.convolution.stride for s in self.stages if s.convolution.transposed)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the input and of every stage's output.

        Raises ValueError naming the stage whose output would be empty.
        """
        sizes = [(height, width)]
        for stage in self.stages:
            height = stage.convolution.output_size(height)
            width = stage.convolution.output_size(width)
            require(
                height >= 1 and width >= 1,
                f"an input of {sizes[0][0]} rows and {sizes[0][1]} columns leaves nothing "
                f"for stage {stage.name}",
            )
            sizes.append((height, width))
        return sizes

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """First and last row (or column) of the input that rows ``first .. last`` of the output
        read; padding counts, so they may lie outside of the input."""
        return receptive_field((s.convolution.geometry for s in self.stages), first, last)

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of one frame, normalizations included."""
        return sum(macs for macs, _, _ in self._products(height, width))

    def bops(self, height: int, width: int) -> int:
        """Bit-operations: sum over MACs of the product of their operand widths."""
        return sum(macs * a * b for macs, a, b in self._products(height, width))

    def _products(self, height: int, width: int) -> list[tuple[int, int, int]]:
        products = []
        sizes = self.sizes(height, width)[1:]
        for stage, source, (h, w) in zip(self.stages, self.sources, sizes, strict=True):
            conv, norm = stage.convolution, stage.normalization
            products.append((conv.macs(h, w), conv.weight_bits, source.bits))
            if norm is not None:
                products.append((norm.macs(h, w), norm.gamma_bits, norm.u_bits))
        return products
