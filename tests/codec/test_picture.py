"""Images as users have them: what becomes of modes, alpha, palettes, orientation, profiles."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lichen import codec
from lichen.codec.container import Container, Flags, inspect
from lichen.codec.picture import Picture
from lichen.errors import UserError
from tests.codec.cases import pattern


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("L", (20, 30)),
        ("LA", (20, 30, 2)),
        ("RGB", (20, 30, 3)),
        ("RGBA", (20, 30, 4)),
        ("P", (20, 30, 3)),
        ("1", (20, 30)),
        ("CMYK", (20, 30, 3)),
        ("YCbCr", (20, 30, 3)),
        ("I;16", (20, 30)),
    ],
)
def test_modes(mode, shape, tiny_network):
    if mode == "I;16":
        image = Image.fromarray(pattern(20, 30, 1)[:, :, 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pattern(20, 30)).convert(mode)
    decoded = codec.decode(codec.encode(image, tiny_network), tiny_network)
    assert decoded.shape == shape
    picture = Picture.of(image)
    assert picture.array().shape == shape
    assert Picture.of(picture.array()).pixels.shape == (20, 30, 3)
    if mode == "I;16":
        assert np.array_equal(picture.array(), pattern(20, 30, 1)[:, :, 0])
        assert "reduced to 8 bits per channel" in picture.notes
    if mode in ("L", "RGB", "RGBA", "LA"):
        assert np.array_equal(picture.array(), np.asarray(image))
        assert picture.image().mode == mode
        assert not picture.notes
    if mode == "CMYK":
        assert "converted from CMYK to RGB" in picture.notes


def test_alpha_is_kept_exactly(tiny_network):
    image = pattern(33, 47, 4)
    decoded = codec.decode(codec.encode(image, tiny_network), tiny_network)
    assert np.array_equal(decoded[:, :, 3], image[:, :, 3])
    opaque = codec.encode(image[:, :, :3], tiny_network)
    assert np.array_equal(decoded[:, :, :3], codec.decode(opaque, tiny_network))


def test_transparent_palettes_and_colour_keys(tmp_path):
    image = Image.fromarray(pattern(9, 9)).quantize(8)
    image.info["transparency"] = 0
    image.save(tmp_path / "p.png")
    picture = Picture.read(tmp_path / "p.png")
    assert picture.alpha is not None
    assert 0 in picture.alpha
    assert 255 in picture.alpha


def test_colour_keys_of_deep_greys(tmp_path):
    deep = np.arange(9 * 16, dtype=np.uint16).reshape(9, 16) * 400
    Image.fromarray(deep).save(tmp_path / "k.png", transparency=int(deep[2, 3]))
    picture = Picture.read(tmp_path / "k.png")
    assert np.array_equal(picture.array()[:, :, 0], np.rint(deep / 257).astype(np.uint8))
    assert np.argwhere(picture.alpha == 0).tolist() == [[2, 3]]
    assert set(np.unique(picture.alpha)) == {0, 255}


def test_floating_point_is_refused(tmp_path):
    image = Image.fromarray(np.ones((3, 4), np.float32))
    image.save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif has floating-point samples"):
        Picture.read(tmp_path / "f.tif")
    with pytest.raises(UserError, match="the image has floating-point samples"):
        Picture.of(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation, tmp_path, tiny_network):
    """In files and in images that Pillow has opened; the file has no orientation left."""
    turned = {
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }.get(orientation, lambda a: a)(pattern(16, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pattern(16, 48)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(Picture.read(tmp_path / "x.png").pixels, turned)
    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(Picture.of(image).pixels, turned)
        data = codec.encode(image, tiny_network)
    header = inspect(data)
    assert (header.height, header.width) == turned.shape[:2]
    assert data == codec.encode(turned, tiny_network)


def test_profiles(tiny_network):
    # not one of sRGB, of which no more than a flag would be kept
    icc = b"\0" * 16 + b"RGB " + b"x" * 40
    image = Image.open(saved(Image.fromarray(pattern(8, 8)), "png", icc_profile=icc))
    decoded = Container(tiny_network).decode(codec.encode(image, tiny_network)).picture
    assert decoded.icc == icc
    assert decoded.image().info["icc_profile"] == icc
    grey = image.convert("L")
    grey.info["icc_profile"] = icc
    picture = Picture.of(grey)
    assert picture.icc is None
    assert "ICC profile is dropped" in picture.notes[0]


def test_grey_stays_grey(tiny_network):
    data = codec.encode(pattern(20, 20, 1)[:, :, 0], tiny_network)
    assert inspect(data).flags == Flags.GREY
    decoded = Container(tiny_network).decode(data).picture
    expected = np.asarray(Image.fromarray(decoded.pixels).convert("L"))
    assert np.array_equal(decoded.array(), expected)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8),
     np.zeros(4, np.uint8), Image.new("RGB", (0, 3))],
)  # fmt: skip
def test_no_images(image, tiny_network):
    with pytest.raises(ValueError, match="an image must"):
        codec.encode(image, tiny_network)
