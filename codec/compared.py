"""Two codecs compared for a report: BD-rates, and what single images say about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lichen.codec.bootstrap import ImageCurves, interval
from lichen.codec.evaluate import Evaluation, to_json
from lichen.codec.rd import FILES, MS_SSIM, Curve, bd_rate
from lichen.errors import UserError

HEADS = ("BD-rate", "95 % over images", "mean of images'")
"""Columns of `cells`."""

EXPLAINED = (
    "The interval holds the middle 95 % of the BD-rates of a thousand draws of as many images with "
    "replacement. The mean of images' is that of the BD-rates of single images, where all of them "
    "can be compared."
)
"""What a page says below its first table with `HEADS`."""


def compare(
    test: Sequence[Evaluation],
    anchor: Sequence[Evaluation],
    rate: str = FILES,
    names: tuple[str, str] = ("", ""),
) -> dict[str, Any] | None:
    """What a report keeps of two codecs on the same images; None where they can't be compared.

    Rates in percent of the anchor's: ``bd_rate`` of means, ``low`` and ``high`` of the bootstrap,
    ``image_mean``; the last three are None where `lichen.codec.bootstrap.interval` has none.
    ``bd_rate_msssim`` is there if both were measured so.
    """
    measured = [to_json(test, names[0]), to_json(anchor, names[1])]
    try:
        curves = [Curve.of_json(one, rate) for one in measured]
        found: dict[str, Any] = {"bd_rate": bd_rate(curves[0], curves[1]).percent}
        if all(MS_SSIM in curve.metrics for curve in curves):
            found["bd_rate_msssim"] = bd_rate(curves[0], curves[1], MS_SSIM).percent
    except UserError:
        return None
    images = [ImageCurves.of("", points, rate) for points in (test, anchor)]
    spread = interval(images[0], images[1])
    return (
        {"test": names[0], "anchor": names[1]}
        | found
        | {
            "low": None if spread is None else spread.low,
            "high": None if spread is None else spread.high,
            "image_mean": None if spread is None else spread.image_mean,
        }
    )


def cells(found: dict[str, Any] | None, digits: int = 1) -> list[str]:
    """A comparison's cells below `HEADS`; dashes for what there is not."""
    if found is None:
        return ["–"] * len(HEADS)
    rate, mean = (
        "–" if found[key] is None else f"{found[key]:+.{digits}f} %"
        for key in ("bd_rate", "image_mean")
    )
    span = "–"
    if found["low"] is not None:
        span = f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f} %"
    return [rate, span, mean]
