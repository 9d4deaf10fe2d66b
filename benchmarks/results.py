"""Make the tables of README and docs/notes anew from the reports in the repository.

    python benchmarks/results.py [--check]

Every number there comes from a report (a JSON file) that carries the command that made it and the
digests of what it was made from. A text between the comments ``results: NAME`` and ``/results`` is
replaced; pages that a benchmark writes as a whole are written by it. With --check nothing is
written: the status is 1 where a page is not what its reports say, or a report is of networks that
have changed since.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import click

from lichen import models
from lichen.boards import board as boards
from lichen.boards.record import Board
from lichen.codec import compared
from lichen.codec.rd import Curve, bd_rate, references
from lichen.errors import UserError
from lichen.files import write_text
from lichen.network.description import PHOTO
from lichen.network.file import load
from lichen.network.identity import static_digest

ROOT = Path(__file__).resolve().parents[1]
NOTES, BUILDS = ROOT / "docs" / "notes", ROOT / "benchmarks" / "builds"
CHECKPOINTS = ROOT / "benchmarks" / "checkpoints"

BLOCK = re.compile(
    r"(?P<head><!-- results: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- /results -->)", re.S
)

UART_BITS = 10
"""Of a byte on a serial line: start, eight, stop."""


def reports() -> dict[str, Path]:
    """All reports, by their names."""
    found = {path.stem: path for path in sorted(NOTES.glob("*.json"))}
    return found | {f"builds/{path.stem}": path for path in sorted(BUILDS.glob("*.json"))}


@cache
def read(name: str) -> dict[str, Any]:
    """A report."""
    return json.loads(reports()[name].read_text(encoding="utf-8"))


# What reports were made from ------------------------------------------------------------------


def recorded(name: str) -> Iterator[tuple[str, str]]:
    """What a report was made from: names of networks, checkpoints and their digests."""
    report = read(name)
    if name.startswith("builds/"):
        yield report["network"]["name"], report["network"]["sha256"]
        return
    for network, digest in report.get("digests", {}).items():
        for one in [digest] if isinstance(digest, str) else digest:
            yield network, one
    for one in report.get("ablations", []):
        if one.get("sha256"):
            yield one["checkpoint"], one["sha256"]
    for point in report.get("points", []):
        row = point.get("row", "")
        if row.startswith("FP32, with"):
            yield f"{point['name']}.longer", point["digest"]
        elif row.startswith("FP32"):
            yield f"{point['name']}{models.PARENT_SUFFIX}", point["digest"]
        else:  # calibrated ones are named by their parent's digest, and how
            parent = " " in point["digest"]
            suffix = models.PARENT_SUFFIX if parent else ""
            yield f"{point['name']}{suffix}", point["digest"].split()[0]


@cache
def present(name: str) -> frozenset[str] | None:
    """Digests of a network or checkpoint as it is now; None where a name stands for neither.

    An integer network has those of its file, of its file without context models, and of what
    decoding reads of it.
    """
    parent = models.shipped_parent(name)
    if name.endswith(models.PARENT_SUFFIX) and parent is not None:
        return frozenset([sha256(parent.read_bytes()).hexdigest()])
    file = models.shipped_network(name) or CHECKPOINTS / f"{name}.lichen"
    if file.exists():
        network = load(file)
        own = {sha256(file.read_bytes()).hexdigest(), static_digest(network)}
        return frozenset(own | set(models.digests(network)))
    file = CHECKPOINTS / f"{name}.safetensors"
    return frozenset([sha256(file.read_bytes()).hexdigest()]) if file.exists() else None


def faults() -> list[str]:
    """A sentence for every report without its command or its digests, or of something else."""
    found = []
    for name in reports():
        path, report = reports()[name].relative_to(ROOT), read(name)
        if not report.get("command"):
            found.append(f"{path} does not say which command made it.")
        pairs = [(network, digest) for network, digest in recorded(name) if "." not in digest]
        named = [(network, digest, present(network)) for network, digest in pairs]
        known = [item for item in named if item[2] is not None]
        if not known:
            found.append(f"{path} does not say what it was made from.")
        stale = sorted({network for network, digest, now in known if digest not in (now or ())})
        if stale:
            found.append(
                f"{path} was made from another {', '.join(stale)} than what is here; make it "
                f"again: {report.get('command', '?')}"
            )
    return found


# Tables ---------------------------------------------------------------------------------------


def source(name: str, page: Path = ROOT) -> str:
    """A sentence below a table in a page of that folder: report and command."""
    path = reports()[name].relative_to(page).as_posix()
    return f"[{path}]({path}), by `{read(name)['command']}`"


def percent(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f} %"


def _rate(test: Curve, anchor: Curve | None) -> str:
    if anchor is None or test is anchor:
        return ""
    try:
        return percent(bd_rate(test, anchor).percent)
    except UserError:
        return "–"


def _rates_on(name: str) -> str:
    """BD-rates in a report of `benchmarks/rd.py`, and where they are from."""
    report = read(name)
    curves = {curve["name"]: Curve.of_json(curve) for curve in report["curves"]}
    formats = [curves[kind] for kind in ("JPEG", "WebP", "AVIF")]
    # what CompressAI publishes is of Kodak
    published = [references()["bmshj2018-factorized"]] if report["set"] == "kodak" else []
    anchors = [*formats, *published]
    lines = [
        "| BD-rate against | " + " | ".join(anchor.name for anchor in anchors) + " |",
        "|---" * (len(anchors) + 1) + "|",
    ]
    for title, curve in curves.items():
        if curve in formats or len(curve.bpp) < 2:
            continue
        stem, _, kind = title.partition(", ")
        cells = [_rate(curve, anchor) for anchor in anchors]
        lines.append(f"| `{stem}`, {kind} | {' | '.join(cells)} |")
    where = f"On {report['images']} images of {report['set'].capitalize()}: {source(name)}."
    return "\n".join([*lines, "", where])


def rates() -> str:
    """README's BD-rates."""
    return f"{_rates_on('rd')}\n\n{_rates_on('rd-clic-test')}"


