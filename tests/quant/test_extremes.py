"""Images far from the calibration images: nothing overflows, and what saturates says so."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen.network import arithmetic  # noqa: E402
from lichen.network.arithmetic import ROOT_TABLES  # noqa: E402
from lichen.network.description import Format, Network, Stage, Transform  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages  # noqa: E402
from lichen.quant.calibration.options import Options  # noqa: E402
from lichen.quant.calibration.quantize import quantize  # noqa: E402
from lichen.quant.float.architectures import ARCHS, new_model  # noqa: E402
from lichen.quant.float.network import convolve, from_compressai  # noqa: E402
from lichen.sim.golden import (  # noqa: E402
    analysis,
    hyper_input,
    reconstruct,
    run_transform,
    synthesis_input,
    trace_stage,
)

SIZE = 64


def _photograph(seed: int) -> np.ndarray:
    """Smooth noise over the whole range."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (8, 8, 3)).repeat(SIZE // 8, 0).repeat(SIZE // 8, 1)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def _faint(image: np.ndarray) -> np.ndarray:
    """The image in an eighth of its range."""
    return (image // 8 + 112).astype(np.uint8)


def _extreme_images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    row, column = np.mgrid[:SIZE, :SIZE]
    checker = np.repeat(255 * ((row + column) % 2)[:, :, None], 3, axis=2)
    return {
        "black": np.zeros((SIZE, SIZE, 3), np.uint8),
        "white": np.full((SIZE, SIZE, 3), 255, np.uint8),
        "red": np.full((SIZE, SIZE, 3), (255, 0, 0), np.uint8),
        "noise": rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
        "coins": 255 * rng.integers(0, 2, (SIZE, SIZE, 3), dtype=np.uint8),
        "checker": checker.astype(np.uint8),
        "eight times the calibration range": _photograph(9),
    }


def _network(arch: str) -> Network:
    """Calibrated on faint images only."""
    torch.manual_seed(3)
    model = new_model(arch, 6, 8)
    with torch.no_grad():
        model.g_a[6].weight *= 100
        if hasattr(model, "h_a"):
            model.h_a[4].weight *= 20
            model.h_s[4].weight *= 10
    faint = CalibrationImages([_faint(_photograph(seed)) for seed in range(3)])
    return quantize(from_compressai(model, arch, 6, 8), faint, Options(samples=1000)).network


@pytest.fixture(scope="module", params=list(ARCHS))
def network(request) -> Network:
    return _network(request.param)


def _check_stage(stage: Stage, source: Format, x: np.ndarray) -> int:
    """Recompute the stage with wide integers; returns how many values were clipped."""
    trace = trace_stage(stage, source, x)
    conv, r, norm = stage.convolution, stage.requantizer, stage.normalization
    image = torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None]
    weight, bias = (torch.from_numpy(v.astype(np.float64)) for v in (conv.weight, conv.bias))
    acc = convolve(conv, image, weight, bias)[0].permute(1, 2, 0).numpy().astype(np.int64)
    np.testing.assert_array_equal(trace.accumulator, acc)
    least, most = conv.accumulator_range(source)
    assert (acc >= least).all() and (acc <= most).all()
    half = 1 << (conv.accumulator_bits(source) - 1)
    assert acc.min() >= -half and acc.max() < half

    # Python integers have no width: what golden computes in fixed widths equals them
    rounded = (acc + ((1 << r.pre_shift.astype(np.int64)) >> 1)) >> r.pre_shift.astype(np.int64)
    multiplier = np.broadcast_to(r.multiplier.astype(np.int64), acc.shape)
    if r.negative_multiplier is not None:
        multiplier = np.where(rounded < 0, r.negative_multiplier, r.multiplier)
    a = np.clip(rounded, -(1 << 17), (1 << 17) - 1).astype(object)
    exact = (a * multiplier.astype(object) + ((1 << r.shift) >> 1)) // (1 << r.shift)
    expected = np.clip(exact, r.output.lo, r.output.hi).astype(np.int64)
    np.testing.assert_array_equal(trace.x, expected)
    # 18 bits cut nothing that the clipping range would not have cut
    full = (rounded.astype(object) * multiplier + ((1 << r.shift) >> 1)) // (1 << r.shift)
    if r.negative_multiplier is None:
        np.testing.assert_array_equal(np.clip(full, r.output.lo, r.output.hi), expected)
    clipped = int((full != expected).sum())
    if norm is not None:
        u = arithmetic.norm_input(expected.astype(object), norm.kind.squares, norm.u_shift)
        assert u.max() < 1 << norm.u_bits
        n = u @ norm.gamma.astype(object).T + norm.beta.astype(object)
        assert n.min() >= 1 and n.max() < 1 << 32
        np.testing.assert_array_equal(trace.norm, n.astype(np.int64))
        root, e = arithmetic.normalized_root(
            n.astype(np.int64), ROOT_TABLES[norm.kind], norm.kind.squares
        )
        product = (expected.astype(object) * root + ((1 << norm.product_shift) >> 1)) >> (
            norm.product_shift
        )
        assert abs(product).max() <= 1 << 17  # the saturation behind it cuts nothing
        k = norm.multiplier.astype(object)
        shift = norm.shift + (-e if norm.kind.inverse else e).astype(object)
        product = np.clip(product, -(1 << 17), (1 << 17) - 1)
        y = (product * k + (np.left_shift(np.array(1, object), shift) >> 1)) >> shift
        limited = np.clip(y, norm.output.lo, norm.output.hi)
        np.testing.assert_array_equal(trace.output, limited.astype(np.int64))
        clipped += int((y != limited).sum())
    return clipped


