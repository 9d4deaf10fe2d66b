"""Post-training quantization of every architecture, hyperpriors above all."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen.codec.evaluate import NetworkCodec, evaluate  # noqa: E402
from lichen.commands.quantize import command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.network.arithmetic import rshift_round, saturate18  # noqa: E402
from lichen.network.file import dumps, load  # noqa: E402
from lichen.quant.calibration import entropy  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages  # noqa: E402
from lichen.quant.calibration.measure import estimate_float_bits, measure  # noqa: E402
from lichen.quant.calibration.options import Options, Widths  # noqa: E402
from lichen.quant.calibration.quantize import choose_fraction, quantize, steps  # noqa: E402
from lichen.quant.float.architectures import ARCHS, new_model, parameters_of  # noqa: E402
from lichen.quant.float.checkpoint import save_checkpoint  # noqa: E402
from lichen.quant.float.network import FloatNetwork, from_compressai  # noqa: E402
from lichen.quant.training.evaluate import integer_grid  # noqa: E402
from lichen.sim import golden  # noqa: E402
from lichen.sim.quality import psnr  # noqa: E402

N, M = 5, 6
HYPER = [name for name, arch in ARCHS.items() if arch.hyperprior]
FINE = Widths(weight=12, activation=16, gamma=12, u=16, gdn_input=16)


pytestmark = pytest.mark.usefixtures("one_thread")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colours with an edge."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 :] = rng.integers(0, 256, 3)
    return image


IMAGES = CalibrationImages([picture(seed, 128, 192) for seed in range(4)])


def lively(arch: str):
    """An untrained model whose latents, scales and pixels have the spread of a trained one's."""
    torch.manual_seed(7)
    model = new_model(arch, N, M).eval()
    x = torch.from_numpy(IMAGES.crops[0].transpose(2, 0, 1)[None] / np.float32(255))

    def spread(layer, output, deviation, mean):
        layer.weight *= deviation / output.std()
        layer.bias *= deviation / output.std()
        layer.bias += mean - output.mean() * deviation / output.std()

    with torch.no_grad():
        spread(model.g_a[6], model.g_a(x), 4.0, 0.0)
        y = model.g_a(x)
        if ARCHS[arch].hyperprior:
            read = y if ARCHS[arch].means else y.abs()
            spread(model.h_a[4], model.h_a(read), 4.0, 0.0)
            spread(model.h_s[4], model.h_s[:5](torch.round(model.h_a(read))), 2.0, 1.0)
        spread(model.g_s[6], model.g_s(torch.round(y)), 0.2, 0.5)
    return model


_networks: dict[str, FloatNetwork] = {}


def float_network(arch: str) -> FloatNetwork:
    if arch not in _networks:
        _networks[arch] = from_compressai(lively(arch), arch, N, M)
    return _networks[arch]


@pytest.mark.parametrize("method", ["ptq", "minmax"])
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture(arch, method, tmp_path):
    network, done = float_network(arch), []
    result = quantize(network, IMAGES, Options(method=method, latent_bits=8), progress=done.append)
    integer = result.network
    assert len(done) == steps(network)
    assert integer.hyper == ARCHS[arch].hyperprior
    assert integer.means == ARCHS[arch].means
    assert integer.factor == ARCHS[arch].factor
    assert set(integer.entropy) == ({"y", "z"} if integer.hyper else {"y"})
    # W8A8: no operand of a multiplier array has more bits
    for transform in integer.transforms.values():
        for stage, source in zip(transform.stages, transform.sources, strict=True):
            assert max(source.bits, stage.convolution.weight_bits) <= 8
            if stage.normalization is not None:
                assert max(stage.normalization.gamma_bits, stage.normalization.u_bits) <= 8
    # the figures are those of the golden model
    measured = measure(integer, IMAGES.crops)
    assert measured.psnr == pytest.approx(result.after.psnr)
    assert measured.segments == pytest.approx(result.after.segments)
    assert measured.bpp == pytest.approx(sum(measured.segments.values()))
    assert result.after.bpp < 1.1 * result.before.bpp
    assert abs(result.after.psnr - result.before.psnr) < 1
    # and the file holds everything
    path = tmp_path / "a.lichen"
    path.write_bytes(dumps(integer))
    again = load(path)
    one, two = (golden.analysis(net, IMAGES.crops[1]) for net in (integer, again))
    assert all(np.array_equal(one[s.name].symbols, s.symbols) for s in two.segments)
    assert len(result.stages) == steps(network) - 1
    assert min(report.sqnr_db for report in result.stages) > 8


