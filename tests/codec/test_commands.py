"""`lichen encode`, `decode` and `info`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lichen import models
from lichen.cli import main
from lichen.codec import container as container_module
from lichen.codec.container import Container, inspect
from lichen.network.file import save
from lichen.network.random import random_hyperprior
from lichen.sim.images import read_image
from lichen.sim.quality import psnr
from tests.codec.cases import make_network


@pytest.fixture
def here(tmp_path, photo, monkeypatch) -> Path:
    """A folder to work in, with a photograph."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save("x.png")
    return tmp_path


def run(*arguments: str) -> int:
    """Exit status of ``lichen``."""
    try:
        main(list(arguments))
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_there_and_back(here, capsys):
    assert run("encode", "x.png", "-o", "x.lic", "--json", "x.json") == 0
    report = json.loads(Path("x.json").read_text())
    assert capsys.readouterr().out.startswith(f"x.lic: {report['bytes']} bytes")
    data = Path("x.lic").read_bytes()
    assert data == Container(models.load_network(models.DEFAULT)).encode(read_image("x.png"))
    assert report["bytes"] == len(data)
    assert report["bpp"] == 8 * len(data) / (192 * 128)
    assert report["seconds"] > 0
    assert run("decode", "x.lic", "-o", "y.png", "--json", "y.json") == 0
    found = json.loads(Path("y.json").read_text())
    assert (found["width"], found["height"], found["lost"]) == (192, 128, [])
    assert report["psnr"] == psnr(read_image("x.png"), read_image("y.png"))
    capsys.readouterr()
    assert run("info", "x.lic", "--json", "-") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["network"] == models.DEFAULT
    assert info["intact"]
    assert (info["width"], info["height"], info["bytes"]) == (192, 128, len(data))


def test_hyperprior_file_and_symbols(here):
    save(random_hyperprior(7, n=4, m=6), "net.lichen")
    assert run("encode", "x.png", "-o", "x.lic", "-m", "net.lichen", "--no-check") == 0
    assert run("decode", "x.lic", "-o", "y.png", "-m", "net.lichen", "--latents", "s.npy") == 0
    assert np.load("s.npy").shape == (8, 12, 6)
    assert np.load("s.z.npy").shape == (2, 3, 4)
    assert run("encode", "s.npy", "--size", "192x128", "-o", "z.lic", "-m", "net.lichen") == 0
    assert Path("z.lic").read_bytes() == Path("x.lic").read_bytes()


def test_folders(here, photo, capsys):
    Path("in").mkdir()
    for name in "abc":
        Image.fromarray(photo[:32, :48]).save(f"in/{name}.png")
    assert run("encode", "in", "x.png", "-o", "out", "--quiet", "--json", "all.json") == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.lic", "b.lic", "c.lic", "x.lic"]
    report = json.loads(Path("all.json").read_text())
    assert [Path(row["file"]).name for row in report["files"]] == [
        "a.lic", "b.lic", "c.lic", "x.lic"
    ]  # fmt: skip
    assert run("decode", "out", "-o", "back", "--quiet") == 0
    assert len(list(Path("back").glob("*.png"))) == 4
    Path("in/b.png").write_bytes(b"no image")
    capsys.readouterr()
    assert run("encode", "in", "-o", "again", "--quiet", "--json", "again.json") == 2
    # the others are made all the same
    assert sorted(p.name for p in Path("again").iterdir()) == ["a.lic", "c.lic"]
    report = json.loads(Path("again.json").read_text())
    assert len(report["files"]) == 2
    assert "b.png is not an image" in report["failures"][0]
    assert "1 of 3 files failed" in capsys.readouterr().err


