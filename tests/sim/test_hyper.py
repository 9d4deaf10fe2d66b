"""The golden model's hyperprior paths, from pixels to symbols and tables, and back."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from lichen.errors import UserError
from lichen.network.arithmetic import latent_symbol, latent_value, scale_index
from lichen.network.description import Activation, EntropyTables, Network, Transform
from lichen.network.file import dumps, load, save
from lichen.network.model import ValidationError
from lichen.network.random import random_factorized, random_hyperprior
from lichen.sim import golden

NETWORKS = {
    "scale": lambda: random_hyperprior(3, n=6, m=10),
    "scale, whole": lambda: random_hyperprior(4, n=5, m=7, fraction=0, scales=1),
    "mean": lambda: random_hyperprior(5, n=6, m=10, means=True, fraction=3),
    "mean, whole": lambda: random_hyperprior(6, n=4, m=6, means=True, fraction=0),
}


@pytest.fixture(params=NETWORKS)
def network(request) -> Network:
    return NETWORKS[request.param]()


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(8).integers(0, 256, (70, 130, 3), dtype=np.uint8)


def changed(network: Network, **fields) -> Network:
    """The network with other fields, validated anew."""
    return Network.model_validate(network.model_dump() | fields)


# An evaluation of its own ---------------------------------------------------------------------


def independent_transform(torch, transform: Transform, x):
    """A transform without normalizations in PyTorch: float64 convolutions of integers, exact."""
    functional = torch.nn.functional
    for stage in transform.stages:
        conv, r = stage.convolution, stage.requantizer
        weight = torch.from_numpy(conv.weight.astype(np.float64))
        tensor = x.permute(2, 0, 1)[None].double()
        if conv.transposed:
            acc = functional.conv_transpose2d(
                tensor,
                weight.transpose(0, 1),
                stride=conv.stride,
                padding=conv.padding,
                output_padding=conv.output_padding,
            )
        else:
            acc = functional.conv2d(tensor, weight, stride=conv.stride, padding=conv.padding)
        acc = acc[0].permute(1, 2, 0).long() + torch.from_numpy(conv.bias).long()
        d = torch.from_numpy(r.pre_shift).long()
        acc = torch.div(
            acc + torch.div(2**d, 2, rounding_mode="floor"), 2**d, rounding_mode="floor"
        )
        acc = acc.clamp(-(2**17), 2**17 - 1)
        m = torch.from_numpy(r.multiplier).long()
        if stage.activation is Activation.LEAKY_RELU:
            m = torch.where(acc < 0, torch.from_numpy(r.negative_multiplier).long(), m)
        half = 2**r.shift // 2
        x = torch.div(acc * m + half, 2**r.shift, rounding_mode="floor")
        x = x.clamp(r.output.lo, r.output.hi)
    return x


def independent_coding(network: Network, y: np.ndarray) -> dict[str, np.ndarray]:
    """Everything between g_a and g_s from the equations of the format's description."""
    torch = pytest.importorskip("torch")
    f, channels = network.latent_fraction, y.shape[2]
    y = torch.from_numpy(y).long()
    h_a, h_s = network.transforms["h_a"], network.transforms["h_s"]
    seen = y.abs() if network.architecture == "bmshj2018-hyperprior" else y
    z = independent_transform(torch, h_a, seen.clamp(h_a.input.lo, h_a.input.hi))
    parameters = independent_transform(torch, h_s, z)
    scales = parameters[:, :, :channels]
    thresholds = torch.from_numpy(network.scale_thresholds).long()
    indices = (scales[..., None] >= thresholds).sum(-1)
    mu = parameters[:, :, channels:] if network.architecture == "mbt2018-mean" else 0
    symbols = torch.floor((y - mu).double() / 2**f + 0.5 * (f > 0)).long()
    reads = symbols
    if network.architecture == "mbt2018-mean":
        g_s = network.transforms["g_s"].input
        reads = (symbols * 2**f + mu).clamp(g_s.lo, g_s.hi)
    return {"z": z.numpy(), "indices": indices.numpy(), "y": symbols.numpy(), "g_s": reads.numpy()}


