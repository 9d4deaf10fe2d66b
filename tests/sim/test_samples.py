"""Images of more than 8 bits a sample: rounded, or refused; and guards of Pillow's."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lichen.codec.picture import Picture
from lichen.errors import UserError
from lichen.sim import images
from lichen.sim.images import load_image, load_picture, rgb
from lichen.sim.samples import REDUCED, reduce

RNG = np.random.default_rng(7)


def rounded(samples: np.ndarray, full: int = 65535) -> np.ndarray:
    return np.rint(samples.astype(np.float64) * 255 / full).astype(np.uint8)


def png16(samples: np.ndarray, colour: int) -> bytes:
    """A PNG of 16-bit samples (height, width, channels), which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    samples: np.ndarray,
    photometric: int,
    *,
    bits: int | None = None,
    kind: int = 1,
    extra: int | None = None,
    packed: bool = False,
    width: int | None = None,
) -> bytes:
    """A TIFF made by hand: of any byte order, depth and sample format, perhaps deflated."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    height, channels = samples.shape[0], 1 if samples.ndim == 2 else samples.shape[2]
    data = zlib.compress(samples.tobytes()) if packed else samples.tobytes()
    depth = bits or 8 * samples.dtype.itemsize
    tags: list[tuple[int, str, list[int]]] = [
        (256, "H", [width or samples.shape[1]]), (257, "H", [height]),
        (258, "H", [depth] * channels), (259, "H", [8 if packed else 1]),
        (262, "H", [photometric]), (273, "I", [0]), (277, "H", [channels]), (278, "H", [height]),
        (279, "I", [len(data)]),
        *([] if extra is None else [(338, "H", [extra])]),
        (339, "H", [kind] * channels),
    ]  # fmt: skip
    behind = 8 + 2 + 12 * len(tags) + 4
    long = {n: struct.pack(f"{order}{len(v)}{f}", *v) for n, f, v in tags if len(v) > 2}
    start = behind + sum(len(octets) for octets in long.values())
    entries, at = b"", behind
    for number, code, values in tags:
        value = [start] if number == 273 else values
        octets = struct.pack(f"{order}{len(value)}{code}", *value).ljust(4, b"\0")
        if number in long:
            octets, at = struct.pack(f"{order}I", at), at + len(long[number])
        kind_of = 3 if code == "H" else 4
        entries += struct.pack(f"{order}HHI", number, kind_of, len(value)) + octets
    head = b"II*\0" if order == "<" else b"MM\0*"
    return (
        head + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
        + b"".join(long.values()) + data
    )  # fmt: skip


@pytest.mark.parametrize("full", [4095, 65535])
def test_every_value_is_rounded(full):
    values = np.arange(full + 1)
    np.testing.assert_array_equal(reduce(values, full), rounded(values, full))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_png_of_16_bits(tmp_path, colour, channels):
    """All four kinds: both bytes of a sample count, of alpha too, and grey stays grey."""
    samples = RNG.integers(0, 65536, (9, 7, channels))
    (tmp_path / "a.png").write_bytes(png16(samples, colour))
    picture = Picture.read(tmp_path / "a.png")
    colours = samples[:, :, : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(picture.pixels, np.broadcast_to(rounded(colours), (9, 7, 3)))
    assert picture.grey == (channels < 3) and picture.notes == (REDUCED,)
    if channels in (2, 4):
        np.testing.assert_array_equal(picture.alpha, rounded(samples[:, :, -1]))
    else:
        assert picture.alpha is None


def test_a_transparent_colour_of_16_bits(tmp_path):
    samples = RNG.integers(0, 65536, (9, 7, 3))
    samples[4, 4] = samples[2, 3] + 1  # another colour, the same in 8 bits
    data = png16(samples, 2)
    key = b"tRNS" + struct.pack(">HHH", *samples[2, 3])
    chunk = struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + chunk + data[at:])
    picture = Picture.read(tmp_path / "a.png")
    expected = np.full((9, 7), 255)
    expected[2, 3] = 0
    np.testing.assert_array_equal(picture.alpha, expected)
    np.testing.assert_array_equal(picture.pixels, rounded(samples))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_16_bits(tmp_path, order, packed):
    file = tmp_path / "a.tif"
    grey = RNG.integers(0, 65536, (9, 7)).astype(f"{order}u2")
    colour = RNG.integers(0, 65536, (9, 7, 3)).astype(f"{order}u2")
    four = RNG.integers(0, 65536, (9, 7, 4)).astype(f"{order}u2")
    for data, expected in (
        (tiff(grey, 1, packed=packed), rounded(grey)[:, :, None]),
        (tiff(colour, 2, packed=packed), rounded(colour)),
        (tiff(four, 2, packed=packed, extra=0), rounded(four[:, :, :3])),
        (tiff(four, 2, packed=packed, extra=2), rounded(four[:, :, :3])),
    ):
        file.write_bytes(data)
        pixels, notes = load_image(file)
        np.testing.assert_array_equal(pixels, np.broadcast_to(expected, (9, 7, 3)))
        assert REDUCED in notes
    file.write_bytes(tiff(four, 2, packed=packed, extra=2))
    np.testing.assert_array_equal(Picture.read(file).alpha, rounded(four[:, :, 3]))


def test_white_may_be_zero(tmp_path):
    grey = RNG.integers(0, 65536, (9, 7)).astype("<u2")
    (tmp_path / "a.tif").write_bytes(tiff(grey, 0))
    np.testing.assert_array_equal(
        load_image(tmp_path / "a.tif")[0][:, :, 0], rounded(65535 - grey.astype(int))
    )


def test_12_bits_fill_the_range(tmp_path):
    grey = RNG.integers(0, 4096, (8, 8))
    pairs = grey.reshape(8, 4, 2)
    octets = [pairs[:, :, 0] >> 4, (pairs[:, :, 0] & 15) << 4 | pairs[:, :, 1] >> 8,
              pairs[:, :, 1] & 255]  # fmt: skip
    packed = np.stack(octets, axis=2).reshape(8, 12).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff(packed, 1, bits=12, width=8))
    pixels, notes = load_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels[:, :, 0], rounded(grey, 4095))
    assert notes == [REDUCED]


@pytest.mark.parametrize(
    ("dtype", "kind", "words"),
    [
        ("<u4", 1, "samples of 32 bits"), ("<i4", 2, "samples of 32 bits"),
        (">i4", 2, "samples of 32 bits"), ("<f4", 3, "floating-point samples"),
        (">f4", 3, "floating-point samples"), ("<i2", 2, "signed samples"),
        (">i2", 2, "signed samples"), ("i1", 2, "signed samples"),
        ("<f8", 3, "not an image of a known format"), ("<f2", 3, "known format"),
        ("<u8", 1, "known format"),
    ],
)  # fmt: skip
def test_samples_of_no_known_range_are_refused(tmp_path, dtype, kind, words):
    """Even where all values would fit: the next file's would not."""
    (tmp_path / "a.tif").write_bytes(tiff(np.full((4, 4), 9, dtype), 1, kind=kind))
    for read in (load_image, Picture.read):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "a.tif")
        assert words in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("value", [-1, 65536, 1 << 30])
