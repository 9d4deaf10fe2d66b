"""DRAQ: fake quantization equals golden bit for bit, trains, resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen.commands._quant import REGULARIZE_LR, TUNE  # noqa: E402
from lichen.commands.quantize import command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.models import calibration_photographs  # noqa: E402
from lichen.network.arithmetic import ROOT_TABLES, NormKind  # noqa: E402
from lichen.network.arithmetic import normalized_root as golden_root  # noqa: E402
from lichen.network.description import Activation, Network, Transform  # noqa: E402
from lichen.network.file import dumps, load  # noqa: E402
from lichen.network.random import (  # noqa: E402
    StageShape,
    random_factorized,
    random_transform,
)
from lichen.quant.calibration.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.calibration.latents import fit_latent_range  # noqa: E402
from lichen.quant.calibration.options import ClipRule, Options, Widths  # noqa: E402
from lichen.quant.calibration.quantize import Quantized, quantize  # noqa: E402
from lichen.quant.draq import draq as draq_module  # noqa: E402
from lichen.quant.draq.draq import DraqOptions, choose_clips, draq, tuned_network  # noqa: E402
from lichen.quant.float.architectures import new_model, parameters_of  # noqa: E402
from lichen.quant.float.checkpoint import save_checkpoint  # noqa: E402
from lichen.quant.float.network import convolve  # noqa: E402
from lichen.quant.float.source import load_float_network  # noqa: E402
from lichen.quant.training import (  # noqa: E402
    kernels,
    outliers,
    rate,
)
from lichen.quant.training.data import CropSource  # noqa: E402
from lichen.quant.training.fake import FakeTransform, mismatch_rate  # noqa: E402
from lichen.quant.training.finetune import INTEGER, REAL, FineTuner, run  # noqa: E402
from lichen.quant.training.kernels import normalized_root  # noqa: E402
from lichen.quant.training.tune_config import TuneConfig  # noqa: E402
from lichen.sim import golden  # noqa: E402
from lichen.sim.golden import run_stages  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def _disturb(fake: FakeTransform, seed: int, size: float = 1.0) -> None:
    """Move every shadow and scale, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in fake.named_parameters():
            kind = name.rpartition(".")[2]
            noise = torch.randn_like(parameter)
            if kind.startswith("log_"):
                parameter.add_(0.1 * size * noise)
            elif kind == "beta":
                parameter.mul_(torch.exp(0.2 * size * noise))
            else:
                parameter.add_(0.7 * size * noise)


def _assert_exact(fake: FakeTransform, x: np.ndarray) -> list[np.ndarray]:
    """A float64 forward pass equals golden in every stage; returns golden's outputs."""
    stages = run_stages(fake.to_transform(), x)
    doubles = torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None]
    with torch.no_grad():
        outputs = fake.run(doubles)[0]
    for ours, exact in zip(outputs, stages, strict=True):
        np.testing.assert_array_equal(ours[0].permute(1, 2, 0).numpy(), exact)
    return stages


def _inputs(transform: Transform, height: int, width: int, seed: int = 0) -> np.ndarray:
    fmt = transform.input
    shape = (height, width, transform.in_channels)
    return np.random.default_rng(seed).integers(fmt.lo, fmt.hi + 1, shape).astype(np.int32)


NARROW: dict[str, int] = {}
WIDE = {"weight_bits": 12, "x_bits": 14, "output_bits": 12, "gamma_bits": 12, "u_bits": 16}


