"""How sure a BD-rate is: intervals over images, and the BD-rates of single images.

A mean over two dozen photographs is a sample. The bootstrap (Efron, "Bootstrap methods: another
look at the jackknife", 1979) draws as many photographs from them with replacement, again and
again, both codecs on the same draw, and looks at how the BD-rate of the means varies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.codec.evaluate import Evaluation
from lichen.codec.rd import FILES, PSNR, Curve, bd_rate
from lichen.errors import UserError

DRAWS = 1000
"""Resamples; the ends of a 95 % interval then rest on 25 draws each."""

SEED = 0
"""So that the same measurements give the same interval."""


@dataclass(frozen=True)
class ImageCurves:
    """One codec's points on every image of a set.

    Attributes
    ----------
    name : str
    images : tuple of str
        Sorted names.
    bpp, quality : float array (points, images)
        Points in order of their mean rate. ``quality`` is PSNR in dB.
    """

    name: str
    images: tuple[str, ...]
    bpp: npt.NDArray[np.float64]
    quality: npt.NDArray[np.float64]

    @staticmethod
    def of(name: str, points: Sequence[Evaluation], rate: str = FILES) -> ImageCurves:
        """A codec's points, all measured on the same images.

        ``rate`` as for `read_curve`. Raises UserError when the points are of other images.
        """
        found = [
            # rates are called as the fields are
            (point.name, {i.name: (getattr(i, rate) or i.bpp, i.psnr) for i in point.images})
            for point in points
        ]
        return _sorted(name, found)

    def curve(self, chosen: npt.NDArray[np.intp]) -> Curve:
        """The curve of the means over some images, which may repeat."""
        bpp, quality = self.bpp[:, chosen].mean(axis=1), self.quality[:, chosen].mean(axis=1)
        points = [{"bpp": b, PSNR: q} for b, q in zip(bpp, quality, strict=True)]
        return Curve.of(self.name, points)


@dataclass(frozen=True)
class Interval:
    """What the images say about a BD-rate.

    Attributes
    ----------
    images : int
    low, high : float
        The middle 95 % of the bootstrap's BD-rates of means, in percent.
    image_mean : float or None
        Mean of the BD-rates of single images; None where one of them cannot be compared.
    image_rates : dict of str to float
        BD-rate of every image that can be compared, in percent.
    """

    images: int
    low: float
    high: float
    image_mean: float | None
    image_rates: dict[str, float]


def read_images(sources: Sequence[str], rate: str = FILES) -> ImageCurves | None:
    """The images' points in files of `lichen evaluate`; None where some file has none.

    ``rate`` as for `read_curve`.

    Raises UserError when a file names the same image twice or the points are of other images.
    """
    found: list[tuple[str, dict[str, tuple[float, float]]]] = []
    for source in sources:
        try:
            content: Any = json.loads(Path(source).read_text(encoding="utf-8"))
            for point in content["points"]:
                rows = [
                    (i["name"], float(i.get(rate) or i[FILES]), float(i[PSNR]))
                    for i in point["images"]
                ]
                images = {name: (bpp, psnr) for name, bpp, psnr in rows}
                if len(images) != len(rows):
                    raise UserError(f"{source} has two images of one name.")
                found.append((point["name"], images))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a published curve, or CompressAI's own JSON, which has means only
    if not found or not found[0][1]:
        return None
    return _sorted(found[0][0], found)


def _sorted(name: str, found: list[tuple[str, dict[str, tuple[float, float]]]]) -> ImageCurves:
    """Points with (rate, quality) of every image; UserError if they are of other images."""
    names = tuple(sorted(found[0][1]))
    for point_name, images in found:
        if tuple(sorted(images)) != names:
            raise UserError(
                f"{point_name} was measured on other images than {found[0][0]}: "
                "points of one curve must be of one set."
            )
    ordered = sorted(found, key=lambda p: float(np.mean([bpp for bpp, _ in p[1].values()])))
    table = np.array([[images[image] for image in names] for _, images in ordered])
    return ImageCurves(name, names, table[:, :, 0], table[:, :, 1])


def interval(
    test: ImageCurves, anchor: ImageCurves, *, method: str = "pchip", draws: int = DRAWS
) -> Interval | None:
    """The interval of ``test`` against ``anchor``; None where they are of other images.

    Draws whose curves cannot be compared are left out. None also where those are more than a
    twentieth, since the rest would flatter.
    """
    if test.images != anchor.images or len(test.images) < 2:
        return None
    count = len(test.images)
    generator = np.random.default_rng(SEED)

    def rate(chosen: npt.NDArray[np.intp]) -> float | None:
        try:
            return bd_rate(test.curve(chosen), anchor.curve(chosen), PSNR, method).percent
        except UserError:
            return None

    drawn = [rate(generator.integers(count, size=count)) for _ in range(draws)]
    rates = [value for value in drawn if value is not None]
    if len(rates) < 0.95 * draws:
        return None
    single = {name: rate(np.array([i])) for i, name in enumerate(test.images)}
    known = {name: value for name, value in single.items() if value is not None}
    low, high = np.percentile(rates, (2.5, 97.5))
    mean = float(np.mean(list(known.values()))) if len(known) == count else None
    return Interval(count, float(low), float(high), mean, known)
