"""Charts as SVG that takes the colours of the page: light, dark and in print."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen.codec.rd import PSNR, Curve, Style, default_styles

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws; no chart uses it otherwise."""

MUTED = "#040506"
"""Likewise, for grids."""

SERIES = ("#2f8f6b", "#c2703d", "#3b78b5", "#9a6bb0")
"""Visible on white and on near black."""


def figure(
    draw: Callable[[Any], None], *, width: float = 5.0, height: float = 3.6, label: str
) -> str:
    """An ``<svg>`` of what ``draw`` does with a matplotlib figure; ``label`` is read aloud."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    look: dict[Any, Any] = {
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": MUTED,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    with plt.rc_context(look):
        drawing = plt.figure(figsize=(width, height), layout="constrained")
        draw(drawing)
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        plt.close(drawing)
    return inline(buffer.getvalue(), label)


def inline(svg: str, label: str) -> str:
    """An SVG file as an element of a page: no prolog, no fixed size, colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    # ids must be one a page; matplotlib's are one a file
    prefix = re.sub(r"\W+", "-", label)
    svg = re.sub(r'id="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="|href="|url\()#', rf"\1#{prefix}-", svg)
    svg = svg.replace(INK, "currentColor").replace(MUTED, "var(--line)")
    return svg.replace(
        "<svg", f'<svg class="chart" role="img" aria-label="{html.escape(label)}"', 1
    )


def rate_distortion(curves: Sequence[Curve], highlighted: int, points: Sequence[Curve]) -> str:
    """Curves, of which the first ``highlighted`` are the subject's, and single points."""
    styles = default_styles(len(curves))

    def draw(drawing: Any) -> None:
        ax = drawing.subplots()
        ax.grid(True)
        for i, (curve, style) in enumerate(zip(curves, styles, strict=True)):
            own = i < highlighted
            style = style if own else Style("#888888", style.marker, style.line, 1.0)
            ax.plot(
                curve.bpp, curve.metrics[PSNR], color=style.color, marker=style.marker,
                linestyle=style.line, markersize=4 if own else 2.5,
                linewidth=2 if own else 1, label=curve.name, zorder=3 if own else 2,
            )  # fmt: skip
        for i, point in enumerate(points):
            ax.plot(
                point.bpp, point.metrics[PSNR], "*", markersize=13, color=SERIES[1 + i % 3],
                label=point.name, zorder=4,
            )  # fmt: skip
        shown = [*curves[:highlighted], *points]
        if shown:
            most = max(max(curve.bpp) for curve in shown)
            values = [v for curve in shown for v in curve.metrics[PSNR]]
            ax.set_xlim(0, 1.5 * most)
            ax.set_ylim(min(values) - 1.5, max(values) + 2)
        ax.set_xlabel("rate (bits per pixel)")
        ax.set_ylabel("PSNR (dB, RGB)")
        drawing.legend(fontsize=8, loc="outside lower center", ncols=2)

    return figure(draw, height=4.8, label="Rate and distortion on Kodak")


def bars(names: Sequence[str], series: Mapping[str, Sequence[float]], unit: str, label: str) -> str:
    """Horizontal bars, a group for each name."""

    def draw(drawing: Any) -> None:
        ax = drawing.subplots()
        places = np.arange(len(names))
        thickness = min(0.8, 0.3 * len(names)) / len(series)  # one alone is no block
        for i, (name, values) in enumerate(series.items()):
            ax.barh(
                places + (i - (len(series) - 1) / 2) * thickness, values, thickness,
                color=SERIES[i % len(SERIES)], label=name,
            )  # fmt: skip
        ax.set_yticks(places, names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(True, axis="x")
        ax.set_axisbelow(True)
        ax.set_xlabel(unit)
        if len(series) > 1:
            drawing.legend(fontsize=8, loc="outside lower center", ncols=len(series))

    return figure(draw, height=1.2 + 0.3 * len(names), label=label)


def spread(parts: dict[str, dict[str, npt.NDArray]], label: str) -> str:
    """How many weights reach which share of their channel's greatest, before and after."""

    def draw(drawing: Any) -> None:
        axes = drawing.subplots(1, len(parts), squeeze=False, sharey=True)[0]
        edges = np.linspace(0, 1, 41)
        colours = {"before": SERIES[0], "after": SERIES[1]}
        for ax, (name, shares) in zip(axes, parts.items(), strict=True):
            for series, values in shares.items():
                counts = np.histogram(values, edges)[0] / max(1, len(values))
                ax.stairs(counts, edges, color=colours[series], label=series, linewidth=1.6)
            ax.set_yscale("log")
            ax.set_title(name, fontsize=9)
            ax.grid(True)
            ax.set_xlabel("|w| / greatest of its channel")
        axes[0].set_ylabel("share of the weights")
        known: dict[str, Any] = {}
        for ax in axes:
            lines, names = ax.get_legend_handles_labels()
            known |= dict(zip(names, lines, strict=True))
        drawing.legend(
            known.values(), known.keys(), fontsize=8, loc="outside lower center", ncols=2
        )

    return figure(draw, height=3.2, label=label)


def recoloured(path: Path, label: str) -> str:
    """A drawing that another room made in black on white, in the colours of the page."""
    svg = path.read_text(encoding="utf-8")
    for black in ("#000000", "black"):
        svg = svg.replace(black, INK)
    svg = re.sub(r"fill: #ffffff|fill: white", "fill: none", svg)
    # glyphs have no fill of their own: black on any page
    return inline(svg, label).replace("<svg", '<svg fill="currentColor"', 1)
