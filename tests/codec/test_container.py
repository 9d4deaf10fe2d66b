"""The .lic file: round trips, its bytes, damage and salvage, forged files, golden vectors."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lichen import codec
from lichen.codec import container as container_module
from lichen.codec.container import Container, ContainerError, Flags, Kind, influence, inspect
from lichen.codec.picture import Picture
from lichen.errors import UserError
from lichen.network.description import Network
from lichen.network.file import digest
from lichen.network.random import random_factorized, random_hyperprior
from lichen.sim.golden import analysis, estimate_bits, latent_shapes, reconstruct, run_transform

VECTORS = Path(__file__).with_name("vectors.json")


def make_network(kind: str) -> Network:
    if kind == "factorized":
        return random_factorized(7, n=4, m=6)
    return random_hyperprior(7, n=4, m=6, means=kind == "mean-scale")


KINDS = ("factorized", "hyperprior", "mean-scale")


@pytest.fixture(scope="module", params=KINDS)
def network(request: pytest.FixtureRequest) -> Network:
    return make_network(request.param)


def pattern(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Something between a ramp and noise, the same everywhere."""
    index = np.arange(height * width * channels, dtype=np.uint64).reshape(height, width, channels)
    return ((index * 2654435761 >> np.uint64(13)) % 97 + index % 120).astype(np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 64), (130, 33)])
def test_round_trip_is_the_golden_reconstruction(network, size):
    image = pattern(*size)
    data = codec.encode(image, network)
    latents = analysis(network, image)
    assert np.array_equal(codec.decode(data, network), reconstruct(network, latents))
    header = inspect(data)
    ideal = sum(estimate_bits(network, latents).values()) / 8
    assert header.size == len(data)
    table = 56 + 12 * len(header.parts)
    assert len(data) <= 1.01 * ideal + table + 8 * len(header.parts)
    unpacked = Container(network).latents(data)
    assert [s.name for s in unpacked.segments] == [s.name for s in latents.segments]
    for one, two in zip(unpacked.segments, latents.segments, strict=True):
        assert np.array_equal(one.symbols, two.symbols)
        assert np.array_equal(one.indices, two.indices)
    assert Container(network).pack(unpacked) == data
    symbols = {segment.name: segment.symbols.astype(np.int64) for segment in unpacked.segments}
    again = Container(network).from_symbols(symbols, *size)
    assert Container(network).pack(again) == data


def test_bytes_are_as_documented(network):
    """docs/container.md, read by hand."""
    image = pattern(70, 90, 4)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Picture(image[:, :, :3], image[:, :, 3], icc=icc)
    data = Container(network).encode(picture)
    assert data[:4] == b"\x8bLIC"
    version, flags, reserved, width, height = struct.unpack("<BBHII", data[4:16])
    assert (version, flags, reserved, width, height) == (1, 0, 0, 90, 70)
    assert data[16:48].hex() == digest(network)
    (count,) = struct.unpack("<I", data[48:52])
    kinds = [3, 4]
    kinds = ([1] if network.hyper else []) + [2, *kinds]
    assert count == len(kinds)
    end = 52 + 12 * count
    assert struct.unpack("<I", data[end : end + 4])[0] == zlib.crc32(data[:end])
    at, payloads = end + 4, {}
    for i, expected in enumerate(kinds):
        kind, length, crc = struct.unpack_from("<III", data, 52 + 12 * i)
        assert kind == expected
        payloads[kind] = data[at : at + length]
        assert zlib.crc32(payloads[kind]) == crc
        at += length
    assert at == len(data)
    rows = np.frombuffer(zlib.decompress(payloads[3]), np.uint8).reshape(70, 90)
    assert np.array_equal(rows.cumsum(axis=0, dtype=np.uint8), picture.alpha)
    assert zlib.decompress(payloads[4]) == icc


