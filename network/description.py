"""The integer network: one typed description, from which everything else derives.

A `Network` holds transforms (``g_a``, ``g_s``, ...); a `Transform` is an ordered list of
stages; a `Stage` is one convolution, its requantizer and, where the activation is a divisive
normalization, a `Normalization`. Everything inference needs is an integer; `scales` and
`provenance` are for reports only.

Tensors are laid out channel first inside the description (weights ``(out, in, ky, kx)`` for
plain and transposed convolutions alike), images and activations are ``(height, width,
channels)``.

All constructors validate; pydantic reports the path of the offending field, and
`lichen.network.file.load` turns that into a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)

from lichen.network import arithmetic
from lichen.network.arithmetic import NORM_BITS, NormKind, signed_width

ACCUMULATOR_BITS_MAX = 48
"""Widest accumulator accepted: beyond it no sum is exact in float64 with margin."""

SHIFT_MAX = 62
"""Longest right shift: the half that rounding adds still fits 64-bit arithmetic."""


def _integer_array(value: Any) -> npt.NDArray[np.integer]:
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"must be an integer tensor, not {array.dtype}")
    return array


def _float_array(value: Any) -> npt.NDArray[np.float64]:
    array = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError("must be finite")
    return array


IntArray = Annotated[Any, BeforeValidator(_integer_array)]
FloatArray = Annotated[Any, BeforeValidator(_float_array)]


class _Model(BaseModel):
    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", frozen=True, strict=False
    )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _require_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    _require(array.shape == shape, f"{name} must have shape {shape}, not {array.shape}")


def _require_range(name: str, array: np.ndarray, lo: int, hi: int) -> None:
    if array.size and (int(array.min()) < lo or int(array.max()) > hi):
        raise ValueError(
            f"{name} must lie in {lo} .. {hi}, but spans {int(array.min())} .. {int(array.max())}"
        )


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


class Format(_Model):
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        least = -(1 << (self.bits - 1)) if self.signed else 0
        most = (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1
        _require(
            least <= self.lo < self.hi <= most,
            f"lo and hi must satisfy {least} <= lo < hi <= {most}, not lo {self.lo}, hi {self.hi}",
        )
        return self

    @property
    def magnitude(self) -> int:
        """Largest absolute value."""
        return max(-self.lo, self.hi)


IMAGE_FORMAT = Format(bits=8, signed=False, lo=0, hi=255)
"""Pixels: unsigned 8-bit, scale 1/255."""


class Convolution(_Model):
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(
            self.weight.ndim == 4 and self.weight.shape[2:] == (self.kernel, self.kernel),
            f"weight must have shape (out, in, {self.kernel}, {self.kernel}), "
            f"not {self.weight.shape}",
        )
        _require(min(self.weight.shape) >= 1, "weight must have at least one channel each way")
        _require_shape("bias", self.bias, (self.out_channels,))
        limit = (1 << (self.weight_bits - 1)) - 1
        _require_range("weight", self.weight, -limit, limit)
        _require_range("bias", self.bias, -(1 << 46), 1 << 46)
        _require(
            self.padding < self.kernel,
            f"padding must be below the kernel size {self.kernel}, not {self.padding}",
        )
        _require(
            self.output_padding == 0 or (self.transposed and self.output_padding < self.stride),
            "output_padding must be 0, or below the stride of a transposed convolution",
        )
        return self

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1])

    def output_size(self, size: int) -> int:
        """Rows (or columns) made of ``size`` rows (or columns)."""
        if self.transposed:
            return arithmetic.transposed_output_size(
                size, self.kernel, self.stride, self.padding, self.output_padding
            )
        return arithmetic.convolution_output_size(size, self.kernel, self.stride, self.padding)

    def reach(self, out: Any) -> tuple[Any, Any]:
        """First and last row (or column) of the input that row ``out`` of the output reads.

        Padding counts: they may lie outside of the input. An array gives arrays.
        """
        if self.transposed:
            first = -((self.kernel - 1 - self.padding - out) // self.stride)
            return first, (out + self.padding) // self.stride
        first = out * self.stride - self.padding
        return first, first + self.kernel - 1

    def complete(self, rows: int) -> int:
        """How many rows of output the first ``rows`` rows of a longer input suffice for."""
        if self.transposed:
            return max(0, rows * self.stride - self.padding)
        return max(0, (rows + self.padding - self.kernel) // self.stride + 1)

    def accumulator_range(self, source: Format) -> tuple[npt.NDArray, npt.NDArray]:
        """Per output channel, the least and greatest accumulator any input can cause.

        Zero padding counts as a possible value of every input, so the bounds hold at the
        borders, and for every partial sum in any order (the bias added first or last).
        """
        w = self.weight.reshape(self.out_channels, -1).astype(np.int64)
        lo, hi = min(source.lo, 0), max(source.hi, 0)
        most = np.maximum(w * lo, w * hi).sum(axis=1)
        least = np.minimum(w * lo, w * hi).sum(axis=1)
        bias = self.bias.astype(np.int64)
        return least + np.minimum(bias, 0), most + np.maximum(bias, 0)

    def accumulator_bits(self, source: Format) -> int:
        """Width of a signed accumulator that cannot overflow."""
        least, most = self.accumulator_range(source)
        return signed_width(int(least.min()), int(most.max()))

    def macs(self, out_height: int, out_width: int) -> int:
        """Multiplications of one frame; inserted zeros of transposed convolutions not counted.

        A transposed convolution multiplies each input sample by every tap once (borders
        included, as in every MAC count of the field).
        """
        return arithmetic.convolution_macs(
            self.kernel,
            self.stride if self.transposed else 1,
            self.in_channels,
            self.out_channels,
            out_height * out_width,
        )


class Requantizer(_Model):
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.multiplier.ndim == 1, "multiplier must have one dimension")
        _require_shape("pre_shift", self.pre_shift, self.multiplier.shape)
        _require_range("pre_shift", self.pre_shift, 0, 31)
        _require_range("multiplier", self.multiplier, 0, (1 << 17) - 1)
        if self.negative_multiplier is not None:
            _require_shape("negative_multiplier", self.negative_multiplier, self.multiplier.shape)
            _require_range("negative_multiplier", self.negative_multiplier, 0, (1 << 17) - 1)
        return self


class Normalization(_Model):
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.multiplier.ndim == 1, "multiplier must have one dimension")
        channels = len(self.multiplier)
        _require_shape("gamma", self.gamma, (channels, channels))
        _require_shape("beta", self.beta, (channels,))
        _require_range("gamma", self.gamma, 0, (1 << self.gamma_bits) - 1)
        _require_range("beta", self.beta, 1, (1 << NORM_BITS) - 1)
        _require_range("multiplier", self.multiplier, 0, (1 << 17) - 1)
        return self

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
        _require(
            self.u_max(source) < 1 << self.u_bits,
            f"u reaches {self.u_max(source)}, which does not fit u_bits {self.u_bits}",
        )
        _require(
            self.norm_max(source) < 1 << NORM_BITS,
            f"the norm reaches {self.norm_max(source)}, beyond 32 bits",
        )
        _require(
            not self.kind.inverse or self.shift >= self.exponent_max(source),
            f"shift must be at least the greatest exponent {self.exponent_max(source)}, "
            f"not {self.shift}",
        )
        _require(
            self.kind.inverse or self.shift + self.exponent_max(source) <= SHIFT_MAX,
            f"shift must be at most {SHIFT_MAX} less the greatest exponent "
            f"{self.exponent_max(source)}, not {self.shift}",
        )

    def macs(self, height: int, width: int) -> int:
        """Multiplications of the norm's sums for one frame."""
        return arithmetic.norm_macs(self.channels, height * width)


