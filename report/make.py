"""Puts a report together: from subjects to the text of a page."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lichen import models
from lichen.boards.board import Board
from lichen.boards.build.flow import PICTURE
from lichen.boards.build.report import REST
from lichen.codec.bootstrap import ImageCurves, interval
from lichen.codec.container import Container
from lichen.codec.evaluate import family
from lichen.codec.rd import PSNR, Curve, bd_rate, references
from lichen.errors import UserError
from lichen.network.description import PHOTO, Network
from lichen.network.identity import static_digest
from lichen.report import charts, facts
from lichen.report.page import Page, error_map, paragraph, picture, slider, table, text
from lichen.report.subject import Subject
from lichen.sim.quality import psnr

FLOORPLANS = (PICTURE, "floorplan.svg")
"""Pictures of a placed design that a build leaves beside its report, or `--plot` left there."""

DRAWS = 200
"""Of images, for an interval: enough for a tenth of a per cent or two."""

Progress = Callable[[str], None]


def make(
    subjects: Sequence[Subject],
    *,
    board: Board,
    pixels: npt.NDArray[np.uint8],
    quick: bool = False,
    progress: Progress = lambda _: None,
) -> str:
    """The page about one or two subjects.

    Parameters
    ----------
    subjects : sequence of Subject
    board : Board
        For which networks are planned.
    pixels : uint8 array (height, width, 3)
        What is coded to show pictures and sensitivity.
    quick : bool
        Leave out what takes long: sensitivity, which codes the image once for every stage, and
        the plans.
    """
    page = Page("Lichen: " + " and ".join(subject.title for subject in subjects))
    networks = _networks(subjects)
    page.section("Summary", _summary(subjects))
    if networks:
        progress("rate and distortion")
        page.section("Rate and distortion", *_rate_distortion(networks))
        page.section("Stages", *(part for s in networks for part in _stages(s)))
        progress("weights")
        page.section("Weights", *(part for s in networks for part in _weights(s)))
        if not quick:
            page.section(
                "Sensitivity",
                *(part for s in networks for part in _sensitivity(s, pixels, progress)),
            )
            progress("plan")
            page.section("Plan", *(part for s in networks for part in _plan(s, board)))
    built = [subject for subject in subjects if subject.build is not None]
    if built:
        page.section("Build", *(part for s in built for part in _build(s)))
    if networks:
        progress("pictures")
        page.section("Pictures", *(part for s in networks for part in _pictures(s, pixels)))
    return page.render()


def _networks(subjects: Sequence[Subject]) -> list[Subject]:
    """The networks of the subjects: each once, though a build of it stands beside it."""
    found: dict[str, Subject] = {}
    for subject in sorted(subjects, key=lambda s: s.build is not None):
        if subject.network is not None:
            title = subject.title if subject.build is None else subject.network.name
            alone = Subject(title or subject.title, subject.network, subject.parent)
            found.setdefault(static_digest(subject.network), alone)
    return list(found.values())


def _heading(subject: Subject) -> str:
    return f"<h3>{text(subject.title)}</h3>"


def _network(subject: Subject) -> Network:
    assert subject.network is not None
    return subject.network


def _summary(subjects: Sequence[Subject]) -> str:
    rows: list[tuple[str, list[object]]] = []

    def add(name: str, value: Callable[[Network], object]) -> None:
        rows.append((name, [None if s.network is None else value(s.network) for s in subjects]))

    add("architecture", lambda n: n.architecture)
    add("N, M", lambda n: f"{n.n}, {n.m}")
    add("transforms", lambda n: ", ".join(n.transforms))
    add("GMAC for 768x512", lambda n: f"{n.macs(*PHOTO) / 1e9:.3f}")
    add("bit-operations for 768x512 (G)", lambda n: f"{n.bops(*PHOTO) / 1e9:.1f}")
    for name, key, form in (("bpp", "bpp", "{:.4f}"), ("PSNR (dB)", "psnr", "{:.2f}")):
        measured = [models.measured(s.title.split(" ")[0]) for s in subjects]
        rows.append((f"{name}, Kodak", [m and form.format(m[key]) for m in measured]))
    for name, key in (("clock reached (MHz)", "fmax_mhz"), ("frames/s, built", "fps")):
        rows.append((name, [None if s.build is None else str(s.build.get(key)) for s in subjects]))
    kept = [(name, values) for name, values in rows if any(v is not None for v in values)]
    return table(["", *(s.title for s in subjects)], [[name, *values] for name, values in kept])


def _rate_distortion(subjects: Sequence[Subject]) -> list[str]:
    families = list(dict.fromkeys(family(_network(s).name) for s in subjects))
    own, points = [], []
    for name in families:
        members = [n for n in models.names() if family(n) == name]
        for suffix in ("", models.PARENT_SUFFIX):
            found = [models.measured(member + suffix) for member in members]
            known = [{"bpp": f["bpp"], PSNR: f["psnr"]} for f in found if f is not None]
            if len(known) > 1:
                own.append(Curve.of(name + (" (FP32)" if suffix else ""), known))
    for subject in subjects:
        measured = models.measured(_network(subject).name)
        if measured is not None:
            point = [{"bpp": measured["bpp"], PSNR: measured["psnr"]}]
            points.append(Curve.of(_network(subject).name, point))
    others = list(references().values())
    parts = [charts.rate_distortion([*own, *others], len(own), points)]
    rows = []
    for curve in own:
        cells: list[object] = [curve.name]
        for anchor in others:
            try:
                cells.append(f"{bd_rate(curve, anchor).percent:+.1f} %")
            except UserError:
                cells.append(None)
        rows.append(cells)
    if rows:
        parts.append(table(["BD-rate against", *(c.name for c in others)], rows))
    parts += _intervals(families)
    if not points:
        parts.append(paragraph("This network is not a shipped one: nothing is on record for it."))
    parts.append(
        paragraph(
            "Means over Kodak, from bytes really coded; the grey curves are those that CompressAI "
            "published. In brackets, the middle 95 % over draws of images (bootstrap)."
        )
    )
    return parts


def _intervals(families: Sequence[str]) -> list[str]:
    """BD-rates against what was measured on the same images, and how sure they are."""
    known = models.measured_by_image()
    images = tuple(known["images"])
    curves = []
    for curve in known["curves"]:
        bpp, quality = (np.array([p[key] for p in curve["points"]]) for key in ("bpp", "psnr"))
        curves.append(ImageCurves(curve["name"], images, bpp, quality))
    own = [c for c in curves if c.name.partition(", ")[0] in families and len(c.bpp) > 1]
    # no FP32 networks, which have no contexts
    others = [c for c in curves if ", " not in c.name]
    everything = np.arange(len(images))
    rows = []
    for curve in own:
        cells: list[object] = [curve.name]
        for anchor in others:
            try:
                rate = bd_rate(curve.curve(everything), anchor.curve(everything)).percent
            except UserError:
                cells.append(None)
                continue
            found = interval(curve, anchor, draws=DRAWS) if curve is not anchor else None
            span = "" if found is None else f" ({found.low:+.1f} .. {found.high:+.1f})"
            cells.append(None if curve is anchor else f"{rate:+.1f} %{span}")
        rows.append(cells)
    heads = ["BD-rate, measured here, against", *(c.name for c in others)]
    return [table(heads, rows)] if rows else []


def _stages(subject: Subject) -> list[str]:
    rows = facts.stages(_network(subject))
    total = sum(row.macs for row in rows)
    names = [f"{row.transform} {row.name}" for row in rows]
    listed = [
        [
            name,
            row.activation,
            row.channels,
            row.unpruned - row.channels or None,
            row.weight_bits,
            row.gamma_bits,
            row.x_bits,
            row.output_bits,
            f"{row.macs / 1e6:.1f}",
            f"{row.macs / total:.1%}",
            f"{row.bops / 1e9:.2f}",
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    heads = [
        "stage", "activation", "channels", "pruned", "weight bits", "gamma bits", "x bits",
        "output bits", "MMAC", "of all", "G bit-operations",
    ]  # fmt: skip
    bits = {
        "weights": [row.weight_bits for row in rows],
        "outputs": [row.output_bits for row in rows],
    }
    work = {"products": [row.macs / 1e6 for row in rows]}
    return [
        _heading(subject),
        table(heads, listed),
        '<div class="grid">',
        charts.bars(names, bits, "bits", f"Bits of {subject.title}"),
        charts.bars(names, work, "million products", f"Products of {subject.title}"),
        "</div>",
    ]


def _weights(subject: Subject) -> list[str]:
    spread = facts.weight_spread(_network(subject), subject.parent)
    words = "Weights as shares of the greatest of their output channel."
    if any("before" in part for part in spread.values()):
        words += (
            " Before: the FP32 checkpoint. After: the integers. A tail to the right of the rest "
            "is outliers, which cost all the other weights of their channel precision."
        )
    return [
        _heading(subject),
        charts.spread(spread, f"Spread of weights of {subject.title}"),
        paragraph(words),
    ]


def _sensitivity(subject: Subject, pixels: npt.NDArray[np.uint8], progress: Progress) -> list[str]:
    lost = facts.sensitivity(_network(subject), pixels, progress)
    names = [" ".join(key) for key in lost]
    return [
        _heading(subject),
        charts.bars(
            names, {"dB": list(lost.values())}, "PSNR lost (dB)", f"Sensitivity of {subject.title}"
        ),
        paragraph(
            "PSNR that the photograph under Pictures loses when one stage's weights lose their "
            f"{facts.LOST_BITS} lowest bits."
        ),
    ]


def _plan(subject: Subject, board: Board) -> list[str]:
    from lichen.boards.build.achieved import clock_of_plans
    from lichen.boards.design import fold
    from lichen.hw.plan import occupancy
    from lichen.hw.plan.planner import evaluate

    network, parts = _network(subject), [_heading(subject)]
    for key in ("g_a", "g_s"):
        if key not in network.transforms:
            continue
        try:
            folding = fold(network, [key], board, max_width=None, multipliers=None)[0]
        except (UserError, ValueError) as error:
            parts.append(paragraph(f"{key}: no plan for the {board.title}: {error}"))
            continue
        plan = evaluate(network.transform(key), folding, frame=network.frames(*PHOTO)[key])
        clock = clock_of_plans(board, [plan])
        hertz = board.pll_below(clock.limit_mhz).output_hz
        rows = plan.stages()
        have = board.budget
        parts += [
            paragraph(
                f"{key} on {board.title}: {plan.cycles_per_frame:,} cycles for 768x512, "
                f"{hertz / plan.cycles_per_frame:.2f} frames/s at {hertz / 1e6:g} MHz "
                f"({clock.source}); {plan.resources.dsp} of {have.dsp} multipliers, "
                f"{plan.resources.bram} of {have.bram} block RAMs, about {plan.resources.lut} of "
                f"{have.lut} LUTs."
            ),
            table(
                ["unit", "P x Q x S", "back-end", "busy", "multipliers", "block RAMs", "weights",
                 "rows", "LUTs"],
                [
                    [
                        row["name"],
                        f"{row['pixels']} x {row['channels']} x {row['lanes']}",
                        row["backend"],
                        f"{row['busy']:.1%}",
                        row["dsp"],
                        row["bram"],
                        row["bram_weights"],
                        row["bram_lines"],
                        row["lut"],
                    ]
                    for row in rows
                ],
            ),
            charts.bars(
                [row["name"] for row in rows],
                {
                    "weights": [row["bram_weights"] for row in rows],
                    "rows": [row["bram_lines"] for row in rows],
                    "all": [row["bram"] for row in rows],
                },
                "block RAMs",
                f"Block RAM of {subject.title} {key}",
            ),
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            drawing = Path(folder) / "timeline.svg"
            occupancy.draw(plan, hertz, "Which array works when", drawing)
            parts.append(charts.recoloured(drawing, f"Timeline of {subject.title} {key}"))
    return parts


def _build(subject: Subject) -> list[str]:
    build = subject.build
    assert build is not None
    planned = build.get("planned") or {}
    rows = [
        [name, planned.get(key), build.get(key)]
        for name, key in (
            ("multipliers", "dsp"),
            ("block RAMs", "bram"),
            ("LUTs", "lut"),
            ("flip-flops", "ff"),
        )
    ]
    parts = [
        _heading(subject),
        table(["", "planned", "achieved"], rows),
        paragraph(
            f"{build.get('fmax_mhz')} MHz after place and route, clock {build.get('clock_mhz')} "
            f"MHz, {build.get('fps')} frames/s of 768x512 in the engine; never said to have run on "
            "silicon."
        ),
    ]
    parts += _units(subject)
    seeds = {str(k): v for k, v in (build.get("seeds") or {}).items() if v is not None}
    if seeds:
        parts.append(
            charts.bars(
                [f"seed {seed}" for seed in seeds],
                {"MHz": [float(v) for v in seeds.values()]},
                "MHz after place and route",
                f"Clock by seed of {subject.title}",
            )
        )
    if tools := build.get("tool_versions"):
        parts.append(table(["tool", "version"], [[k, str(v)] for k, v in tools.items()]))
    for name in FLOORPLANS:
        path = (subject.folder or Path()) / name
        if subject.folder is not None and path.is_file():
            kind = "svg+xml" if path.suffix == ".svg" else "png"
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            parts.append(
                f'<figure><img alt="Floorplan" src="data:image/{kind};base64,{data}">'
                "<figcaption>Floorplan of the placed design</figcaption></figure>"
            )
            break
    return parts


KINDS = ("dsp", "bram", "lut", "ff")
"""Primitives, as plans and builds call them; plans have no flip-flops."""


def _units(subject: Subject) -> list[str]:
    """What the plan of a build gave each unit, and what synthesis made of it where that is known.

    Builds of earlier versions counted the whole only.
    """
    build = subject.build or {}
    planned, counted = _planned_units(subject), _counted_units(build)
    if not planned:
        return []
    whole = build.get("planned") or {}
    named = {kind: sum(row[kind] for row in planned.values()) for kind in KINDS[:3]}
    planned[REST] = {kind: whole.get(kind, total) - total for kind, total in named.items()}
    heads = ["unit", *(f"{name} planned" for name in ("multipliers", "block RAMs", "LUTs"))]
    rows: list[list[object]] = [
        ["link and rest" if name == REST else name, *(row[kind] for kind in KINDS[:3])]
        for name, row in planned.items()
    ]
    if not counted:
        return [table(heads, rows)]
    # A transform's own control is a unit in the netlist, and part of the rest in a plan.
    others = [used for name, used in counted.items() if name not in planned or name == REST]
    made = {**counted, REST: {kind: sum(used[kind] for used in others) for kind in KINDS}}
    for name, row in zip(planned, rows, strict=True):
        row += [made[name][kind] if name in made else None for kind in KINDS]
    heads += ["multipliers", "block RAMs", "LUTs", "flip-flops"]
    added = build.get("lut", 0) - sum(used["lut"] for used in counted.values())
    words = (
        "Planned for each unit, and counted in the netlist after synthesis. Place and route adds "
        f"LUTs, here {added:,}, most of them where carry chains begin and end; plans count them."
    )
    return [table(heads, rows), paragraph(words)]


def _counted_units(build: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What synthesis made of each unit; nothing where the report does not say so, or not in this
    way."""
    try:
        return {
            name: {kind: int(used[kind]) for kind in KINDS}
            for name, used in (build.get("units") or {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _planned_units(subject: Subject) -> dict[str, dict[str, int]]:
    """What a build's plan gave each unit, by ``TRANSFORM.UNIT``; nothing without its network."""
    from lichen.hw.plan.planner import evaluate
    from lichen.hw.stage.folding import Folding
    from lichen.hw.stage.loaded import loadable

    build, network = subject.build or {}, subject.network
    if network is None:
        return {}
    found = {}
    parts = build.get("transforms") or {build.get("transform"): build}
    try:
        for key, part in parts.items():
            folding = Folding.model_validate(part["folding"])
            own = network.transform(key)
            planned = loadable(own) if build.get("weights") == "load" else own
            plan = evaluate(planned, folding, frame=network.frames(*PHOTO)[key])
            for row in plan.stages():
                found[f"{key}.{row['name']}"] = {kind: row[kind] for kind in KINDS[:3]}
    except (ValueError, KeyError, TypeError, UserError):
        return {}  # a report by hand, or of another version: the rest of it is shown
    return found


def _pictures(subject: Subject, pixels: npt.NDArray[np.uint8]) -> list[str]:
    network = _network(subject)
    if not {"g_a", "g_s"} <= set(network.transforms) or not network.entropy:
        return [_heading(subject), paragraph("This network does not code images by itself.")]
    container = Container(network)
    data = container.encode(pixels)
    decoded = container.decode(data).picture.pixels
    height, width = pixels.shape[:2]
    caption = (
        f"{len(data):,} bytes, {8 * len(data) / (width * height):.3f} bits per pixel, "
        f"{psnr(pixels, decoded):.2f} dB"
    )
    return [
        _heading(subject),
        '<div class="pictures">',
        slider(pixels, decoded, ("original", caption)),
        f"<figure>{picture(error_map(pixels, decoded), 'error')}"
        "<figcaption>Error, eight times enlarged</figcaption></figure></div>",
    ]