def test_segments_are_bounded(tiny_network, photo):
    image = np.tile(photo, (4, 4, 1))
    data = codec.encode(image, tiny_network)
    symbols = int(np.prod(latent_shapes(tiny_network, *image.shape[:2])["y"]))
    parts = inspect(data).of_kind(Kind.Y)
    assert len(parts) == -(-symbols // 65536) > 1
    assert [part.name for part in parts] == [f"y segment {i}" for i in range(len(parts))]
    bits = sum(estimate_bits(tiny_network, analysis(tiny_network, image)).values())
    assert len(data) <= 1.01 * bits / 8 + 56 + 12 * len(parts)


def test_threads_make_no_difference(network, monkeypatch):
    monkeypatch.setattr(container_module, "SEGMENT_SYMBOLS", 50)
    image = pattern(128, 128)
    data = codec.encode(image, network, threads=1)
    assert len(inspect(data).of_kind(Kind.Y)) > 3
    for threads in (2, 5, None):
        assert codec.encode(image, network, threads=threads) == data
        assert np.array_equal(
            codec.decode(data, network, threads=threads), codec.decode(data, network, threads=1)
        )


def vector(kind: str) -> dict[str, str]:
    """Digests that must not depend on the machine."""
    network, image = make_network(kind), pattern(75, 100)
    data = codec.encode(image, network)
    sha = lambda content: hashlib.sha256(content).hexdigest()  # noqa: E731
    return {
        "network": digest(network),
        "image": sha(image.tobytes()),
        "file": sha(data),
        "reconstruction": sha(codec.decode(data, network).tobytes()),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_golden_vectors(kind):
    assert vector(kind) == json.loads(VECTORS.read_text())[kind]


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        {"OPENBLAS_CORETYPE": "Prescott", "LC_ALL": "C", "PYTHONHASHSEED": "5"},
        {"OPENBLAS_CORETYPE": "Haswell", "LC_ALL": "C.UTF-8", "NPY_DISABLE_CPU_FEATURES": "AVX2"},
    ],
)
def test_golden_vectors_in_other_surroundings(environment):
    """Other BLAS kernels, thread counts and locales: the same files, the same pixels."""
    code = (
        "import json; from tests.codec.test_container import KINDS, vector; "
        "print(json.dumps({kind: vector(kind) for kind in KINDS}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env=os.environ | environment,
        cwd=VECTORS.parents[2],
    )  # fmt: skip
    assert json.loads(run.stdout) == json.loads(VECTORS.read_text())


# Images as users have them


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


def test_orientation_is_applied(tmp_path, tiny_network):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = pattern(16, 48)
    Image.fromarray(image).save(tmp_path / "x.png", exif=exif)
    picture = Picture.read(tmp_path / "x.png")
    assert np.array_equal(picture.pixels, np.rot90(image, -1))
    header = inspect(Container(tiny_network).encode(picture))
    assert (header.width, header.height) == (16, 48)


def test_profiles(tiny_network):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
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


# Damage


@pytest.fixture(scope="module", params=KINDS)
def small(request: pytest.FixtureRequest) -> tuple[Container, bytes, np.ndarray]:
    """A file of several segments with alpha and profile: its container, bytes and image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container_module, "SEGMENT_SYMBOLS", 40)
        container = Container(make_network(request.param), threads=1)
        image = pattern(70, 90, 4)
        picture = Picture(image[:, :, :3], image[:, :, 3], icc=b"\0" * 16 + b"RGB " + b"x" * 40)
        data = container.encode(picture)
        yield container, data, container.decode(data).picture.array()


def check_damaged(
    small: tuple[Container, bytes, np.ndarray], damaged: bytes, salvage: bool = True
) -> str:
    """A refusal, and a salvage that is right wherever it does not say otherwise."""
    container, data, expected = small
    with pytest.raises(ContainerError) as error:
        container.decode(damaged)
    reason = str(error.value)
    assert reason.endswith(".")
    assert "\n" not in reason
    if not salvage:
        return reason
    try:
        salvaged = container.decode(damaged, salvage=True)
    except ContainerError:
        return reason
    assert salvaged.lost or len(damaged) > len(data)
    found = salvaged.picture
    assert found.pixels.shape == expected[:, :, :3].shape
    differs = (found.pixels != expected[:, :, :3]).any(axis=2)
    if salvaged.damaged is None:
        assert not differs.any()
    else:
        assert not differs[~salvaged.damaged].any()
    if not any("alpha" in lost for lost in salvaged.lost):
        assert np.array_equal(found.alpha, expected[:, :, 3])
    return reason


def test_every_damaged_byte_is_found(small):
    data = small[1]
    parts = inspect(data).parts
    head = parts[0].offset
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        reason = check_damaged(small, bytes(damaged), salvage=position % 11 == 0)
        if position >= head:
            (part,) = [p for p in parts if p.offset <= position < p.offset + p.length]
            assert reason == f"the file is damaged: {part.name} fails its checksum."


def test_every_truncation_is_found(small):
    data = small[1]
    for size in range(len(data)):
        check_damaged(small, data[:size], salvage=size % 11 == 0)
    check_damaged(small, data + b"\0")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the usual accidents."""
    damaged = bytearray(data)
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    match rng.integers(6):
        case 0:
            del damaged[at : at + length]
        case 1:
            damaged[at:at] = rng.bytes(length)
        case 2:
            damaged[at : at + length] = rng.bytes(len(damaged[at : at + length]))
        case 3:
            damaged[at : at + length] = bytes(len(damaged[at : at + length]))
        case 4:
            for _ in range(rng.integers(1, 9)):
                damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
        case _:
            source = int(rng.integers(len(data)))
            damaged[at : at + length] = data[source : source + length]
    return bytes(damaged)


