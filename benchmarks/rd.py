"""Rate-distortion curves of the shipped networks beside the usual codecs, for the docs.

    python benchmarks/rd.py --images KODAK --plot docs/notes/rd.png --table docs/notes/rd.md \\
        --json docs/notes/rd.json

measures every shipped network (with --fp32 also its parent), JPEG, WebP and AVIF on a folder of
images, all from bytes really coded, and writes a plot and tables. Where the folder is called
kodak, CompressAI's published curves join them. The JSON file grows point by point, and points
in it whose network has not changed since are not measured again. With --redraw nothing is.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import json
from collections.abc import Callable
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from lichen import models
from lichen.codec import compared
from lichen.codec.evaluate import (
    PILLOW_FORMATS,
    Codec,
    Evaluation,
    NetworkCodec,
    PillowCodec,
    evaluate,
    family,
    to_json,
)
from lichen.codec.rd import (
    MS_SSIM,
    PALETTE,
    PSNR,
    Curve,
    Style,
    bd_rate_table,
    plot,
    points_table,
    references,
)
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.sim.images import list_images

INTEGERS, FP32 = ", integers", ", FP32"
"""What the curves of a family are called after its name."""

PUBLISHED = ("bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean")
FORMATS = {"JPEG": ("#9a9a9a", "x"), "WebP": ("#777777", "+"), "AVIF": ("#444444", "1")}


def digest(codec: Codec) -> str:
    """What a codec's figures depend on: the file of a shipped network, or its description."""
    path = models.shipped_parent(codec.name)
    if not codec.name.endswith(models.PARENT_SUFFIX):
        path = models.shipped_network(codec.name)
    return codec.description if path is None else sha256(path.read_bytes()).hexdigest()


def open_codecs(names: list[str], fp32: bool) -> list[tuple[str, list[Codec]]]:
    """Titles and codecs of the curves to measure."""
    curves: list[tuple[str, list[Codec]]] = []
    for stem, group in groupby(sorted(names, key=lambda name: (family(name), name)), family):
        members = list(group)
        networks = [models.load_network(name) for name in members]
        curves.append((f"{stem}{INTEGERS}", [NetworkCodec(network) for network in networks]))
        if fp32:
            from lichen.quant.float.architectures import build_model
            from lichen.quant.float.checkpoint import load_checkpoint
            from lichen.quant.training.evaluate import FloatCodec

            parents = [f"{n}{models.PARENT_SUFFIX}" for n in members if models.shipped_parent(n)]
            real: list[Codec] = [
                FloatCodec(build_model(*load_checkpoint(name)[:4]), name) for name in parents
            ]
            if real:
                curves.append((f"{stem}{FP32}", real))
    for kind, known in PILLOW_FORMATS.items():
        curves.append((known.title, [PillowCodec(kind, quality) for quality in known.curve]))
    return curves


def measure(
    images: str,
    names: list[str],
    fp32: bool,
    before: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda report: None,
    file: str | None = None,
) -> dict[str, Any]:
    """All curves in the format of `lichen evaluate`, as far as ``before`` does not have them.

    ``save`` gets the report after every point; ``file`` is where it will lie.
    """
    try:
        from lichen.quant.training.evaluate import ms_ssim
    except ImportError:
        ms_ssim = None  # type: ignore[assignment]
    files = list_images(images)
    report: dict[str, Any] = {"set": Path(images).resolve().name, "images": len(files)}
    known: dict[tuple[str, str], Evaluation] = {}
    if before is not None and all(before[key] == report[key] for key in ("set", "images")):
        for curve in before["curves"]:
            for point in curve["points"]:
                found = Evaluation.from_json(point)
                known[found.name, before["digests"][found.name]] = found
    curves = open_codecs(names, fp32)
    digests = {codec.name: digest(codec) for _, codecs in curves for codec in codecs}
    words = ["python benchmarks/rd.py", f"--images {report['set']}", *["--fp32"] * fp32]
    words += [] if file is None else [f"--json {file}"]
    report |= {"command": " ".join(words), "curves": [], "digests": digests}
    todo = [pair for pair in digests.items() if pair not in known]
    with tqdm(total=len(files) * len(todo), unit="image") as bar:
        for title, codecs in curves:
            points: list[Evaluation] = []
            report["curves"].append({})
            for codec in codecs:
                point = known.get((codec.name, digests[codec.name]))
                if point is None:
                    bar.set_description(codec.name)
                    point = evaluate(codec, files, ms_ssim=ms_ssim, progress=lambda _: bar.update())
                points.append(point)
                report["curves"][-1] = to_json(points, title)
                save(report)
    report["compared"] = comparisons(report)
    save(report)
    return report