class Stage(_Model):
    """One convolution with its activation.

    Attributes
    ----------
    name : str
        Unique within the transform, for example ``conv1``.
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

    name: str = Field(min_length=1)
    convolution: Convolution
    requantizer: Requantizer
    activation: Activation
    normalization: Normalization | None = None
    scales: dict[str, FloatArray] = {}
    kept_channels: IntArray | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        channels = self.convolution.out_channels
        _require_shape("requantizer.multiplier", self.requantizer.multiplier, (channels,))
        norm = self.activation.norm
        if norm is None:
            _require(
                self.normalization is None,
                f"activation {self.activation.value} takes no normalization",
            )
        else:
            _require(self.normalization is not None, f"{norm.value} needs a normalization")
            assert self.normalization is not None
            _require(
                self.normalization.kind is norm,
                f"normalization.kind is {self.normalization.kind.value}, "
                f"but the activation is {norm.value}",
            )
            _require_shape("normalization.multiplier", self.normalization.multiplier, (channels,))
            self.normalization.check_source(self.requantizer.output)
        _require(
            (self.requantizer.negative_multiplier is not None)
            == (self.activation is Activation.LEAKY_RELU),
            "requantizer.negative_multiplier goes with leaky_relu and nothing else",
        )
        if self.activation is Activation.RELU:
            _require(self.requantizer.output.lo >= 0, "the output of relu must have lo >= 0")
        if self.kept_channels is not None:
            _require_shape("kept_channels", self.kept_channels, (channels,))
        return self

    @property
    def output(self) -> Format:
        """Format of the stage's output."""
        if self.normalization is not None:
            return self.normalization.output
        return self.requantizer.output

    @property
    def out_channels(self) -> int:
        return self.convolution.out_channels