def test_golden_equals_an_independent_evaluation(network, image):
    latents = golden.analysis(network, image)
    padded = np.pad(image, ((0, 58), (0, 62), (0, 0)), mode="edge")
    y = golden.run_transform(network.transforms["g_a"], padded)
    expected = independent_coding(network, y)
    assert [segment.name for segment in latents.segments] == ["z", "y"]
    assert np.array_equal(latents["z"].symbols, expected["z"])
    assert np.array_equal(latents["y"].symbols, expected["y"])
    assert np.array_equal(latents["y"].indices, expected["indices"])
    assert np.array_equal(latents["z"].indices[1, 0], np.arange(network.n))
    assert np.unique(expected["z"]).size > 10
    assert np.unique(expected["y"]).size > 50
    assert np.unique(expected["indices"]).size > 1 or len(network.scale_thresholds) == 0
    pixels = golden.run_transform(network.transforms["g_s"], expected["g_s"].astype(np.int32))
    decoded = golden.reconstruct(network, latents)
    assert decoded.shape == image.shape
    assert np.array_equal(decoded, pixels[:70, :130].astype(np.uint8))


def test_the_decoder_needs_only_what_was_coded(network, image):
    latents = golden.analysis(network, image)
    asked = []

    def read(name, indices):
        asked.append(name)
        assert np.array_equal(indices, latents[name].indices)
        return latents[name].symbols

    decoded = golden.decode(network, *image.shape[:2], read)
    assert asked == ["z", "y"]
    shapes = golden.latent_shapes(network, *image.shape[:2])
    assert list(shapes) == ["z", "y"]
    for name, shape in shapes.items():
        assert latents[name].symbols.shape == shape
    # in two steps
    parameters = golden.entropy_parameters(network, latents["z"].symbols)
    assert np.array_equal(parameters.indices, latents["y"].indices)
    assert (parameters.means is not None) == network.means
    again = golden.synthesis(network, latents["y"].symbols, parameters.means, *image.shape[:2])
    assert np.array_equal(decoded, again)


def test_factorized_models_code_one_segment(image):
    network = random_factorized(2, n=4, m=6)
    latents = golden.analysis(network, image)
    assert [segment.name for segment in latents.segments] == ["y"]
    assert np.array_equal(latents["y"].indices[2, 3], np.arange(6))
    assert golden.latent_shapes(network, *image.shape[:2]) == {"y": (5, 9, 6)}
    assert golden.reconstruct(network, latents).shape == image.shape


# Arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("f", range(9))
def test_symbols_are_the_nearest_and_lose_half_a_step(f):
    y = np.arange(-2000, 2001)
    for mu in (0, 1, -3, 77, -1234, 32767, -32767):
        symbol = latent_symbol(y, mu, f)
        back = latent_value(symbol, mu, f, -100000, 100000)
        assert np.abs(back - y).max() == (2**f) // 2
        ties = (back - y) == (2**f) // 2  # rounded up
        assert ties.any() or f == 0
        assert not ((y - back) == (2**f) // 2).any() or f == 0
        limited = latent_value(symbol, mu, f, -2000, 2000)
        assert np.abs(limited - y).max() <= (2**f) // 2


def test_scale_indices_count_the_thresholds_reached():
    thresholds = np.array([-4, 0, 0, 7, 300])
    v = np.arange(-400, 400)
    expected = sum((v >= t).astype(int) for t in thresholds)
    assert np.array_equal(scale_index(v, thresholds), expected)
    assert scale_index(np.array([300]), thresholds)[0] == 5
    assert scale_index(np.array([299]), thresholds)[0] == 4


def test_bits_of_symbols():
    tables = EntropyTables(
        cdf=np.array([[0, 32768, 49152, 65536], [0, 16384, 65536, 0]], np.int32),
        lengths=np.array([4, 3], np.int32),
        offsets=np.array([-1, 5], np.int32),
    )

    def bits(symbol, index):
        return golden.symbol_bits(tables, np.array([[[symbol]]]), np.array([[[index]]]))

    assert bits(-1, 0) == 1
    assert bits(0, 0) == 2
    assert bits(5, 1) == 2
    escape = -np.log2(0.75)
    assert bits(6, 1) == pytest.approx(escape + 2)  # 1 beyond: one bit and a sign
    assert bits(4, 1) == pytest.approx(escape + 2)
    assert bits(12, 1) == pytest.approx(escape + 2 * 2 + 2)  # 7 beyond
    assert bits(-3, 0) == pytest.approx(2 + 2 * 1 + 2)
    both = golden.symbol_bits(tables, np.array([[[0, 5]]]), np.array([[[0, 1]]]))
    assert both == 4


def test_estimates_are_by_segment(network, image):
    latents = golden.analysis(network, image)
    bits = golden.estimate_bits(network, latents)
    assert list(bits) == ["z", "y"]
    z, tables = latents["z"].symbols, network.entropy["z"]
    total = 0.0
    for channel in range(z.shape[2]):
        total += golden.symbol_bits(tables, z[:, :, channel], np.full(z.shape[:2], channel))
    assert bits["z"] == pytest.approx(total)
    bare = network.model_copy(update={"entropy": {"y": network.entropy["y"]}})
    with pytest.raises(ValueError, match="no entropy tables for z"):
        golden.estimate_bits(bare, latents)


# Worst cases ----------------------------------------------------------------------------------


def extremes(shape, source, rng):
    """Arrays at the limits of a format: flat ones, random signs, checkers."""
    yield np.full(shape, source.lo, np.int32)
    yield np.full(shape, source.hi, np.int32)
    yield np.where(rng.random(shape) < 0.5, source.lo, source.hi).astype(np.int32)


def aimed(stage, source, channel):
    """The 3x3-outputs input that drives the middle accumulator of a channel to its limits."""
    conv = stage.convolution
    assert not conv.transposed
    weight = conv.weight[channel].transpose(1, 2, 0)
    lo, hi = min(source.lo, 0), source.hi
    return np.where(weight > 0, hi, lo), np.where(weight > 0, lo, hi)


@pytest.mark.parametrize("name", ["h_a", "h_s", "g_a", "g_s"])
def test_no_accumulator_overflows(network, name):
    transform = network.transforms[name]
    rng = np.random.default_rng(1)
    for stage, source in zip(transform.stages, transform.sources, strict=True):
        conv = stage.convolution
        least, most = conv.accumulator_range(source)
        assert conv.accumulator_bits(source) <= 48
        for x in extremes((7, 9, conv.in_channels), source, rng):
            trace = golden.trace_stage(stage, source, x)
            assert (trace.accumulator >= least).all()
            assert (trace.accumulator <= most).all()
            assert trace.output.min() >= stage.output.lo
            assert trace.output.max() <= stage.output.hi
            if trace.norm is not None:
                assert trace.norm.min() >= 1
                assert trace.norm.max() < 1 << 32
        if conv.transposed:
            continue
        for channel in (0, conv.out_channels - 1):
            for x in aimed(stage, source, channel):
                trace = golden.trace_stage(stage, source, x.astype(np.int32))
                # the position whose taps all lie in the image, if the padding leaves one
                centre = conv.padding // conv.stride
                at = trace.accumulator[centre, centre, channel]
                taps = x.astype(object) * conv.weight[channel].transpose(1, 2, 0)
                whole = int(taps.sum()) + int(conv.bias[channel])
                if conv.padding % conv.stride == 0:
                    assert at == whole


def test_extreme_images_and_latents_stay_in_their_formats(network):
    rng = np.random.default_rng(2)
    for image in extremes((64, 64, 3), network.transforms["g_a"].input, rng):
        latents = golden.analysis(network, image.astype(np.uint8))
        lo, hi = network.symbol_range
        assert latents["y"].symbols.min() >= lo
        assert latents["y"].symbols.max() <= hi
        assert golden.reconstruct(network, latents).shape == (64, 64, 3)
    z_format = network.transforms["h_a"].output
    for z in extremes((1, 1, network.n), z_format, rng):
        parameters = golden.entropy_parameters(network, z)
        assert parameters.indices.min() >= 0
        assert parameters.indices.max() < len(network.entropy["y"].lengths)
        symbols = np.full(parameters.indices.shape, network.symbol_range[1])
        golden.synthesis(network, symbols, parameters.means, 64, 64)


# Every machine the same -----------------------------------------------------------------------

PROGRAM = """
import hashlib, sys
import numpy as np
from lichen.network.file import load
from lichen.sim import golden
network = load(sys.argv[1])
data = np.load(sys.argv[2])
def read(name, indices):
    asked.update(np.ascontiguousarray(indices).tobytes())
    return data[name]
asked = hashlib.sha256()
image = golden.decode(network, int(data["height"]), int(data["width"]), read)
print(asked.hexdigest(), hashlib.sha256(image.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("means", [False, True])
def test_decoding_does_not_depend_on_threads(means, tmp_path):
    network = random_hyperprior(7, n=16, m=24, means=means)
    image = np.random.default_rng(3).integers(0, 256, (200, 330, 3), dtype=np.uint8)
    latents = golden.analysis(network, image)
    save(network, tmp_path / "a.lichen")
    np.savez(
        tmp_path / "a.npz",
        z=latents["z"].symbols,
        y=latents["y"].symbols,
        height=latents.height,
        width=latents.width,
    )
    seen = set()
    # OpenBLAS sums in another order with other kernels; without it, the name says nothing.
    for threads, kernels in (("1", {}), ("2", {}), ("5", {"OPENBLAS_CORETYPE": "Nehalem"})):
        limits = {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "a.lichen", tmp_path / "a.npz"],
            env=os.environ | limits | kernels,
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1
    assert len(seen.pop().split()) == 2


# The file -------------------------------------------------------------------------------------


def test_files_round_trip(network, image, tmp_path):
    path = tmp_path / "a.lichen"
    save(network, path)
    again = load(path)
    assert dumps(again) == dumps(network)
    a, b = golden.analysis(network, image), golden.analysis(again, image)
    for one, two in zip(a.segments, b.segments, strict=True):
        assert np.array_equal(one.symbols, two.symbols)
        assert np.array_equal(one.indices, two.indices)


def test_shipped_files_of_factorized_models_load():
    from importlib import resources

    network = load(str(resources.files("lichen.models") / "tiny.lichen"))
    assert network.scale_thresholds is None
    assert not network.hyper
    assert network.factor == 16


def without(network: Network, name: str) -> dict:
    return {key: value for key, value in network.model_dump()["transforms"].items() if key != name}


def test_descriptions_that_do_not_fit_are_refused():
    network = random_hyperprior(3, n=6, m=10, scales=16)
    mean = random_hyperprior(5, n=6, m=10, means=True)
    factorized = random_factorized(1, n=6, m=10)
    fewer = random_hyperprior(3, n=6, m=8)
    narrow = random_hyperprior(3, n=5, m=10)
    thresholds = network.scale_thresholds
    tables = network.model_dump()["entropy"]
    transforms = network.model_dump()["transforms"]
    z_wide = random_hyperprior(3, n=6, m=10).model_dump()["transforms"]
    z_wide["h_s"]["input"] = {"bits": 4, "signed": True, "lo": -7, "hi": 7}
    cases = [
        (network, {"scale_thresholds": thresholds[::-1].copy()}, "must not fall"),
        (network, {"scale_thresholds": thresholds[:-1]}, "16 tables for 14 scale_thresholds"),
        (network, {"scale_thresholds": thresholds[:, None]}, "one dimension"),
        (network, {"scale_thresholds": thresholds * 1.5}, "integer"),
        (network, {"scale_thresholds": thresholds + 2**17}, "must lie in"),
        (network, {"scale_thresholds": None}, "16 tables for 0 scale_thresholds"),
        (network, {"entropy": tables | {"x": tables["y"]}}, "unknown entropy tables x"),
        (network, {"entropy": tables | {"z": tables["y"]}}, "entropy.z has 16 tables for 6"),
        (network, {"latent_fraction": 0}, "symbols span -508 .. 508, but g_s takes -127 .. 127"),
        (network, {"latent_fraction": 9}, "latent_fraction"),
        (factorized, {"latent_fraction": 2}, "latent_fraction must be 0"),
        (factorized, {"scale_thresholds": thresholds}, "go with a transform h_s"),
        (network, {"transforms": transforms | {"h_s": fewer.transforms["h_s"]}}, "10 scales"),
        (network, {"transforms": transforms | {"h_a": fewer.transforms["h_a"]}}, "h_a takes 8"),
        (network, {"transforms": transforms | {"h_a": narrow.transforms["h_a"]}}, "h_a makes 5"),
        (network, {"transforms": z_wide}, "symbols of h_a must fit"),
        (network, {"transforms": without(network, "h_s")}, "go with a transform h_s"),
        (network, {"transforms": transforms | {"h_x": transforms["h_a"]}}, "unknown transform h_x"),
        (mean, {"entropy": tables | {"y": tables["z"]}}, "entropy.y has 6 tables for 15"),
    ]
    for good, fields, sentence in cases:
        with pytest.raises(ValidationError) as error:
            changed(good, **fields)
        assert sentence in str(error.value), sentence


def test_a_damaged_file_is_refused_in_one_sentence(tmp_path):
    network = random_hyperprior(3, n=6, m=10)
    bad = network.model_copy(update={"scale_thresholds": network.scale_thresholds[::-1].copy()})
    save(bad, tmp_path / "bad.lichen")
    with pytest.raises(UserError) as error:
        load(tmp_path / "bad.lichen")
    assert "scale_thresholds must not fall" in str(error.value)
    assert "bad.lichen" in str(error.value)