@pytest.mark.parametrize("widths", [NARROW, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("activation", list(Activation))
def test_every_activation_equals_golden(activation, widths):
    """Plain and transposed, at the start and after the shadows have moved."""
    up = {"transposed": True, "output_padding": 1}
    transform = random_transform(
        np.random.default_rng(3),
        [
            StageShape(out_channels=9, activation=activation, **widths),
            StageShape(out_channels=7, kernel=3, stride=1, activation=activation, **widths),
            StageShape(out_channels=5, activation=activation, **up, **widths),
            StageShape(out_channels=4, kernel=3, stride=1, **widths),
        ],
    )
    fake = FakeTransform(transform)
    x = _inputs(transform, 24, 32)
    outputs = _assert_exact(fake, x)
    assert len(np.unique(outputs[-1])) > 20  # lively enough to show a difference
    _disturb(fake, 1)
    assert dumps(_as_network(fake.to_transform())) != dumps(_as_network(transform))
    _assert_exact(fake, x)


def _as_network(transform: Transform) -> Network:
    return Network(architecture="custom", n=1, m=1, transforms={"g_a": transform})


@pytest.mark.parametrize("seed", range(3))
def test_whole_networks_equal_golden(seed):
    network = random_factorized(seed, n=8, m=12)
    for key, size in (("g_a", (48, 64)), ("g_s", (5, 6))):
        fake = FakeTransform(network.transforms[key])
        _disturb(fake, seed)
        _assert_exact(fake, _inputs(network.transforms[key], *size, seed=seed))


@pytest.mark.parametrize("kind", list(NormKind))
def test_root_equals_the_arithmetic(kind):
    """Powers of two and their neighbours, and random norms; exact in float32 below 2**24."""
    rng = np.random.default_rng(0)
    edges = [(1 << i) + d for i in range(32) for d in (-1, 0, 1)]
    n = np.concatenate([edges, rng.integers(1, 1 << 32, 4000), rng.integers(1, 4096, 4000)])
    n = n[(n >= 1) & (n < 1 << 32)].astype(np.int64)
    r, e = golden_root(n, ROOT_TABLES[kind], kind.squares)
    table = torch.as_tensor(ROOT_TABLES[kind], dtype=torch.int32)
    doubles = torch.from_numpy(n.astype(np.float64))
    ours, exponent = normalized_root(doubles, table, kind.squares)
    np.testing.assert_array_equal(ours.numpy(), r)
    np.testing.assert_array_equal(exponent.numpy(), e)
    small = n < 1 << 24
    floats = torch.from_numpy(n[small].astype(np.float32))
    ours, exponent = normalized_root(floats, table, kind.squares)
    np.testing.assert_array_equal(exponent.numpy(), e[small])
    assert np.abs(ours.numpy() - r[small]).max() <= 1


@pytest.mark.parametrize("activation", [Activation.GDN, Activation.IGDN1, Activation.LEAKY_RELU])
def test_gradients_reach_everything_and_point_downhill(activation):
    """Every shadow gets a gradient; a step against it lowers a smooth function of the output."""
    transform = random_transform(
        np.random.default_rng(5),
        [
            StageShape(out_channels=6, activation=activation),
            StageShape(out_channels=4, kernel=3, stride=1),
        ],
    )
    fake = FakeTransform(transform)
    x = torch.from_numpy(_inputs(transform, 64, 64).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        target = 0.8 * fake(x)

    def loss() -> torch.Tensor:
        return ((fake(x) - target) ** 2).mean()

    before = loss()
    before.backward()
    for name, parameter in fake.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    optimizer = torch.optim.Adam(fake.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.8 * before.item()


# The network that ships ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> CalibrationImages:
    return load_calibration(calibration_photographs(), 16, size=128, limit=6)


@pytest.fixture(scope="module")
def held_out() -> CalibrationImages:
    return load_calibration(calibration_photographs()[1::2], 16, size=128, limit=8)


@pytest.fixture(scope="module")
def parent():
    return load_float_network("tiny")


@pytest.fixture(scope="module")
def start(parent, images) -> Quantized:
    return quantize(parent, images, Options(latent_bits=8, samples=4000))


def _config(**changes) -> TuneConfig:
    return TuneConfig(**({"steps": 8, "batch": 2, "patch": 64, "lmbda": 0.013} | changes))


def _tuner(phase, parent, start, **changes) -> FineTuner:
    config = _config(**changes)
    source = CropSource(calibration_photographs()[::2], patch=config.patch)
    return FineTuner(phase, start.network, parent, parent.bottlenecks["y"], config, source)


def test_shadows_of_tiny_start_as_the_integers_and_equal_golden(parent, start, images):
    tuner = _tuner(INTEGER, parent, start)
    network = tuned_network(tuner)
    inputs = images.crops[0]
    for key in ("g_a", "g_s"):
        before, after = start.network.transforms[key], network.transforms[key]
        for a, b in zip(before.stages, after.stages, strict=True):
            np.testing.assert_array_equal(a.convolution.weight, b.convolution.weight)
            np.testing.assert_array_equal(a.convolution.bias, b.convolution.bias)
            if a.normalization is not None:
                np.testing.assert_array_equal(a.normalization.gamma, b.normalization.gamma)
        inputs = _assert_exact(tuner.transforms[key], inputs)[-1]
        assert (
            max(
                mismatch_rate(tuner.transforms[key], [images.crops[0]] if key == "g_a" else [])
                or [0]
            )
            < 1e-3
        )
    run(tuner, progress=False)
    inputs = images.crops[0]
    for key in ("g_a", "g_s"):
        inputs = _assert_exact(tuner.transforms[key], inputs)[-1]
    assert dumps(tuned_network(tuner)) != dumps(network)


def test_real_shadows_are_the_parent(parent, start, images):
    """Without rounding, the shadows compute what FP32 does, and give its weights back."""
    tuner = _tuner(REAL, parent, start)
    x = torch.from_numpy(images.crops[0].astype(np.float32)).permute(2, 0, 1)[None]
    expected = parent.transforms["g_a"](x / 255)
    with torch.no_grad():
        ours = tuner.transforms["g_a"].forward_real(x)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-3)
    for key in ("g_a", "g_s"):
        back = tuner.transforms[key].to_float(parent.transforms[key])
        for a, b in zip(parent.transforms[key].stages, back.stages, strict=True):
            np.testing.assert_allclose(b.weight, a.weight, rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(b.bias, a.bias, rtol=1e-5, atol=1e-8)
            if a.gamma is not None and b.gamma is not None:
                np.testing.assert_allclose(b.gamma, a.gamma, rtol=1e-4, atol=1e-8)
                np.testing.assert_allclose(b.beta, a.beta, rtol=1e-4)


def test_fine_tuning_lowers_the_loss_of_coarse_roundings(parent, images, held_out):
    """On photographs that are neither calibrated nor trained on, from 5-bit weights."""
    coarse = Options(widths=Widths(weight=5), latent_bits=8, rounding="nearest", samples=2000)
    start = quantize(parent, images, coarse)
    tuner = _tuner(INTEGER, parent, start, steps=60, batch=4, patch=128, lr=1e-3, warmup=5)
    before = tuner.evaluate(held_out.crops)[0]
    run(tuner, progress=False)
    assert tuner.evaluate(held_out.crops)[0] < 0.97 * before


def test_a_phase_can_end_with_the_average_of_its_steps(parent, start):
    """All that is learned, with (1 - decay) for each step after the first nine."""
    tuner = _tuner(INTEGER, parent, start, steps=30, lr=1e-3, warmup=1, ema=0.6)
    expected = {name: value.detach().clone() for name, value in tuner.named.items()}
    for step in range(1, 4):
        tuner.train_step()
        kept = min(0.6, step / (step + 9))
        for name, value in tuner.named.items():
            expected[name] = kept * expected[name] + (1 - kept) * value.detach()
    last = {name: value.detach().clone() for name, value in tuner.named.items()}
    tuner.settle()
    for name, value in tuner.named.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-5, atol=1e-6)
    moved = [name for name, value in tuner.named.items() if not torch.equal(value, last[name])]
    assert len(moved) > 10
    without = _tuner(INTEGER, parent, start, steps=30, lr=1e-3, warmup=1)
    for _ in range(3):
        without.train_step()
    without.settle()
    for name, value in without.named.items():
        assert torch.equal(value, last[name]), name


def test_psnr_weighs_crops_by_their_own_error(parent, start, images):
    """The gradient is that of ``(1 + level) * log(1 + error)``, whose mean is one of PSNRs."""
    flat = np.full_like(images.crops[0], 90)
    crops = np.stack([images.crops[0], flat])
    x = torch.from_numpy(crops.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    c = _config(steps=1, distortion="psnr", level=25.0, lmbda=0.01)
    tuner = FineTuner(
        INTEGER, start.network, parent, parent.bottlenecks["y"], c, CropSource([], patch=64)
    )

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        tuner.transforms.zero_grad()
        loss.backward(retain_graph=True)
        return tuner.transforms["g_s"].stages[-1].bias.grad.clone()

    ours = gradient(tuner.loss(x, 0)[0])
    torch.manual_seed(0)
    read, _, _ = tuner._code(x, 0.0)
    errors = ((tuner.transforms["g_s"](read, inward=True).float() - x) ** 2).mean(dim=(1, 2, 3))
    assert errors[1] < 0.2 * errors[0]
    expected = gradient(c.lmbda * 26.0 * torch.log1p(errors).mean())
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-7)
    plain = gradient(c.lmbda * errors.mean())
    assert not torch.allclose(ours, plain, rtol=0.1)


def test_penalty_takes_outliers_away(parent, start):
    """Of uniform weights with rare outliers, and of a network as far as a short run goes."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (16, 400))
    values[rng.random(values.shape) < 0.01] *= 8
    weight = torch.from_numpy(values).requires_grad_()
    before = outliers.outlier_ratio(values)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        outliers.penalty(weight, 3.0).backward()
        optimizer.step()
    assert before > 0.005 and outliers.outlier_ratio(weight.detach().numpy()) < 0.6 * before

    tuner = _tuner(REAL, parent, start, steps=40, penalty=100.0, sigmas=3.0, lr=5e-3, warmup=1)
    penalty = tuner.penalty().item()
    run(tuner, progress=False)
    assert tuner.penalty().item() < 0.8 * penalty


def test_outlier_measures():
    weight = np.zeros((2, 100))
    weight[:, ::2], weight[:, 1::2] = 1, -1
    assert outliers.outlier_ratio(weight) == 0
    assert outliers.peak_ratio(weight) == 1
    weight[0, 0] = 50
    assert outliers.outlier_ratio(weight) == 1 / 200
    assert outliers.penalty(torch.from_numpy(weight[1:]), 3.0).item() == 0
    assert outliers.penalty(torch.from_numpy(weight), 3.0).item() > 0


def test_resuming_gives_the_same_network(parent, images, tmp_path):
    """Interrupted in either phase, the result is the uninterrupted one's, to the byte."""
    options = DraqOptions(
        quantization=Options(samples=2000),
        tune=_config(steps=6, distill=0.5, distortion="psnr", ema=0.8),
        regularize_steps=6,
        device="cpu",
    )
    train = calibration_photographs()[::3]

    def go(state: Path, **more) -> bytes:
        result = draq(parent, images, train, options, state=state, progress=False, **more)
        return dumps(result.final.network)

    whole = go(tmp_path / "a.state.safetensors")
    state = tmp_path / "b.state.safetensors"
    source = CropSource(train, patch=64)
    for stop in (4, 4):
        _interrupt_after(parent, images, train, options, state, stop, resume=state.exists())
    assert go(state, resume=True) == whole
    assert len(source.images) == len(train)
    with pytest.raises(UserError, match="calibration images differ"):
        draq(
            parent,
            CalibrationImages(images.crops[:2]),
            train,
            options,
            state=state,
            resume=True,
            progress=False,
        )
    with pytest.raises(UserError, match="tune"):
        other = DraqOptions(
            quantization=options.quantization, tune=_config(lr=1e-3), regularize_steps=6
        )
        draq(parent, images, train, other, state=state, resume=True, progress=False)


def _interrupt_after(parent, images, train, options, state, stop, *, resume) -> None:
    """Run until a phase has made ``stop`` steps in this call, then die as on a signal."""
    original = draq_module.finetune.run

    def dying(tuner, **more):
        original(tuner, **(more | {"stop_after": stop}))
        if tuner.progress < 1:
            raise KeyboardInterrupt

    draq_module.finetune.run = dying
    try:
        with pytest.raises(KeyboardInterrupt):
            draq(parent, images, train, options, state=state, resume=resume, progress=False)
    finally:
        draq_module.finetune.run = original


def test_choose_clips_gives_each_free_tensor_one_of_the_candidates(parent, start, images):
    """And nothing to the fixed outputs: latents and pixels."""
    few = CalibrationImages(images.crops[:2])
    rules = choose_clips(parent, start.network, parent.bottlenecks["y"], few, 0.013)
    assert set(rules) == {
        f"{key}.conv{i}.{tensor}"
        for key in ("g_a", "g_s")
        for i in (1, 2, 3)
        for tensor in ("x", "output")
    }
    assert set(rules.values()) <= set(draq_module.CLIP_CANDIDATES)


def test_latents_are_made_to_fit(parent, images):
    latents = [parent.analyze(crop) for crop in images.crops]
    fitted, factor = fit_latent_range(parent, latents, 5)
    assert 0 < factor.min() < 1
    # rounded and clipped together they lose the least
    values = np.concatenate([y.reshape(-1, parent.m) for y in latents])

    def lost(f):
        return ((np.clip(np.rint(values * f), -15, 15) / f - values) ** 2).mean(axis=0)

    smaller = factor < 1
    whole = np.where(smaller, 15 / np.abs(values).max(axis=0), 1)
    assert np.all(lost(factor) <= lost(whole) + 1e-9)
    assert lost(factor)[smaller].sum() < 0.9 * lost(whole)[smaller].sum()
    assert lost(factor)[smaller].sum() < 0.5 * lost(1.0)[smaller].sum()
    # the same function: latents scaled, read with the inverse scale
    y = latents[0]
    np.testing.assert_allclose(fitted.analyze(images.crops[0]), y * factor, atol=1e-3)
    a = parent.synthesize(y, *images.crops[0].shape[:2]).astype(int)
    b = fitted.synthesize(y * factor, *images.crops[0].shape[:2]).astype(int)
    assert np.abs(a - b).max() <= 1
    # and the same bits, but for the coarser symbols
    bottleneck = rate.make_bottleneck(48, fitted.bottlenecks["y"]).eval()
    reference = rate.make_bottleneck(48, parent.bottlenecks["y"]).eval()
    x = torch.linspace(-3, 3, 50).repeat(48, 1)[:, None]
    scaled = x * torch.from_numpy(factor).float()[:, None, None]
    torch.testing.assert_close(
        bottleneck._logits_cumulative(scaled, stop_gradient=True),
        reference._logits_cumulative(x, stop_gradient=True),
        atol=2e-3,
        rtol=2e-3,
    )
    same, ones = fit_latent_range(parent, latents, 12)
    assert same is parent and np.all(ones == 1)


def test_fitted_bottleneck_describes_the_latents():
    rng = np.random.default_rng(0)
    scales = np.array([0.5, 3.0, 20.0])
    y = rng.normal(0, scales, (64, 64, 3))
    module = rate.make_bottleneck(3, rate.fit_bottleneck([y], steps=300))
    x = torch.from_numpy(y.astype(np.float32)).permute(2, 0, 1)[None]
    bits = rate.noisy_bits(module, x).item() / y.size
    # entropy of a normal variable with uniform noise, at most log2 sqrt(2 pi e (s^2 + 1/12))
    ideal = np.mean(np.log2(np.sqrt(2 * np.pi * np.e * (scales**2 + 1 / 12))))
    assert bits < ideal + 0.05


def test_command(tmp_path, monkeypatch):
    defaults = TuneConfig(steps=1)
    assert {key: getattr(defaults, key) for key in TUNE} == TUNE
    assert DraqOptions(quantization=Options(), tune=defaults).regularize_lr == REGULARIZE_LR
    photos = str(calibration_photographs()[0].parent)
    output, report = tmp_path / "net.lichen", tmp_path / "net.json"
    base = ["tiny", "-o", str(output), "--method", "draq", "--calibrate", photos]
    base += ["--max-images", "2", "--crop", "64", "--patch", "64", "--batch", "1", "--quiet"]
    full = [*base, "--train", photos, "--steps", "2", "--json", str(report)]
    full += ["--regularize-steps", "1", "--outlier-plot", str(tmp_path / "outliers.png")]
    result = CliRunner().invoke(command, full, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    layers = {layer["layer"] for layer in found["draq"]["outliers"]}
    assert layers == {f"{key}.conv{i}" for key in ("g_a", "g_s") for i in range(1, 5)}
    assert found["draq"]["steps"] == 2 and found["draq"]["seconds_per_step"] > 0
    assert load(output).provenance["quantization"]["method"] == "draq"
    assert (tmp_path / "outliers.png").read_bytes()[:4] == b"\x89PNG"
    for arguments, sentence in (
        (base, "--train DIR"),
        (full, "--resume to go on"),
        ([*full, "--minutes", "1"], "either --steps or --minutes"),
        (["tiny", "-o", str(output), "--clip", "rd"], "--method draq only"),
    ):
        with pytest.raises(UserError, match=sentence):
            CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.fixture
def hyper_checkpoint(tmp_path) -> Path:
    """An untrained scale hyperprior whose latents reach several integers."""
    torch.manual_seed(7)
    model = new_model("bmshj2018-hyperprior", 5, 6)
    with torch.no_grad():
        model.g_a[6].weight *= 200
    path = tmp_path / "hyper.safetensors"
    save_checkpoint(path, "bmshj2018-hyperprior", 5, 6, parameters_of(model), {})
    return path


@pytest.mark.parametrize("fraction", [1, 3])
def test_a_latent_that_rounds_down_stays_so(hyper_checkpoint, fraction):
    """g_a's last bias holds minus half a step where the latent has a fraction: shadows keep it."""
    network = load_float_network(str(hyper_checkpoint))
    images = load_calibration(calibration_photographs(), 64, size=128, limit=4)
    fine = Widths(weight=12, activation=16, gamma=12, u=16, gdn_input=16)
    options = Options(widths=fine, latent_fraction=fraction, samples=2000)
    g_a = quantize(network, images, options).network.transforms["g_a"]
    fake = FakeTransform(g_a, network.transforms["g_a"])
    np.testing.assert_array_equal(
        fake.to_transform().stages[-1].convolution.bias, g_a.stages[-1].convolution.bias
    )
    below = []
    for crop in images.crops:
        latent = _assert_exact(fake, crop)[-1]
        assert len(np.unique(latent)) > 10
        x = torch.from_numpy(crop.astype(np.float64)).permute(2, 0, 1)[None]
        with torch.no_grad():
            soft = fake.run(x)[1][0].permute(1, 2, 0).numpy()
        below.append(network.analyze(crop) * 2**fraction - soft)
    assert abs(np.mean(below) - 0.5) < 0.1


ARCHITECTURES = [
    "bmshj2018-factorized",
    "bmshj2018-factorized-relu",
    "bmshj2018-hyperprior",
    "mbt2018-mean",
]


def _checkpoint(arch: str, path: Path) -> Path:
    """An untrained network whose latents and hyper-latents reach several integers."""
    torch.manual_seed(7)
    model = new_model(arch, 8, 12)
    with torch.no_grad():
        model.g_a[6].weight *= 60 if "relu" in arch else 200
        if hasattr(model, "h_a"):
            model.h_a[4].weight *= 20
            model.h_s[4].weight *= 10
    save_checkpoint(path, arch, 8, 12, parameters_of(model), {})
    return path


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_coding_of_a_crop_equals_golden(arch, tmp_path):
    """From pixels to pixels, in float64, after all shadows have moved: every transform, the
    symbols, the indices of their tables, and what the synthesis makes of them."""
    network = load_float_network(str(_checkpoint(arch, tmp_path / "net.safetensors")))
    images = load_calibration(calibration_photographs(), 64, size=128, limit=3)
    start = quantize(network, images, Options(latent_bits=8, samples=1000)).network
    key = "z" if network.hyper else "y"
    source = CropSource(calibration_photographs()[:2], patch=64)
    tuner = FineTuner(INTEGER, start, network, network.bottlenecks[key], _config(), source)
    for seed, transform in enumerate(tuner.transforms.values()):
        _disturb(transform, seed, 0.3)
    exact = tuned_network(tuner)
    for crop in images.crops[:2]:
        x = torch.from_numpy(crop.astype(np.float64)).permute(2, 0, 1)[None]
        with torch.no_grad():
            read = tuner._code(x, 0.0)[0]
            pixels = tuner.transforms["g_s"](read)
        latents = golden.analysis(exact, crop)
        means = None
        if network.hyper:
            means = golden.entropy_parameters(exact, latents["z"].symbols).means
            assert len(np.unique(latents["z"].symbols)) > 3
            assert len(np.unique(latents["y"].indices)) > 3
        symbols = latents["y"].symbols
        assert len(np.unique(symbols)) > 3
        expected = golden.synthesis_input(
            symbols, means, exact.latent_fraction, exact.transforms["g_s"].input
        )
        np.testing.assert_array_equal(read[0].permute(1, 2, 0).numpy(), expected)
        decoded = golden.reconstruct(exact, latents)
        np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), decoded)


@pytest.mark.parametrize("arch", ["bmshj2018-factorized", "mbt2018-mean"])
def test_what_moves_how_fast(arch, tmp_path):
    """Biases of given steps as in the real network; a hyperprior slowly, without its scales."""
    network = load_float_network(str(_checkpoint(arch, tmp_path / "net.safetensors")))
    images = load_calibration(calibration_photographs(), 64, size=128, limit=3)
    start = quantize(network, images, Options(latent_bits=8, samples=1000)).network
    key = "z" if network.hyper else "y"

    def rates(lr_hyper: float) -> dict[str, float]:
        config, source = _config(lr_hyper=lr_hyper), CropSource([], patch=64)
        tuner = FineTuner(INTEGER, start, network, network.bottlenecks[key], config, source)
        return {name: scale for name, _, scale in tuner._scaled_parameters()}

    found = rates(0.5)
    assert found["g_a.stages.0.weight"] == 127
    assert found["g_a.stages.0.bias"] == start.transforms["g_a"].stages[0].requantizer.output.hi
    # one symbol; one grey value of 255
    assert found["g_a.stages.3.bias"] == 2**start.latent_fraction
    assert found["g_s.stages.3.bias"] == pytest.approx(255)
    assert "g_a.stages.0.log_weight" in found
    hyper = {name for name in found if name.startswith(("h_a.", "h_s."))}
    assert bool(hyper) == network.hyper
    if network.hyper:
        assert found["h_a.stages.2.bias"] == 0.5  # half of a symbol of z
        assert found["h_s.stages.0.weight"] == 0.5 * 127
        assert not any(name.rpartition(".")[2].startswith("log_") for name in hyper)
        assert not any(name.startswith(("h_a.", "h_s.")) for name in rates(0.0))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_learns(arch, tmp_path):
    """Gradients reach all transforms, and a few steps lower the loss on other photographs."""
    network = load_float_network(str(_checkpoint(arch, tmp_path / "net.safetensors")))
    images = load_calibration(calibration_photographs(), 64, size=128, limit=3)
    start = quantize(network, images, Options(latent_bits=8, samples=1000)).network
    key = "z" if network.hyper else "y"
    source = CropSource(calibration_photographs()[::2], patch=64)
    config = _config(steps=30, lr=2e-3, warmup=1, lr_scales=0.1)
    tuner = FineTuner(INTEGER, start, network, network.bottlenecks[key], config, source)
    before = tuner.evaluate(images.crops)[0]
    tuner.train_step()
    for name, parameter in tuner.named.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    run(tuner, progress=False)
    assert tuner.evaluate(images.crops)[0] < before


@pytest.mark.parametrize("arch", ["bmshj2018-hyperprior", "mbt2018-mean"])
def test_draq_of_a_hyperprior(arch, tmp_path):
    """Both phases, and entropy tables for z and y at the end."""
    network = load_float_network(str(_checkpoint(arch, tmp_path / "net.safetensors")))
    images = load_calibration(calibration_photographs(), 64, size=128, limit=2)
    options = DraqOptions(
        quantization=Options(samples=1000),
        tune=_config(steps=2),
        regularize_steps=2,
        rd_clip=False,
        device="cpu",
    )
    train = calibration_photographs()[::3]
    result = draq(network, images, train, options, progress=False)
    final = result.final.network
    assert set(final.entropy) == {"y", "z"} and set(final.transforms) == {
        "g_a", "g_s", "h_a", "h_s",
    }  # fmt: skip
    assert {name.split(".")[0] for name in result.mismatches} == {"g_a", "g_s", "h_a", "h_s"}
    assert max(result.mismatches.values()) < 0.01
    bits = golden.estimate_bits(final, golden.analysis(final, images.crops[0]))
    assert all(np.isfinite(v) and v > 0 for v in bits.values())


# The fast way -------------------------------------------------------------------------------


@pytest.mark.skipif(not kernels.fast_cpu(), reason="needs a CPU with 8-bit multipliers")
@pytest.mark.parametrize("activation", list(Activation))
def test_bytes_compute_what_floats_do(activation):
    """Outputs but for roundings of float32, gradients but for those of bfloat16."""
    up = {"transposed": True, "output_padding": 1}
    transform = random_transform(
        np.random.default_rng(3),
        [
            StageShape(out_channels=9, activation=activation),
            StageShape(out_channels=7, kernel=3, stride=1, activation=activation),
            StageShape(out_channels=5, activation=activation, **up),
            StageShape(out_channels=3, kernel=3, **up),
        ],
    )
    values = _inputs(transform, 64, 64)
    found = {}
    for dtype in (torch.float64, torch.float32):
        fake = FakeTransform(transform)
        _disturb(fake, 1, 0.5)
        x = torch.from_numpy(values).to(dtype).permute(2, 0, 1)[None].requires_grad_()
        outputs = fake.run(x, inward=True, soft=False)[0]
        weights = torch.linspace(-1, 1, outputs[-1].numel(), dtype=torch.float64)
        (outputs[-1].double() * weights.view_as(outputs[-1])).sum().backward()
        found[dtype] = (
            [y.detach().double() for y in outputs],
            {name: p.grad.double() for name, p in fake.named_parameters()} | {"x": x.grad.double()},
        )
    (exact, slopes), (fast, fast_slopes) = found[torch.float64], found[torch.float32]
    assert (exact[0] - fast[0]).abs().max() <= 1
    for a, b in zip(exact, fast, strict=True):
        assert (a != b).double().mean() < 5e-3
    for name, a in slopes.items():
        # a scale's gradients from its consumer and from its producer cancel, but for roundings
        if not name.rpartition(".")[2].startswith("log_"):
            assert (a - fast_slopes[name]).norm() <= 0.02 * a.norm() + 1e-9, name


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"),
    [
        (5, 2, 2, 1),
        (9, 4, 4, 3),
        (3, 2, 1, 1),
        (3, 2, 1, 0),
        (4, 2, 1, 0),
        (2, 3, 0, 1),
        (5, 1, 2, 0),
    ],
)  # fmt: skip
def test_transposed_convolutions_as_plain_ones(kernel, stride, padding, extra):
    """The same sums, gradients of inputs and weights, for any geometry."""
    rng = np.random.default_rng(0)
    shape = StageShape(
        out_channels=5, kernel=kernel, stride=stride, padding=padding, transposed=True,
        output_padding=extra,
    )  # fmt: skip
    transform = random_transform(rng, [shape])
    conv = transform.stages[0].convolution
    x = torch.from_numpy(_inputs(transform, 6, 7).astype(np.float64)).permute(2, 0, 1)[None]
    x = torch.cat([x, x.flip(2)]).requires_grad_()
    weight = torch.from_numpy(conv.weight.astype(np.float64)).requires_grad_()
    y = convolve(conv, x, weight, torch.zeros(5, dtype=torch.float64))
    grad = torch.randn_like(y)
    y.backward(grad)
    g = kernels.Geometry(conv)
    plain = g.plain_weight(weight.detach())
    np.testing.assert_array_equal(g.to_image(g.sums(x.detach(), plain), x), y.detach())
    grad_x, grad_weight = g.back(g.to_rows(grad, x), x.detach(), plain, True)
    np.testing.assert_allclose(grad_x, x.grad, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(g.weight_gradient(grad_weight), weight.grad, rtol=1e-12, atol=1e-9)


def test_clip_rules_are_checked():
    with pytest.raises(UserError, match="mse or percentile"):
        ClipRule("median")
    with pytest.raises(UserError, match=r"50 \.\. 100"):
        ClipRule("percentile", 20)
