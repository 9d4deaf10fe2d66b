"""The integer network: transforms, what flows between them, entropy tables, provenance."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from lichen.network import arithmetic, validation
from lichen.network.arithmetic import ceil_div
from lichen.network.context import Contexts
from lichen.network.fields import (
    CHANNELS_MAX,
    NAME_MAX,
    Architecture,
    IntArray,
    JsonObject,
)
from lichen.network.flow import IMAGE, LATENTS, ORDER, Latent, latents_among
from lichen.network.model import Field, Model, ValidationError
from lichen.network.names import printable
from lichen.network.tables import EntropyTables
from lichen.network.transform import Transform

PHOTO = (512, 768)
"""Height and width of the photograph that frame rates, MACs and bit-operations are quoted for."""


class Network(Model):
    """An integer network, ready to be run, generated, or stored as a ``.lichen`` file.

    Attributes
    ----------
    name : str
        For people; whatever is shown of it goes through `title`.
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
    means : bool
        Whether h_s makes means beside the scales. Where nobody says, as in files of format 1,
        its number of channels tells.
    entropy : dict of str to EntropyTables
        ``y``: for factorized models one table per latent channel; for hyperprior models one
        per scale, rising. ``z`` (hyperprior models): one table per channel of h_a.
    contexts : Contexts or None
        What chooses tables of a bank of its own from decoded symbols, for version 2 of the
        ``.lic`` file; ``entropy`` serves version 1.
    provenance : dict
        Source checkpoint digest, lambda, how it was quantized, measured rate-distortion.

    Notes
    -----
    Without h_s the symbols are the outputs of g_a, and g_s reads them.

    With h_s (Ballé et al., "Variational image compression with a scale hyperprior", 2018), h_a
    reads ``|y|`` where its input format is unsigned, and ``y`` otherwise, limited to that
    format; its outputs are the symbols z, and h_s reads them. The first M outputs of h_s, for M
    latent channels, select the table of each symbol of y through ``scale_thresholds``.

    Without means an h_s has M outputs: the symbol is ``rshift_round(y, f)``, and g_s reads
    the symbol. With means it has 2 M (Minnen, Ballé and Toderici, "Joint autoregressive and
    hierarchical priors for learned image compression", 2018), the means mu, with ``f``
    fractional bits, in the second M: the symbol is ``rshift_round(y - mu, f)``, and g_s reads
    ``(symbol << f) + mu`` limited to its input format.
    """

    OPTIONAL_PARTS: ClassVar[Mapping[str, int]] = {"means": 2, "contexts": 2}
    """Fields that format 1 of the file lacks, and the format that brings each; a file has them
    only where they say something (`optional_parts`)."""

    name: str = Field(default="", max_length=NAME_MAX)
    architecture: Architecture
    n: int = Field(ge=1, le=CHANNELS_MAX)
    m: int = Field(ge=1, le=CHANNELS_MAX)
    transforms: dict[str, Transform]
    latent_fraction: int = Field(default=0, ge=0, le=8)
    scale_thresholds: IntArray | None = None
    means: bool = False
    entropy: dict[str, EntropyTables] = Field(default_factory=dict)
    contexts: Contexts | None = None
    provenance: JsonObject = Field(default_factory=dict)

    _file_sha256: ClassVar[str | None] = None

    def _complete(self, given: Collection[str]) -> None:
        if "means" not in given:
            self.__dict__["means"] = self._means_by_channels()

    def _check(self) -> None:
        validation.check_network(self)

    @classmethod
    def of_any_picture(cls, tree: Any) -> Self:
        """`model_validate` that does not look at the format that g_s makes."""
        if not isinstance(tree, Mapping):
            return cls.model_validate(tree)
        made = cls.__new__(cls)
        made._fill(tree)
        made._complete(tree)
        try:
            validation.check_network(made, any_picture=True)
        except ValueError as error:
            raise ValidationError([((), str(error))]) from None
        return made

    def _means_by_channels(self) -> bool:
        if "h_s" not in self.transforms or self.latent_channels is None:
            return False
        return self.transforms["h_s"].out_channels == 2 * self.latent_channels

    # The file ---------------------------------------------------------------------------------

    @property
    def file_sha256(self) -> str | None:
        """Digest of the file that this is read from; None for a network that is not, or no more."""
        return self._file_sha256

    def came_from(self, sha256: str) -> None:
        """Tell the digest of the file that this has been read from."""
        self.__dict__["_file_sha256"] = sha256

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, which with changes is no longer what is in the file."""
        copy = super().model_copy(update=update, deep=deep)
        if update:
            copy.__dict__.pop("_file_sha256", None)
        return copy

    def optional_parts(self) -> list[str]:
        """Which of `OPTIONAL_PARTS` say something that a file of format 1 would not."""
        silent = {"means": not self.hyper or self.means == self._means_by_channels()}
        return [
            part for part in self.OPTIONAL_PARTS if not silent.get(part, not getattr(self, part))
        ]

    @property
    def format(self) -> int:
        """Of its file: the least that has all its parts."""
        own = 1 if self.contexts is None else self.contexts.format
        return max([own, *(self.OPTIONAL_PARTS[part] for part in self.optional_parts())])

    @property
    def title(self) -> str:
        """The name for people, or the architecture if there is none, fit for a terminal."""
        return printable(" ".join(self.name.split())) or self.architecture

    # The data flow ----------------------------------------------------------------------------

    @property
    def latents(self) -> tuple[Latent, ...]:
        """The latents that the network has transforms of, from the image inwards."""
        return latents_among(self.transforms)

    def inner(self, latent: Latent) -> Latent | None:
        """The latent of that latent: its synthesis says how this one's symbols are coded."""
        return next((other for other in self.latents if other.source == latent.name), None)

    def channels(self, latent: Latent) -> int | None:
        """Channels of a latent, None where neither of its transforms is there."""
        if latent.analysis in self.transforms:
            return self.transforms[latent.analysis].out_channels
        synthesis = self.transforms.get(latent.synthesis)
        return None if synthesis is None else synthesis.in_channels

    def fraction(self, latent: Latent) -> int:
        """Fractional bits of a latent and of its means."""
        return self.latent_fraction if latent.source == IMAGE else 0

    def thresholds(self, latent: Latent) -> npt.NDArray[np.integer] | None:
        """What the inner latent's synthesis must reach for the second, third, ... table."""
        return self.scale_thresholds if latent.source == IMAGE else None

    def has_means(self, latent: Latent) -> bool:
        """Whether the inner latent's synthesis makes means of this one."""
        inner = self.inner(latent)
        return self.means and inner is not None and latent.source == IMAGE

    def reduction(self, latent: Latent) -> int:
        """How many rows of its source there are for one of a latent."""
        if latent.analysis in self.transforms:
            return self.transforms[latent.analysis].downsampling
        synthesis = self.transforms.get(latent.synthesis)
        return 1 if synthesis is None else synthesis.upsampling

    def rows(self, name: str) -> int:
        """How many rows of a tensor, `IMAGE` or a latent's name, there are for one of the
        innermost latent."""
        inside = [latent for latent in LATENTS if latent.name == name]
        after = LATENTS[LATENTS.index(inside[0]) + 1 :] if inside else LATENTS
        return math.prod(self.reduction(latent) for latent in after)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is padded to."""
        factor = self.rows(IMAGE)
        return ceil_div(height, factor) * factor, ceil_div(width, factor) * factor

    def frames(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Height and width of what each transform reads for an image of this size, in `ORDER`."""
        factor = self.rows(IMAGE)
        rows, columns = ceil_div(height, factor), ceil_div(width, factor)
        reads = {latent.analysis: latent.source for latent in LATENTS}
        reads |= {latent.synthesis: latent.name for latent in LATENTS}
        scales = {name: self.rows(reads[name]) for name in ORDER if name in self.transforms}
        return {name: (rows * scale, columns * scale) for name, scale in scales.items()}

    def latent_shapes(self, height: int, width: int) -> dict[str, tuple[int, int, int]]:
        """Shapes of the symbols of an image of this size, in coding order: the innermost first."""
        factor = self.rows(IMAGE)
        rows, columns = ceil_div(height, factor), ceil_div(width, factor)
        shapes = {}
        for latent in reversed(self.latents):
            scale = self.rows(latent.name)
            shapes[latent.name] = (rows * scale, columns * scale, self.channels(latent) or 0)
        return shapes

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of all transforms for one image, normalizations included."""
        frames = self.frames(height, width)
        return sum(self.transforms[name].macs(*size) for name, size in frames.items())

    def bops(self, height: int, width: int) -> int:
        """Bit-operations of all transforms for one image; see `Transform.bops`."""
        frames = self.frames(height, width)
        return sum(self.transforms[name].bops(*size) for name, size in frames.items())

    def transform(self, name: str) -> Transform:
        """The named transform; a ValueError lists those present."""
        if name not in self.transforms:
            raise ValueError(
                f"network {self.title} has no transform {printable(name)}, "
                f"only {', '.join(self.transforms)}"
            )
        return self.transforms[name]

    @property
    def latent_channels(self) -> int | None:
        """Channels of y, or None for a network with neither g_a nor g_s."""
        return self.channels(LATENTS[0])

    @property
    def hyper(self) -> bool:
        """Whether symbols z choose the tables of y."""
        return "h_s" in self.transforms

    @property
    def symbol_range(self) -> tuple[int, int]:
        """The least and the greatest symbol of y that the encoder can make.

        Raises ValueError for a network without g_a.
        """
        return self.symbols(LATENTS[0])

    def symbols(self, latent: Latent) -> tuple[int, int]:
        """The least and the greatest symbol of a latent that the encoder can make.

        Raises ValueError for a network without its analysis transform.
        """
        value = self.transform(latent.analysis).output
        least = most = 0
        inner = self.inner(latent)
        if inner is not None and self.has_means(latent):
            means = self.transform(inner.synthesis).output
            least, most = means.lo, means.hi
        f = self.fraction(latent)
        lo = arithmetic.latent_symbol(value.lo, most, f)
        return lo, arithmetic.latent_symbol(value.hi, least, f)

    @property
    def hyper_factor(self) -> int:
        """How many rows of y there are for one of z; 1 without a hyperprior."""
        return self.rows(LATENTS[0].name)

    @property
    def factor(self) -> int:
        """What the sides of an image are padded to a multiple of.

        Raises ValueError for a network with neither g_a nor g_s.
        """
        if self.latent_channels is None:
            self.transform(LATENTS[0].synthesis)
        return self.rows(IMAGE)