def test_alpha_grey_and_profile_survive(here, photo):
    # not one of sRGB, of which no more than a flag would be kept
    icc = b"\0" * 16 + b"RGB " + b"x" * 40
    rgba = np.dstack([photo, photo[:, :, 0]])
    Image.fromarray(rgba).save("a.png", icc_profile=icc)
    Image.fromarray(photo[:, :, 0]).save("g.jpg")
    for name in ("a.png", "g.jpg"):
        assert run("encode", name, "-o", "x.lic", "--json", "x.json") == 0
        assert run("decode", "x.lic", "-o", f"back-{name}.png") == 0
        # of what becomes of the image, and not of the colours that the network makes of greys
        with Image.open(name) as image, Image.open(f"back-{name}.png") as back:
            mode = "L" if name == "g.jpg" else "RGB"
            one, two = np.asarray(image.convert(mode)), np.asarray(back.convert(mode))
        assert json.loads(Path("x.json").read_text())["psnr"] == psnr(one, two)
    with Image.open("back-a.png.png") as back:
        assert back.mode == "RGBA"
        assert np.array_equal(np.asarray(back)[:, :, 3], rgba[:, :, 3])
        assert back.info["icc_profile"] == icc
    with Image.open("back-g.jpg.png") as back:
        assert back.mode == "L"
    run("encode", "a.png", "-o", "x.lic", "--no-check")
    assert run("decode", "x.lic", "-o", "a.jpg") == 2


def test_metadata_are_kept_unless_stripped(here):
    with Image.open("x.png") as picture:
        exif = picture.getexif()
        exif[0x010F] = "Maker"
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
        picture.save("tagged.png", exif=exif, pnginfo=texts)
    sizes = {}
    for name, options in (("kept", []), ("stripped", ["--strip"])):
        assert run("encode", "tagged.png", "-o", f"{name}.lic", "--json", "x.json", *options) == 0
        report = json.loads(Path("x.json").read_text())
        sizes[name] = report["bytes"], report["bpp"]
        for suffix in ("png", "jpg", "tif", "avif"):
            assert run("decode", f"{name}.lic", "-o", f"{name}.{suffix}") == 0
            with Image.open(f"{name}.{suffix}") as back:
                kept = back.getexif().get(0x010F), (back.info.get("xmp") or b"").strip(b"\0")
            assert kept == (("Maker", b"<x:xmpmeta/>") if name == "kept" else (None, b""))
    # a photograph's rate is that of its pixels
    assert sizes["kept"][0] > sizes["stripped"][0] and sizes["kept"][1] == sizes["stripped"][1]
    assert run("encode", "x.png", "-o", "plain.lic") == 0
    assert Path("plain.lic").read_bytes() == Path("stripped.lic").read_bytes()