@pytest.mark.parametrize("arch", ARCHS)
def test_wide_integers_code_what_fp32_codes(arch):
    network = float_network(arch)
    fraction = 3 if ARCHS[arch].hyperprior else None
    options = Options(widths=FINE, latent_bits=12, latent_fraction=fraction, clip="percentile",
                      percentile=100)  # fmt: skip
    result = quantize(network, IMAGES, options)
    for image in IMAGES.crops:
        real, latents = network.code(image), golden.analysis(result.network, image)
        assert np.unique(real.y).size > 10
        if real.z is not None:
            assert np.mean(latents["z"].symbols != real.z) < 0.02
            assert np.unique(latents["z"].symbols).size > 5
        if not ARCHS[arch].means:  # (there, a fraction of the mean moves the ties)
            assert np.mean(latents["y"].symbols != real.y) < 0.03
        assert np.abs(latents["y"].symbols - real.y).max() <= 1
        if real.scales is not None:
            # each has the scale nearest to its own, by the ratio
            table = entropy.scale_table()
            assert np.unique(latents["y"].indices).size > 10
            chosen = np.log(table[latents["y"].indices])
            nearest = np.log(np.clip(real.scales, table[0], table[-1]))
            step = np.log(table[1] / table[0])
            # half a step, and for the smallest scales the 16 bits' resolution
            slack = 0.05 + 0.01 / np.clip(real.scales, table[0], None)
            if np.array_equal(latents["z"].symbols, real.z):
                assert (np.abs(chosen - nearest) < step / 2 + slack).mean() > 0.99
        decoded = golden.reconstruct(result.network, latents)
        pixels = network.reconstruct(real, *image.shape[:2])
        assert psnr(decoded, pixels) > 35
    assert abs(result.after.psnr - result.before.psnr) < 0.1


@pytest.mark.parametrize("f", [0, 1, 4])
def test_the_fraction_does_not_bias_the_symbols(f):
    """Rounding y to its fraction first and to the symbol then must not round twice."""
    network = float_network("bmshj2018-hyperprior")
    options = Options(widths=FINE, latent_bits=10, latent_fraction=f, clip="percentile",
                      percentile=100)  # fmt: skip
    result = quantize(network, IMAGES, options)
    errors = []
    for image in IMAGES.crops:
        y = network.analyze(image)
        errors.append((golden.analysis(result.network, image)["y"].symbols - y).reshape(-1))
    error = np.concatenate(errors)
    assert abs(error.mean()) < 4 * 0.29 / np.sqrt(error.size)
    assert np.quantile(np.abs(error), 0.999) < 0.52


@pytest.mark.parametrize("arch", ARCHS)
def test_equal_arguments_give_equal_networks(arch):
    first, second = (quantize(float_network(arch), IMAGES, name="a").network for _ in range(2))
    assert dumps(first) == dumps(second)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("method", ["ptq", "minmax"])
def test_what_18_bits_cut_would_have_been_clipped(arch, method):
    network = quantize(float_network(arch), IMAGES, Options(method=method)).network
    for transform in network.transforms.values():
        for stage, source in zip(transform.stages, transform.sources, strict=True):
            r = stage.requantizer
            for channel, ends in enumerate(
                zip(*stage.convolution.accumulator_range(source), strict=True)
            ):
                for end in ends:
                    a = rshift_round(int(end), int(r.pre_shift[channel]))
                    m = r.multiplier[channel]
                    if a < 0 and r.negative_multiplier is not None:
                        m = r.negative_multiplier[channel]
                    free = rshift_round(a * int(m), r.shift)
                    cut = rshift_round(int(saturate18(a)) * int(m), r.shift)
                    clip = (max(min(v, r.output.hi), r.output.lo) for v in (free, cut))
                    assert len(set(clip)) == 1, (stage.name, channel)


