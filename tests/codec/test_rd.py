"""Rate-distortion curves: reading, BD-rate, plots, and `lichen bdrate`."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lichen.cli import main
from lichen.codec.rd import METHODS, MS_SSIM, PSNR, Curve, bd_rate, plot, read_curve, references
from lichen.commands.bdrate import command
from lichen.errors import UserError

BPP = (0.12, 0.25, 0.49, 0.97)
DB = (27.0, 29.1, 31.5, 34.2)
SSIM = (0.91, 0.95, 0.975, 0.989)


def curve(
    bpp: tuple[float, ...] = BPP,
    psnr: tuple[float, ...] = DB,
    ssim: tuple[float, ...] | None = SSIM,
) -> Curve:
    metrics = {PSNR: psnr} if ssim is None else {PSNR: psnr, MS_SSIM: ssim}
    return Curve("some", bpp, metrics)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", [PSNR, MS_SSIM])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.07])
def test_a_factor_on_the_rate_is_the_bd_rate(method, metric, factor):
    """The definition's one closed form: parallel curves over log rate."""
    test = curve(tuple(factor * b for b in BPP))
    result = bd_rate(test, curve(), metric, method)
    assert result.percent == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_bd_rate_of_the_original_polynomial():
    """Bjøntegaard's cubic in a few lines of NumPy."""
    test = curve((0.1, 0.22, 0.45, 0.9), (26.5, 28.8, 31.9, 34.6))
    low, high = 27.0, 34.2
    difference = np.polysub(
        np.polyfit(test.metrics[PSNR], np.log(test.bpp), 3), np.polyfit(DB, np.log(BPP), 3)
    )
    integral = np.polyint(difference)
    mean = (np.polyval(integral, high) - np.polyval(integral, low)) / (high - low)
    result = bd_rate(test, curve(), PSNR, "cubic")
    assert result.percent == pytest.approx(100 * (np.exp(mean) - 1), abs=1e-6)
    assert (result.low, result.high) == (low, high)


def test_ms_ssim_is_compared_in_decibels():
    assert curve().values(MS_SSIM) == pytest.approx(-10 * np.log10(1 - np.array(SSIM)))
    assert np.isfinite(curve(ssim=(0.9, 0.99, 0.999, 1.0)).values(MS_SSIM)).all()


def test_numbers_of_points_may_differ():
    fine = np.linspace(27, 34, 15)
    many = Curve("many", tuple(0.02 * 2 ** (fine / 5)), {PSNR: tuple(fine)})
    two = Curve("two", (0.02 * 2 ** (27 / 5), 0.02 * 2 ** (34 / 5)), {PSNR: (27.0, 34.0)})
    for method in ("pchip", "akima"):
        assert bd_rate(many, two, PSNR, method).percent == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("test", "metric", "method", "reason"),
    [
        (curve(ssim=None), MS_SSIM, "pchip", "some has no MS-SSIM"),
        (curve(BPP[:1], DB[:1]), PSNR, "pchip", "has 1 point; a BD-rate takes 2"),
        (curve(BPP[:3], DB[:3]), PSNR, "cubic", "has 3 points; a BD-rate takes 4"),
        (curve(psnr=(27.0, 30.0, 29.0, 33.0)), PSNR, "pchip", "PSNR must rise with the rate"),
        (curve(bpp=(0.1, 0.2, 0.2, 0.4)), PSNR, "pchip", "PSNR must rise with the rate"),
        (curve(psnr=(40.0, 41.0, 42.0, 43.0)), PSNR, "pchip", "no PSNR in common: 40.00 .. 43.00"),
    ],
)
def test_what_cannot_be_compared(test, metric, method, reason):
    with pytest.raises(UserError, match=reason):
        bd_rate(test, curve(), metric, method)


def test_published_curves():
    known = references()
    assert {"bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean"} <= set(known)
    for name, published in known.items():
        assert np.all(np.diff(published.bpp) > 0), name
        assert np.all(np.diff(published.metrics[PSNR]) > 0), name
    # the order that everybody knows
    ranked = ["mbt2018-mean", "bmshj2018-hyperprior", "bmshj2018-factorized", "webp", "jpeg"]
    for better, worse in pairwise(ranked):
        assert bd_rate(known[better], known[worse]).percent < 0


def write(path: Path, bpp: object, psnr: object, ssim: object = None, name: str = "net") -> str:
    """A file in CompressAI's format."""
    results = {"bpp": bpp, PSNR: psnr} | ({} if ssim is None else {MS_SSIM: ssim})
    path.write_text(json.dumps({"name": name, "description": "", "results": results}))
    return str(path)


