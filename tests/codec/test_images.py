"""Whole folders: awkward images as users have them, and the Kodak photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lichen import models
from lichen.cli import main
from lichen.codec.container import Container, Kind, inspect
from lichen.codec.metadata import is_srgb
from lichen.codec.picture import Picture
from lichen.sim.golden import analysis, estimate_bits, reconstruct
from lichen.sim.images import list_images, read_image
from tests.codec.cases import make_network, pattern
from tests.codec.golden_vectors import large_image

KODAK = next(
    (p / "shared/data/kodak" for p in Path(__file__).resolve().parents if (p / "shared").is_dir()),
    Path("shared/data/kodak"),
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

SHAPES = {
    "1x1.png": (1, 1, 3),
    "1x90.png": (90, 1, 3),
    "alpha.png": (50, 70, 4),
    "animated-gif.gif": (50, 70, 3),
    "animated-png.png": (50, 70, 3),
    "animated-webp.webp": (50, 70, 3),
    "bitmap.bmp": (50, 70, 3),
    "bilevel.png": (50, 70),
    "cmyk.jpg": (50, 70, 3),
    "deep-colour.ppm": (50, 70, 3),
    "deep-grey.png": (50, 70),
    "grey-alpha.png": (50, 70, 2),
    "grey.jpg": (50, 70),
    "large-strip.png": (3, 2000, 3),
    "palette.png": (50, 70, 4),
    "profile.png": (50, 70, 3),
    "rotated.jpg": (70, 50, 3),
    "rotated.webp": (70, 50, 3),
    "UPPER.PNG": (65, 64, 3),
}
"""Names of the awkward images, and the arrays they are to a user."""


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of them."""
    folder = tmp_path_factory.mktemp("awkward")
    image = Image.fromarray(pattern(50, 70))
    others = [Image.fromarray(pattern(50, 70)[::-1]), image.rotate(5)]
    turned = Image.Exif()
    turned[0x0112] = 6

    def save(name: str, picture: Image.Image, **options: object) -> None:
        picture.save(folder / name, **options)

    save("1x1.png", Image.fromarray(pattern(1, 1)))
    save("1x90.png", Image.fromarray(pattern(90, 1)))
    save("alpha.png", Image.fromarray(pattern(50, 70, 4)))
    save("animated-gif.gif", image, save_all=True, append_images=others)
    save("animated-png.png", image, save_all=True, append_images=others)
    save("animated-webp.webp", image, save_all=True, append_images=others)
    save("bitmap.bmp", image)
    save("bilevel.png", image.convert("1"))
    save("cmyk.jpg", image.convert("CMYK"))
    deep = (pattern(50, 70).astype(">u2") * 257).tobytes()
    (folder / "deep-colour.ppm").write_bytes(b"P6 70 50 65535\n" + deep)
    save("deep-grey.png", Image.fromarray(pattern(50, 70, 1)[:, :, 0].astype(np.uint16) * 200))
    save("grey-alpha.png", Image.fromarray(pattern(50, 70, 2)))
    save("grey.jpg", image.convert("L"))
    save("large-strip.png", Image.fromarray(pattern(3, 2000)))
    save("palette.png", image.quantize(32), transparency=bytes(range(0, 256, 8)))
    save("profile.png", image, icc_profile=SRGB)
    save("rotated.jpg", image, exif=turned)
    save("rotated.webp", image, exif=turned)
    save("UPPER.PNG", Image.fromarray(pattern(65, 64)))
    (folder / "notes.txt").write_text("no image")
    (folder / "more").mkdir()
    return folder


