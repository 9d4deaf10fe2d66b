"""Finer activations, and inputs of normalizations, for a network trained through its integers."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from lichen.errors import UserError
from lichen.network.description import Format, Transform
from lichen.network.model import Model, ValidationError


def refine_output(transform: Transform, index: int, bits: int) -> Transform:
    """The transform with more bits for the output of stage ``index``, all else as it was.

    Every step is divided by a power of two: what the stage rounds is rounded more finely, and the
    next stage's weights read it on the old scale. So nothing that training has found is quantized
    anew.

    Raises UserError for fewer bits, for the last stage, and where constants leave their range.
    """
    stage = transform.stages[index]
    more = bits - stage.output.bits
    if index + 1 == len(transform.stages) or more < 0:
        raise UserError(f"{stage.name} cannot be given {bits} bits by finer steps.")
    if more == 0:
        return transform
    following = transform.stages[index + 1]
    own, reading = dict(stage.scales), dict(following.scales)
    for scales, name in ((own, "output"), (reading, "input")):
        if name in scales:
            scales[name] = scales[name] / 2**more
    norm, requantizer, reader = stage.normalization, stage.requantizer, following.requantizer
    convolution = following.convolution
    try:
        old = stage.output
        if old.signed:
            most = (1 << (bits - 1)) - 1
            output = Format(bits=bits, signed=True, lo=-most, hi=most)
        else:
            output = Format(bits=bits, signed=False, lo=old.lo << more, hi=(1 << bits) - 1)
        if norm is not None:
            norm = _with(norm, output=output, shift=norm.shift - more)
        else:
            requantizer = _with(requantizer, output=output, shift=requantizer.shift - more)
        first = _with(stage, requantizer=requantizer, normalization=norm, scales=own)
        second = _with(
            following,
            convolution=_with(convolution, bias=convolution.bias.astype(np.int64) * 2**more),
            requantizer=_with(reader, pre_shift=reader.pre_shift + more),
            scales=reading,
        )
        stages = list(transform.stages)
        stages[index : index + 2] = [first, second]
        return Transform(input=transform.input, stages=stages)
    except ValidationError as error:
        reason = error.reason
        raise UserError(f"{stage.name} cannot have {bits} bits: {reason}.") from None


def refine_input(transform: Transform, index: int, bits: int) -> Transform:
    """The transform with more bits for the input ``x`` of the normalization of stage ``index``.

    As `refine_output`: steps and clipping stay, the operand ``u`` of the multiplier array too.

    Raises UserError for fewer bits, where there is no normalization, and where constants leave
    their range.
    """
    stage = transform.stages[index]
    norm, requantizer = stage.normalization, stage.requantizer
    more = bits - requantizer.output.bits
    if norm is None or more < 0:
        raise UserError(f"the normalization of {stage.name} cannot be given {bits} bits.")
    if more == 0:
        return transform
    scales = dict(stage.scales)
    if "x" in scales:
        scales["x"] = scales["x"] / 2**more
    old = requantizer.output
    try:
        # The range stays what it was: a step more would let u outgrow its bits.
        finer = Format(bits=bits, signed=old.signed, lo=old.lo * 2**more, hi=old.hi * 2**more)
        refined = _with(
            stage,
            requantizer=_with(requantizer, output=finer, shift=requantizer.shift - more),
            normalization=_with(
                norm,
                u_shift=norm.u_shift + more * (2 if norm.kind.squares else 1),
                product_shift=norm.product_shift + more,
            ),
            scales=scales,
        )
        stages = list(transform.stages)
        stages[index] = refined
        return Transform(input=transform.input, stages=stages)
    except ValidationError as error:
        reason = error.reason
        raise UserError(
            f"the normalization of {stage.name} cannot have {bits} bits: {reason}."
        ) from None


Part = TypeVar("Part", bound=Model)


def _with(part: Part, **changes: Any) -> Part:
    """The part with changes, checked."""
    return type(part).model_validate(dict(part) | changes)
