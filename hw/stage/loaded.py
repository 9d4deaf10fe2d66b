"""Stages whose constants are filled at run time: what stays fixed, and who fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lichen.hw.engine.requantize import SHIFT_SPAN, ShiftRanges
from lichen.network.arithmetic import signed_width
from lichen.network.description import Activation, Format, Normalization, Stage, Transform
from lichen.network.model import Field, Model, ValidationError
from lichen.network.stage import ACCUMULATOR_BITS_MAX

MARGIN = 3
"""By how much a shift may become less than that of the network a core is generated from."""


class StageTemplate(Model):
    """What gateware fixes of a stage; all numbers that are not here are filled at run time.

    Attributes
    ----------
    name : str
        Of the gateware's instances.
    in_channels, out_channels : int
        Stages with fewer are filled up with channels of zeros.
    kernel, stride, padding, output_padding, transposed
        Of the convolution.
    source, x, output : Format
        Of the input, of the requantizer's output, and of the stage's: that of a normalization,
        where there is one.
    activation : Activation
    weight_bits : int
    accumulator_bits : int
        Of any sum with bias: as many as the greatest weights and inputs want. Biases have as many.
    gamma_bits, u_bits : int or None
        Of a normalization.
    pre_shift, shift, u_shift, product_shift : int
        Least ``d``, ``s``, ``t`` and ``a``; each may be up to `SHIFT_SPAN` more. The last two None
        without a normalization; its ``b`` is any that a network may have.
    pre_cycles : int
        Of the shift by ``d``.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    output_padding: int
    transposed: bool
    source: Format
    x: Format
    output: Format
    activation: Activation
    weight_bits: int
    accumulator_bits: int
    gamma_bits: int | None = None
    u_bits: int | None = None
    pre_shift: int
    shift: int
    u_shift: int | None = None
    product_shift: int | None = None
    pre_cycles: int = Field(ge=1, le=2)

    @classmethod
    def of(cls, stage: Stage, source: Format) -> Self:
        """The template that a stage fits, with room to either side."""
        conv, quant, norm = stage.convolution, stage.requantizer, stage.normalization
        most = (1 << conv.weight_bits - 1) - 1
        reach = conv.kernel**2 * conv.in_channels * most * source.magnitude
        least, own = int(quant.pre_shift.min()), conv.accumulator_bits(source)
        return cls(
            name=stage.name,
            **_shape(stage),
            source=source,
            x=quant.output,
            accumulator_bits=max(own, min(signed_width(-reach, reach), ACCUMULATOR_BITS_MAX)),
            pre_shift=max(0, least - MARGIN),
            shift=max(0, quant.shift - MARGIN),
            u_shift=None if norm is None else max(0, norm.u_shift - MARGIN),
            product_shift=None if norm is None else max(0, norm.product_shift - MARGIN),
            pre_cycles=1 + bool(np.ptp(quant.pre_shift)),
        )

    @property
    def ranges(self) -> ShiftRanges:
        return ShiftRanges(self.pre_shift, self.shift, self.u_shift, self.pre_cycles)

    def filled(self, stage: Stage, source: Format) -> LoadedStage:
        """A stage with this name and this many channels, those that are missing of zeros.

        Raises ValueError naming what does not fit.
        """
        own = {**_shape(stage), "source": source, "x": stage.requantizer.output}
        for name, value in own.items():
            wanted = getattr(self, name)
            narrower = name.endswith("_channels") and value <= wanted
            if value != wanted and not narrower:
                raise ValueError(
                    f"stage {stage.name} has {name} {_told(value)} where the core has "
                    f"{_told(wanted)}"
                )
        conv, quant, norm = stage.convolution, stage.requantizer, stage.normalization
        out = self.out_channels - conv.out_channels
        inputs = self.in_channels - conv.in_channels
        negative = quant.negative_multiplier
        return LoadedStage(
            template=self,
            name=self.name,
            activation=stage.activation,
            convolution=conv.model_copy(
                update={
                    "weight": np.pad(conv.weight, ((0, out), (0, inputs), (0, 0), (0, 0))),
                    "bias": np.pad(conv.bias, (0, out)),
                }
            ),
            requantizer=quant.model_copy(
                update={
                    # a channel of zeros shifts as little as it can
                    "pre_shift": np.pad(quant.pre_shift, (0, out), constant_values=self.pre_shift),
                    "multiplier": np.pad(quant.multiplier, (0, out)),
                    "negative_multiplier": None if negative is None else np.pad(negative, (0, out)),
                }
            ),
            normalization=None if norm is None else _widened(norm, out),
        )


