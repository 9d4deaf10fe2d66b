"""Rate-distortion curves: read, compared by their Bjøntegaard delta rate, and plotted.

The BD-rate (Bjøntegaard, "Calculation of average PSNR differences between RD-curves",
VCEG-M33, 2001) is the mean distance of two curves along the logarithm of the rate, in percent
of the anchor's. It comes from the `bjontegaard` library.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lichen import caches
from lichen.codec.evaluate import common_name
from lichen.errors import UserError
from lichen.files import write_atomically

METHODS = ("pchip", "akima", "cubic")
"""Interpolation: that of JVET's common test conditions, Akima's, and the original polynomial."""

PSNR, MS_SSIM = "psnr-rgb", "ms-ssim-rgb"
"""Distortion metrics, as CompressAI's JSON names them."""

FILES, STREAMS = "bpp", "bpp_streams"
RATES = (FILES, STREAMS)
"""Rates of a point: of whole files less metadata, and of streams alone."""

_TITLES = {PSNR: "PSNR", MS_SSIM: "MS-SSIM"}


@dataclass(frozen=True)
class Curve:
    """Points of one codec in order of their rate.

    Attributes
    ----------
    name : str
    bpp : tuple of float
        Bits per pixel, positive.
    metrics : dict of str to tuple of float
        PSNR in dB under `PSNR`; MS-SSIM, 0 .. 1, under `MS_SSIM`, if every point has it.
    points : tuple of str
        Names of the points, where they have any.
    """

    name: str
    bpp: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    points: tuple[str, ...] = ()

    def values(self, metric: str) -> np.ndarray:
        """The metric in dB: PSNR, or ``-10 log10(1 - MS-SSIM)``.

        Differences near 1 count as much as they matter, as is usual for MS-SSIM.
        """
        found = np.array(self.metrics[metric])
        if metric != MS_SSIM:
            return found
        return -10 * np.log10(np.maximum(1 - found, 1e-10))

    @staticmethod
    def of(name: str, points: Iterable[Mapping[str, float]]) -> Curve:
        """A curve from points that map ``bpp`` and metrics to numbers."""
        ordered = sorted(points, key=lambda point: point["bpp"])
        shared = [key for key in _TITLES if ordered and all(key in point for point in ordered)]
        return Curve(
            name,
            tuple(point["bpp"] for point in ordered),
            {key: tuple(point[key] for point in ordered) for key in shared},
        )

    @staticmethod
    def of_json(measured: Mapping[str, Any], rate: str = FILES) -> Curve:
        """A curve, with the names of its points, from what `codec.evaluate.to_json` made.

        ``rate`` is one of `RATES`.
        """
        results = measured["results"]
        return Curve(
            measured["name"],
            tuple(results[rate]),
            {key: tuple(results[key]) for key in _TITLES if key in results},
            tuple(point["name"] for point in measured["points"]),
        )


@dataclass(frozen=True)
class BDRate:
    """One comparison.

    Attributes
    ----------
    percent : float
        Rate needed beyond the anchor's for equal quality; negative is better.
    low, high : float
        The quality in dB between which the curves were compared: where both are.
    """

    percent: float
    low: float
    high: float


def references() -> dict[str, Curve]:
    """Published curves on Kodak, by name."""
    content = json.loads(
        resources.files(__package__).joinpath("references.json").read_text(encoding="utf-8")
    )
    return {
        name: Curve(curve["title"], tuple(curve["bpp"]), {PSNR: tuple(curve[PSNR])})
        for name, curve in content["curves"].items()
    }


def _points(content: Any, path: str) -> list[dict[str, float]]:
    """The points of CompressAI's JSON."""
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or "bpp" not in results:
        raise UserError(f'{path} is not a result of `lichen evaluate`: it has no "results" of bpp.')
    columns = {}
    for key in (*RATES, *_TITLES):
        if key in results:
            column = results[key] if isinstance(results[key], list) else [results[key]]
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in column):
                raise UserError(f"{path} is damaged: {key} must be numbers.")
            columns[key] = [float(value) for value in column]
    if len({len(column) for column in columns.values()}) != 1:
        raise UserError(f"{path} is damaged: its figures are of different numbers of points.")
    if not columns["bpp"] or min(columns["bpp"]) <= 0:
        raise UserError(f"{path} has no points with a positive rate.")
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def counts_streams(sources: Sequence[str]) -> bool:
    """Whether the rate of a curve is of streams alone, since its codec makes no files.

    Both rates are the same then. Published curves of learned codecs count streams, too.
    """
    if len(sources) == 1 and not Path(sources[0]).exists() and sources[0] in references():
        return sources[0] not in ("jpeg", "webp")
    try:
        found = [json.loads(Path(source).read_text(encoding="utf-8")) for source in sources]
        rates = [[content["results"][rate] for rate in RATES] for content in found]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return all(files == streams for files, streams in rates)


