"""``lichen bdrate``: two rate-distortion curves compared."""

from __future__ import annotations

from pathlib import Path

import click

from lichen.commands import _options
from lichen.commands._command import Command


class _Anchors(Command):
    """A command whose ``--anchor`` takes every argument up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread, anchors = [], False
        for argument in args:
            if argument == "--anchor":
                anchors = True
            elif argument.startswith("-") and argument != "-":
                anchors = False
                spread.append(argument)
            else:
                spread += ["--anchor", argument] if anchors else [argument]
        return super().parse_args(ctx, spread)


@click.command(cls=_Anchors)
@click.argument("test", metavar="TEST...", nargs=-1, required=True)
@click.option(
    "--anchor", "anchor", metavar="ANCHOR...", multiple=True, required=True,
    help="What to compare with: files as for TEST, or the name of a published curve.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(["pchip", "akima", "cubic"]), default="pchip",
    show_default=True, help="Interpolation of the curves.",
)  # fmt: skip
@click.option(
    "--plot", "plot_file", metavar="FILE", type=click.Path(path_type=Path),
    help="Draw both curves (.png, .svg, .pdf).",
)  # fmt: skip
@_options.json_file
def command(
    test: tuple[str, ...],
    anchor: tuple[str, ...],
    method: str,
    plot_file: Path | None,
    json_file: str | None,
) -> None:
    """Compare two rate-distortion curves: the Bjøntegaard delta rate.

    TEST and ANCHOR are files of lichen evaluate --json (or CompressAI's eval_model), with one
    point each or several; together the TESTs make one curve, and the ANCHORs the other. ANCHOR
    may also be a curve on Kodak that CompressAI published: bmshj2018-factorized,
    bmshj2018-hyperprior, mbt2018-mean, jpeg or webp.

    Negative percentages are rate saved at equal quality. Where both were measured on the same
    images, an interval says how much the choice of images matters: the middle 95 % of the BD-rates
    of a thousand draws of as many images with replacement. MS-SSIM is compared in decibels,
    -10 log10(1 - MS-SSIM), if both curves have it. Whole files are compared; where one side makes
    no file (FP32 models, CompressAI), the streams of both.
    """
    from lichen.codec import bootstrap
    from lichen.codec.rd import (
        FILES,
        MS_SSIM,
        PSNR,
        STREAMS,
        bd_rate,
        counts_streams,
        plot,
        read_curve,
    )

    rate = STREAMS if counts_streams(test) or counts_streams(anchor) else FILES
    curves = read_curve(test, rate), read_curve(anchor, rate)
    found = {}
    for metric in (PSNR, MS_SSIM):
        if metric == MS_SSIM and any(metric not in curve.metrics for curve in curves):
            continue
        found[metric] = result = bd_rate(*curves, metric, method)
        values = curves[0].values(metric)
        share = (result.high - result.low) / (values[-1] - values[0])
        if share < 0.5:
            click.echo(
                f"lichen: only {share:.0%} of {curves[0].name}'s range of quality is compared, "
                f"{result.low:.2f} .. {result.high:.2f} dB; the rest lies beyond the anchor.",
                err=True,
            )
    images = bootstrap.read_images(test, rate), bootstrap.read_images(anchor, rate)
    spread = None
    if images[0] is not None and images[1] is not None:
        spread = bootstrap.interval(images[0], images[1], method=method)
    if plot_file is not None:
        plot(curves, plot_file)
    report = {
        "test": {"name": curves[0].name, "points": len(curves[0].bpp)},
        "anchor": {"name": curves[1].name, "points": len(curves[1].bpp)},
        "rate": rate,
        "method": method,
        "bd_rate_psnr": found[PSNR].percent,
        "bd_rate_msssim": found[MS_SSIM].percent if MS_SSIM in found else None,
        "range_psnr_db": [found[PSNR].low, found[PSNR].high],
        "range_msssim_db": (
            [found[MS_SSIM].low, found[MS_SSIM].high] if MS_SSIM in found else None
        ),
    }
    report["interval"] = spread and {
        "images": spread.images,
        "bd_rate_psnr_95": [spread.low, spread.high],
        "bd_rate_psnr_image_mean": spread.image_mean,
        "bd_rate_psnr_images": spread.image_rates,
    }
    sure = f", 95 % {spread.low:+.2f} .. {spread.high:+.2f} over images" if spread else ""
    other = f", {found[MS_SSIM].percent:+.2f} % (MS-SSIM)" if MS_SSIM in found else ""
    _options.report(
        report,
        json_file,
        f"{curves[0].name} against {curves[1].name}: {found[PSNR].percent:+.2f} % "
        f"{'rate' if rate == FILES else 'rate of streams'} (PSNR{sure}){other}",
    )
