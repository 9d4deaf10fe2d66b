"""Damaged and forged .lic files: refused or salvaged, never decoded to something else."""

from __future__ import annotations

import resource
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lichen import codec, models
from lichen.codec import container as container_module
from lichen.codec.container import Container, ContainerError, Kind, influence, inspect
from lichen.codec.picture import Picture
from lichen.errors import UserError
from lichen.sim.golden import analysis, run_transform
from tests.codec.cases import KINDS, make_network, pattern


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


@pytest.mark.slow
def test_every_value_of_every_byte_is_found(small):
    container, data, _ = small
    for position in range(len(data)):
        damaged = bytearray(data)
        for value in set(range(256)) - {data[position]}:
            damaged[position] = value
            with pytest.raises(ContainerError):
                container.decode(bytes(damaged))


@pytest.fixture(scope="module")
def large(tiny_network) -> tuple[Container, bytes]:
    """A file of a whole photograph."""
    container = Container(tiny_network, version=1)
    return container, container.encode(Picture.read(models.photograph()))


@pytest.mark.parametrize("rounds", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutations(large, rounds):
    rng = np.random.default_rng(rounds)
    container, data = large
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


def mend(damaged: bytes) -> bytes:
    """Make every checksum right that there still is."""
    mended = bytearray(damaged)
    if len(mended) < 52:
        return damaged
    (count,) = struct.unpack_from("<I", mended, 48)
    end = 52 + 12 * count
    if len(mended) < end + 4:
        return damaged
    at = end + 4
    for entry in range(52, end, 12):
        (length,) = struct.unpack_from("<I", mended, entry + 4)
        struct.pack_into("<I", mended, entry + 8, zlib.crc32(mended[at : at + length]))
        at += length
    struct.pack_into("<I", mended, end, zlib.crc32(mended[:end]))
    return bytes(mended)


@pytest.mark.parametrize("rounds", [150, pytest.param(34_000, marks=pytest.mark.slow)])
def test_mutations_under_right_checksums(small, rounds):
    """With three kinds of networks, 100 000 in all: pixels or an error, in little time and memory.

    What checksums vouch for may decode to anything, but to nothing else than it says it is.
    """
    rng = np.random.default_rng(rounds)
    container, data, _ = small
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    for i in range(rounds):
        damaged = mend(mutate(data, rng))
        begin = time.process_time()
        try:
            decoded = container.decode(damaged, salvage=i % 2 == 1, max_pixels=1 << 16)
        except ContainerError as error:
            assert str(error).endswith(".")
        else:
            header = inspect(damaged, truncated=True)
            assert decoded.picture.pixels.shape == (header.height, header.width, 3)
            assert header.width * header.height <= 1 << 16
        slowest = max(slowest, time.process_time() - begin)
    assert slowest < 5
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000  # KiB


def test_forged_headers(small):
    container, data, _ = small
    count = len(inspect(data).parts)
    cases = {
        "is of version 3": (4, b"\3"),
        "makes no sense": (5, b"\2"),
        "header makes no sense": (6, b"\1"),
        "makes no sense.": (8, bytes(4)),
        "claims to have 65537 parts": (48, struct.pack("<I", 65537)),
        "segments where": (8, struct.pack("<I", 500)),
        "more than 65536": (8, struct.pack("<I", 1 << 31)),
        # few pixels, but many with their padding
        "takes decoding": (8, struct.pack("<II", 8000, 1)),
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


def test_profiles_that_inflate_are_refused(tiny_network, monkeypatch):
    most = container_module.PROFILE_BYTES_MAX
    picture, container = (
        Picture(pattern(4, 4), icc=bytes(most + 1)),
        Container(tiny_network, version=1),
    )
    with pytest.raises(UserError, match="ICC profile has more than"):
        container.encode(picture)
    monkeypatch.setattr(container_module, "PROFILE_BYTES_MAX", most + 1)
    data = container.encode(picture)
    monkeypatch.undo()
    with pytest.raises(ContainerError, match="ICC profile cannot be unpacked"):
        container.decode(data)


def test_symbols_that_no_network_makes(tiny_network):
    latents = analysis(tiny_network, pattern(16, 16))
    latents["y"].symbols[0, 0, 0] = 100_000
    data = Container(tiny_network, version=1).pack(latents)
    with pytest.raises(ContainerError, match="y segment 0 holds symbols that the network cannot"):
        codec.decode(data, tiny_network)


def test_salvage_keeps_what_it_can(tiny_network, photo, monkeypatch):
    """A lost segment in the middle leaves the top and the bottom of a tall image."""
    monkeypatch.setattr(container_module, "SEGMENT_SYMBOLS", 48 * 5)
    image = np.concatenate([photo, photo[::-1], photo, photo[::-1]])[:, :80]
    container = Container(tiny_network, version=1)
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
    whole = container.decode(container.encode(image)).picture.array()
    assert np.array_equal(salvaged.picture.pixels[~salvaged.damaged], whole[~salvaged.damaged])
    assert not np.array_equal(salvaged.picture.pixels, whole)
    assert container.decode(container.encode(image), salvage=True).damaged is None


def test_salvage_takes_no_memory_by_claim(tiny_network, monkeypatch):
    """A header of two kilobytes that claims 8192x8192, and nothing after it."""
    monkeypatch.setattr(container_module, "SEGMENT_SYMBOLS", 1 << 16)  # for all that `small` says
    container = Container(tiny_network, version=1)
    count = len(container_module.segment_bounds(512 * 512 * 48))
    head = struct.pack(
        "<4sBBHII32sI", b"\x8bLIC", 1, 0, 0, 8192, 8192, bytes.fromhex(container.digest), count
    )
    head += struct.pack("<III", Kind.Y, 8, 0) * count
    data = head + struct.pack("<I", zlib.crc32(head))
    assert 2000 < len(data) < 2500
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ContainerError, match="claims 8192 x 8192 pixels, and 0 bytes of it"):
        container.decode(data, salvage=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_marks(tiny_network, photo, monkeypatch):
    """Magenta, also in greys and where the image is transparent; all else is as it was."""
    monkeypatch.setattr(container_module, "SEGMENT_SYMBOLS", 48 * 12)
    container = Container(tiny_network, version=1)
    for image in (photo, photo[:, :, 0], np.dstack([photo, 0 * photo[:, :, 0]])):
        data = bytearray(container.encode(image))
        whole = container.decode(bytes(data))
        assert whole.marked() is whole.picture
        data[inspect(bytes(data)).parts[0].offset] ^= 1
        salvaged = container.decode(bytes(data), salvage=True)
        marked = np.asarray(salvaged.marked().image().convert("RGBA"))
        expected = np.asarray(whole.picture.image().convert("RGBA"))
        assert 0.1 < salvaged.damaged.mean() < 0.9
        assert (marked[salvaged.damaged] == (255, 0, 255, 255)).all()
        assert np.array_equal(marked[~salvaged.damaged], expected[~salvaged.damaged])


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