def test_damaged_files(here, monkeypatch, capsys):
    monkeypatch.setattr(container_module, "SEGMENT_SYMBOLS", 48 * 24)
    encode = ("encode", "x.png", "-o", "x.lic", "--no-check", "--container", "1")
    assert run(*encode) == 0
    data = bytearray(Path("x.lic").read_bytes())
    parts = inspect(bytes(data)).parts
    data[parts[0].offset + 5] ^= 8
    Path("x.lic").write_bytes(data)
    capsys.readouterr()
    assert run("decode", "x.lic", "-o", "y.png") == 2
    assert capsys.readouterr().err == (
        "lichen: x.lic: the file is damaged: y segment 0 fails its checksum.\n"
    )
    assert not Path("y.png").exists()
    assert run("info", "x.lic", "--json", "i.json") == 1
    info = json.loads(Path("i.json").read_text())
    assert [part["intact"] for part in info["parts"]] == [False] + [True] * (len(parts) - 1)
    assert run("decode", "x.lic", "-o", "y.png", "--salvage", "--json", "y.json") == 1
    report = json.loads(Path("y.json").read_text())
    assert report["lost"] == ["y segment 0 fails its checksum"]
    pixels = read_image("y.png")
    magenta = (pixels == (255, 0, 255)).all(axis=2)
    assert magenta.mean() == pytest.approx(report["damaged"])
    assert 0.2 < magenta.mean() < 0.95


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["encode", "nix.png", "-o", "x.lic"], "nix.png does not exist"),
        (["encode", "x.png", "-o", "no/x.lic"], "the folder no does not exist"),
        (["encode", "x.png", "-o", "x.jpg"], "no name for a compressed file"),
        (["encode", "x.png", "-o", "x.lic", "-m", "nix"], "nix is neither"),
        (["encode", "x.png", "-o", "x.lic", "--engine", "x"], "there is no engine x"),
        (["encode", "x.png", "x.png", "-o", "out"], "would both become"),
        (["encode", "x.png", "empty", "-o", "s.npy"], "holds no images"),
        (["encode", "x.png", "x.jpg", "-o", "s.npy"], "s.npy is a file"),
        (["encode", "s.npy", "-o", "x.lic"], "--size 768x512"),
        (["encode", "s.npy", "-o", "x.lic", "--size", "16x16"], "s.npy cannot be read"),
        (["encode", "v.npy", "-o", "x.lic", "--size", "16x16"], "v.npy cannot be read"),
        (["encode", "empty", "-o", "out"], "holds no images"),
        (["decode", "nix.lic", "-o", "x.png"], "nix.lic does not exist"),
        (["decode", "x.png", "-o", "y.png"], "x.png: this is not a .lic file"),
        (["decode", "good.lic", "-o", "x.xyz"], "names no image format"),
        (["decode", "good.lic", "-o", "x.png", "-m", "net.lichen"], "made with another network"),
        (["decode", "other.lic", "-o", "x.png"], "which is none of the shipped ones"),
        (["decode", "good.lic", "-o", "x.png", "--engine", "x"], "there is no engine x"),
        (["decode", "good.lic", "-o", "x.png", "--max-pixels", "255"], "more than 255"),
        (["decode", "good.lic", "-o", "x.png", "--latents", "y.txt"], "use FILE.npy"),
        (["decode", "good.lic", "-o", "x.png", "--latents", "no/y.npy"], "cannot write symbols"),
        (["decode", "empty", "-o", "x"], "holds no images (looked for .lic)"),
        (["info", "x.png"], "this is not a .lic file"),
        (["info", "empty"], "is a folder"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(arguments, reason, here, tiny_network, photo, capsys):
    Path("empty").mkdir()
    Path("s.npy").write_bytes(b"\x93NUMPY")
    # the header of 40 GB, and nothing after it
    with Path("v.npy").open("wb") as file:
        head = {"descr": "<i8", "fortran_order": False, "shape": (70_000, 70_000)}
        np.lib.format.write_array_header_1_0(file, head)
    other = random_hyperprior(7, n=4, m=6)
    save(other, "net.lichen")
    Path("good.lic").write_bytes(Container(tiny_network).encode(photo[:16, :16]))
    Image.fromarray(photo[:9, :9]).save("x.jpg")
    Path("other.lic").write_bytes(Container(other).encode(photo[:16, :16]))
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lichen: ")
    assert reason in error
    assert error.count("\n") == 1
    assert not Path("x.lic").exists()
    assert not list(here.glob("*.part"))


def test_batches_go_on_after_failed_writes(here, capsys):
    Path("out/x.lic").mkdir(parents=True)  # in the way
    Path("y.png").write_bytes(Path("x.png").read_bytes())
    assert run("encode", "x.png", "y.png", "-o", "out", "-m", "tiny", "--quiet") == 2
    error = capsys.readouterr().err
    assert "cannot write out/x.lic" in error
    assert "1 of 2 files failed" in error
    assert sorted(p.name for p in Path("out").iterdir()) == ["x.lic", "y.lic"]
    assert Path("out/y.lic").is_file()


def test_same_names(here, capsys):
    """What differs only by its extension keeps it; what would still be the same is refused."""
    with Image.open("x.png") as image:
        image.save("X.jpg")
    assert run("encode", "x.png", "X.jpg", "-o", "out", "-m", "tiny", "--quiet") == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["X.jpg.lic", "x.png.lic"]
    Path("in").mkdir()
    Path("in/x.png").write_bytes(Path("x.png").read_bytes())
    assert run("encode", "x.png", "in", "-o", "more") == 2
    assert "x.png and in/x.png would both become more/x.png.lic" in capsys.readouterr().err
    assert not Path("more").exists()


def test_interrupts_leave_nothing_behind(here, monkeypatch, capsys):
    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(Container, "pack", interrupt)
    Path("x.lic").write_bytes(b"old")
    assert run("encode", "x.png", "-o", "x.lic", "-m", "tiny") == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(p.name for p in here.iterdir()) == ["x.lic", "x.png"]
    assert Path("x.lic").read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "hyperprior", "mean-scale"])
def test_gateware_makes_the_same_file(name, here, photo, capsys):
    if name != "tiny":
        save(make_network(name), name)
    Image.fromarray(photo[:32, :48]).save("s.png")
    assert run("encode", "s.png", "-o", "golden.lic", "-m", name) == 0
    assert run("encode", "s.png", "-o", "gate.lic", "-m", name, "--engine", "verilator") == 0
    assert "g_a ran in simulated gateware" in capsys.readouterr().err
    assert Path("golden.lic").read_bytes() == Path("gate.lic").read_bytes()
