"""One stage of a transform: a convolution, its requantizer and its activation."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.network import arithmetic
from lichen.network.arithmetic import (
    MULTIPLIER_MAX,
    NORM_MAX,
    NormKind,
    signed_width,
)
from lichen.network.fields import (
    CHANNELS_MAX,
    FloatArray,
    Identifier,
    IntArray,
    require,
    require_range,
    require_shape,
)
from lichen.network.geometry import Geometry, norm_macs
from lichen.network.model import Field, Model

ACCUMULATOR_BITS_MAX = 48
"""Widest accumulator accepted: beyond it no sum is exact in float64 with margin."""

SHIFT_MAX = 62
"""Longest right shift: the half that rounding adds still fits 64-bit arithmetic."""


class Activation(StrEnum):
    """What follows the convolution of a stage."""

    NONE = "none"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    GDN = "gdn"
    IGDN = "igdn"
    GDN1 = "gdn1"
    IGDN1 = "igdn1"

    @property
    def norm(self) -> NormKind | None:
        """The divisive normalization of this activation, if it is one."""
        return NormKind(self.value) if self.value in list(NormKind) else None


class Format(Model):
    """The integers a tensor may hold.

    Attributes
    ----------
    bits : int
        Storage width, 2 .. 16.
    signed : bool
        Two's complement if true.
    lo, hi : int
        Clipping range, both included; ``hi > lo``, inside what ``bits`` can hold.
    """

    bits: int = Field(ge=2, le=16)
    signed: bool
    lo: int
    hi: int

    def _check(self) -> None:
        least = -(1 << (self.bits - 1)) if self.signed else 0
        most = (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1
        require(
            least <= self.lo < self.hi <= most,
            f"lo and hi must satisfy {least} <= lo < hi <= {most}, not lo {self.lo}, hi {self.hi}",
        )

    @property
    def magnitude(self) -> int:
        """Largest absolute value."""
        return max(-self.lo, self.hi)


IMAGE_FORMAT = Format(bits=8, signed=False, lo=0, hi=255)
"""Pixels: unsigned 8-bit, scale 1/255."""


class Convolution(Model):
    """Weights and geometry of a convolution, plain or transposed.

    Attributes
    ----------
    kernel, stride, padding, output_padding : int
        Square geometry as in PyTorch's ``Conv2d`` and ``ConvTranspose2d``.
    transposed : bool
        Transposed convolution: zeros are (notionally) inserted between samples.
    weight_bits : int
        2 .. 12. Weights are symmetric: ``|w| <= 2**(weight_bits - 1) - 1``.
    weight : int array (out, in, kernel, kernel)
        For transposed convolutions too, where PyTorch stores (in, out, kernel, kernel).
    bias : int array (out,)
        Added to the exact sum of products.
    """

    kernel: int = Field(ge=1, le=9)
    stride: int = Field(ge=1, le=4)
    padding: int = Field(ge=0, le=8)
    output_padding: int = Field(default=0, ge=0, le=3)
    transposed: bool = False
    weight_bits: int = Field(ge=2, le=12)
    weight: IntArray
    bias: IntArray

    def _check(self) -> None:
        require(
            self.weight.ndim == 4 and self.weight.shape[2:] == (self.kernel, self.kernel),
            f"weight must have shape (out, in, {self.kernel}, {self.kernel}), "
            f"not {self.weight.shape}",
        )
        require(
            min(self.weight.shape[:2]) >= 1 and max(self.weight.shape[:2]) <= CHANNELS_MAX,
            f"weight must have 1 .. {CHANNELS_MAX} channels each way, not {self.weight.shape[:2]}",
        )
        require_shape("bias", self.bias, (self.out_channels,))
        limit = (1 << (self.weight_bits - 1)) - 1
        require_range("weight", self.weight, -limit, limit)
        require_range("bias", self.bias, -(1 << 46), 1 << 46)
        require(
            self.padding < self.kernel,
            f"padding must be below the kernel size {self.kernel}, not {self.padding}",
        )
        require(
            self.output_padding == 0 or (self.transposed and self.output_padding < self.stride),
            "output_padding must be 0, or below the stride of a transposed convolution",
        )

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1])

    @property
    def geometry(self) -> Geometry:
        """Where it reads and how much it makes, along either axis."""
        return Geometry(
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            transposed=self.transposed,
        )

    def output_size(self, size: int) -> int:
        """`Geometry.output_size`."""
        return self.geometry.output_size(size)

    def reach(self, out: Any) -> tuple[Any, Any]:
        """`Geometry.reach`."""
        return self.geometry.reach(out)

    def complete(self, rows: int) -> int:
        """`Geometry.complete`."""
        return self.geometry.complete(rows)

    def accumulator_range(self, source: Format) -> tuple[npt.NDArray, npt.NDArray]:
        """Per output channel, the least and greatest accumulator any input can cause.

        Zero padding counts as a possible value of every input, so the bounds hold at the
        borders, and for every partial sum in any order (the bias added first or last).
        """
        w = self.weight.reshape(self.out_channels, -1).astype(np.int64)
        lo, hi = min(source.lo, 0), max(source.hi, 0)
        above = np.maximum(w, 0).sum(axis=1)
        below = w.sum(axis=1) - above
        bias = self.bias.astype(np.int64)
        least, most = lo * above + hi * below, hi * above + lo * below
        return least + np.minimum(bias, 0), most + np.maximum(bias, 0)

    def accumulator_bits(self, source: Format) -> int:
        """Width of a signed accumulator that cannot overflow."""
        least, most = self.accumulator_range(source)
        return signed_width(int(least.min()), int(most.max()))

    def macs(self, out_height: int, out_width: int) -> int:
        """Multiplications of one frame; see `Geometry.macs`."""
        return self.geometry.macs(self.in_channels, self.out_channels, out_height * out_width)


class Requantizer(Model):
    """Constants of `arithmetic.requantize`, and the format of its result.

    Attributes
    ----------
    pre_shift : int array (channels,)
        ``d``, 0 .. 31.
    multiplier : int array (channels,)
        ``m``, 0 .. 2**17 - 1.
    negative_multiplier : int array (channels,) or None
        Second multiplier, for negative values; LeakyReLU only.
    shift : int
        ``s``, 0 .. 35.
    output : Format
        Width and clipping range of ``y``.
    """

    pre_shift: IntArray
    multiplier: IntArray
    negative_multiplier: IntArray | None = None
    shift: int = Field(ge=0, le=35)
    output: Format

    def _check(self) -> None:
        require(self.multiplier.ndim == 1, "multiplier must have one dimension")
        require_shape("pre_shift", self.pre_shift, self.multiplier.shape)
        require_range("pre_shift", self.pre_shift, 0, 31)
        require_range("multiplier", self.multiplier, 0, MULTIPLIER_MAX)
        if self.negative_multiplier is not None:
            require_shape("negative_multiplier", self.negative_multiplier, self.multiplier.shape)
            require_range("negative_multiplier", self.negative_multiplier, 0, MULTIPLIER_MAX)


class Normalization(Model):
    """Constants of a divisive normalization (`arithmetic.normalize`).

    Attributes
    ----------
    kind : NormKind
    gamma_bits : int
        2 .. 12; gamma is unsigned.
    gamma : int array (channels, channels)
        Row i holds the weights of ``u`` in the norm of channel i.
    beta : int array (channels,)
        1 .. 2**32 - 1.
    u_bits : int
        Width of ``u``, unsigned, 2 .. 16; the constants guarantee that ``u`` fits.
    u_shift : int
        ``t``, 0 .. 31.
    product_shift : int
        ``a``, 0 .. 16.
    multiplier : int array (channels,)
        ``k``, 0 .. 2**17 - 1.
    shift : int
        ``b``, 0 .. 47; at least the greatest exponent for IGDN and IGDN1, and together with it
        at most `SHIFT_MAX` for GDN and GDN1.
    output : Format
    """

    kind: NormKind
    gamma_bits: int = Field(ge=2, le=12)
    gamma: IntArray
    beta: IntArray
    u_bits: int = Field(ge=2, le=16)
    u_shift: int = Field(ge=0, le=31)
    product_shift: int = Field(ge=0, le=16)
    multiplier: IntArray
    shift: int = Field(ge=0, le=47)
    output: Format

    def _check(self) -> None:
        require(self.multiplier.ndim == 1, "multiplier must have one dimension")
        channels = len(self.multiplier)
        require_shape("gamma", self.gamma, (channels, channels))
        require_shape("beta", self.beta, (channels,))
        require_range("gamma", self.gamma, 0, (1 << self.gamma_bits) - 1)
        require_range("beta", self.beta, 1, NORM_MAX)
        require_range("multiplier", self.multiplier, 0, MULTIPLIER_MAX)

    @property
    def channels(self) -> int:
        return len(self.multiplier)

    def u_max(self, source: Format) -> int:
        """Greatest ``u`` that inputs of this format can cause."""
        return int(arithmetic.norm_input(source.magnitude, self.kind.squares, self.u_shift))

    def norm_max(self, source: Format) -> int:
        """Greatest norm ``n`` that inputs of this format can cause."""
        # at most 12 + 16 + 32 bits for as many as 2**20 channels
        rows = self.gamma.astype(np.int64).sum(axis=1) * self.u_max(source)
        return int((rows + self.beta.astype(np.int64)).max())

    def exponent_max(self, source: Format) -> int:
        """Greatest exponent ``e`` of `arithmetic.normalized_root` for these norms."""
        return (self.norm_max(source).bit_length() - 1) >> int(self.kind.squares)

    def check_source(self, source: Format) -> None:
        """Raise ValueError unless every input of this format is computed exactly."""
        require(
            self.u_max(source) < 1 << self.u_bits,
            f"u reaches {self.u_max(source)}, which does not fit u_bits {self.u_bits}",
        )
        require(
            self.norm_max(source) <= NORM_MAX,
            f"the norm reaches {self.norm_max(source)}, beyond 32 bits",
        )
        require(
            not self.kind.inverse or self.shift >= self.exponent_max(source),
            f"shift must be at least the greatest exponent {self.exponent_max(source)}, "
            f"not {self.shift}",
        )
        require(
            self.kind.inverse or self.shift + self.exponent_max(source) <= SHIFT_MAX,
            f"shift must be at most {SHIFT_MAX} less the greatest exponent "
            f"{self.exponent_max(source)}, not {self.shift}",
        )

    def macs(self, height: int, width: int) -> int:
        """Multiplications of the norm's sums for one frame."""
        return norm_macs(self.channels, height * width)