def versions() -> str:
    """README's sentence on version 2 of the file."""
    rows = read("containers")["rows"]
    found: dict[tuple[bool, str], list[float]] = {}
    for row in rows:
        if row["network"] != "tiny":
            hyper = "-hyper-" in row["network"]
            found.setdefault((hyper, row["images"]), []).append(-row["bytes"])
    lines = ["| bytes saved by version 2 | " + " | ".join(dict.fromkeys(r["images"] for r in rows)),
             "|---" * (1 + len({r["images"] for r in rows}))]  # fmt: skip
    for hyper, title in ((False, "factorized (`small`, `small-opt`)"), (True, "`small-hyper`")):
        cells = [
            f"{min(values):.0f} to {max(values):.0f} %"
            for (kind, _), values in found.items()
            if kind is hyper
        ]
        lines.append(f"| {title} | {' | '.join(cells)}")
    return "\n".join([line + " |" for line in lines] + ["", f"{source('containers')}."])


def savings() -> str:
    """README's sentence on the optimized family."""
    import optimized

    report = read("optimized")
    points = {point["name"]: point for point in report["points"]}
    shares = {"macs": [], "bops": []}  # type: dict[str, list[float]]
    for name, point in points.items():
        other = points.get(f"{name.replace(optimized.OPTIMIZED, optimized.FAMILY)}.w8a8")
        if point["curve"] == optimized.OPTIMIZED and other is not None:
            for what, values in shares.items():
                values.append(1 - point[what] / other[what])
    cost, low, high = (report["compared"][0][key] for key in ("bd_rate", "low", "high"))

    def span(values: list[float]) -> str:
        return f"{100 * min(values):.0f} to {100 * max(values):.0f} %"

    return (
        f"`small-opt` is `small` with {span(shares['macs'])} fewer multiplications and "
        f"{span(shares['bops'])} fewer bit-operations, for {percent(cost, 2)} rate "
        f"({low:+.2f} to {high:+.2f} % over images) against 8-bit networks with equally many steps "
        f"of training ({source('optimized')})."
    )


def integers() -> str:
    """README's table of what integers cost."""
    import quantization

    report = read("quantization")
    families = list(quantization.points_of(report))
    rows = {
        quantization.SHIPPED: "as shipped",
        quantization.PTQ: "calibrated only, 8 bits",
        quantization.MINMAX: "ranges from the extremes, 8 bits",
    }
    lines = [
        "| integers against FP32 with equally many steps | "
        + " | ".join(f"`{stem}` | 95 % over images" for stem in families)
        + " |",
        "|---" * (2 * len(families) + 1) + "|",
    ]
    for row, title in rows.items():
        cells = []
        for stem in families:
            cells += compared.cells(quantization.comparison(report, stem, row))[:2]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{source('quantization')}."])


