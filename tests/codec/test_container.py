"""The .lic file: round trips, its bytes, symbols from elsewhere, other networks."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import ImageCms

from lichen import codec
from lichen.codec import container as container_module
from lichen.codec.container import Container, ContainerError, Kind, inspect
from lichen.codec.picture import Picture
from lichen.errors import UserError
from lichen.network.description import Network
from lichen.network.file import digest
from lichen.network.identity import static_digest
from lichen.sim.golden import analysis, code_latent, estimate_bits, latent_shapes, reconstruct
from tests.codec.cases import KINDS, make_network, pattern


@pytest.fixture(scope="module", params=KINDS)
def network(request: pytest.FixtureRequest) -> Network:
    return make_network(request.param)


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


@pytest.mark.parametrize("extreme", ["lo", "hi", "both"])
def test_any_latent_is_representable(network, extreme):
    """The most that g_a can make, far outside of the tables, comes back exactly."""
    output = network.transform("g_a").output
    y = np.full((8, 12, network.m), getattr(output, extreme, output.lo), np.int32)
    if extreme == "both":
        y[::2, 1::2] = output.hi
    latents = code_latent(network, y, 8 * 16, 12 * 16)
    data = Container(network).pack(latents)
    unpacked = Container(network).latents(data)
    for one, two in zip(unpacked.segments, latents.segments, strict=True):
        assert np.array_equal(one.symbols, two.symbols)
    assert np.array_equal(codec.decode(data, network), reconstruct(network, latents))
    tables = network.entropy["y"]
    last = tables.offsets + tables.lengths - 3
    symbols, rows = latents["y"].symbols, latents["y"].indices
    assert ((symbols < tables.offsets[rows]) | (symbols > last[rows])).any()


def test_segments_are_bounded(tiny_network, photo):
    image = np.tile(photo, (4, 4, 1))
    data = codec.encode(image, tiny_network, version=1)
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
    assert static_digest(tiny_network)[:16] in str(error.value)


def test_networks_without_synthesis(tiny_network):
    half = tiny_network.model_copy(update={"transforms": {"g_a": tiny_network.transforms["g_a"]}})
    with pytest.raises(UserError, match="no g_s"):
        Container(half)
