"""Version 2 of the file: its bytes, its parts, parts of images, and damage."""

from __future__ import annotations

import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lichen import models
from lichen.codec import version2
from lichen.codec.container import Container, ContainerError, Kind, inspect
from lichen.codec.context import ContextCoder
from lichen.codec.layout import Layout
from lichen.codec.metadata import is_srgb, srgb_profile
from lichen.codec.parts import PLAIN, Flags, Part
from lichen.codec.picture import Picture
from lichen.codec.region import Region
from lichen.codec.version2 import part_bytes, segment_bytes, varint
from lichen.errors import UserError
from lichen.network.random import random_contexts
from lichen.sim import golden
from lichen.sim.golden import analysis, reconstruct
from lichen.sim.images import read_image
from tests.codec.cases import KINDS, make_network, pattern
from tests.codec.test_damage import mutate

SMALL = Layout(columns=4, rows=2, places=5)
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"


@pytest.fixture(scope="module", params=KINDS)
def small(request):
    """A file of many segments with every kind of part: its container, bytes and pixels."""
    network = random_contexts(4, make_network(request.param), excess=True, carry=True)
    container = Container(network, threads=1, layout=SMALL)
    image = pattern(70, 90, 4)
    picture = Picture(
        image[:, :, :3],
        image[:, :, 3],
        icc=b"\0" * 16 + b"RGB " + b"x" * 40,
        exif=EXIF,
        xmp=b"<x/>",
    )
    data = container.encode(picture)
    return container, data, container.decode(data).picture


def numbers_of(data, at, count):
    """Integers of docs/container.md, read by hand."""
    found = []
    for _ in range(count):
        value, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        found.append(value)
    return found, at


def test_bytes_are_as_documented(small):
    container, data, picture = small
    assert data[:6] == b"\x8bLIC\x02\x3c"  # alpha, a profile, EXIF and XMP
    assert data[6:22].hex() == container.digest
    (width, height, columns, rows, places, z, y), at = numbers_of(data, 22, 7)
    assert (width, height, columns, rows, places) == (90, 70, 4, 2, 5)
    assert int.from_bytes(data[at : at + 4], "little") == zlib.crc32(data[:at])
    at += 4
    found = {}
    while data[at]:
        begin = at
        (length,), at = numbers_of(data, at + 1, 1)
        payload = data[at + 4 : at + 4 + length]
        checksum = int.from_bytes(data[at : at + 4], "little")
        assert checksum == zlib.crc32(data[begin:at] + payload)
        found[data[begin]] = zlib.decompress(payload)
        at += 4 + length
    assert set(found) == {3, 4, 5, 6}
    assert (found[4], found[5], found[6]) == (picture.icc, EXIF, b"<x/>")
    at += 1
    for number in range(z + y):
        begin = at
        (length,), at = numbers_of(data, at, 1)
        stream = data[at + 3 : at + 3 + length]
        checksum = zlib.crc32(data[begin:at] + stream) ^ number
        assert int.from_bytes(data[at : at + 3], "little") == checksum & 0xFFFFFF
        at += 3 + length
    assert at == len(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 64), (130, 33)])
def test_round_trip_is_the_golden_reconstruction(kind, size):
    network = random_contexts(4, make_network(kind), excess=True, carry=True)
    image = pattern(*size)
    latents = analysis(network, image)
    for layout in (Layout(), SMALL):
        container = Container(network, layout=layout)
        data = container.encode(image)
        assert np.array_equal(container.decode(data).picture.pixels, reconstruct(network, latents))
        assert Container(network).pack(Container(network).latents(data)) == Container(
            network
        ).encode(image)
        header = inspect(data)
        segments = len(header.of_kind(Kind.Y)) + len(header.of_kind(Kind.Z))
        assert len(data) - header.stream_bytes <= 40 + 6 * segments
        assert header.image_bytes == len(data)
    for threads in (1, 3):
        assert Container(network, threads).encode(image) == Container(network).encode(image)