@pytest.mark.parametrize("rounds", [300, pytest.param(40_000, marks=pytest.mark.slow)])
def test_mutations(small, rounds):
    rng = np.random.default_rng(rounds)
    container, data, _ = small
    for _ in range(rounds):
        damaged = mutate(data, rng)
        if damaged != data:
            with pytest.raises(ContainerError):
                container.decode(damaged)


def forge(data: bytes, position: int, value: bytes) -> bytes:
    """Change bytes, and make every checksum right again."""
    forged = bytearray(data)
    forged[position : position + len(value)] = value
    (count,) = struct.unpack_from("<I", data, 48)
    end = 52 + 12 * count
    at = end + 4
    for i in range(count):
        (length,) = struct.unpack_from("<I", forged, 56 + 12 * i)
        struct.pack_into("<I", forged, 60 + 12 * i, zlib.crc32(forged[at : at + length]))
        at += length
    struct.pack_into("<I", forged, end, zlib.crc32(forged[:end]))
    return bytes(forged)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_forged_files_never_hurt(small, data):
    """Checksums are no protection from malice: what they cover is checked all the same."""
    container, good, _ = small
    at = data.draw(st.integers(4, len(good) - 1))
    value = data.draw(st.binary(min_size=1, max_size=6))
    try:
        container.decode(forge(good, at, value), max_pixels=1 << 16)
    except ContainerError as error:
        assert "\n" not in str(error)


def test_forged_headers(small):
    container, data, _ = small
    count = len(inspect(data).parts)
    cases = {
        "is of version 2": (4, b"\2"),
        "makes no sense": (5, b"\2"),
        "header makes no sense": (6, b"\1"),
        "makes no sense.": (8, bytes(4)),
        "segments where": (8, struct.pack("<I", 500)),
        "more than 65536": (8, struct.pack("<I", 1 << 31)),
        "another network": (16, bytes(32)),
        "no part of kind 9": (52, struct.pack("<I", 9)),
        "two alphas or profiles": (52 + 12 * (count - 1), struct.pack("<I", 3)),
        "bytes where": (52 + 4, struct.pack("<I", 1)),
        "alpha cannot be unpacked": (inspect(data).of_kind(Kind.ALPHA)[0].offset, b"\0\0\0"),
        "does not decode": (inspect(data).parts[0].offset, bytes(8)),
    }
    for reason, (at, value) in cases.items():
        with pytest.raises(ContainerError, match=reason):
            container.decode(forge(data, at, value), max_pixels=1 << 16)


def test_profiles_that_inflate_are_refused(tiny_network):
    picture = Picture(pattern(4, 4), icc=bytes(container_module.PROFILE_BYTES_MAX + 1))
    container = Container(tiny_network)
    with pytest.raises(ContainerError, match="ICC profile cannot be unpacked"):
        container.decode(container.encode(picture))