def test_images_in_memory_that_do_not_fit(value):
    image = Image.fromarray(np.full((4, 4), value, np.int32))
    with pytest.raises(UserError, match=r"samples outside 0 \.\. 65535"):
        Picture.of(image)
    fits = Picture.of(Image.fromarray(np.full((4, 4), 65535, np.int32)))
    assert fits.pixels.min() == 255


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LA", "CMYK", "YCbCr", "HSV", "1", "P"])
def test_every_mode_of_pillows_has_colours(mode):
    colour = Image.new("RGBA", (4, 4), (200, 200, 200, 128))
    steps = {"La": ["LA", "La"], "RGBa": ["RGBa"], "PA": ["P", "PA"]}.get(mode, [mode])
    image = colour.convert("RGB") if mode not in ("La", "LA", "RGBa") else colour
    for step in steps:
        image = image.convert(step)
    expected = 255 if mode == "1" else 200
    assert np.abs(rgb(image, []).astype(int) - expected).max() <= (4 if mode != "1" else 255)
    assert np.abs(Picture.of(image).pixels.astype(int) - rgb(image, [])).max() <= 1


def test_lab_is_converted_by_colour_management(tmp_path):
    """sRGB's red is L = 54.29, a = 80.81, b = 69.89 (D50)."""
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[:] = round(54.29 * 2.55), 81, 70
    (tmp_path / "a.tif").write_bytes(tiff(lab, 8))
    pixels, notes = load_image(tmp_path / "a.tif")
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 6
    assert notes == ["converted from LAB to RGB"]


# Guards -------------------------------------------------------------------------------------


def with_texts(path: Path, profile: int = 0, texts: int = 0, length: int = 0) -> np.ndarray:
    pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    info = PngImagePlugin.PngInfo()
    for i in range(texts):
        info.add_text(f"key{i}", "x" * length, zip=True)
    icc = bytearray(RNG.bytes(profile))
    icc[16:20] = b"RGB "
    Image.fromarray(pixels).save(path, pnginfo=info, icc_profile=bytes(icc) if profile else None)
    return pixels


def test_a_profile_of_more_than_a_mebibyte_is_kept(tmp_path):
    path = tmp_path / "a.png"
    pixels = with_texts(path, profile=3 << 20)
    picture = Picture.read(path)
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.icc is not None and len(picture.icc) == 3 << 20 and picture.notes == ()


@pytest.mark.parametrize(
    "limits", [{"texts": 1, "length": 1 << 21}, {"texts": 100, "length": 1 << 20}]
)
def test_long_and_many_texts_are_no_reason_to_refuse(tmp_path, limits):
    path = tmp_path / "a.png"
    pixels = with_texts(path, **limits)
    read, notes = load_image(path)
    np.testing.assert_array_equal(read, pixels)
    assert notes == []


@pytest.mark.parametrize("limits", [{"profile": 9000}, {"texts": 1, "length": 9000},
                                    {"texts": 30, "length": 300}])  # fmt: skip
def test_beyond_our_own_guard_the_picture_is_read_without(tmp_path, monkeypatch, limits):
    path = tmp_path / "a.png"
    pixels = with_texts(path, **limits)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2000)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 8000)
    picture, notes = load_picture(path)
    np.testing.assert_array_equal(np.asarray(picture), pixels)
    assert notes == ["texts and profile are dropped, being more than 64 MiB"]
    assert "icc_profile" not in picture.info


def test_large_images_meet_our_guard_and_no_other(tmp_path):
    """196 million pixels are within it, and more than twice what Pillow allows."""
    assert 2 * Image.MAX_IMAGE_PIXELS > images.PIXELS_MAX

    def claim(side: int) -> Path:
        data = bytearray(png16(np.zeros((1, 1, 1)), 0))
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "a.png").write_bytes(data)
        return tmp_path / "a.png"

    with pytest.raises(UserError, match="claims 16385 x 16385 pixels, more than 268435456"):
        load_image(claim(16385))
    with Image.open(claim(14000)) as opened:
        assert opened.size == (14000, 14000)


def test_whatever_a_decoder_raises_is_a_sentence(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(*_):
        raise struct.error("odd")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image \(odd\)\.$"):
        load_image(tmp_path / "a.png")