def read_curve(sources: Sequence[str], rate: str = FILES) -> Curve:
    """One curve from the files of `lichen evaluate`, or from the name of a published curve.

    Every file adds its points. ``rate`` is one of `RATES`; a file without that one gives its bpp.
    Raises UserError, naming the file, for what is not such a file.
    """
    known = references()
    if len(sources) == 1 and not Path(sources[0]).exists() and sources[0] in known:
        return known[sources[0]]
    points, names = [], []
    for source in sources:
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{source} is neither a file of `lichen evaluate --json` nor a published curve "
                f"({', '.join(known)})."
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {source}: {error.strerror}.") from None
        except (ValueError, RecursionError):
            raise UserError(f"{source} is not JSON.") from None
        found = _points(content, source)
        points += [point | {FILES: point.get(rate, point[FILES])} for point in found]
        name = content.get("name")
        names.append(name if isinstance(name, str) and name else Path(source).stem)
    return Curve.of(common_name(names), points)


def bd_rate(test: Curve, anchor: Curve, metric: str = PSNR, method: str = "pchip") -> BDRate:
    """How much more rate the test curve takes than the anchor for the same quality.

    Parameters
    ----------
    test, anchor : Curve
        Two points each at least, four with the method ``cubic``; more rate must buy more
        quality.
    metric : str
        `PSNR` or `MS_SSIM`; the latter is compared in dB (`Curve.values`).
    method : str
        One of `METHODS`.

    Raises UserError when the curves can't be compared.
    """
    caches.prepare()
    import matplotlib

    matplotlib.use("Agg")  # bjontegaard imports pyplot
    import bjontegaard

    least = 4 if method == "cubic" else 2
    for curve in (test, anchor):
        if metric not in curve.metrics:
            raise UserError(f"{curve.name} has no {_TITLES[metric]}.")
        if len(curve.bpp) < least:
            raise UserError(
                f"{curve.name} has {len(curve.bpp)} point{'s' * (len(curve.bpp) != 1)}; "
                f"a BD-rate takes {least} or more."
            )
        if np.any(np.diff(curve.bpp) <= 0) or np.any(np.diff(curve.values(metric)) <= 0):
            raise UserError(
                f"{curve.name} is no curve to compare: {_TITLES[metric]} must rise with the rate "
                "from point to point."
            )
    x, y = anchor.values(metric), test.values(metric)
    low, high = max(x[0], y[0]), min(x[-1], y[-1])
    if low >= high:
        raise UserError(
            f"{test.name} and {anchor.name} have no {_TITLES[metric]} in common: "
            f"{y[0]:.2f} .. {y[-1]:.2f} dB and {x[0]:.2f} .. {x[-1]:.2f} dB."
        )
    percent = bjontegaard.bd_rate(
        anchor.bpp, x, test.bpp, y, method, require_matching_points=False, min_overlap=0
    )
    return BDRate(float(percent), float(low), float(high))


def points_table(curves: Sequence[Curve]) -> str:
    """All points as a Markdown table; MS-SSIM where it is known."""
    lines = ["| | bpp | PSNR (dB) | MS-SSIM |", "|---|---|---|---|"]
    for curve in curves:
        for i, bpp in enumerate(curve.bpp):
            psnr = curve.metrics[PSNR][i]
            ssim = f"{curve.metrics[MS_SSIM][i]:.4f}" if MS_SSIM in curve.metrics else "–"
            name = curve.points[i] if curve.points else curve.name
            lines.append(f"| {name} | {bpp:.4f} | {psnr:.2f} | {ssim} |")
    return "\n".join(lines) + "\n"