def _shape(stage: Stage) -> dict[str, Any]:
    """What of a stage a template has under the same name."""
    conv, norm = stage.convolution, stage.normalization
    names = ("in_channels", "out_channels", "kernel", "stride", "padding", "output_padding")
    return {
        **{name: getattr(conv, name) for name in (*names, "transposed", "weight_bits")},
        "activation": stage.activation,
        "output": stage.output,
        "gamma_bits": None if norm is None else norm.gamma_bits,
        "u_bits": None if norm is None else norm.u_bits,
    }


def _told(value: Any) -> str:
    if isinstance(value, Format):
        kind = "signed" if value.signed else "unsigned"
        return f"{value.bits} {kind} bits, {value.lo} .. {value.hi}"
    return str(value)


def _widened(norm: Normalization, more: int) -> Normalization:
    """With channels more whose norm is 1 and whose output is 0."""
    return norm.model_copy(
        update={
            "gamma": np.pad(norm.gamma, ((0, more), (0, more))),
            "beta": np.pad(norm.beta, (0, more), constant_values=1),
            "multiplier": np.pad(norm.multiplier, (0, more)),
        }
    )


class LoadedStage(Stage):
    """A stage whose gateware is made of its template alone; the numbers are what it is filled with.

    Attributes
    ----------
    template : StageTemplate
    """

    template: StageTemplate

    def _check(self) -> None:
        super()._check()
        template, quant, norm = self.template, self.requantizer, self.normalization
        _check_range(self.name, "pre_shift", quant.pre_shift, template.pre_shift)
        _check_range(self.name, "shift", quant.shift, template.shift)
        if norm is not None and template.u_shift is not None:
            assert template.product_shift is not None
            _check_range(self.name, "u_shift", norm.u_shift, template.u_shift)
            _check_range(self.name, "product_shift", norm.product_shift, template.product_shift)
        bits = self.convolution.accumulator_bits(template.source)
        bias = self.convolution.bias
        bits = max(bits, signed_width(int(bias.min()), int(bias.max())))
        if bits > template.accumulator_bits:
            raise ValueError(
                f"stage {self.name} needs accumulators of {bits} bits, and the core has "
                f"{template.accumulator_bits}"
            )


def _check_range(stage: str, name: str, value: npt.ArrayLike, least: int) -> None:
    lo, hi = int(np.min(value)), int(np.max(value))
    if lo < least or hi > least + SHIFT_SPAN:
        told = str(lo) if lo == hi else f"{lo} .. {hi}"
        raise ValueError(
            f"stage {stage} has {name} {told}, and the core takes {least} .. {least + SHIFT_SPAN}"
        )


def template_of(stage: Stage) -> StageTemplate | None:
    """What a stage is made of where its constants are filled at run time; None where they stand
    in the gateware."""
    return stage.template if isinstance(stage, LoadedStage) else None


def templates(transform: Transform) -> tuple[StageTemplate, ...]:
    """Of every stage."""
    pairs = zip(transform.stages, transform.sources, strict=True)
    return tuple(StageTemplate.of(stage, source) for stage, source in pairs)


def filled(transform: Transform, fixed: Sequence[StageTemplate]) -> Transform:
    """The transform as a core of these templates holds it.

    Raises ValueError naming the stage that does not fit, and why.
    """
    if len(fixed) != len(transform.stages):
        raise ValueError(f"it has {len(transform.stages)} stages, and the core {len(fixed)}")
    rows = zip(fixed, transform.stages, transform.sources, strict=True)
    try:
        stages = [template.filled(stage, source) for template, stage, source in rows]
    except ValidationError as error:
        raise ValueError(error.reason) from None
    return transform.model_copy(update={"stages": stages})


def loadable(transform: Transform) -> Transform:
    """A transform whose constants are filled at run time, and what gateware is made of it."""
    return filled(transform, templates(transform))
