"""benchmarks/rd.py: one command from the shipped networks to the plot and tables of the docs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from click.testing import CliRunner, Result
from PIL import Image

from lichen import models
from lichen.codec.evaluate import PILLOW_FORMATS
from lichen.codec.rd import MS_SSIM, PSNR, Curve, bd_rate, bd_rate_table, points_table, references
from lichen.sim import golden

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/rd.py"


def run(*arguments: str | Path) -> Result:
    spec = importlib.util.spec_from_file_location("rd_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return CliRunner().invoke(module.command, [str(a) for a in arguments])


def test_from_networks_to_docs(tmp_path, photo, monkeypatch):
    monkeypatch.setattr(models, "names", lambda: ["tiny"])
    folder = tmp_path / "kodak"
    folder.mkdir()
    Image.fromarray(photo[:48, :64]).save(folder / "x.png")
    plot, table, data = tmp_path / "rd.png", tmp_path / "rd.md", tmp_path / "rd.json"
    result = run("--images", folder, "--plot", plot, "--table", table, "--json", data)
    assert result.exit_code == 0, result.output
    report = json.loads(data.read_text())
    assert [curve["name"].split(",")[0] for curve in report["curves"]] == [
        "tiny", "JPEG", "WebP", "AVIF"
    ]  # fmt: skip
    page = table.read_text()
    for kind, known in PILLOW_FORMATS.items():
        assert page.count(f"| {kind}:") == len(known.curve)
    assert "| bmshj2018-hyperprior (CompressAI) |" in page
    assert plot.stat().st_size > 50000
    drawn = plot.read_bytes()
    plot.unlink()
    # what has been measured is not measured again
    with monkeypatch.context() as patch:
        patch.setattr(golden, "analysis", None)
        patch.setattr(Image.Image, "save", None)
        result = run("--images", folder, "--table", table, "--json", data)
        assert result.exit_code == 0, result.output
        assert json.loads(data.read_text()) == report
    report["digests"]["tiny"] = "another file"
    data.write_text(json.dumps(report))
    result = run("--images", folder, "--table", table, "--json", data)
    assert result.exit_code == 0, result.output
    assert json.loads(data.read_text())["digests"]["tiny"] != "another file"
    again = run("--redraw", "--plot", plot, "--table", table, "--json", data)
    assert again.exit_code == 0
    assert table.read_text() == page
    assert plot.read_bytes() == drawn


def test_unusable_arguments(tmp_path):
    for arguments in (["--redraw"], [], ["--images", tmp_path], ["nix", "--images", tmp_path]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Error: " in result.output


def test_tables():
    known = references()
    half = Curve(
        "half",
        tuple(b / 2 for b in known["webp"].bpp),
        {**known["webp"].metrics, MS_SSIM: (0.9, 0.93, 0.95, 0.97, 0.98)},
        ("half:1", "half:2", "half:3", "half:4", "half:5"),
    )
    dot = Curve("dot", (0.5,), {PSNR: (30.0,)})
    against_jpeg = bd_rate(half, known["jpeg"])
    assert bd_rate_table([half, dot], [known["webp"], known["jpeg"]]).splitlines()[2:] == [
        f"| half | -50.0 % | {against_jpeg.percent:+.1f} % |",
        "| dot | – | – |",
    ]
    lines = points_table([half, dot]).splitlines()
    assert lines[2] == "| half:1 | 0.1172 | 28.33 | 0.9000 |"
    assert lines[-1] == "| dot | 0.5000 | 30.00 | – |"
