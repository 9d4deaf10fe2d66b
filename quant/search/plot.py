"""A plot of a search."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lichen import caches
from lichen.files import write_atomically


def plot(log: Sequence[Mapping[str, Any]], path: str | Path, *, cost: str) -> None:
    """The path: loss against cost, with everything that was tried; the suffix names the format.

    ``cost`` is what the cost is called.
    """
    caches.prepare()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = log[0]["cost"]

    def points(entries: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        known = [entry for entry in entries if entry["loss"] is not None]
        return [100 * e["cost"] / first for e in known], [100 * e["loss"] for e in known]

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    tried = [trial for entry in log for trial in entry.get("tried", ())]
    top = max([100 * entry["loss"] for entry in log] + [0.0])
    xs, ys = points(tried)
    axes.plot(xs, ys, ".", color="0.75", markersize=4, label="tried", zorder=1)
    axes.plot(*points(log), "-", color="#5b8c5a", zorder=2)
    for step, marker, label in (
        ("lower", "o", "bits taken away"),
        ("raise", "^", "bits given back"),
        ("exchange", "D", "exchanged"),
        ("tune", "s", "fine-tuned"),
    ):
        entries = [entry for entry in log if entry["step"] == step]
        if entries:
            axes.plot(*points(entries), marker, markersize=4, label=label, zorder=3)
    axes.set_ylim(min([0.0, *(100 * e["loss"] for e in log)]) - 0.1 * (top + 0.1), 1.5 * top + 0.1)
    axes.invert_xaxis()
    axes.set_xlabel(f"{cost}, % of the start")
    axes.set_ylabel("loss, % of the rate")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip(".") or "png", dpi=150)
    pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