class Stage(Model):
    """One convolution with its activation.

    Attributes
    ----------
    name : str
        Unique within the transform, for example ``conv1``; it becomes an identifier in gateware
        and reports, so it is a letter followed by letters, digits and underscores.
    convolution : Convolution
    requantizer : Requantizer
        From the accumulator to the stage's output, or to ``x`` when a normalization follows.
    activation : Activation
        ReLU is a lower clipping bound of 0 in the requantizer; LeakyReLU its negative
        multiplier.
    normalization : Normalization or None
        Present exactly when ``activation`` is a divisive normalization.
    scales : dict of str to float array
        For reports only: the real value of one step, per channel, of ``weight``, ``x``,
        ``output``, ...
    kept_channels : int array (out,) or None
        Which output channels of the unpruned model these are.
    """

    name: Identifier
    convolution: Convolution
    requantizer: Requantizer
    activation: Activation
    normalization: Normalization | None = None
    scales: dict[str, FloatArray] = Field(default_factory=dict)
    kept_channels: IntArray | None = None

    def _check(self) -> None:
        channels = self.convolution.out_channels
        require_shape("requantizer.multiplier", self.requantizer.multiplier, (channels,))
        norm = self.activation.norm
        if norm is None:
            require(
                self.normalization is None,
                f"activation {self.activation.value} takes no normalization",
            )
        else:
            require(self.normalization is not None, f"{norm.value} needs a normalization")
            assert self.normalization is not None
            require(
                self.normalization.kind is norm,
                f"normalization.kind is {self.normalization.kind.value}, "
                f"but the activation is {norm.value}",
            )
            require_shape("normalization.multiplier", self.normalization.multiplier, (channels,))
            self.normalization.check_source(self.requantizer.output)
        require(
            (self.requantizer.negative_multiplier is not None)
            == (self.activation is Activation.LEAKY_RELU),
            "requantizer.negative_multiplier goes with leaky_relu and nothing else",
        )
        if self.activation is Activation.RELU:
            require(self.requantizer.output.lo >= 0, "the output of relu must have lo >= 0")
        if self.kept_channels is not None:
            require_shape("kept_channels", self.kept_channels, (channels,))
            require_range("kept_channels", self.kept_channels, 0, CHANNELS_MAX - 1)
        for key, scale in self.scales.items():
            require(
                scale.shape in ((), (channels,), (self.convolution.in_channels,)),
                f"scales.{key} must have one value per channel, not shape {scale.shape}",
            )

    @property
    def units(self) -> list[str]:
        """Names of what gateware makes of it: the convolution's, then the normalization's."""
        return [self.name] + [f"{self.name}_norm"] * (self.normalization is not None)

    @property
    def output(self) -> Format:
        """Format of the stage's output."""
        if self.normalization is not None:
            return self.normalization.output
        return self.requantizer.output

    @property
    def out_channels(self) -> int:
        return self.convolution.out_channels
