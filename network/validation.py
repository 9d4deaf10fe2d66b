"""What a network as a whole must keep to, so that nothing that loads fails later.

Each transform is checked by itself when it is made (`lichen.network.transform`). Here transforms
are held against each other and against what container, golden model, planner and gateware take
for granted: every sentence names the transform, its stage where there is one, and the field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lichen.network.fields import require, require_range
from lichen.network.flow import IMAGE, LATENTS, TRANSFORMS, Latent
from lichen.network.geometry import Affine
from lichen.network.names import printable
from lichen.network.transform import Transform

if TYPE_CHECKING:
    from lichen.network.network import Network

PIXEL_MAX = 255
"""Greatest sample of a picture; the least is 0."""

COLOURS = 3
"""Channels of a picture."""

FACTOR_MAX = 1024
"""Largest multiple that the sides of an image are padded to: a single pixel takes that much."""

OFFSET_MAX = 1 << 24
"""Furthest first symbol of a table; symbols themselves stay below 2**17."""

THRESHOLD_MAX = 1 << 16
"""Furthest threshold: what h_s makes has at most 16 bits."""


def check_network(network: Network, *, any_picture: bool = False) -> None:
    """Raise ValueError, one sentence, for a network whose parts do not fit each other.

    Parameters
    ----------
    network : Network
    any_picture : bool
        The format that g_s makes is not looked at; see `lichen.network.file.OLDER_PICTURES`.
    """
    _check_names(network)
    for latent in network.latents:
        _check_channels(network, latent)
        _check_symbols(network, latent)
    _check_picture(network, any_picture)
    _check_sizes(network)
    _check_thresholds(network)
    _check_entropy(network)
    _check_contexts(network)


def _check_names(network: Network) -> None:
    require(bool(network.transforms), "a network needs at least one transform")
    unknown = sorted(set(network.transforms) - set(TRANSFORMS))
    require(not unknown, f"unknown transform {', '.join(unknown)}")
    unknown = sorted(set(network.entropy) - {latent.name for latent in LATENTS})
    require(not unknown, f"unknown entropy tables {', '.join(unknown)}")
    require(
        network.latent_fraction == 0 or not network.architecture.startswith("bmshj2018-factorized"),
        f"latent_fraction must be 0 for {network.architecture}, not {network.latent_fraction}",
    )


def _check_channels(network: Network, latent: Latent) -> None:
    """Of what a latent's transforms take and make."""
    analysis = network.transforms.get(latent.analysis)
    synthesis = network.transforms.get(latent.synthesis)
    if analysis is not None and synthesis is not None:
        require(
            analysis.out_channels == synthesis.in_channels,
            f"{latent.analysis} makes {analysis.out_channels} latent channels, "
            f"but {latent.synthesis} takes {synthesis.in_channels}",
        )
    source = next((other for other in network.latents if other.name == latent.source), None)
    m = None if source is None else network.channels(source)
    if source is None or m is None:
        return
    if analysis is not None:
        require(
            analysis.in_channels == m,
            f"the latent {source.name} has {m} channels, but {latent.analysis} takes "
            f"{analysis.in_channels}",
        )
    if synthesis is not None:
        means = network.has_means(source)
        require(
            synthesis.out_channels == (2 * m if means else m),
            f"{latent.synthesis} must make {m} scales, or {2 * m} scales and means, for {m} "
            f"latent channels, not {synthesis.out_channels}" + (" with means" if means else ""),
        )


def _check_symbols(network: Network, latent: Latent) -> None:
    """That the synthesis takes every symbol; beside means it reads values limited to its input."""
    synthesis = network.transforms.get(latent.synthesis)
    if latent.analysis not in network.transforms or synthesis is None or network.has_means(latent):
        return
    lo, hi = network.symbols(latent)
    source = synthesis.input
    require(
        source.lo <= lo and hi <= source.hi,
        f"the symbols of {latent.analysis} must fit the input format of {latent.synthesis}: "
        f"symbols span {lo} .. {hi}, but {latent.synthesis} takes {source.lo} .. {source.hi}",
    )


def _check_picture(network: Network, any_picture: bool) -> None:
    """That a picture goes in and comes out."""
    (outer,) = (latent for latent in LATENTS if latent.source == IMAGE)
    synthesis = network.transforms.get(outer.synthesis)
    if synthesis is None:
        return
    last = f"{outer.synthesis}, stage {synthesis.stages[-1].name}"
    require(
        synthesis.out_channels == COLOURS,
        f"{last}: a picture has {COLOURS} channels, not {synthesis.out_channels}",
    )
    made = synthesis.output
    require(
        any_picture or (made.bits == 8 and not made.signed),
        f"{last}: output must be unsigned and of 8 bits, as a picture's samples are, not "
        f"{'signed' if made.signed else 'unsigned'} and of {made.bits} bits",
    )
    analysis = network.transforms.get(outer.analysis)
    if analysis is None:
        return
    require(
        analysis.in_channels == COLOURS,
        f"{outer.analysis}, stage {analysis.stages[0].name}: a picture has {COLOURS} channels, "
        f"not {analysis.in_channels}",
    )
    require(
        analysis.input.lo <= 0 and analysis.input.hi >= PIXEL_MAX,
        f"{outer.analysis}: input must take 0 .. {PIXEL_MAX}, as a picture's samples are, not only "
        f"{analysis.input.lo} .. {analysis.input.hi}",
    )


