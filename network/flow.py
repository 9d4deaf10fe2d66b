"""The data flow of a network, declared once: its latents, what makes them and what reads them.

A picture goes through the analysis transforms, each of which reads the latent before it, and back
through the synthesis transforms in the opposite order. Whoever runs, sizes, checks or stores a
network goes through `LATENTS`, or those of them that the network has (`Network.latents`); `inward`
and `outward` are the way itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

IMAGE = "image"
"""What the first analysis transform reads and the last synthesis transform makes."""


@dataclass(frozen=True, kw_only=True)
class Latent:
    """A tensor of symbols between an analysis and a synthesis transform.

    Attributes
    ----------
    name : str
        Of its entropy tables, and of its segments in a file.
    source : str
        What it is a latent of: `IMAGE`, or the name of another latent.
    analysis : str
        The transform that makes it of its source.
    synthesis : str
        The transform that reads it. It makes the image; or, for a latent's source, what chooses
        the table of each of that latent's symbols, and perhaps their means.
    """

    name: str
    source: str
    analysis: str
    synthesis: str


LATENTS = (
    Latent(name="y", source=IMAGE, analysis="g_a", synthesis="g_s"),
    Latent(name="z", source="y", analysis="h_a", synthesis="h_s"),
)
"""All latents there may be, a chain: each one's source is the one before it."""

TRANSFORMS = tuple(name for latent in LATENTS for name in (latent.analysis, latent.synthesis))
"""Names a transform may have."""

ORDER = (
    *(latent.analysis for latent in LATENTS),
    *(latent.synthesis for latent in reversed(LATENTS)),
)
"""The transforms in the order in which an image that is coded and decoded goes through them."""

_MAKERS = {latent.name: latent.analysis for latent in LATENTS}

FEEDS: dict[str, str | None] = {
    **{latent.analysis: _MAKERS.get(latent.source) for latent in LATENTS},
    **{latent.synthesis: latent.analysis for latent in LATENTS},
}
"""The transform whose output each transform reads, coded and decoded again; None for the image."""


def latents_among(transforms: Container[str]) -> tuple[Latent, ...]:
    """The latents that one of these transforms makes or reads, from the image inwards."""
    return tuple(
        latent
        for latent in LATENTS
        if latent.analysis in transforms or latent.synthesis in transforms
    )


Value = TypeVar("Value")
"""What a transform makes."""
Read = TypeVar("Read")
"""What one reads of it."""


def inward(
    latents: Iterable[Latent],
    image: Value,
    read: Callable[[Latent, Value], Read],
    run: Callable[[str, Read], Value],
) -> dict[str, Value]:
    """An image through the analysis transforms: the values of the latents by name.

    Parameters
    ----------
    latents : iterable of Latent
        From the image inwards.
    image : Value
    read : callable
        ``read(latent, source)`` is what the latent's analysis reads of what it is a latent of.
    run : callable
        ``run(name, x)`` is what the named transform makes.
    """
    values = {IMAGE: image}
    for latent in latents:
        values[latent.name] = run(latent.analysis, read(latent, values[latent.source]))
    del values[IMAGE]
    return values


def outward(
    latents: Sequence[Latent],
    read: Callable[[Latent, Value | None], Read],
    run: Callable[[str, Read], Value],
) -> Value:
    """Latents back through the synthesis transforms: what the last one makes.

    Parameters
    ----------
    latents : sequence of Latent
        From the image inwards; at least one.
    read : callable
        ``read(latent, said)`` is what the latent's synthesis reads, given what the inner latent's
        synthesis says of it; None of the innermost.
    run : callable
        As of `inward`.
    """
    made: Value | None = None
    for latent in reversed(latents):
        made = run(latent.synthesis, read(latent, made))
    assert made is not None
    return made