def test_reading(tmp_path):
    whole = read_curve([write(tmp_path / "whole.json", BPP, DB, SSIM)])
    assert whole == Curve("net", BPP, {PSNR: DB, MS_SSIM: SSIM})
    parts = [
        write(tmp_path / f"{i}.json", *([v] for v in (BPP[i], DB[i], SSIM[i])), name=f"net-q{i}")
        for i in (2, 0, 3, 1)
    ]
    assert read_curve(parts) == whole
    # an image's own file of CompressAI's has numbers instead of lists
    scalar = write(tmp_path / "scalar.json", BPP[0], DB[0])
    assert read_curve([scalar]).bpp == BPP[:1]
    assert set(read_curve([scalar, *parts]).metrics) == {PSNR}
    assert read_curve(["mbt2018-mean"]) == references()["mbt2018-mean"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("[]", "not a result of"),
        ('{"results": [1]}', "not a result of"),
        ('{"results": {"psnr-rgb": [1]}}', "not a result of"),
        ('{"results": {"bpp": [], "psnr-rgb": []}}', "no points"),
        ('{"results": {"bpp": [0], "psnr-rgb": [30]}}', "no points with a positive rate"),
        ('{"results": {"bpp": [1], "psnr-rgb": [30, 31]}}', "different numbers of points"),
        ('{"results": {"bpp": ["x"], "psnr-rgb": [30]}}', "must be numbers"),
        ('{"results": {"bpp": [1], "psnr-rgb": [NaN]}}', "must be numbers"),
    ],
)
def test_unusable_files(content, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        main(["bdrate", "x.json", "--anchor", "jpeg"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("lichen: x.json")
    assert reason in error


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_plots(kind, tmp_path):
    path = tmp_path / f"plot.{kind}"
    curves = [curve(), references()["jpeg"]]
    plot(curves, path, title="two")
    first = path.read_bytes()
    plot(curves, path, title="two")
    assert path.read_bytes() == first
    if kind == "png":
        with Image.open(path) as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").resize((200, 150)).getcolors(1 << 16)) > 20
    if kind == "svg":
        # only one of the two has MS-SSIM, which makes no comparison
        assert first.count(b'id="axes_') == 1
        plot([curve(), curve()], path)
        assert path.read_bytes().count(b'id="axes_') == 2


def test_plots_of_other_kinds(tmp_path):
    with pytest.raises(UserError, match=r"use \.png, .svg or .pdf"):
        plot([curve()], tmp_path / "plot.xyz")


def run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout, result.stderr


def test_command(tmp_path):
    half = tuple(b / 2 for b in BPP)
    tests = [
        write(tmp_path / f"t{i}.json", [half[i]], [DB[i]], [SSIM[i]], name=f"net-q{i}")
        for i in range(4)
    ]
    anchors = [
        write(tmp_path / "a.json", BPP[:2], DB[:2], SSIM[:2], name="base"),
        write(tmp_path / "b.json", BPP[2:], DB[2:], SSIM[2:], name="base"),
    ]
    target, picture = tmp_path / "out.json", tmp_path / "out.png"
    stdout, _ = run(*tests, "--anchor", *anchors, "--plot", str(picture), "--json", str(target))
    assert stdout == "net against base: -50.00 % rate (PSNR), -50.00 % (MS-SSIM)\n"
    report = json.loads(target.read_text())
    assert report["bd_rate_psnr"] == pytest.approx(-50)
    assert report["bd_rate_msssim"] == pytest.approx(-50)
    assert report["test"] == {"name": "net", "points": 4}
    assert report["anchor"] == {"name": "base", "points": 4}
    assert report["range_psnr_db"] == [DB[0], DB[-1]]
    assert picture.stat().st_size > 10000
    # every way to spell the anchors
    spelled = [
        run(*tests, "--anchor", anchors[0], "--anchor", anchors[1]),
        run("--anchor", *anchors, "--method", "pchip", *tests),
        run("--anchor", *anchors, "--", *tests),
        run(f"--anchor={anchors[0]}", f"--anchor={anchors[1]}", *tests),
    ]
    assert all(out == stdout for out, _ in spelled)
    stdout, stderr = run(*tests, "--anchor", "webp", "--json", "-")
    assert json.loads(stdout)["bd_rate_msssim"] is None
    assert "(PSNR)" in stderr


def test_command_warns_of_little_overlap(tmp_path):
    low = write(tmp_path / "low.json", BPP, (23.0, 25.0, 26.0, 28.6))
    _, stderr = run(low, "--anchor", "bmshj2018-factorized")
    assert "only 30% of net's range of quality is compared, 26.91 .. 28.60 dB" in stderr


def test_command_without_an_anchor(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bdrate", write(tmp_path / "x.json", BPP, DB)])
    assert exit_.value.code == 2
    assert "--anchor" in capsys.readouterr().err
