"""Images of every kind in, 8-bit RGB out; and whole simulations of the odd ones."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lichen.cli import main
from lichen.commands.simulate import command
from lichen.errors import UserError
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.network.description import Activation, Network
from lichen.network.file import save
from lichen.network.random import StageShape, random_transform
from lichen.sim.golden import run_transform
from lichen.sim.images import load_image, pad_image, read_image, write_image

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
GREY = PICTURE[:, :, 0]


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file made by hand, for what Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(samples: np.ndarray, colour: int) -> bytes:
    """A PNG of 16-bit samples (height, width, channels)."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(width, height, 16, colour, rows)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".bmp", ".tiff"])
def test_rgb(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(PICTURE).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    pixels, notes = load_image(path)
    assert pixels.shape == (7, 5, 3) and pixels.dtype == np.uint8 and notes == []
    if suffix != ".jpg":
        np.testing.assert_array_equal(pixels, PICTURE)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    pixels, notes = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, np.repeat(GREY[:, :, None], 3, axis=2))
    assert notes == []
    Image.fromarray(GREY > 127).save(tmp_path / "b.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "b.png"), np.repeat((GREY > 127)[:, :, None] * 255, 3, axis=2)
    )


def test_alpha_is_dropped_with_a_note(tmp_path: Path) -> None:
    """Dropped, not blended: transparent pixels keep their colour."""
    alpha = RNG.integers(0, 256, (7, 5, 1), dtype=np.uint8)
    alpha[0] = 0
    Image.fromarray(np.concatenate([PICTURE, alpha], axis=2)).save(tmp_path / "a.png")
    Image.fromarray(np.concatenate([GREY[:, :, None], alpha], axis=2), "LA").save(
        tmp_path / "la.png"
    )
    for name, expected in (("a", PICTURE), ("la", np.repeat(GREY[:, :, None], 3, axis=2))):
        pixels, notes = load_image(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(pixels, expected)
        assert notes == ["the alpha channel is dropped"]


def test_palette(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    index = RNG.integers(0, 16, (7, 5), dtype=np.uint8)
    picture = Image.fromarray(index, "P")
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "a.png")
    pixels, notes = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, colours[index])
    assert notes == []
    picture.save(tmp_path / "b.png", transparency=bytes([0] * 8 + [255] * 8))
    pixels, notes = load_image(tmp_path / "b.png")
    np.testing.assert_array_equal(pixels, colours[index])
    assert notes == ["the alpha channel is dropped"]


def test_16_bits_are_reduced_with_a_note(tmp_path: Path) -> None:
    grey = np.array([[0, 1, 128, 129], [257, 32768, 65534, 65535]])
    (tmp_path / "grey.png").write_bytes(png16(grey[:, :, None], 0))
    pixels, notes = load_image(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels[:, :, 1], [[0, 0, 0, 1], [1, 128, 255, 255]])
    assert notes == ["reduced to 8 bits per channel"]
    colour = RNG.integers(0, 65536, (7, 5, 3))
    (tmp_path / "colour.png").write_bytes(png16(colour, 2))
    pixels, notes = load_image(tmp_path / "colour.png")
    assert np.abs(pixels * 257 - colour).max() <= 257
    assert notes == ["reduced to 8 bits per channel"]
    alpha = np.concatenate([colour, np.full((7, 5, 1), 65535)], axis=2)
    (tmp_path / "alpha.png").write_bytes(png16(alpha, 6))
    again, notes = load_image(tmp_path / "alpha.png")
    np.testing.assert_array_equal(again, pixels)
    assert sorted(notes) == ["reduced to 8 bits per channel", "the alpha channel is dropped"]


def test_cmyk_is_converted_with_a_note(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    pixels, notes = load_image(tmp_path / "a.jpg")
    assert pixels.shape == (8, 8, 3) and notes == ["converted from CMYK to RGB"]
    assert pixels[4, 4, 0] > 200 and pixels[4, 4, 1:].max() < 60


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to show
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(PICTURE, -1))