def check(container: Container, picture: Picture) -> bytes:
    """A file that decodes to the golden reconstruction, of the size that the model estimates."""
    network = container.network
    latents = analysis(network, picture.pixels)
    data = container.pack(latents, picture)  # which is what `encode` does
    decoded = container.decode(data).picture
    assert np.array_equal(decoded.pixels, reconstruct(network, latents))
    assert decoded.grey == picture.grey
    srgb = container.version == 2 and is_srgb(picture.icc)
    assert is_srgb(decoded.icc) if srgb else decoded.icc == picture.icc
    assert (decoded.alpha is None) == (picture.alpha is None)
    if picture.alpha is not None:
        assert np.array_equal(decoded.alpha, picture.alpha)
    found = inspect(data)
    parts = found.parts
    if container.version == 2:
        segments = sum(part.kind in (Kind.Y, Kind.Z) for part in parts)
        assert found.image_bytes - found.stream_bytes <= 40 + 6 * segments
        return data
    header = 56 + 12 * len(parts)
    kept = sum(part.length for part in parts if part.kind in (Kind.ALPHA, Kind.ICC))
    # a stream begins with 8 bytes of state
    states = 8 * sum(part.kind in (Kind.Y, Kind.Z) for part in parts)
    estimate = sum(estimate_bits(network, latents).values()) / 8
    assert 0.99 * estimate <= len(data) - header - kept <= 1.01 * estimate + states
    return data


def container(name: str, version: int | None = None) -> Container:
    network = models.load_network(name) if name in models.names() else make_network(name)
    return Container(network, threads=2, version=version)


@pytest.mark.parametrize("name", ["tiny", "hyperprior", "mean-scale"])
def test_awkward_images(name, awkward):
    files = list_images(awkward)
    assert [file.name for file in files] == sorted(SHAPES)
    coder = container(name)
    for file in files:
        picture = Picture.read(file)
        assert picture.array().shape == SHAPES[file.name]
        check(container(name, 1), picture)
        data = check(coder, picture)
        assert coder.decode(data).picture.array().shape == SHAPES[file.name]


def test_a_folder_there_and_back(awkward, tmp_path, capsys):
    """The same on the command line; PNG holds what was decoded."""
    arguments = ["-m", "tiny", "--json"]
    main(["encode", str(awkward), "-o", str(tmp_path / "lic"), *arguments, str(tmp_path / "e")])
    captured = capsys.readouterr().err
    assert "left alone, not an image by name: notes.txt" in captured
    assert "animated-gif.gif: only the first of 3 frames is used" in captured
    main(["decode", str(tmp_path / "lic"), "-o", str(tmp_path / "png"), "--json",
          str(tmp_path / "d")])  # fmt: skip
    rows = json.loads((tmp_path / "e").read_text())["files"]
    assert len(rows) == len(json.loads((tmp_path / "d").read_text())["files"]) == len(SHAPES)
    coder = container("tiny")
    for row in rows:
        name = Path(row["image"]).name
        # those of the same stem keep their extension
        assert Path(row["file"]).stem == (name if "rotated" in name else Path(name).stem)
        data = Path(row["file"]).read_bytes()
        assert data == coder.encode(Picture.read(row["image"]))
        expected = coder.decode(data).picture
        with Image.open(tmp_path / "png" / f"{Path(row['file']).stem}.png") as back:
            assert np.array_equal(np.asarray(back), expected.array())
            assert back.info.get("icc_profile") == expected.icc


@pytest.mark.parametrize("name", ["tiny", "hyperprior", "mean-scale"])
def test_shipped_photograph(name):
    picture = Picture.read(models.photograph())
    one, two = (check(container(name, version), picture) for version in (1, None))
    # a fifth and more, where there are contexts
    assert len(two) < 0.85 * len(one) if name == "tiny" else two == one


@pytest.mark.slow
@pytest.mark.parametrize("name", [*models.names(), "factorized", "hyperprior", "mean-scale"])
def test_12_million_pixels(name):
    check(container(name), Picture.of(large_image()))


@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak photographs are not here")
@pytest.mark.parametrize("name", [*models.names(), "factorized", "hyperprior", "mean-scale"])
def test_kodak(name):
    files = list_images(KODAK)
    assert len(files) == 24
    for version in (1, None):
        coder = container(name, version)
        for file in files:
            check(coder, Picture.of(read_image(file)))