def test_version_1_is_as_without_contexts():
    plain = make_network("hyperprior")
    network = random_contexts(4, plain)
    image = pattern(70, 90)
    data = Container(plain).encode(image)
    assert Container(network, version=1).encode(image) == data
    pixels = Container(plain).decode(data).picture.pixels
    assert np.array_equal(Container(network).decode(data).picture.pixels, pixels)
    with pytest.raises(UserError, match="has no context models"):
        Container(plain, version=2)
    with pytest.raises(ContainerError, match="has no context models"):
        Container(plain).decode(Container(network).encode(image))


def test_every_damaged_byte_is_found(small):
    container, data, picture = small
    parts = inspect(data).parts
    for position in range(4, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(ContainerError) as error:
            container.decode(bytes(damaged))
        assert str(error.value).endswith(".")
        for part in parts:
            if part.offset <= position < part.offset + part.length:
                assert str(error.value) == f"the file is damaged: {part.name} fails its checksum."
        if position % 7 == 0:
            check_salvage(container, bytes(damaged), picture)


def check_salvage(container, damaged, picture):
    """What is not marked is what it was."""
    try:
        salvaged = container.decode(damaged, salvage=True)
    except ContainerError as error:
        assert str(error).endswith(".")
        return None
    assert salvaged.picture.pixels.shape == picture.pixels.shape
    differs = (salvaged.picture.pixels != picture.pixels).any(axis=2)
    marked = np.zeros_like(differs) if salvaged.damaged is None else salvaged.damaged
    assert not (differs & ~marked).any()
    return salvaged


def test_every_truncation_is_found(small):
    container, data, picture = small
    for size in range(len(data)):
        with pytest.raises(ContainerError):
            container.decode(data[:size])
        if size % 13 == 0:
            check_salvage(container, data[:size], picture)
    with pytest.raises(ContainerError, match="bytes where"):
        container.decode(data + b"\0")


def test_segments_that_change_places_are_found(small):
    """Each is intact by itself."""
    container, data, picture = small
    one, two = inspect(data).of_kind(Kind.Y)[2:4]
    first, middle, last = (
        one.offset - one.overhead,
        two.offset - two.overhead,
        two.offset + two.length,
    )
    swapped = data[:first] + data[middle:last] + data[first:middle] + data[last:]
    with pytest.raises(ContainerError, match="y segment 2 fails its checksum"):
        container.decode(swapped)
    check_salvage(container, swapped, picture)


def test_damage_reaches_to_the_end_of_its_group():
    network = random_contexts(4, make_network("factorized"))
    container = Container(network, layout=Layout(columns=6, rows=4, places=6))
    image = pattern(16 * 40, 96)
    data = bytearray(container.encode(image))
    whole = container.decode(bytes(data)).picture
    part = inspect(bytes(data)).of_kind(Kind.Y)[17]
    for position in (part.offset, part.offset - part.overhead):  # the stream, and its length
        damaged = bytearray(data)
        damaged[position] ^= 1
        salvaged = check_salvage(container, bytes(damaged), whole)
        rest = [f"y segment {n} cannot be decoded without y segment 17" for n in (18, 19)]
        assert list(salvaged.lost) == ["y segment 17 fails its checksum", *rest]
        rows = np.flatnonzero(salvaged.damaged.any(axis=1))
        assert 17 * 16 - 64 < rows[0] <= 17 * 16
        assert 20 * 16 <= rows[-1] < 20 * 16 + 64


def mend(data: bytes) -> bytes:
    """Every checksum that there still is made right."""
    mended = bytearray(data)
    try:
        (*_, z, y), at = numbers_of(mended, 22, 7)
        mended[at : at + 4] = zlib.crc32(mended[:at]).to_bytes(4, "little")
        at += 4
        while mended[at]:
            begin = at
            (length,), at = numbers_of(mended, at + 1, 1)
            check = zlib.crc32(mended[begin:at] + mended[at + 4 : at + 4 + length])
            mended[at : at + 4] = check.to_bytes(4, "little")
            at += 4 + length
        at += 1
        for number in range(min(z + y, 10_000)):
            begin = at
            (length,), at = numbers_of(mended, at, 1)
            check = zlib.crc32(mended[begin:at] + mended[at + 3 : at + 3 + length]) ^ number
            mended[at : at + 3] = (check & 0xFFFFFF).to_bytes(3, "little")
            at += 3 + length
    except (IndexError, OverflowError):
        pass
    return bytes(mended[: len(data)])


@pytest.mark.parametrize("rounds", [150, pytest.param(34_000, marks=pytest.mark.slow)])
def test_mutations_under_right_checksums(small, rounds):
    rng = np.random.default_rng(rounds)
    container, data, _ = small
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
        slowest = max(slowest, time.process_time() - begin)
    assert slowest < 5


@pytest.mark.parametrize("rounds", [300, pytest.param(34_000, marks=pytest.mark.slow)])
def test_mutations_are_found(small, rounds):
    rng = np.random.default_rng(rounds)
    container, data, picture = small
    for i in range(rounds):
        damaged = mutate(data, rng)
        if damaged == data:
            continue
        with pytest.raises(ContainerError):
            container.decode(damaged)
        if i % 10 == 0:
            check_salvage(container, damaged, picture)


def cut_out(data: bytes, part: Part) -> bytes:
    return data[: part.offset - part.overhead] + data[part.offset + part.length :]


def test_a_part_that_was_cut_out_is_missed(small):
    container, data, picture = small
    for part in inspect(data).parts[:4]:
        rest = cut_out(data, part)
        with pytest.raises(ContainerError, match=f"{part.name} is missing"):
            container.decode(rest)
        decoded = container.decode(rest, salvage=True)
        assert decoded.lost == (f"{part.name} is missing",)
        assert np.array_equal(decoded.picture.pixels, picture.pixels)
    assert [part.kind for part in inspect(data).parts[:4]] == list(PLAIN)


def test_parts_that_the_header_does_not_tell(small):
    """None are told by Lichen 0.2.0; others do not belong."""
    container, data, picture = small

    def told(flags: Flags) -> bytes:
        end = inspect(data).parts[0].offset - inspect(data).parts[0].overhead - 4
        head = data[:5] + bytes([flags]) + data[6:end]
        return head + zlib.crc32(head).to_bytes(4, "little") + data[end + 4 :]

    assert told(Flags.ALPHA | Flags.ICC | Flags.EXIF | Flags.XMP) == data
    older = container.decode(told(Flags(0))).picture
    assert np.array_equal(older.alpha, picture.alpha)
    assert (older.icc, older.exif, older.xmp) == (picture.icc, picture.exif, picture.xmp)
    fewer = told(Flags.ALPHA | Flags.ICC | Flags.EXIF)
    with pytest.raises(ContainerError, match="XMP is out of place"):
        container.decode(fewer)
    assert container.decode(fewer, salvage=True).picture.xmp is None
    with pytest.raises(ContainerError, match="header makes no sense"):
        container.decode(told(Flags(64)))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_forged_headers_never_hurt(small, data):
    """Measures and counts of any size under a right checksum."""
    container, good, _ = small
    frame = inspect(good)
    number = st.one_of(st.integers(0, 300), st.integers(0, (1 << 35) - 1))
    values = [data.draw(number) for _ in range(5)]
    counts = [data.draw(number), data.draw(number)]
    head = good[:22] + b"".join(map(varint, [*values, *counts]))
    head += zlib.crc32(head).to_bytes(4, "little")
    _, at = numbers_of(good, 22, 7)
    begin = time.process_time()
    for salvage in (False, True):
        try:
            container.decode(head + good[at + 4 :], salvage=salvage, max_pixels=1 << 16)
        except ContainerError as error:
            assert "\n" not in str(error)
    assert time.process_time() - begin < 5
    assert frame.version == 2


def test_parts_that_a_later_lichen_writes_are_skipped(small):
    container, data, picture = small
    header = inspect(data)
    first = header.of_kind(Kind.ALPHA)[0]
    at = first.offset - first.overhead
    later = data[:at] + part_bytes(77, b"what is it") + data[at:] + part_bytes(200, b"an index")
    decoded = container.decode(later)
    assert np.array_equal(decoded.picture.pixels, picture.pixels)
    assert [part.name for part in inspect(later).parts if part.kind in (77, 200)] == [
        "part of kind 77", "part of kind 200"
    ]  # fmt: skip
    with pytest.raises(ContainerError, match="bytes where"):
        container.decode(data + part_bytes(Kind.XMP, b"late"))
    twice = data[:at] + part_bytes(Kind.ALPHA, b"x") + data[at:]
    with pytest.raises(ContainerError, match="alpha is out of place"):
        container.decode(twice)
    for position in (at + 4, len(later) - 3):
        damaged = bytearray(later)
        damaged[position] ^= 1
        with pytest.raises(ContainerError):
            container.decode(bytes(damaged))


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_those_of_the_whole(kind, monkeypatch):
    network = random_contexts(4, make_network(kind), excess=True, carry=True)
    image = pattern(330, 270, 4)
    for version, layout in ((1, None), (2, Layout(columns=8, rows=2, places=8))):
        container = Container(network, version=version, layout=layout)
        data = container.encode(image)
        whole = container.decode(data).picture
        for region in (
            Region((0, 1)), Region((100, 230)), Region((329, 330), (269, 270)),
            Region((40, 41), (0, 3)), Region((5, 300), (120, 200)), Region((0, 330), (0, 270)),
        ):  # fmt: skip
            part = container.decode(data, region=region).picture
            assert np.array_equal(part.pixels, whole.pixels[region.slices])
            assert np.array_equal(part.alpha, whole.alpha[region.slices])
        for region in (Region((0, 331)), Region((5, 5)), Region((0, 9), (200, 271))):
            with pytest.raises(UserError, match="not within the image"):
                container.decode(data, region=region)


@pytest.mark.parametrize("seed", range(12))
def test_regions_under_any_layout(seed):
    rng = np.random.default_rng(seed)
    network = make_network(KINDS[seed % len(KINDS)])
    network = random_contexts(seed, network, excess=bool(seed % 2), carry=bool(seed % 4 // 2))
    layout = Layout(*(int(rng.integers(1, most)) for most in (20, 9, 30)))
    container = Container(network, layout=layout, threads=1)
    height, width = (int(one) for one in rng.integers(1, 400, 2))
    data = container.encode(pattern(height, width))
    whole = container.decode(data).picture.pixels
    for _ in range(4):
        rows, columns = (
            tuple(sorted(int(one) for one in rng.choice(most + 1, 2, replace=False)))
            for most in (height, width)
        )
        region = Region(rows, columns)
        part = container.decode(data, region=region).picture.pixels
        assert np.array_equal(part, whole[region.slices])


def test_regions_of_images_whose_last_strip_is_narrow():
    """A segment has rows there that no pixel of the region asks for, and h_s must say all."""
    photo = read_image(models.photograph())
    image = np.concatenate([photo, photo], axis=1)[:160, :800]
    container = Container(models.load_network("small-hyper-q3"))
    data = container.encode(Picture.of(image))
    whole = container.decode(data).picture.pixels
    for region in (Region((0, 1)), Region((30, 70)), Region((129, 160), (790, 800))):
        part = container.decode(data, region=region).picture.pixels
        assert np.array_equal(part, whole[region.slices])


def test_regions_take_what_they_depend_on_and_no_more(monkeypatch):
    network = random_contexts(4, make_network("factorized"))
    container = Container(network, threads=1, layout=Layout(rows=2))
    data = container.encode(pattern(16 * 60, 160))
    coder, decoded = container._context_coders["y"], []
    known = coder.decode
    monkeypatch.setattr(coder, "decode", lambda *a: (decoded.append(a[3]), known(*a))[1])
    container.decode(data, region=Region((480, 496)))
    rows = {window.first_row for window in decoded}
    assert min(rows) >= 26
    assert max(rows) <= 33
    # damage elsewhere is nobody's concern when salvaging
    bad = bytearray(data)
    bad[inspect(data).parts[2].offset] ^= 1
    part = container.decode(bytes(bad), salvage=True, region=Region((480, 496)))
    assert part.lost == ()
    assert part.damaged is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_for_a_region_is_in_proportion_to_it(kind, monkeypatch):
    """Symbols that are decoded and products that are made, counted and not timed."""
    network = random_contexts(4, make_network(kind), excess=True, carry=True)
    layout = Layout(columns=8, rows=4, places=8)
    container = Container(network, threads=1, layout=layout)
    height, width = 1280, 768
    data = container.encode(pattern(height, width))
    done = {"symbols": 0, "products": 0}
    known, run = ContextCoder.decode, golden._run_rows

    def decode(coder, stream, symbols, indices, window, limits=None):
        done["symbols"] += window.size * coder.channels
        known(coder, stream, symbols, indices, window, limits)

    def run_rows(stage, source, band, begin, end):
        columns = stage.convolution.output_size(band.rows.shape[1])
        done["products"] += stage.convolution.macs(end - begin, columns)
        return run(stage, source, band, begin, end)

    monkeypatch.setattr(ContextCoder, "decode", decode)
    monkeypatch.setattr(golden, "_run_rows", run_rows)

    def work(region: Region | None) -> dict[str, int]:
        done.update(symbols=0, products=0)
        container.decode(data, region=region)
        return dict(done)

    whole = work(None)
    assert whole["symbols"] == sum(part.symbols.size for part in container.latents(data).segments)
    # a group and what the transforms reach beyond, twice beside a hyperprior, whose own rows of z
    # come in groups of four, too
    margin = 16 * (layout.rows + 8) if kind == "factorized" else 64 * (layout.rows + 8)
    for rows in (64, 160, 480):
        for top in (0, 37, height - rows):
            found = work(Region((top, top + rows)))
            for what, count in found.items():
                assert count <= whole[what] * min(1, (rows + margin) / height), (what, rows, top)
    strip = 16 * (layout.columns + 8)
    if kind == "factorized":
        found = work(Region((400, 464), (300, 364)))
        share = (64 + margin) / height * (64 + strip) / width
        assert all(count <= whole[what] * share for what, count in found.items())
        assert found["symbols"] * 12 < whole["symbols"]


def test_srgb_is_a_flag(tiny_like):
    container, image = tiny_like
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert is_srgb(made)
    assert is_srgb(srgb_profile())
    assert not is_srgb(lab)
    assert not is_srgb(None)
    assert not is_srgb(b"\0" * 16 + b"RGB " + b"x" * 40)
    plain = container.encode(Picture(image))
    data = container.encode(Picture(image, icc=made))
    assert len(data) == len(plain)
    assert inspect(data).json()["srgb"]
    assert not inspect(plain).json()["srgb"]
    assert is_srgb(container.decode(data).picture.icc)
    assert container.decode(plain).picture.icc is None


@pytest.fixture(scope="module")
def tiny_like():
    network = random_contexts(4, make_network("factorized"))
    return Container(network), pattern(40, 50)


def test_metadata_come_back_and_do_not_count(tiny_like):
    container, image = tiny_like
    picture = Image.fromarray(image)
    exif = picture.getexif()
    exif[0x010F], exif[0x0112] = "Maker", 6  # orientation: turned
    picture.info |= {"exif": exif.tobytes(), "xmp": b"<x:xmpmeta/>"}
    data = container.encode(picture)
    decoded = container.decode(data).picture
    assert decoded.pixels.shape == (50, 40, 3)
    found = decoded.image().getexif()
    assert found.get(0x010F) == "Maker"
    assert 0x0112 not in found
    assert decoded.xmp == b"<x:xmpmeta/>"
    header = inspect(data)
    bare = container.encode(Picture.of(picture).pixels)
    assert header.image_bytes == len(bare) < len(data)
    assert header.stream_bytes == inspect(bare).stream_bytes


def test_numbers():
    for value in (0, 1, 127, 128, 300, 1 << 21, (1 << 35) - 1):
        assert numbers_of(varint(value), 0, 1) == ([value], len(varint(value)))
        assert version2._read_varint(varint(value), 0) == (value, len(varint(value)))
    for bad in (b"\x80\x00", b"\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(ContainerError, match="makes no sense"):
            version2._read_varint(bad, 0)
    assert segment_bytes(0, b"") != segment_bytes(1, b"")