def test_the_first_frame_is_used_with_a_note(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), (40 * i, 0, 0)) for i in range(1, 4)]
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True}), ("a.gif", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        pixels, notes = load_image(tmp_path / name)
        np.testing.assert_array_equal(pixels, np.array(frames[0]))
        assert "only the first of 3 frames is used" in notes, name


def test_one_pixel(tmp_path: Path) -> None:
    Image.fromarray(PICTURE[:1, :1]).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, PICTURE[:1, :1])
    padded = pad_image(pixels, 16)
    assert padded.shape == (16, 16, 3) and np.all(padded == PICTURE[0, 0])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (16, 17), (31, 48), (64, 64)])
def test_padding_repeats_the_right_and_bottom_edges(height: int, width: int) -> None:
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded = pad_image(image, 16)
    rows, columns = -(-height // 16) * 16, -(-width // 16) * 16
    assert padded.shape == (rows, columns, 3)
    y, x = np.minimum(np.arange(rows), height - 1), np.minimum(np.arange(columns), width - 1)
    np.testing.assert_array_equal(padded, image[y][:, x])


def valid_png(tmp_path: Path) -> bytes:
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "ok.png")
    return (tmp_path / "ok.png").read_bytes()


def damaged_jpeg(tmp_path: Path) -> bytes:
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "ok.jpg")
    return (tmp_path / "ok.jpg").read_bytes()[:900]


BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty.png": (lambda folder: b"", "is empty"),
    "text.png": (lambda folder: b"this is no image\n", "not an image of a known format"),
    "noise.png": (lambda folder: bytes(range(256)) * 9, "not an image of a known format"),
    "cut.png": (lambda folder: valid_png(folder)[:700], "cannot be read as an image"),
    "cut-header.png": (lambda folder: valid_png(folder)[:20], "cut-header.png"),
    "cut.jpg": (damaged_jpeg, "cannot be read as an image"),
    "damaged.png": (
        lambda folder: valid_png(folder).replace(b"IDAT", b"IDAX", 1),
        "damaged.png",
    ),
    "huge.png": (lambda folder: png(60000, 60000, 8, 2, b"\0"), "claims"),
    "claims.png": (lambda folder: png(16000, 16000, 8, 2, b"\0"), "pixels in 66 bytes, which hold"),
    "vast.png": (lambda folder: png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"), "vast.png"),
    "nothing.png": (lambda folder: png(0, 0, 8, 2, b""), "nothing.png"),
    "script.svg": (lambda folder: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    with pytest.raises(UserError) as caught:
        load_image(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and words in sentence
    assert sentence.endswith(".") and "\n" not in sentence


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="is a folder"):
        load_image(tmp_path)


def test_writing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", PICTURE)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURE)
    for name in ("a", "a.txt", "a.lichen"):
        with pytest.raises(UserError, match="names no image format"):
            write_image(tmp_path / name, PICTURE)
    with pytest.raises(UserError, match="cannot write"):
        write_image(tmp_path / "nowhere" / "a.png", PICTURE)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# Whole simulations --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Network]:
    """A network of two stages that reduces by 4, and a folding of it for 32 columns."""
    folder = tmp_path_factory.mktemp("small")
    transform = random_transform(
        np.random.default_rng(4),
        [
            StageShape(out_channels=4, kernel=3, activation=Activation.GDN),
            StageShape(out_channels=3, kernel=3),
        ],
    )
    network = Network(architecture="custom", n=4, m=3, transforms={"g_a": transform})
    save(network, folder / "net.lichen")
    folding = Folding(
        max_width=32,
        stages=[
            StageFolding(
                chains=2,
                convolution=ArrayFolding(chain_length=2, lanes=3),
                normalization=ArrayFolding(chain_length=2, lanes=2),
            ),
            StageFolding(chains=1, convolution=ArrayFolding(chain_length=3, lanes=2)),
        ],
    )
    (folder / "folding.json").write_text(json.dumps(folding.model_dump(mode="json")))
    return folder / "net.lichen", folder / "folding.json", network


def simulate(small: tuple[Path, Path, Network], image: Path, *more: str):
    arguments = [str(small[0]), "--image", str(image), "--folding", str(small[1]), "--json", "-"]
    return CliRunner().invoke(command, [*arguments, *more])


@pytest.mark.parametrize(
    ("simulator", "sizes"),
    [("icarus", [(1, 1, 1), (9, 31, 1), (5, 130, 5)]), ("verilator", [(1, 1, 1), (6, 33, 2)])],
)
def test_sizes_in_simulation(
    simulator: str,
    sizes: list[tuple[int, int, int]],
    small: tuple[Path, Path, Network],
    tmp_path: Path,
) -> None:
    """One pixel, odd sizes, and widths that take several tiles: all latents, bit for bit."""
    for height, width, count in sizes:
        image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "a.png")
        done = simulate(small, tmp_path / "a.png", "--simulator", simulator)
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        latents = run_transform(small[2].transforms["g_a"], pad_image(image, 4))
        assert (report["width"], report["height"]) == (width, height)
        assert report["tiles"] == count
        assert report["mismatches"] == 0 and report["first_mismatch"] is None
        assert report["compared"] == latents.size
        assert report["cycles"] == report["predicted_cycles"]


def test_notes_reach_the_user(small: tuple[Path, Path, Network], tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (5, 6, 4), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    done = simulate(small, tmp_path / "a.png", "--simulator", "icarus")
    assert done.exit_code == 0
    assert "a.png: the alpha channel is dropped" in done.stderr


def exit_of(arguments: list[str]) -> tuple[int, str]:
    """Exit status of the ``lichen`` command, and what it said."""
    with CliRunner().isolation() as streams:
        try:
            main(arguments)
        except SystemExit as error:
            status = error.code
        assert streams[0].getvalue() == b""
        return status, streams[1].getvalue().decode()


@pytest.mark.parametrize("name", BAD)
def test_the_command_refuses_bad_images(
    name: str, small: tuple[Path, Path, Network], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name][0](tmp_path))
    status, said = exit_of(
        ["simulate", str(small[0]), "--image", str(path), "--folding", str(small[1])]
    )
    assert status == 2
    assert said.startswith(f"lichen: {path}") and said.count("\n") == 1


def test_the_command_refuses_other_nonsense(
    small: tuple[Path, Path, Network], tmp_path: Path
) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    net, folding, image = str(small[0]), str(small[1]), str(tmp_path / "a.png")
    for arguments, words in (
        ([net, "--image", str(tmp_path / "b.png")], "does not exist"),
        ([net, "--image", str(tmp_path)], "is a folder"),
        (["no-such-net", "--image", image], "no-such-net"),
        ([image, "--image", image], "not a readable Lichen network"),
        ([net, "--image", image, "--board", "abacus"], "abacus"),
        ([net, "--image", image, "--folding", image], "a.png"),
        ([net, "--image", image, "--folding", str(tmp_path / "no.json")], "no.json"),
        ([net, "--image", image, "--transform", "g_s"], "g_s"),
        ([net, "--image", image, "--folding", folding, "--crop", "8x4"], "does not fit"),
        ([net, "--image", image, "--max-width", "30"], "multiple of 4"),
        ([net, "--image", image, "--max-width", "4", "--crop", "5x7"], "too narrow"),
        ([net, "--image", image, "--folding", folding, "--crop", "7x5"], "give 5x7"),
    ):
        status, said = exit_of(["simulate", *arguments])
        assert status == 2, (arguments, said)
        assert words in said and said.startswith("lichen: ") and said.count("\n") == 1, said
