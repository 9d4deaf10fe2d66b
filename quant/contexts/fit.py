"""Context models for the latents of a network, within what gateware has room for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.codec.context import ContextCoder, predictions
from lichen.codec.layout import Layout
from lichen.codec.version2 import groups
from lichen.network.context import BINS_MAX, BITS_MAX, ContextModel, Contexts
from lichen.network.description import Network
from lichen.network.identity import replacing
from lichen.quant.calibration.entropy import scale_table
from lichen.quant.contexts import tables
from lichen.quant.contexts.weights import Schedule, Shape, Symbols, integers, learn
from lichen.sim.golden import analysis, channel_indices, symbol_bits

SHAPES = (
    Shape(4, 4, 4, carry=True),
    Shape(4, 4, 3, carry=True),
    Shape(4, 4, 2, carry=True),
    Shape(2, 2, 2, carry=True),
    Shape(2, 2, 1, carry=True),
    Shape(2, 2, 0),
    Shape(2, 0, 0),
)
"""From the best to the smallest, for networks of ever more channels."""

CORRECTED_SHAPES = (
    Shape(4, 4, 4, BINS_MAX, carry=True, excess=True),
    Shape(2, 4, 4, BINS_MAX, carry=True, excess=True),
    Shape(2, 2, 3, BINS_MAX, carry=True, excess=True),
    Shape(2, 2, 2, BINS_MAX, carry=True, excess=True),
    Shape(2, 2, 1, BINS_MAX, carry=True, excess=True),
)
"""The same beside a hyperprior, tried before them."""

HYPER_SHAPES = (Shape(2, 2, 0, 16), Shape(2, 0, 0, 12))
"""Of z, of which there is little; without means it costs more than static tables do."""

Z_TIMES = 5
"""Passes over the few symbols of z for one over y."""

OUTSIDES = (3e-5, 1e-4, 3e-4)
"""Shares of symbols left to escapes, of which the best on images held out is taken."""

HELD_SHARE = 8
"""One in so many images is held out where nobody names others."""

WEIGHT_IMAGES = 120
"""As many images teach the weights; all fill the tables."""


BINS_LEAST = 24
"""Bins of y's scales for which a model leaves room; it takes more where there is."""


def _weight_bits(shape: Shape, channels: int, levels: int) -> int:
    """Of a model's memories but those of bins, as wide as their entries usually take."""
    bias = 6 if shape.excess else 9
    a_channel = bias + 5 * shape.near + 6 * shape.slope + 10 * shape.inner + (5 if levels else 0)
    a_level = 15 + (15 if shape.excess else 0)
    carried = 20 * shape.inner if shape.carry else 0
    return carried + channels * a_channel + a_level * levels


def _bin_bits(shape: Shape) -> int:
    """Of a bin's edge and its choice of tables."""
    return 16 + 7 * (int(_phase(shape).max()) + 1)


def _phase(shape: Shape) -> npt.NDArray[np.int64]:
    """Without means there is one."""
    return tables.PHASE if shape.slope else np.zeros_like(tables.PHASE)


def choose_shapes(channels: Mapping[str, int], levels: int) -> list[dict[str, Shape]]:
    """Models that may fit together, the largest first; ``levels`` of y's hyperprior, 0 without."""
    shapes = [*CORRECTED_SHAPES, *SHAPES] if levels else SHAPES
    found = []
    for inner, shape in itertools.product(HYPER_SHAPES, shapes):
        chosen = {name: shape if name == "y" else inner for name in channels}
        total = sum(
            _weight_bits(chosen[name], count, levels if name == "y" else 0)
            + _bin_bits(chosen[name]) * (BINS_LEAST if name == "y" else inner.bins)
            for name, count in channels.items()
        )
        if total <= BITS_MAX:
            found.append(chosen)
    if not found:
        raise ValueError("no context model of so many channels fits")
    return found