def bd_rate_table(curves: Sequence[Curve], anchors: Sequence[Curve], metric: str = PSNR) -> str:
    """The BD-rates of curves against anchors as a Markdown table.

    A dash stands where two curves can't be compared (`bd_rate`).
    """
    heads = " | ".join(anchor.name for anchor in anchors)
    lines = [f"| {_TITLES[metric]} BD-rate against | {heads} |", "|---" * (len(anchors) + 1) + "|"]
    for curve in curves:
        cells = []
        for anchor in anchors:
            try:
                cells.append(f"{bd_rate(curve, anchor, metric).percent:+.1f} %")
            except UserError:
                cells.append("–")
        lines.append(f"| {curve.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Style:
    """How a curve is drawn: matplotlib's colour, marker, line style; markers not filled."""

    color: str
    marker: str = "o"
    line: str = "-"
    width: float = 1.8
    hollow: bool = False


# Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*"


def default_styles(count: int) -> list[Style]:
    """Styles that can be told apart in print and by the colour-blind."""
    return [
        Style(PALETTE[i % len(PALETTE)], _MARKERS[i % len(_MARKERS)], ("-", "--", ":")[i // 7 % 3])
        for i in range(count)
    ]


def plot(
    curves: Sequence[Curve],
    path: str | Path,
    *,
    title: str = "",
    styles: Sequence[Style] | None = None,
    bpp_max: float | None = None,
) -> None:
    """Draw curves into a PNG, SVG or PDF, written atomically.

    One panel for each metric that two curves or all have; equal curves give equal files with
    one version of matplotlib.

    The first curves are drawn on top. Raises UserError for another kind of file, and when it
    cannot be written.
    """
    path = Path(path)
    kinds = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    if path.suffix.lower() not in kinds:
        raise UserError(f"{path} names no kind of plot; use .png, .svg or .pdf.")
    caches.prepare()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = default_styles(len(curves)) if styles is None else styles
    shown = [
        metric
        for metric in _TITLES
        if sum(metric in curve.metrics for curve in curves) >= min(2, len(curves))
    ]
    look: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#d9d9d9",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "svg.hashsalt": "lichen",
    }
    with plt.rc_context(look):
        many = len(curves) > 4
        rows = -(-len(curves) // 3)
        height = 4.4 + (0.22 * rows if many else 0)
        figure, panels = plt.subplots(
            1, len(shown), figsize=(5.6 * len(shown), height), squeeze=False, layout="constrained"
        )
        limit = bpp_max or 1.04 * max(max(curve.bpp) for curve in curves)
        handles: dict[str, Any] = {}
        for panel, metric in zip(panels[0], shown, strict=True):
            visible: list[float] = []
            for order, (curve, style) in enumerate(zip(curves, styles, strict=True)):
                if metric not in curve.metrics:
                    continue
                values = curve.values(metric)
                # the first ones on top
                (handles[curve.name],) = panel.plot(
                    curve.bpp, values, color=style.color, marker=style.marker,
                    markerfacecolor="white" if style.hollow else style.color,
                    linestyle=style.line, linewidth=style.width, markersize=4.5,
                    label=curve.name, zorder=3 - order / len(curves),
                )  # fmt: skip
                if curve.bpp[0] <= limit:
                    ends = (curve.bpp[0], min(limit, curve.bpp[-1]))
                    visible += list(np.interp(ends, curve.bpp, values))
            panel.set_xlim(0, limit)
            if visible:
                margin = 0.03 * (max(visible) - min(visible)) + 0.1
                panel.set_ylim(min(visible) - margin, max(visible) + margin)
            panel.set_xlabel("rate (bits per pixel)")
            panel.set_ylabel(f"{_TITLES[metric]} (dB, RGB)")
            if not many:
                panel.legend(loc="lower right", fontsize=8)
        if many:
            figure.legend(handles=handles.values(), loc="outside lower center", ncols=3, fontsize=8)
        if title:
            figure.suptitle(title, fontsize=10)
        buffer = io.BytesIO()
        kind = path.suffix.lower()
        figure.savefig(buffer, format=kind[1:], dpi=200, metadata=kinds[kind])
        plt.close(figure)
    write_atomically(path, buffer.getvalue())