def _grown(name: str, transform: Transform, size: Affine) -> Affine:
    """What a transform makes of a size; at every size each stage leaves something."""
    for stage in transform.stages:
        try:
            size = stage.convolution.geometry.grown(size)
        except ValueError as error:
            raise ValueError(f"{name}, stage {stage.name}: convolution.stride: {error}") from None
        require(
            size.least >= 1,
            f"{name}, stage {stage.name}: kernel and padding leave nothing of the smallest image",
        )
    return size


def _check_sizes(network: Network) -> None:
    """That transforms undo each other's sizes, for every image.

    Sizes are those of n rows of the innermost latent, which every size of a padded image gives
    for some n.
    """
    factor = network.rows(IMAGE)
    require(
        factor <= FACTOR_MAX,
        f"the strides multiply to {factor}, and an image would be padded to as many pixels; at "
        f"most {FACTOR_MAX} will do",
    )
    for latent in network.latents:
        here = Affine(slope=network.rows(latent.name), offset=0)
        source = Affine(slope=network.rows(latent.source), offset=0)
        analysis = network.transforms.get(latent.analysis)
        synthesis = network.transforms.get(latent.synthesis)
        if analysis is not None:
            made = _grown(latent.analysis, analysis, source)
            read = synthesis is not None or network.inner(latent) is not None
            require(
                made == here or not read,
                f"{latent.analysis}, stage {analysis.stages[-1].name}: kernels, strides and "
                f"paddings make {made} rows of {source}, where the latent {latent.name} has {here}",
            )
        if synthesis is None:
            continue
        made = _grown(latent.synthesis, synthesis, here)
        last = f"{latent.synthesis}, stage {synthesis.stages[-1].name}: kernels, strides, paddings"
        last += f" and output_padding make {made} rows of {here}"
        if latent.source == IMAGE:
            require(made.covers(source), f"{last}, which does not cover an image of {source}")
        else:
            require(made == source, f"{last}, where the latent {latent.source} has {source}")


def _check_thresholds(network: Network) -> None:
    if network.means:
        require(network.hyper, "means go with a transform h_s")
    if network.scale_thresholds is None:
        return
    require(network.hyper, "scale_thresholds go with a transform h_s")
    require(network.scale_thresholds.ndim == 1, "scale_thresholds must have one dimension")
    require_range("scale_thresholds", network.scale_thresholds, -THRESHOLD_MAX, THRESHOLD_MAX)
    rising = np.all(np.diff(network.scale_thresholds.astype(np.int64)) >= 0)
    require(bool(rising), "scale_thresholds must not fall")


def _check_entropy(network: Network) -> None:
    """That every symbol has its table."""
    for latent in LATENTS:
        if latent.name not in network.entropy:
            continue
        tables = network.entropy[latent.name]
        count, where = len(tables.lengths), f"entropy.{latent.name}"
        require_range(f"{where}.offsets", tables.offsets, -OFFSET_MAX, OFFSET_MAX)
        inner, channels = network.inner(latent), network.channels(latent)
        if inner is not None:
            if inner.synthesis in network.transforms:
                thresholds = network.thresholds(latent)
                levels = 0 if thresholds is None else len(thresholds)
                require(
                    count == levels + 1,
                    f"{where} has {count} tables for {levels} scale_thresholds, which part "
                    f"{levels + 1}",
                )
        elif channels is not None:
            require(count == channels, f"{where} has {count} tables for {channels} channels")
        elif latent.source != IMAGE:
            require(False, f"{where} goes with a transform {latent.analysis} or {latent.synthesis}")


def _check_contexts(network: Network) -> None:
    """Context models are there for all latents or none, of as many channels and levels."""
    if network.contexts is None:
        return
    models = network.contexts.latents
    names = {latent.name for latent in network.latents}
    require(
        set(models) == names,
        f"contexts must be there for {', '.join(sorted(names))}, "
        f"not for {', '.join(map(printable, sorted(models))) or 'nothing'}",
    )
    for latent in network.latents:
        model, where = models[latent.name], f"contexts.latents.{latent.name}"
        channels = network.channels(latent)
        require(
            model.channels == channels,
            f"{where}.bias has {model.channels} channels, but the latent {channels}",
        )
        levels = None if model.levels is None else len(model.levels)
        thresholds = network.thresholds(latent)
        expected = None
        if network.inner(latent) is not None:
            expected = 1 + (0 if thresholds is None else len(thresholds))
        require(
            levels == expected,
            f"{where}.levels has {levels or 'no'} entries where scale_thresholds part "
            f"{expected or 'nothing'}",
        )