class Transform(_Model):
    """An ordered list of stages, from one activation tensor to another."""

    input: Format
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        source, channels = self.input, self.in_channels
        names = [stage.name for stage in self.stages]
        _require(len(set(names)) == len(names), f"stage names must be unique, not {names}")
        for stage in self.stages:
            _require(
                stage.convolution.in_channels == channels,
                f"stage {stage.name} takes {stage.convolution.in_channels} channels, "
                f"but its input has {channels}",
            )
            bits = stage.convolution.accumulator_bits(source)
            _require(
                bits <= ACCUMULATOR_BITS_MAX,
                f"stage {stage.name} needs an accumulator of {bits} bits, "
                f"more than {ACCUMULATOR_BITS_MAX}",
            )
            source, channels = stage.output, stage.out_channels
        return self

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
        return int(
            np.prod([s.convolution.stride for s in self.stages if not s.convolution.transposed])
        )

    @property
    def upsampling(self) -> int:
        """Product of the strides of the transposed convolutions."""
        return int(np.prod([s.convolution.stride for s in self.stages if s.convolution.transposed]))

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the input and of every stage's output.

        Raises ValueError naming the stage whose output would be empty.
        """
        sizes = [(height, width)]
        for stage in self.stages:
            height = stage.convolution.output_size(height)
            width = stage.convolution.output_size(width)
            _require(
                height >= 1 and width >= 1,
                f"an input of {sizes[0][0]} rows and {sizes[0][1]} columns leaves nothing "
                f"for stage {stage.name}",
            )
            sizes.append((height, width))
        return sizes

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


class EntropyTables(_Model):
    """Integer CDF tables of the entropy coder.

    Attributes
    ----------
    precision : int
        The CDFs end at ``2**precision``.
    cdf : int array (tables, length)
        Row i is non-decreasing from 0 to ``2**precision`` over its first ``lengths[i]``
        entries; the rest is 0. The last interval of each row is the escape.
    lengths : int array (tables,)
        Entries used per row: symbols + escape + 1.
    offsets : int array (tables,)
        The symbol value of the first interval.
    """

    precision: Literal[16] = 16
    cdf: IntArray
    lengths: IntArray
    offsets: IntArray

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(self.cdf.ndim == 2, "cdf must have two dimensions")
        tables = self.cdf.shape[0]
        _require_shape("lengths", self.lengths, (tables,))
        _require_shape("offsets", self.offsets, (tables,))
        _require_range("lengths", self.lengths, 3, self.cdf.shape[1])
        for i, length in enumerate(self.lengths):
            row = self.cdf[i, :length]
            _require(
                row[0] == 0 and row[-1] == 1 << self.precision and bool(np.all(np.diff(row) > 0)),
                f"cdf row {i} must rise strictly from 0 to {1 << self.precision}",
            )
        return self


PHOTO = (512, 768)
"""Height and width of the photograph that frame rates, MACs and bit-operations are quoted for."""

TRANSFORMS = ("g_a", "g_s", "h_a", "h_s")
"""Names a transform may have."""


class Network(_Model):
    """An integer network, ready to be run, generated, or stored as a ``.lichen`` file.

    Attributes
    ----------
    name : str
    architecture : str
        CompressAI's zoo name, or ``custom``.
    n, m : int
        Channels of the transforms and of the latent.
    transforms : dict of str to Transform
        ``g_a``, ``g_s``, and for hyperprior models ``h_a``, ``h_s``.
    latent_fraction : int
        Fractional bits ``f`` of the latent y that g_a makes, and of the means: 0 for
        factorized models.
    scale_thresholds : int array (scales - 1,) or None
        Hyperprior models only: what an output of h_s must reach for the second, third, ...
        table of ``entropy["y"]``, not falling. None takes the first table always.
    entropy : dict of str to EntropyTables
        ``y``: for factorized models one table per latent channel; for hyperprior models one
        per scale, rising. ``z`` (hyperprior models): one table per channel of h_a.
    provenance : dict
        Source checkpoint digest, lambda, how it was quantized, measured rate-distortion.

    Notes
    -----
    Without h_s the symbols are the outputs of g_a, and g_s reads them.

    With h_s (Ballé et al., "Variational image compression with a scale hyperprior", 2018), h_a
    reads ``|y|`` where its input format is unsigned, and ``y`` otherwise, limited to that
    format; its outputs are the symbols z, and h_s reads them. The first M outputs of h_s, for M
    latent channels, select the table of each symbol of y through ``scale_thresholds``.

    An h_s of M outputs leaves it at that: the symbol is ``rshift_round(y, f)``, and g_s reads
    the symbol. One of 2 M outputs (Minnen, Ballé and Toderici, "Joint autoregressive and
    hierarchical priors for learned image compression", 2018) has the means mu, with ``f``
    fractional bits, in the second M: the symbol is ``rshift_round(y - mu, f)``, and g_s reads
    ``(symbol << f) + mu`` limited to its input format.
    """

    format: Literal[1] = 1
    name: str = ""
    architecture: str
    n: int = Field(ge=1)
    m: int = Field(ge=1)
    transforms: dict[str, Transform]
    latent_fraction: int = Field(default=0, ge=0, le=8)
    scale_thresholds: IntArray | None = None
    entropy: dict[str, EntropyTables] = {}
    provenance: dict[str, Any] = {}

    _file_sha256: str | None = PrivateAttr(default=None)

    @property
    def file_sha256(self) -> str | None:
        """Digest of the file that this is read from; None for a network that is not, or no more."""
        return self._file_sha256

    def came_from(self, sha256: str) -> None:
        """Tell the digest of the file that this has been read from."""
        self._file_sha256 = sha256

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, which with changes is no longer what is in the file."""
        copy = super().model_copy(update=update, deep=deep)
        if update:
            copy._file_sha256 = None
        return copy

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(bool(self.transforms), "a network needs at least one transform")
        unknown = sorted(set(self.transforms) - set(TRANSFORMS))
        _require(not unknown, f"unknown transform {', '.join(unknown)}")
        unknown = sorted(set(self.entropy) - {"y", "z"})
        _require(not unknown, f"unknown entropy tables {', '.join(unknown)}")
        _require(
            self.latent_fraction == 0 or not self.architecture.startswith("bmshj2018-factorized"),
            f"latent_fraction must be 0 for {self.architecture}, not {self.latent_fraction}",
        )
        self._check_latents()
        self._check_hyper()
        self._check_entropy()
        return self

    def _check_latents(self) -> None:
        g_a, g_s = self.transforms.get("g_a"), self.transforms.get("g_s")
        if g_a is None or g_s is None:
            return
        _require(
            g_a.out_channels == g_s.in_channels,
            f"g_a makes {g_a.out_channels} latent channels, but g_s takes {g_s.in_channels}",
        )
        if self.means:
            return  # limited to what g_s takes
        lo, hi = self.symbol_range
        _require(
            g_s.input.lo <= lo and hi <= g_s.input.hi,
            f"the latents of g_a must fit the input format of g_s: symbols span {lo} .. {hi}, "
            f"but g_s takes {g_s.input.lo} .. {g_s.input.hi}",
        )

    def _check_hyper(self) -> None:
        h_a, h_s, m = self.transforms.get("h_a"), self.transforms.get("h_s"), self.latent_channels
        if h_a is not None and m is not None:
            _require(
                h_a.in_channels == m,
                f"the latent has {m} channels, but h_a takes {h_a.in_channels}",
            )
        if h_s is None:
            _require(self.scale_thresholds is None, "scale_thresholds go with a transform h_s")
            return
        if m is not None:
            _require(
                h_s.out_channels in (m, 2 * m),
                f"h_s must make {m} scales, or {2 * m} scales and means, for {m} latent channels, "
                f"not {h_s.out_channels}",
            )
        if h_a is not None:
            _require(
                h_a.out_channels == h_s.in_channels,
                f"h_a makes {h_a.out_channels} channels, but h_s takes {h_s.in_channels}",
            )
            _require(
                h_s.input.lo <= h_a.output.lo and h_a.output.hi <= h_s.input.hi,
                "the symbols of h_a must fit the input format of h_s",
            )
            up, down = h_s.upsampling, h_a.downsampling
            _require(up == down, f"h_s enlarges {up} times what h_a reduces {down} times")
        if self.scale_thresholds is not None:
            _require(self.scale_thresholds.ndim == 1, "scale_thresholds must have one dimension")
            _require_range("scale_thresholds", self.scale_thresholds, -(1 << 16), 1 << 16)
            _require(
                bool(np.all(np.diff(self.scale_thresholds.astype(np.int64)) >= 0)),
                "scale_thresholds must not fall",
            )

    def _check_entropy(self) -> None:
        m, h_a, h_s = self.latent_channels, self.transforms.get("h_a"), self.transforms.get("h_s")
        if "y" in self.entropy:
            tables = len(self.entropy["y"].lengths)
            if h_s is not None:
                levels = 0 if self.scale_thresholds is None else len(self.scale_thresholds)
                _require(
                    tables == levels + 1,
                    f"entropy.y has {tables} tables for {levels} scale_thresholds, "
                    f"which part {levels + 1}",
                )
            elif h_a is None and m is not None:
                _require(tables == m, f"entropy.y has {tables} tables for {m} channels")
        if "z" in self.entropy:
            tables = len(self.entropy["z"].lengths)
            channels = [t.in_channels for t in (h_s,) if t is not None]
            channels += [t.out_channels for t in (h_a,) if t is not None]
            _require(bool(channels), "entropy.z goes with a transform h_a or h_s")
            _require(
                tables == channels[0], f"entropy.z has {tables} tables for {channels[0]} channels"
            )

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of all transforms for one image, normalizations included."""
        return sum(t.macs(*size) for t, size in self._frames(height, width))

    def bops(self, height: int, width: int) -> int:
        """Bit-operations of all transforms for one image; see `Transform.bops`."""
        return sum(t.bops(*size) for t, size in self._frames(height, width))

    def _frames(self, height: int, width: int) -> Iterator[tuple[Transform, tuple[int, int]]]:
        """The transforms with the size of their input; each reads what the one before it made."""
        size = height, width
        for name in ("g_a", "h_a", "h_s", "g_s"):
            if name in self.transforms:
                yield self.transforms[name], size
                size = self.transforms[name].sizes(*size)[-1]

    def transform(self, name: str) -> Transform:
        """The named transform; a ValueError lists those present."""
        if name not in self.transforms:
            raise ValueError(
                f"network {self.name or self.architecture} has no transform {name}, "
                f"only {', '.join(self.transforms)}"
            )
        return self.transforms[name]

    @property
    def latent_channels(self) -> int | None:
        """Channels of y, or None for a network with neither g_a nor g_s."""
        if "g_a" in self.transforms:
            return self.transforms["g_a"].out_channels
        return self.transforms["g_s"].in_channels if "g_s" in self.transforms else None

    @property
    def hyper(self) -> bool:
        """Whether symbols z choose the tables of y."""
        return "h_s" in self.transforms

    @property
    def means(self) -> bool:
        """Whether h_s makes means beside the scales."""
        return self.hyper and self.transforms["h_s"].out_channels == 2 * (self.latent_channels or 0)

    @property
    def symbol_range(self) -> tuple[int, int]:
        """The least and the greatest symbol of y that the encoder can make.

        Raises ValueError for a network without g_a.
        """
        y = self.transform("g_a").output
        mu = self.transforms["h_s"].output if self.means else None
        most, least = (0, 0) if mu is None else (mu.hi, mu.lo)
        f = self.latent_fraction
        lo = arithmetic.latent_symbol(y.lo, most, f)
        return lo, arithmetic.latent_symbol(y.hi, least, f)

    @property
    def hyper_factor(self) -> int:
        """How many rows of y there are for one of z; 1 without a hyperprior."""
        if "h_a" in self.transforms:
            return self.transforms["h_a"].downsampling
        return self.transforms["h_s"].upsampling if self.hyper else 1

    @property
    def factor(self) -> int:
        """What the sides of an image are padded to a multiple of.

        Raises ValueError for a network with neither g_a nor g_s.
        """
        if "g_a" in self.transforms:
            return self.transforms["g_a"].downsampling * self.hyper_factor
        return self.transform("g_s").upsampling * self.hyper_factor