def _check_transform(transform: Transform, x: np.ndarray) -> int:
    clipped = 0
    for stage, source in zip(transform.stages, transform.sources, strict=True):
        clipped += _check_stage(stage, source, x)
        x = run_transform(Transform(input=source, stages=[stage]), x)
    return clipped


def test_extreme_images_saturate_only_where_the_network_says_so(network):
    """Flat colours, noise, eight times the calibration range: every sum of every transform."""
    clipped = {}
    for name, image in _extreme_images().items():
        y = run_transform(network.transforms["g_a"], image)
        clipped[name] = _check_transform(network.transforms["g_a"], image)
        if network.hyper:
            h_a = network.transforms["h_a"]
            seen = hyper_input(y, h_a.input)
            _check_transform(h_a, seen)
            _check_transform(network.transforms["h_s"], run_transform(h_a, seen))
        latents = analysis(network, image)
        if not network.means:
            _check_transform(
                network.transforms["g_s"],
                synthesis_input(
                    latents["y"].symbols, None, network.latent_fraction,
                    network.transforms["g_s"].input,
                ),
            )  # fmt: skip
        decoded = reconstruct(network, latents)
        assert decoded.shape == image.shape and decoded.dtype == np.uint8
    assert clipped["eight times the calibration range"] > 0  # there was something to clip


def test_every_accumulator_reaches_its_bound_without_overflow(network):
    """The worst input of each output channel, taken from the signs of its weights."""
    for transform in network.transforms.values():
        for stage, source in zip(transform.stages, transform.sources, strict=True):
            conv = stage.convolution
            if conv.transposed or conv.padding >= conv.kernel:
                continue
            least, most = conv.accumulator_range(source)
            for channel in range(min(conv.out_channels, 3)):
                taps = conv.weight[channel].transpose(1, 2, 0)
                for sign in (1, -1):
                    x = np.where(sign * taps > 0, source.hi, min(source.lo, 0)).astype(np.int32)
                    # the window of the first output that sees no padding
                    pad = -(-conv.padding // conv.stride) * conv.stride - conv.padding
                    image = np.zeros((3 * conv.kernel, 3 * conv.kernel, taps.shape[2]), np.int32)
                    image[pad : pad + conv.kernel, pad : pad + conv.kernel] = x
                    _check_stage(stage, source, image)
                    at = -(-conv.padding // conv.stride)
                    reached = trace_stage(stage, source, image).accumulator[at, at, channel]
                    bias = int(conv.bias[channel])
                    bound = most[channel] - max(bias, 0)
                    if sign < 0:
                        bound = least[channel] - min(bias, 0)
                    assert reached - bias == bound