def test_symbols_that_no_network_makes(tiny_network):
    latents = analysis(tiny_network, pattern(16, 16))
    latents["y"].symbols[0, 0, 0] = 100_000
    data = Container(tiny_network).pack(latents)
    with pytest.raises(ContainerError, match="y segment 0 holds symbols that the network cannot"):
        codec.decode(data, tiny_network)


def test_unusable_symbols():
    network = make_network("hyperprior")
    container = Container(network)
    latents = analysis(network, pattern(64, 64))
    good = {segment.name: segment.symbols for segment in latents.segments}
    for name, value, reason in (
        ("z", None, "no symbols z"),
        ("y", good["y"][1:], r"integers of shape \(4, 4, 6\) for 64 x 64 pixels"),
        ("y", good["y"].astype(float), "must be integers"),
        ("z", good["z"] + 1000, "must lie in -127 .. 127"),
    ):
        symbols = {key: item for key, item in (good | {name: value}).items() if item is not None}
        with pytest.raises(UserError, match=reason):
            container.from_symbols(symbols, 64, 64)


def test_other_networks_are_refused(tiny_network):
    other = make_network("factorized")
    with pytest.raises(ContainerError) as error:
        codec.decode(codec.encode(pattern(8, 8), other), tiny_network)
    assert digest(other)[:16] in str(error.value)
    assert digest(tiny_network)[:16] in str(error.value)


def test_salvage_keeps_what_it_can(tiny_network, photo, monkeypatch):
    """A lost segment in the middle leaves the top and the bottom of a tall image."""
    monkeypatch.setattr(container_module, "SEGMENT_SYMBOLS", 48 * 5)
    image = np.concatenate([photo, photo[::-1], photo, photo[::-1]])[:, :80]
    container = Container(tiny_network)
    data = bytearray(container.encode(image))
    parts = inspect(bytes(data)).parts
    assert len(parts) == 32
    data[parts[16].offset] ^= 1
    salvaged = container.decode(bytes(data), salvage=True)
    assert salvaged.lost == ("y segment 16 fails its checksum",)
    rows = salvaged.damaged.any(axis=1)
    first, last = np.flatnonzero(rows)[[0, -1]]
    assert 16 * 16 - 64 < first <= 16 * 16
    assert 17 * 16 <= last < 17 * 16 + 64
    whole = codec.decode(container.encode(image), tiny_network)
    assert np.array_equal(salvaged.picture.pixels[~salvaged.damaged], whole[~salvaged.damaged])
    assert not np.array_equal(salvaged.picture.pixels, whole)
    assert container.decode(container.encode(image), salvage=True).damaged is None


@pytest.mark.parametrize("name", ["g_a", "g_s", "h_a", "h_s"])
def test_influence_is_what_a_change_reaches(name):
    transform = make_network("mean-scale").transform(name)
    rng = np.random.default_rng(2)
    shape = {"g_a": (80, 48), "h_a": (30, 20)}.get(name, (9, 12))
    lo, hi = transform.input.lo, transform.input.hi
    mask = np.zeros(shape, bool)
    mask[4, 5] = mask[shape[0] - 1, 0] = True
    reached = influence(transform, mask)
    changed = np.zeros_like(reached)
    for _ in range(40):
        one = rng.integers(lo, hi + 1, (*shape, transform.in_channels))
        two = np.where(mask[:, :, None], rng.integers(lo, hi + 1, one.shape), one)
        changed |= (run_transform(transform, one) != run_transform(transform, two)).any(axis=2)
    assert not (changed & ~reached).any()
    # sound, and not by marking everything
    assert changed.sum() > 0.9 * reached.sum()
    assert not reached.all()


def test_networks_without_synthesis(tiny_network):
    half = tiny_network.model_copy(update={"transforms": {"g_a": tiny_network.transforms["g_a"]}})
    with pytest.raises(UserError, match="no g_s"):
        Container(half)


if __name__ == "__main__":
    # python -m tests.codec.test_container writes the golden vectors: only with a new version
    VECTORS.write_text(json.dumps({kind: vector(kind) for kind in KINDS}, indent=2) + "\n")