def builds() -> str:
    """README's table of bitstreams on record, the fastest first."""
    titles = (
        "network, transform | board, link | clock | photographs a second, engine | over the link"
    )
    lines = [f"| {titles} | multipliers, block RAMs, LUTs | report |", "|---" * 7 + "|"]
    kept = [(name, read(name)) for name in reports() if name.startswith("builds/")]
    for name, report in sorted(kept, key=lambda item: -item[1]["fps"]):
        board = boards.find(report["board"]).with_link(report.get("link_kind", "uart"))
        what = report.get("transform") or ", ".join(report.get("transforms", []))
        line_fps = report.get("fps_link", _serial(report, what))
        path = reports()[name].relative_to(ROOT).as_posix()
        seeds = report.get("seeds", {}).values()
        others = f" (slowest of {len(seeds)} seeds: {min(seeds):.1f})" if len(seeds) > 1 else ""
        cells = [
            f"{report['network']['name']}, {what}",
            f"{board.title}, {_link(report, board)}",
            f"{report['clock_mhz']:.1f} MHz{others}",
            f"{report['fps']:.1f}",
            "" if line_fps is None else f"{line_fps:.2f}",
            f"{report['dsp']}, {report['bram']}, {report['lut']}",
            f"[{Path(path).stem}]({path})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _link(report: dict[str, Any], board: Board) -> str:
    """How a build talks to its host; a serial line with the rate that it was built with."""
    if board.link.kind == "uart" and "baud" in report:
        return f"{report['baud'] / 1e6:.2g} Mbaud"
    return board.link.title


def _serial(report: dict[str, Any], transform: str) -> float | None:
    """Frames a second that a serial line has time for, if it carries pixels in or out."""
    if transform not in ("g_a", "g_s") or "baud" not in report:
        return None
    return report["baud"] / UART_BITS / (PHOTO[0] * PHOTO[1] * 3)


def containers() -> str:
    """The table of docs/notes/containers.md."""
    import containers as benchmark

    return benchmark.table(read("containers")["rows"])


def contexts() -> str:
    """What the shipped networks' context models take."""
    lines = ["| network | tables | entries | bits |", "|---|---|---|---|"]
    for name in models.names():
        found = models.load_network(name).contexts
        if found is not None:
            lines.append(
                f"| {name} | {len(found.tables.lengths)} | {found.entries} | {found.bits} |"
            )
    return "\n".join(lines)


def photographs() -> str:
    """Gateware on whole photographs."""
    import photographs as benchmark

    where = f"Of {read('photographs')['set'].capitalize()}: {source('photographs', NOTES)}."
    return f"{benchmark.table(read('photographs')['runs'])}\n\n{where}"


def speed() -> str:
    """The commands' times."""
    import codec_speed as benchmark

    return f"{benchmark.table(read('codec_speed'))} From {source('codec_speed', NOTES)}."


BLOCKS: dict[str, Callable[[], str]] = {
    "rates": rates,
    "versions": versions,
    "savings": savings,
    "integers": integers,
    "builds": builds,
    "containers": containers,
    "contexts": contexts,
    "speed": speed,
    "photographs": photographs,
}
"""What may stand between marks."""


def _rd(name: str) -> str:
    import rd

    report = read(name)
    known = references()
    published = [known[name] for name in rd.PUBLISHED] if report["set"] == "kodak" else []
    return rd.tables(report, [Curve.of_json(curve) for curve in report["curves"]], published)


def _optimized() -> str:
    import optimized

    return optimized.page_of(read("optimized"))


def _quantization() -> str:
    import quantization

    report = read("quantization")
    return quantization.page_of(report, report["ablations"])


PAGES: dict[Path, Callable[[], str]] = {
    NOTES / "rd.md": lambda: _rd("rd"),
    NOTES / "rd-clic-test.md": lambda: _rd("rd-clic-test"),
    NOTES / "optimized.md": _optimized,
    NOTES / "quantization.md": _quantization,
}
"""What benchmarks write as a whole."""


def by_image() -> str:
    """models/measured_images.json: the curves of docs/notes/rd.json image by image, rounded, for
    the intervals in reports."""
    report = read("rd")
    curves = []
    for curve in report["curves"]:
        points = [
            {
                "name": point["name"],
                "bpp": [round(image["bpp"], 5) for image in point["images"]],
                "psnr": [round(image["psnr-rgb"], 3) for image in point["images"]],
            }
            for point in curve["points"]
        ]
        curves.append({"name": curve["name"], "points": points})
    images = [image["name"] for image in report["curves"][0]["points"][0]["images"]]
    return json.dumps({"set": report["set"], "images": images, "curves": curves}) + "\n"


def pages() -> dict[Path, str]:
    """All pages and files with results, as they should be."""
    found = {path: make() for path, make in PAGES.items()}
    found[models.folder().resolve() / models.BY_IMAGE] = by_image()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = found.get(path) or path.read_text(encoding="utf-8")
        if BLOCK.search(text):
            found[path] = BLOCK.sub(
                lambda m: f"{m['head']}{BLOCKS[m['name']]()}\n{m['tail']}", text
            )
    return found


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; say what is not as it should be.")
def command(check: bool) -> None:
    """Make the tables anew."""
    problems = faults()
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        name = path.relative_to(ROOT)
        if check:
            problems.append(f"{name} is not what its reports say; make it again: make results")
        else:
            write_text(path, text)
            click.echo(f"wrote {name}")
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    command()
