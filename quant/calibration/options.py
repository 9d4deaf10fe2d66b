"""How to quantize: widths, clipping ranges, formats."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from lichen.errors import UserError
from lichen.network.description import (
    Format,
    Network,
    Stage,
)
from lichen.quant.calibration import calibrate
from lichen.quant.calibration.constants import FloatArray, symmetric, unsigned

WIDTHS_MIN = 2
"""Fewest bits of anything."""


WIDTHS_MAX = {"weight": 12, "activation": 16, "gamma": 12, "u": 16, "gdn_input": 16}
"""Most bits, by the fields of `Widths`."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bits of everything a stage computes with.

    Attributes
    ----------
    weight : int
        Weights, signed and symmetric, 2 .. 12.
    activation : int
        Outputs of the stages, 2 .. 16.
    gamma : int
        Weights of the normalizations, unsigned, 2 .. 12.
    u : int
        Squares (magnitudes) the normalizations sum, unsigned, 2 .. 16.
    gdn_input : int
        The input x of the normalizations, 2 .. 16.
    """

    weight: int = 8
    activation: int = 8
    gamma: int = 8
    u: int = 8
    gdn_input: int = 8

    def __post_init__(self) -> None:
        for name, most in WIDTHS_MAX.items():
            value = getattr(self, name)
            if not WIDTHS_MIN <= value <= most:
                raise UserError(
                    f"the bits of {name.replace('_', ' ')} must lie in {WIDTHS_MIN} .. {most}, "
                    f"not {value}."
                )


def channel_counts(stage: Stage) -> Widths:
    """The bits that a stage has; 8 for what it lacks."""
    norm, own = stage.normalization, {}
    if norm is not None:
        own = {
            "gamma": norm.gamma_bits,
            "u": norm.u_bits,
            "gdn_input": stage.requantizer.output.bits,
        }
    return Widths(
        weight=stage.convolution.weight_bits, activation=min(stage.output.bits, 16), **own
    )


def bits_of(network: Network) -> dict[str, Widths]:
    """The bits of all stages, under names such as ``g_a.conv1``."""
    return {
        f"{key}.{stage.name}": channel_counts(stage)
        for key, transform in network.transforms.items()
        for stage in transform.stages
    }


def with_bits(
    per_stage: Mapping[str, Widths], widths: Widths, stages: Sequence[str], given: Iterable[str]
) -> dict[str, Widths]:
    """``per_stage`` with what texts such as ``g_s.conv?.activation=10`` say of tensors.

    A name is that of a stage, a dot and a field of `Widths`; ``*`` and ``?`` stand for any text
    and character. Later texts go before earlier ones, and stages without exception have
    ``widths``.

    Raises UserError for a text of another form, a name that no tensor has, and unusable bits.
    """
    kinds = [field.name for field in fields(Widths)]
    names = {f"{stage}.{kind}": (stage, kind) for stage in stages for kind in kinds}
    result = dict(per_stage)
    for text in given:
        name, _, bits = text.partition("=")
        if not bits.isdecimal():
            raise UserError(f"bits are given as NAME=BITS, g_s.conv1.activation=10; not {text!r}.")
        found = fnmatch.filter(names, name)
        if not found:
            raise UserError(
                f"no tensor is called {name}; a name is a stage's ({', '.join(sorted(stages))}), a "
                f"dot, and one of {', '.join(kinds)}."
            )
        for stage, kind in (names[key] for key in found):
            own = result.get(stage, widths)
            result[stage] = replace(own, **{kind: int(bits)})
    return result


@dataclass(frozen=True)
class ClipRule:
    """How to find the clipping range of an activation tensor.

    Attributes
    ----------
    estimator : str
        ``mse`` (least squared error) or ``percentile`` (of the magnitudes), per channel.
    percentile : float
        50 .. 100, where 100 is the maximum.
    factor : float
        What the estimate is multiplied with.
    """

    estimator: str = "mse"
    percentile: float = 99.99
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.estimator not in ("mse", "percentile"):
            raise UserError(f"the clipping must be mse or percentile, not {self.estimator!r}.")
        if not 50 <= self.percentile <= 100:
            raise UserError(f"the percentile must lie in 50 .. 100, not {self.percentile}.")

    def clip(
        self, values: FloatArray, levels: int, weights: FloatArray | None = None
    ) -> FloatArray:
        """Greatest magnitude to represent in each channel of (samples, channels).

        ``levels`` is the greatest integer, ``weights`` what a squared error counts.
        """
        if self.estimator == "percentile":
            return self.factor * calibrate.percentile_clip(values, self.percentile)
        return self.factor * calibrate.mse_clip(values, levels, weights)

    def json(self) -> dict[str, Any]:
        what = {"percentile": self.percentile} if self.estimator == "percentile" else {}
        return {"estimator": self.estimator} | what | {"factor": self.factor}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to quantize.

    Attributes
    ----------
    method : str
        ``ptq`` or ``minmax``.
    widths : Widths
    per_stage : dict of str to Widths
        Exceptions, under names such as ``g_a.conv1``.
    latent_bits : int or None
        Width of what g_s reads and of the symbols z; None takes 8, or as many as the
        calibration images need.
    latent_fraction : int or None
        Fractional bits of y, 0 .. 8, hyperpriors only; None chooses them on the calibration
        images (see `lichen.quant.calibration.quantize.choose_fraction`).
    clip : str
        ``mse`` or ``percentile`` (ptq only).
    percentile : float
        50 .. 100.
    clip_factor : float
        What the range of least squared error is multiplied with. The errors of clipping go all
        the same way, and at once over many channels and pixels, where roundings cancel: in a
        well-trained network a wider range loses much less in the picture (docs/notes/draq.md).
    gdn_input_clip_factor : float or None
        The same for what is before a normalization; None takes ``clip_factor``.
    clip_rules : dict of str to ClipRule
        Exceptions, under names such as ``g_a.conv1.x`` (before the normalization) and
        ``g_a.conv1.output``.
    rounding : str
        ``optimal`` or ``nearest`` (ptq only).
    samples : int
        Output positions per stage that regressions and searches look at.
    equations : int
        Positions per unknown of a regression, at least, where the images give as many.
    damping : float
        How much the regressions are held to the FP32 weights, relative to the mean
        energy of their inputs.
    seed : int
    """

    method: str = "ptq"
    widths: Widths = Widths()
    per_stage: Mapping[str, Widths] = field(default_factory=dict)
    latent_bits: int | None = None
    latent_fraction: int | None = None
    clip: str = "mse"
    percentile: float = 99.99
    clip_factor: float = 1.0
    gdn_input_clip_factor: float | None = None
    clip_rules: Mapping[str, ClipRule] = field(default_factory=dict)
    rounding: str = "optimal"
    samples: int = 24000
    equations: int = 8
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("ptq", "minmax"):
            raise UserError(f"the method must be ptq or minmax, not {self.method!r}.")
        ClipRule(self.clip, self.percentile)
        for factor in (self.clip_factor, self.gdn_input_clip_factor):
            if factor is not None and factor <= 0:
                raise UserError(f"a clip factor must be above 0, not {factor}.")
        if self.rounding not in ("optimal", "nearest"):
            raise UserError(f"the rounding must be optimal or nearest, not {self.rounding!r}.")
        if self.latent_bits is not None and not 2 <= self.latent_bits <= 16:
            raise UserError(f"the bits of the latent must lie in 2 .. 16, not {self.latent_bits}.")
        if self.latent_fraction is not None and not 0 <= self.latent_fraction <= 8:
            raise UserError(
                f"the fraction of the latent must lie in 0 .. 8, not {self.latent_fraction}."
            )

    def clip_rule(self, tensor: str) -> ClipRule:
        """The rule for a tensor such as ``g_a.conv1.output``."""
        factor = self.clip_factor
        if tensor.endswith(".x") and self.gdn_input_clip_factor is not None:
            factor = self.gdn_input_clip_factor
        if self.clip != "mse":
            factor = 1.0
        return self.clip_rules.get(tensor, ClipRule(self.clip, self.percentile, factor))