def test_the_fraction_is_chosen_on_the_images():
    scale, mean = (float_network(arch) for arch in HYPER)
    images = IMAGES.crops
    # more bits in h_a leave more to the fraction
    wide = Options(widths=Widths(activation=12))
    assert choose_fraction(scale, images, wide) >= choose_fraction(scale, images, Options())
    greatest = max(np.abs(mean.analyze(image)).max() for image in images)
    for bits in (6, 8, 12):
        f = choose_fraction(mean, images, Options(latent_bits=bits))
        assert greatest * 2**f <= 2 ** (bits - 1) - 1 or f == 0
    network = quantize(mean, IMAGES).network
    assert network.latent_fraction >= 2
    assert network.transforms["g_s"].input == network.transforms["g_a"].output


# Entropy tables -------------------------------------------------------------------------------


def test_gaussian_probabilities():
    normal = NormalDist()
    for scale in (0.11, 1.0, 7.3, 256.0):
        for symbol in (-40, -1, 0, 3):
            expected = normal.cdf((symbol + 0.5) / scale) - normal.cdf((symbol - 0.5) / scale)
            p = entropy.gaussian_probabilities(np.array([scale]), np.array([symbol]))[0]
            assert p == pytest.approx(expected, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("clipped", [False, True])
def test_gaussian_tables(clipped):
    rng = np.random.default_rng(1)
    scales = entropy.scale_table()
    assert (scales[0], len(scales)) == (pytest.approx(0.11), 64)
    assert scales[-1] == pytest.approx(256)
    indices = [rng.integers(0, 30, (12, 12, 5)) for _ in range(4)]
    symbols = [np.rint(rng.normal(0, scales[i])).astype(int) for i in indices]
    fit = entropy.fit_gaussian_tables(
        scales, symbols, indices, -127, 127, clipped=clipped, refit=False
    )
    assert len(fit.tables.lengths) == 64
    for row in (0, 20, 45, 63):
        width = np.diff(fit.tables.cdf[row, : fit.tables.lengths[row]].astype(int)) / 65536
        inner = np.arange(-100, 101)
        inner = inner[np.isin(inner - fit.tables.offsets[row], np.arange(len(width) - 1))]
        p = entropy.gaussian_probabilities(scales[row], inner)
        assert np.abs(width[inner - fit.tables.offsets[row]] - p).max() < 40 / 65536
    # the widest Gaussian leaves the range: to the escape, or to the outermost symbols
    escape = np.diff(fit.tables.cdf[63, : fit.tables.lengths[63]])[-1] / 65536
    assert escape < 2e-5 if clipped else escape > 0.5
    entropy_bits = entropy.cross_entropy(
        np.maximum(
            entropy.gaussian_probabilities(scales[:, None], np.arange(-127, 128)[None]), 1e-300
        ),
        entropy.histogram(symbols, -127, 127, indices, 64),
    )
    assert fit.bits == pytest.approx(entropy_bits, abs=1e-3)
    coded = sum(golden.symbol_bits(fit.tables, s, i) for s, i in zip(symbols, indices, strict=True))
    assert coded / sum(s.size for s in symbols) == pytest.approx(fit.bits, abs=5e-3)


def test_tables_learn_from_the_symbols():
    rng = np.random.default_rng(2)
    scales = entropy.scale_table()
    indices = [rng.integers(0, 4, (40, 40, 5)) for _ in range(4)]
    symbols = [rng.integers(-3, 4, i.shape) for i in indices]  # nothing like the Gaussians
    refined, prior = (
        entropy.fit_gaussian_tables(scales, symbols, indices, -31, 31, clipped=True, refit=refit)
        for refit in (True, False)
    )
    assert refined.bits < 3 < prior.bits
    assert np.isfinite(refined.strength)
    assert prior.bits == prior.bits_prior == refined.bits_prior


def test_thresholds_part_the_scales_in_the_middle():
    scales = entropy.scale_table()
    thresholds = entropy.scale_thresholds(scales, 1 / 4096)
    v = np.arange(300, 256 * 4096, 997)
    chosen = golden.scale_index(v, thresholds)
    nearest = np.abs(np.log(v / 4096)[:, None] - np.log(scales)[None]).argmin(axis=1)
    assert np.mean(chosen != nearest) < 0.01
    assert np.abs(chosen - nearest).max() <= 1


@pytest.mark.parametrize("arch", ARCHS)
def test_fp32_bits_are_compressais(arch):
    model = integer_grid(lively(arch))
    image = IMAGES.crops[2]
    x = torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255))
    with torch.no_grad():
        out = model(x)
    expected = {
        name: float(-torch.log2(p.double()).sum()) for name, p in out["likelihoods"].items()
    }
    network = float_network(arch)
    latents = network.code(image)
    bits = estimate_float_bits(network, latents)
    assert bits == pytest.approx(expected, rel=1e-3)
    pixels = (out["x_hat"][0].permute(1, 2, 0).clamp(0, 1) * 255).round().numpy()
    decoded = network.reconstruct(latents, *image.shape[:2])
    assert np.mean(decoded != pixels) < 0.01


