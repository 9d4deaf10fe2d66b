"""Channels made several times: the same function, less rounding noise, at a known price."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from click.testing import CliRunner  # noqa: E402

from lichen.commands.quantize import command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.models import calibration_photographs  # noqa: E402
from lichen.network.description import PHOTO  # noqa: E402
from lichen.network.file import load  # noqa: E402
from lichen.quant.calibration import interleave  # noqa: E402
from lichen.quant.calibration import split as split_module  # noqa: E402
from lichen.quant.calibration.calibrate import load_calibration  # noqa: E402
from lichen.quant.calibration.latents import scale_latents  # noqa: E402
from lichen.quant.calibration.measure import measure, measure_float  # noqa: E402
from lichen.quant.calibration.options import Options, Widths  # noqa: E402
from lichen.quant.calibration.quantize import quantize  # noqa: E402
from lichen.quant.calibration.split import repeat, split_channels  # noqa: E402
from lichen.quant.float.network import FloatTransform  # noqa: E402
from lichen.quant.float.source import load_float_network  # noqa: E402
from lichen.quant.training.fake import FakeTransform  # noqa: E402
from lichen.sim.golden import run_stages  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SIX = Options(widths=Widths(weight=6, activation=6), latent_bits=8, samples=4000)


@pytest.fixture(scope="module")
def parent():
    return load_float_network("tiny")


@pytest.fixture(scope="module")
def images(parent):
    return load_calibration(calibration_photographs()[::2], parent.factor, size=128)


@pytest.fixture(scope="module")
def split(parent, images):
    return split_channels(parent, images, SIX, 0.4)


def test_the_function_stays(parent, split, images):
    assert any(s.copy_of is not None for t in split.transforms.values() for s in t.stages)
    for crop in images.crops[:2]:
        x = torch.from_numpy(crop.astype(np.float32) / 255).permute(2, 0, 1)[None]
        y = parent.transforms["g_a"](x)
        torch.testing.assert_close(split.transforms["g_a"](x), y, rtol=1e-4, atol=1e-4)
        ours, theirs = (n.transforms["g_s"](torch.round(y)) for n in (split, parent))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_products_stay_within_the_part(parent, split, images):
    few = load_calibration(calibration_photographs()[:2], parent.factor, size=64)
    plain, more = (quantize(network, few, SIX).network.macs(*PHOTO) for network in (parent, split))
    # the last copy that does not fit is dearer than what is left
    assert 1.3 * plain < more <= 1.4 * plain
    for part in (-0.1, 1.5):
        with pytest.raises(UserError, match="products to add"):
            split_channels(parent, images.some(1), SIX, part)
    nothing = split_channels(parent, images.some(1), SIX, 0.0)
    for key, transform in nothing.transforms.items():
        widths = [stage.out_channels for stage in transform.stages]
        assert widths == [stage.out_channels for stage in parent.transforms[key].stages]


def test_it_ends_when_no_channel_may_have_more_copies(parent, images, monkeypatch):
    monkeypatch.setattr(split_module, "COPIES_MAX", 1)
    single = split_channels(parent, images.some(1), SIX, 1.0)
    for key, transform in single.transforms.items():
        widths = [stage.out_channels for stage in transform.stages]
        assert widths == [stage.out_channels for stage in parent.transforms[key].stages]


def test_copies_win_back_what_rounding_loses(parent, split, images):
    """On photographs that are not calibrated on, at six bits."""
    held = load_calibration(calibration_photographs()[1::2], parent.factor, size=128).crops
    fp32 = measure_float(parent, held).psnr
    plain, copied = (
        fp32 - measure(quantize(network, images, SIX).network, held).psnr
        for network in (parent, split)
    )
    assert copied < 0.95 * plain


def test_a_copy_makes_good_what_the_first_ones_rounding_lost(parent, images):
    """A copy of every channel: the mean of both integer rows lies nearer to the real weights."""
    g_a = parent.transforms["g_a"]
    real, reader = repeat(*g_a.stages[:2], np.full(parent.n, 2))
    transforms = parent.transforms | {"g_a": FloatTransform([real, reader, *g_a.stages[2:]])}
    twice = replace(parent, transforms=transforms)
    stage = (
        quantize(twice, images, replace(SIX, rounding="nearest"))
        .network.transforms["g_a"]
        .stages[0]
    )
    pairs = [(i, parent.n + i) for i in range(parent.n)]
    scales = stage.scales
    made = stage.convolution.weight * scales["weight"][:, None, None, None]
    folded = real.weight * scales["input"][None, :, None, None]
    single = sum(((made[i] - folded[i]) ** 2).sum() for i, _ in pairs)
    mean = sum(((0.5 * (made[i] + made[j]) - folded[i]) ** 2).sum() for i, j in pairs)
    assert mean < 0.4 * single


def test_quantizers_apart_average_to_finer_steps():
    values = np.random.default_rng(0).uniform(-50, 50, 200_000)
    single = ((np.rint(values) - values) ** 2).mean()
    for copies in (2, 3, 4):
        for distance in (0.0, 0.2, 1 / copies, 0.37):
            places = interleave.shifts(np.full(copies, distance), np.arange(copies), copies)
            mean = np.mean([np.rint(values + place) for place in places], axis=0)
            noise = ((mean - values) ** 2).mean() / single
            expected = interleave.averaged_noise(np.array([distance]), copies)
            np.testing.assert_allclose(noise, expected, rtol=0.03)
    assert interleave.averaged_noise(np.array([0.25]), 4) == pytest.approx(1 / 16)


def test_copies_round_at_interleaved_places(parent, images):
    """With fine weights, the mean of two copies keeps much less than half of the noise."""
    fine = replace(SIX, widths=replace(SIX.widths, weight=12, gdn_input=12, gamma=12, u=12))
    g_a, n = parent.transforms["g_a"], parent.n
    real, reader = repeat(*g_a.stages[:2], np.full(n, 2))
    transforms = parent.transforms | {"g_a": FloatTransform([real, reader, *g_a.stages[2:]])}
    single, twice = (
        quantize(network, images, fine).network.transforms["g_a"]
        for network in (parent, replace(parent, transforms=transforms))
    )
    scale = twice.stages[0].scales["output"]
    np.testing.assert_allclose(scale[n:], scale[:n], rtol=1e-3)  # one step for both
    of_one, of_mean = np.zeros(n), np.zeros(n)
    for crop in images.crops:
        x = torch.from_numpy(crop.astype(np.float32) / 255).permute(2, 0, 1)[None]
        exact = real.activate(real.convolve(x))[0].permute(1, 2, 0).numpy()[..., :n]
        one = run_stages(single, crop)[0] * single.stages[0].scales["output"]
        two = run_stages(twice, crop)[0] * scale
        of_one += ((one - exact) ** 2).mean(axis=(0, 1))
        of_mean += (((two[..., :n] + two[..., n:]) / 2 - exact) ** 2).mean(axis=(0, 1))
    assert np.median(of_mean / of_one) < 0.4


def test_fake_quantization_equals_golden(split, images):
    network = quantize(split, images, SIX).network
    for key in ("g_a", "g_s"):
        transform = network.transforms[key]
        fake = FakeTransform(transform, split.transforms[key])
        x = images.crops[0]
        if key == "g_s":
            x = run_stages(network.transforms["g_a"], x)[-1]
        doubles = torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None]
        with torch.no_grad():
            outputs = fake.run(doubles)[0]
        for ours, exact in zip(outputs, run_stages(transform, x), strict=True):
            np.testing.assert_array_equal(ours[0].permute(1, 2, 0).numpy(), exact)


def test_latents_scaled_up_code_finer(parent, images):
    finer = scale_latents(parent, np.full(parent.m, 1.3))
    before, after = (measure_float(network, images.crops) for network in (parent, finer))
    assert after.psnr > before.psnr + 0.1 and after.bpp > 1.02 * before.bpp
    with pytest.raises(UserError, match="hyperprior"):
        hyper = load_float_network("small-hyper-q2.fp32")
        scale_latents(hyper, np.ones(hyper.m))
    for factor in (0.0, np.nan, np.inf):
        with pytest.raises(UserError, match="finite numbers above 0"):
            scale_latents(parent, np.full(parent.m, factor))


def test_command(tmp_path):
    photos = str(calibration_photographs()[0].parent)
    output = tmp_path / "net.lichen"
    arguments = ["tiny", "-o", str(output), "--calibrate", photos, "--max-images", "3"]
    arguments += ["--crop", "64", "--clip-factor", "1", "--split-channels", "0.3"]
    arguments += ["--latent-gain", "1.1", "--equations", "4", "--quiet"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    provenance = load(output).provenance
    made = [stage.out_channels for stage in load(output).transforms["g_a"].stages]
    assert provenance["split_channels"]["g_a"] == made
    assert provenance["latent_gain"] == 1.1