@dataclass(frozen=True)
class FixedOutput:
    """The format and scale that a transform's last output must have.

    Attributes
    ----------
    scale : float or float array (channels,)
        Real value of one step.
    bits : int or None
        None takes as many as needed, at least 8.
    signed : bool
    fraction : int
        Fractional bits to come on top: the range is that of ``bits`` bits, shifted up.
    floor : bool
        Integers are rounded down, so that a later `rshift_round` gives what rounding the real
        value would. Rounded to nearest first, it would round a half-step's worth of the values
        just below each tie up: 0.7 dB in a hyperprior with one fractional bit.
    """

    scale: float | FloatArray
    bits: int | None
    signed: bool
    fraction: int = 0
    floor: bool = False

    def format(self, greatest: FloatArray) -> Format:
        """The format for outputs of these real magnitudes (channels,)."""
        bits = self.bits
        if bits is None:
            needed = int(np.rint((greatest / self.scale).max() / 2**self.fraction))
            bits = min(max(8, needed.bit_length() + int(self.signed)), 16 - self.fraction)
        fmt = symmetric(bits) if self.signed else unsigned(bits)
        return Format(
            bits=bits + self.fraction,
            signed=self.signed,
            lo=fmt.lo << self.fraction,
            hi=fmt.hi << self.fraction,
        )