def _draft(
    images: Sequence[Symbols],
    shape: Shape,
    levels: npt.NDArray[np.float64] | None,
    schedule: Schedule,
    progress: Callable[[str], None],
) -> ContextModel:
    """One latent's model, of one bin and table."""
    step = max(1, len(images) // WEIGHT_IMAGES)
    learner = learn(images[::step], shape, levels, Layout().rows, schedule, progress)
    phase = _phase(shape).astype(np.int32)
    return ContextModel(
        **integers(learner), edges=np.zeros(0, np.int32), phase=phase,
        choice=np.zeros((1, int(phase.max()) + 1), np.int32),
    )  # fmt: skip


def _bins(drafts: Mapping[str, ContextModel], shapes: Mapping[str, Shape]) -> dict[str, int] | None:
    """How many bins each latent's scales get: y's take what is left. None if that is too little."""
    bins = {name: shape.bins for name, shape in shapes.items()}
    rest = BITS_MAX - sum(draft.bits for draft in drafts.values())
    rest -= sum(count * _bin_bits(shapes[name]) for name, count in bins.items() if name != "y")
    bins["y"] = min(bins["y"], rest // _bin_bits(shapes["y"]))
    return bins if bins["y"] >= BINS_LEAST else None


def _cells(draft: ContextModel, images: Sequence[Symbols], bins: int) -> tables.Cells:
    """The histograms of a latent's bins and phases."""
    found = [predictions(draft, one.values, one.indices, Layout()) for one in images]
    scales, means = zip(*found, strict=True)
    values = [one.values for one in images]
    return tables.count(scales, means, values, bins, draft.phase.astype(np.int64))


def fit_contexts(
    images: Mapping[str, Sequence[Symbols]],
    scales: npt.NDArray[np.float64] | None = None,
    *,
    schedule: Schedule | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Contexts]:
    """Context models for the latents of images, one for each of `OUTSIDES`.

    Parameters
    ----------
    images : dict of str to sequence of Symbols
        ``y``, and ``z`` of a hyperprior.
    scales : float array or None
        The standard deviation that each table of a hyperprior stands for.
    schedule : Schedule or None
    progress : callable
        Called with the name of what was done.
    """
    schedule = Schedule() if schedule is None else schedule
    channels = {name: symbols[0].values.shape[2] for name, symbols in images.items()}
    drafts, bins = {}, None
    for shapes in choose_shapes(channels, 0 if scales is None else len(scales)):
        for name, symbols in images.items():
            levels, plan = (scales, schedule) if name == "y" else (None, schedule.longer(Z_TIMES))
            drafts[name] = _draft(symbols, shapes[name], levels, plan, progress)
        bins = _bins(drafts, shapes)
        if bins is not None:
            break
    else:
        raise ValueError("no context model of so many channels fits")
    cells = {name: _cells(drafts[name], images[name], bins[name]) for name in images}
    progress("predictions")
    found = []
    for outside in OUTSIDES:
        bank, choices = tables.make(cells, outside=outside)
        latents = {
            name: draft.model_copy(
                update={"edges": cells[name].edges.astype(np.int32),
                        "choice": choices[name].astype(np.int32)}
            )
            for name, draft in drafts.items()
        }  # fmt: skip
        found.append(Contexts(tables=bank, latents=latents))
        progress("tables")
    return found


@dataclass(frozen=True)
class Latents:
    """What a network makes of images, to fit and to measure on.

    Attributes
    ----------
    symbols : dict of str to list of Symbols
        ``y``, and ``z`` of a hyperprior, an entry an image.
    pixels : int
        Of all images.
    """

    symbols: dict[str, list[Symbols]]
    pixels: int


def collect(
    network: Network, images: Iterable[npt.NDArray[np.uint8]],
    progress: Callable[[str], None] = lambda step: None,
) -> Latents:  # fmt: skip
    """The latents of images (height, width, 3)."""
    symbols: dict[str, list[Symbols]] = {latent.name: [] for latent in reversed(network.latents)}
    pixels = 0
    for image in images:
        coded = analysis(network, image)
        pixels += coded.height * coded.width
        for latent in network.latents:
            segment = coded[latent.name]
            indices = None if network.inner(latent) is None else segment.indices
            symbols[latent.name].append(Symbols(segment.symbols, indices))
        progress("latents")
    return Latents(symbols, pixels)


def static_bits(network: Network, latents: Latents) -> dict[str, float]:
    """Bits of each latent under the network's static tables."""
    return {
        name: sum(
            symbol_bits(
                network.entropy[name],
                one.values,
                channel_indices(one.values.shape) if one.indices is None else one.indices,
            )
            for one in images
        )
        for name, images in latents.symbols.items()
    }


def coded_bits(network: Network, contexts: Contexts, latents: Latents) -> dict[str, float]:
    """Bits of each latent's streams."""
    found = {}
    for latent in network.latents:
        coder, total = ContextCoder(contexts, latent.name), 0
        for one in latents.symbols[latent.name]:
            for group in groups(network, latent, Layout(), one.values.shape):
                total += sum(len(coder.encode(one.values, one.indices, window)) for window in group)
        found[latent.name] = 8.0 * total
    return found


@dataclass(frozen=True)
class ContextFit:
    """A network with context models, and what they save on images that they were not fitted to.

    Attributes
    ----------
    network : Network
    before, after : dict of str to float
        Bits per pixel of each latent: under static tables, and of streams.
    """

    network: Network
    before: dict[str, float]
    after: dict[str, float]

    def json(self) -> dict[str, Any]:
        contexts = self.network.contexts
        assert contexts is not None
        return {
            "tables": len(contexts.tables.lengths),
            "entries": contexts.entries,
            "bits": contexts.bits,
            "before": {name: round(bits, 5) for name, bits in self.before.items()},
            "after": {name: round(bits, 5) for name, bits in self.after.items()},
            "saved": round(1 - sum(self.after.values()) / sum(self.before.values()), 5),
        }


def fit_network(
    network: Network,
    train: Latents,
    held: Latents,
    *,
    schedule: Schedule | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> ContextFit:
    """A network with context models fitted to some images and chosen on others.

    Static tables stay what they are: files of version 1 name them.
    """
    scales = scale_table(_levels(network)) if network.hyper else None
    drafts = fit_contexts(train.symbols, scales, schedule=schedule, progress=progress)
    coded = [coded_bits(network, draft, held) for draft in drafts]
    best = min(range(len(drafts)), key=lambda i: sum(coded[i].values()))
    contexts = drafts[best].model_copy(
        update={"provenance": dict(provenance or {}), "replaced": replacing(network)}
    )
    before = static_bits(network, held)
    return ContextFit(
        network.model_copy(update={"contexts": contexts}),
        {name: bits / held.pixels for name, bits in before.items()},
        {name: bits / held.pixels for name, bits in coded[best].items()},
    )


def _levels(network: Network) -> int:
    return 1 + (0 if network.scale_thresholds is None else len(network.scale_thresholds))


STEPS = 400
PASSES = (4, 30)
"""Steps that few images are to make, and passes over them at least and at most."""


def add_contexts(network: Network, crops: Sequence[npt.NDArray[np.uint8]]) -> ContextFit | None:
    """Context models from the images that a network was calibrated on.

    Every `HELD_SHARE`-th is held out. None where fewer than two are there, or where contexts
    save nothing on those held out. Raises ValueError for networks of too many channels.
    """
    if len(crops) < 2:
        return None
    held = list(crops[::HELD_SHARE])
    rest = [crop for i, crop in enumerate(crops) if i % HELD_SHARE]
    low, high = PASSES
    passes = min(max(STEPS // len(rest), low), high)
    schedule = Schedule(passes=passes, rounded=passes // 3 + 1)
    provenance = {"images": len(rest), "held": len(held), "passes": passes, "seed": schedule.seed}
    fit = fit_network(
        network,
        collect(network, rest),
        collect(network, held),
        schedule=schedule,
        provenance=provenance,
    )
    return fit if sum(fit.after.values()) < sum(fit.before.values()) else None