def comparisons(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every network's curve beside every image format's, on the report's own images."""
    points = {
        curve["name"]: [Evaluation.from_json(point) for point in curve["points"]]
        for curve in report["curves"]
    }
    own = [name for name in points if name not in FORMATS]
    pairs = [(name, kind) for name in own for kind in FORMATS if kind in points]
    found = [compared.compare(points[a], points[b], names=(a, b)) for a, b in pairs]
    return [one for one in found if one is not None]


def families(curves: list[Curve]) -> str:
    """What the families of curves are."""
    found = {}
    for curve in curves:
        name = curve.points[0].removesuffix(models.PARENT_SUFFIX)
        if models.shipped_network(name) is not None:
            net = models.load_network(name)
            found[family(name)] = f"{net.architecture}, N = {net.n}, M = {net.m}"
    return "; ".join(f"`{name}`: {what}" for name, what in found.items())


def ours(curves: list[Curve]) -> list[Curve]:
    """The networks among the curves."""
    return [curve for curve in curves if curve.name not in FORMATS]


def styles(curves: list[Curve], published: list[Curve]) -> list[Style]:
    """Ours in colour, FP32 parents the same dashed, image formats grey, published curves thin."""
    found, color = [], -1
    for curve in curves:
        if curve.name in FORMATS:
            shade, marker = FORMATS[curve.name]
            found.append(Style(shade, marker, "--", 1.1))
            continue
        parent = curve.name.endswith(FP32)
        color += not parent
        marker = "osD^v"[color % 5]
        width, line = (1.2, "--") if parent else (2.0, "-")
        found.append(Style(PALETTE[color % 5], marker, line, width, hollow=parent))
    shades = ("#b9770e", "#7d3c98", "#a93226")
    return found + [Style(shade, "", ":", 1.4) for shade in shades[: len(published)]]


def over_images(report: dict[str, Any]) -> str:
    """A section: how much the choice of images matters."""
    found = {(one["test"], one["anchor"]): one for one in report["compared"]}
    tests = dict.fromkeys(test for test, _ in found)
    heads = [f"{kind}: {head}" for kind in FORMATS for head in compared.HEADS[1:]]
    lines = ["## Over images\n", f"Of the PSNR BD-rates above. {compared.EXPLAINED}\n"]
    lines += [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for test in tests:
        cells = [cell for kind in FORMATS for cell in compared.cells(found.get((test, kind)))[1:]]
        lines.append(f"| {test} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if tests else ""


def tables(report: dict[str, Any], curves: list[Curve], published: list[Curve]) -> str:
    """The Markdown page."""
    own = ours(curves)
    formats = [curve for curve in curves if curve.name in FORMATS]
    descriptions = [
        f"{curve['name']}: {curve['description'].removeprefix('Inference (').removesuffix(')')}"
        for curve in report["curves"]
        if curve["name"] in FORMATS
    ]
    text = [
        "# Rate and distortion\n",
        f"Means over the {report['images']} images of `{report['set']}`: bits of bytes really "
        "coded over the pixels of each image, RGB PSNR and MS-SSIM of the decoded 8-bit images. "
        "Networks in integers, decoded by the golden model: whole files. FP32 networks: streams. "
        f"{families(own)}. "
        f"{'; '.join(descriptions)}. Made by `benchmarks/rd.py`.\n",
    ]
    if published:
        text.append(
            "Curves marked (CompressAI) are the means CompressAI publishes for its models.\n"
        )
    text += [
        "## BD-rate\n",
        "Rate needed for the same quality; negative is better. Integers in files of version 2 "
        "choose tables by context, which FP32 networks do not have: what integers cost is in "
        "[quantization.md](quantization.md).\n",
    ]
    text.append(bd_rate_table(own, [*formats, *published], PSNR))
    if all(MS_SSIM in curve.metrics for curve in [*own, *formats]):
        text.append(bd_rate_table(own, formats, MS_SSIM))
    text += [over_images(report), "## Points\n", points_table([*own, *formats])]
    return "\n".join(text)


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--images", metavar="DIR", help="Folder of images to measure on.")
@click.option("--fp32", is_flag=True, help="Measure the networks' FP32 parents, too.")
@click.option("--plot", "plot_file", metavar="FILE", help="Plot to write (.png, .svg, .pdf).")
@click.option("--table", metavar="FILE", help="Markdown to write.")
@click.option("--json", "json_file", metavar="FILE", help="Measurements to write or add to.")
@click.option("--redraw", is_flag=True, help="Measure nothing; take what --json holds.")
def command(
    names: tuple[str, ...],
    images: str | None,
    fp32: bool,
    plot_file: str | None,
    table: str | None,
    json_file: str | None,
    redraw: bool,
) -> None:
    """Measure the shipped networks (or those named), draw and tabulate them."""
    if redraw:
        if json_file is None:
            raise click.UsageError("this reads what an earlier run wrote; name it with --json.")
        report = json.loads(Path(json_file).read_text(encoding="utf-8"))
        report["compared"] = comparisons(report)
        write_atomically(json_file, (json.dumps(report, indent=1) + "\n").encode())
    elif images is None:
        raise click.UsageError("Missing option '--images'.")
    else:
        before = None
        if json_file is not None and Path(json_file).exists():
            before = json.loads(Path(json_file).read_text(encoding="utf-8"))

        def save(report: dict[str, Any]) -> None:
            if json_file is not None:
                write_atomically(json_file, (json.dumps(report, indent=1) + "\n").encode())

        try:
            chosen = list(names) or models.names()
            report = measure(images, chosen, fp32, before, save, json_file)
        except UserError as error:
            raise click.UsageError(str(error)) from None
    curves = [Curve.of_json(curve) for curve in report["curves"]]
    known = references()
    published = [known[name] for name in PUBLISHED] if report["set"] == "kodak" else []
    if plot_file is not None:
        plot(
            [*curves, *published],
            plot_file,
            title=f"{report['set'].capitalize()}, means of {report['images']} images",
            styles=styles(curves, published),
            bpp_max=max(0.8, 1.35 * max(curve.bpp[-1] for curve in ours(curves))),
        )
    page = tables(report, curves, published)
    if table is not None:
        write_atomically(table, page.encode())
    click.echo(page)


if __name__ == "__main__":
    command()