# Options and the command ----------------------------------------------------------------------


def test_a_norm_near_its_offset_stays_exact():
    """An idle normalization, whose integer offset nearly fills the 32 bits of the norm."""
    model = lively("bmshj2018-factorized")
    with torch.no_grad():
        model.g_a[1].gamma /= 30
    network = from_compressai(model, "bmshj2018-factorized", N, M)
    reports = quantize(network, IMAGES, Options(widths=FINE)).stages
    assert all(report.sqnr_db > 60 for report in reports[:3])


def test_unusable_arguments():
    factorized, hyper = float_network("bmshj2018-factorized"), float_network(HYPER[0])
    with pytest.raises(UserError, match="0 for a network without a hyperprior"):
        quantize(factorized, IMAGES, Options(latent_fraction=2))
    with pytest.raises(UserError, match=r"lie in 0 \.\. 8, not 9"):
        Options(latent_fraction=9)
    with pytest.raises(UserError, match=r"no stage h_a.conv9, only .*h_s.conv3"):
        quantize(hyper, IMAGES, Options(per_stage={"h_a.conv9": Widths()}))
    for name in ("h_a", "h_s", "g_s"):
        transforms = {key: value for key, value in hyper.transforms.items() if key != name}
        partial = FloatNetwork(n=N, m=M, transforms=transforms)
        with pytest.raises(UserError, match=f"no {name}"):
            quantize(partial, IMAGES)


@pytest.mark.parametrize("arch", HYPER)
def test_command(arch, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", arch, N, M, parameters_of(lively(arch)), {})
    (tmp_path / "images").mkdir()
    for i, image in enumerate(IMAGES.crops):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    arguments = [str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "a.lichen"), "--quiet"]
    arguments += ["--calibrate", str(tmp_path / "images"), "--latent-fraction", "3", "--json", "-"]
    result = CliRunner().invoke(command, [*arguments, "--evaluate", str(tmp_path / "images")])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["latent_fraction"] == 3
    assert {layer["transform"] for layer in report["layers"]} == {"g_a", "h_a", "h_s", "g_s"}
    assert set(report["entropy"]) == {"y", "z"}
    assert set(report["loss"]["after"]["segments"]) == {"y", "z"}
    network = load(tmp_path / "a.lichen")
    assert network.architecture == arch
    coded = evaluate(NetworkCodec(network, 1), IMAGES.crops)
    assert report["rd"]["psnr"] == round(coded.psnr, 4)
    assert report["rd"]["bpp"] == round(coded.bpp_streams, 5)
    assert report["rd"]["bits_from"] == "coded bytes"
