"""GDN-Slimming: what leaves together, what stays equal, and what the command makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.commands.slim import SLIM, command  # noqa: E402
from lichen.commands.train import command as train_command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.network.description import PHOTO  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.float import channels  # noqa: E402
from lichen.quant.float.architectures import (  # noqa: E402
    ARCHS,
    build_model,
    channel_counts,
    new_model,
    other_channel_counts,
    parameters_of,
)
from lichen.quant.float.checkpoint import Checkpoint, load_checkpoint, save_checkpoint  # noqa: E402
from lichen.quant.float.state_dict import infer_architecture  # noqa: E402
from lichen.quant.slim.config import SlimConfig  # noqa: E402
from lichen.quant.slim.gates import Gates  # noqa: E402
from lichen.quant.slim.importance import Ranking, choose, importances, slimmable  # noqa: E402
from lichen.quant.slim.slim import SlimResult, slim, work_folder  # noqa: E402
from lichen.quant.slim.surgery import remove  # noqa: E402
from lichen.quant.training.data import CropSource  # noqa: E402
from lichen.quant.training.loss import forward_train  # noqa: E402
from lichen.quant.training.train import train  # noqa: E402
from lichen.quant.training.trainer import TrainConfig  # noqa: E402

N, M = 8, 12


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A few crops of the shipped photographs, as a folder to train on."""
    folder = tmp_path_factory.mktemp("images")
    for i, path in enumerate(models.calibration_photographs()[:4]):
        with Image.open(path) as image:
            image.crop((0, 0, 160, 160)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def crops() -> CalibrationImages:
    return load_calibration(models.calibration_photographs()[4:], 64, size=128, limit=3)


def lively(arch: str, seed: int = 0):
    """A random model whose channels, norms and latents are all alive."""
    torch.manual_seed(seed)
    model = new_model(arch, N, M)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter += 0.2 * torch.rand_like(parameter)
            elif name.endswith("bias"):
                parameter += 0.1 * torch.randn_like(parameter)
        model.g_a[6].weight *= 30
        if hasattr(model, "h_a"):
            model.h_a[4].weight *= 10
            model.h_s[4].weight *= 10
    return model.train()


def batches(images: Path, count: int = 2, size: int = 2) -> list[torch.Tensor]:
    source = CropSource(sorted(images.iterdir()), patch=64)
    return [torch.from_numpy(source.batch(0, i, size)).float() / 255 for i in range(count)]


@pytest.mark.parametrize("name", ["small-q3", "small-hyper-q3", "tiny"])
def test_macs_are_those_of_the_integer_network(name):
    loaded = load_checkpoint(f"{name}.fp32")
    counted = channels.macs(loaded.arch, channel_counts(loaded.arch, loaded.state_dict))
    assert sum(counted.values()) == models.load_network(name).macs(*PHOTO)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("compensation", ["none", "mean"])
def test_a_closed_gate_is_a_channel_removed(arch, compensation, images):
    """Every coupling loses two channels: the gates say what the smaller network does."""
    model = lively(arch)
    pictures = batches(images)
    moments = Gates(model, arch).measure(pictures)
    gates = Gates(model, arch, moments if compensation == "mean" else None)
    x = pictures[0]
    whole = gates.loss(x, 0.01, 0).item()
    kept = {}
    for i, coupling in enumerate(channels.couplings_of(arch)):
        count = channel_counts(arch, parameters_of(model))[coupling.name]
        gone = [i % count, (i + 3) % count]
        kept[coupling.name] = np.setdiff1d(np.arange(count), gone)
        gates.values[coupling.name] = torch.ones(1, count)
        gates.values[coupling.name][0, gone] = 0
    state = remove(model, arch, kept, moments, compensation)
    smaller = infer_architecture(state, "x")
    assert smaller == (arch, N - 2, M - 2)
    pruned = build_model(*smaller, state).train()
    run = Gates(pruned, arch)

    def coded(model, run):
        with torch.no_grad():
            y = run("g_a", x)
            if "hyperprior" not in arch and "mean" not in arch:
                return y, run("g_s", y)
            z = run("h_a", y.abs() if arch == "bmshj2018-hyperprior" else y)
            return y, run("g_s", y), z, run("h_s", z)

    mine, theirs = coded(pruned, run), coded(model, gates)
    rows = [kept["g_a.conv4"], slice(None)]
    if len(mine) == 4:
        y_rows = kept["g_a.conv4"]
        both = y_rows if arch != "mbt2018-mean" else np.concatenate([y_rows, y_rows + M])
        rows += [kept["h_a.conv3"], both]
    for a, b, row in zip(mine, theirs, rows, strict=True):
        b = b[:, row]
        assert b.std() > 0.01
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.std()) + 1e-5)
    assert gates.loss(x, 0.01, 0).item() != pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("arch", ["bmshj2018-factorized", "bmshj2018-hyperprior"])
def test_what_others_explain_moves_into_them(arch, images):
    """A channel that is a combination of others leaves without a trace."""
    model = lively(arch)
    with torch.no_grad():
        for module in (model.g_a[1], model.g_s[1]):
            # norms that are constants, so that combinations stay combinations
            module.gamma.copy_(module.gamma_reparam.init(torch.zeros(N, N)))
            module.beta.copy_(module.beta_reparam.init(torch.ones(N)))
        for conv, axis in ((model.g_a[0], 0), (model.g_s[0], 1)):
            w = conv.weight.transpose(0, axis)
            w[2] = 0.5 * w[0] - 2 * w[5]
            conv.bias[2] = 0.5 * conv.bias[0] - 2 * conv.bias[5] + 0.3
    pictures = batches(images)
    kept = {name: np.setdiff1d(np.arange(N), [2]) for name in ("g_a.conv1", "g_s.conv1")}
    moments = Gates(model, arch).measure(pictures)
    whole = Gates(model, arch).loss(pictures[0], 0.01, 0).item()
    losses = {}
    for compensation in ("linear", "mean"):
        state = remove(model, arch, kept, moments, compensation)
        pruned = build_model(*infer_architecture(state, "x"), state).train()
        losses[compensation] = Gates(pruned, arch).loss(pictures[0], 0.01, 0).item()
    assert abs(losses["linear"] - whole) < 0.2 * abs(losses["mean"] - whole)


def test_elimination_knows_what_others_explain():
    """Of two that are alike one may go for little, and then the other no longer."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 5))
    x[:, 3] = x[:, 1] + 0.01 * x[:, 3]
    values = np.array([1.0, 3.0, 2.0, 3.5, 1.5])
    products, means = torch.from_numpy(x.T @ x / len(x)), torch.from_numpy(x.mean(axis=0))
    ranking = Ranking.by_elimination(values, products, means)
    assert sorted(ranking.order) == list(range(5))
    assert ranking.order[0] in (1, 3) and list(ranking.order[1:4]) == [0, 4, 2]
    assert ranking.rises[0] < 0.01
    # the last takes the whole of both with it
    np.testing.assert_allclose(ranking.rises[1:], [1, 1.5, 2, 6.5], rtol=0.05)


def test_importance_knows_idle_channels_and_neighbours(images):
    """A channel that nobody reads matters through its neighbours' norms, or not at all."""
    arch = "bmshj2018-factorized"
    model = lively(arch)
    with torch.no_grad():
        gamma = model.g_a[1].gamma_reparam(model.g_a[1].gamma)
        model.g_a[2].weight[:, [3, 6]] = 0
        gamma[:, 3] = 0
        gamma[:, 6] = 1
        model.g_a[1].gamma.copy_(model.g_a[1].gamma_reparam.init(gamma))
        model.g_s[0].weight[5] = 0
    couplings = slimmable(arch, ("g_a", "latents"))
    options = {
        "lmbda": 0.01,
        "moments": None,
        "cost": lambda counts: float(sum(channels.macs(arch, counts).values())),
    }
    for method in ("taylor", "exact"):
        values = importances(model, arch, couplings, batches(images), method=method, **options)
        first = np.abs(values["g_a.conv1"])
        assert first[3] < 1e-5 < 1e-3 * first.max() < first[6], method
        if method == "exact":
            # a latent that isn't read costs its rate
            assert values["g_a.conv4"][5] < 0


def test_choice_keeps_multiples_and_takes_the_least_for_its_cost():
    arch = "mbt2018-mean"
    couplings = channels.couplings_of(arch)
    counts = channel_counts(arch, parameters_of(new_model(arch, 20, 36)))
    rng = np.random.default_rng(0)
    values = {g.name: rng.random(counts[g.name]) for g in couplings}
    values["g_s.conv2"] *= 100

    def cost(w):
        return float(sum(channels.macs(arch, w).values()))

    target = 0.5 * cost(counts)
    options = {"multiple": 8, "cost": cost}
    rankings = {name: Ranking.by_value(value) for name, value in values.items()}
    kept = choose(arch, counts, rankings, couplings, target=target, **options)
    assert "g_s.conv2" not in kept
    left = dict(counts)
    for coupling in couplings:
        if coupling.name in kept:
            indices = kept[coupling.name]
            assert len(indices) % 8 == 0 and np.all(np.diff(indices) > 0)
            gone = np.setdiff1d(np.arange(counts[coupling.name]), indices)
            assert values[coupling.name][gone].max() < values[coupling.name][indices].min()
            left = channels.without(coupling, left, len(gone))
    assert left["h_s.conv3"] == 2 * left["g_a.conv4"]
    assert 0.35 * cost(counts) < cost(left) <= target
    with pytest.raises(UserError, match=r"leave .* at least"):
        choose(arch, counts, rankings, couplings[:1], target=target, **options)


def test_scales_fold_away(images):
    arch = "bmshj2018-hyperprior"
    model = lively(arch)
    names = [coupling.name for coupling in channels.couplings_of(arch)]
    scales = channels.add_scales(model, arch, names)
    assert list(scales) == names
    with torch.no_grad():
        for scale in scales.values():
            scale.copy_(torch.linspace(0.5, 2, len(scale)))
    folded = build_model(arch, N, M, channels.fold_scales(parameters_of(model), arch))
    x = batches(images)[0]
    with torch.no_grad():
        a, b = (forward_train(m.eval(), arch, x, True)["x_hat"] for m in (model, folded))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_sparsity_presses_on_costly_channels(images, tmp_path):
    """What is trained with it ends smaller, and its checkpoint is an ordinary one."""
    arch = "bmshj2018-factorized"
    common = {"arch": arch, "n": N, "m": M, "steps": 6, "batch": 2, "patch": 64, "warmup": 0}
    norms = []
    for pressure in (0.0, 5.0):
        config = TrainConfig(**common, sparsity={"g_a.conv2": pressure}, lr_adam=2e-2)
        out = tmp_path / f"{pressure}.safetensors"
        trainer = train(config, images, out, progress=False)
        scale = trainer.scales["g_a.conv2"]
        assert "g_a.2.scale" in trainer.named and "g_a.2.scale" in trainer.average
        saved = load_checkpoint(out).state_dict
        expected = parameters_of(trainer.model)["g_a.2.weight"] * scale[:, None, None, None]
        torch.testing.assert_close(saved["g_a.2.weight"], expected.detach())
        norms.append(float(scale.detach().abs().sum()))
    assert norms[1] < 0.95 * norms[0]


def tiny_config(**more) -> SlimConfig:
    options = {"macs": 0.6, "rounds": 2, "steps": 3, "batches": 1, "batch": 2, "patch": 64}
    return SlimConfig(**options | {"multiple": 4, "sparsity": 0.1, "lr": 1e-4} | more)


@pytest.fixture(scope="module")
def slimmed(images, crops, tmp_path_factory) -> tuple[Path, SlimResult]:
    folder = tmp_path_factory.mktemp("slimmed")
    source = CropSource(sorted(images.iterdir()), patch=64)
    out = folder / "small.safetensors"
    start = load_checkpoint("tiny.fp32")
    return out, slim(start, tiny_config(), source, crops, out, progress=False)


def test_an_interrupted_run_ends_at_the_same_network(slimmed, images, crops, tmp_path):
    """Interrupted twice in the middle of training, and before its first step."""
    expected, _ = slimmed
    source = CropSource(sorted(images.iterdir()), patch=64)
    start = load_checkpoint("tiny.fp32")
    out = tmp_path / expected.name
    arguments = (start, tiny_config(), source, crops, out)
    with pytest.raises(KeyboardInterrupt):
        slim(*arguments, progress=False, stop_after=2)
    with pytest.raises(UserError, match="rounds = 2, not 3"):
        slim(start, tiny_config(rounds=3), *arguments[2:], resume=True, progress=False)
    with pytest.raises(KeyboardInterrupt):
        slim(*arguments, progress=False, stop_after=2, resume=True)
    assert not out.exists()
    result = slim(*arguments, progress=False, resume=True)
    assert not work_folder(out).exists()
    ours, theirs = load_checkpoint(out), load_checkpoint(expected)
    assert ours.metadata["slim"]["rounds"] == theirs.metadata["slim"]["rounds"]
    assert ours.state_dict.keys() == theirs.state_dict.keys()
    for name, value in theirs.state_dict.items():
        assert torch.equal(ours.state_dict[name], value), name
    assert result.kept == theirs.metadata["kept_channels"]


def test_the_result_is_an_ordinary_checkpoint(slimmed, images, tmp_path):
    out, result = slimmed
    loaded = load_checkpoint(out)
    assert sum(result.macs_after.values()) <= 0.6 * sum(result.macs_before.values())
    counts = channel_counts(loaded.arch, loaded.state_dict)
    assert len(set(list(counts.values())[:3])) > 1 or other_channel_counts(*loaded[:4])
    for name, kept in result.kept.items():
        assert len(kept) == counts[name]
    assert (loaded.metadata["unpruned_n"], loaded.metadata["unpruned_m"]) == (16, 48)
    # trained on, slimmed again and read back, it keeps its map
    source = CropSource(sorted(images.iterdir()), patch=64)
    again = tmp_path / "again.safetensors"
    config = TrainConfig(
        n=loaded.n, m=loaded.m, widths=other_channel_counts(*loaded[:4]), steps=1, batch=2, patch=64
    )
    train(config, source, again, init=loaded, progress=False)
    assert load_checkpoint(again).metadata["kept_channels"] == result.kept
    with pytest.raises(UserError, match="other widths"):
        train(
            TrainConfig(n=loaded.n, m=loaded.m, steps=1, batch=2, patch=64),
            source, tmp_path / "x.safetensors", init=loaded, progress=False,
        )  # fmt: skip
    # the command finds the counts itself; a hyperprior takes the slimmed g_a and g_s
    hyper = tmp_path / "hyper.safetensors"
    arguments = ["--images", str(images), "-o", str(hyper), "--init", str(out), "--steps", "1"]
    arguments += ["--arch", "bmshj2018-hyperprior", "--batch", "1", "--patch", "64", "--quiet"]
    done = CliRunner().invoke(train_command, arguments)
    assert done.exit_code == 0, done.output
    grown = load_checkpoint(hyper)
    kept = grown.metadata["kept_channels"]
    assert kept == {k: v for k, v in result.kept.items() if k.startswith(("g_a", "g_s"))}
    after = channel_counts(grown.arch, grown.state_dict)
    assert {k: after[k] for k in counts} == counts and after["h_a.conv2"] == grown.n == loaded.n
    spoilt = tmp_path / "spoilt.safetensors"
    kept = result.kept | {"g_a.conv1": [0]}
    save_checkpoint(spoilt, *loaded[:4], loaded.metadata | {"kept_channels": kept})
    with pytest.raises(UserError, match="kept_channels does not say"):
        load_checkpoint(spoilt)


def unevenly_slimmed(arch: str, images: Path) -> Checkpoint:
    """A lively model from which each layer has lost another number of channels."""
    model = lively(arch)
    counts = channel_counts(arch, parameters_of(model))
    kept = {
        coupling.name: np.setdiff1d(np.arange(counts[coupling.name]), np.arange(1 + i % 3) * 3)
        for i, coupling in enumerate(channels.couplings_of(arch))
    }
    moments = Gates(model, arch).measure(batches(images, 1))
    state = remove(model, arch, kept, moments, "linear")
    metadata = {
        "kept_channels": {
            name: [
                part * counts[coupling.name] + int(c)
                for part in range(parts)
                for c in kept[coupling.name]
            ]
            for coupling in channels.couplings_of(arch)
            for name, parts in coupling.layers.items()
        }
    }
    return Checkpoint(*infer_architecture(state, "x"), state, metadata)


@pytest.mark.parametrize("arch", ARCHS)
def test_slimmed_networks_quantize_code_and_tune(arch, images, tmp_path):
    """Through the files: kept channels arrive, FP32 and integers decode what they coded."""
    from lichen.codec.evaluate import NetworkCodec
    from lichen.network.file import load, save
    from lichen.quant.calibration.options import Options
    from lichen.quant.draq.draq import DraqOptions, draq
    from lichen.quant.float.source import load_float_network
    from lichen.quant.training.evaluate import FloatCodec
    from lichen.quant.training.tune_config import TuneConfig
    from lichen.sim.golden import analysis, reconstruct
    from lichen.sim.images import read_image

    start = unevenly_slimmed(arch, images)
    path = tmp_path / "slimmed.safetensors"
    save_checkpoint(path, *start)
    loaded = load_checkpoint(path)
    image = read_image(next(iter(images.iterdir())))[:128, :64]
    codec = FloatCodec(build_model(*loaded[:4]))
    assert codec.decode(codec.encode(image), *image.shape[:2]).shape == image.shape
    network = load_float_network(str(path))
    tuned = draq(
        network,
        CalibrationImages([image]),
        sorted(images.iterdir())[:1],
        DraqOptions(
            quantization=Options(samples=1000, clip_factor=1.3),
            tune=TuneConfig(steps=1, batch=1, patch=64, lmbda=0.01),
        ),
        progress=False,
    )
    save(tuned.final.network, tmp_path / "net.lichen")
    integer = load(tmp_path / "net.lichen")
    for key, transform in integer.transforms.items():
        for stage in transform.stages:
            expected = start.metadata["kept_channels"].get(f"{key}.{stage.name}")
            found = stage.kept_channels
            assert (None if found is None else list(found)) == expected
    assert len({stage.out_channels for stage in integer.transforms["g_a"].stages[:3]}) > 1
    coder = NetworkCodec(integer)
    decoded = coder.decode(coder.encode(image), *image.shape[:2])
    np.testing.assert_array_equal(decoded, reconstruct(integer, analysis(integer, image)))


def test_slimmed_gateware_equals_golden(images):
    """Planned and simulated, with other numbers of channels in every layer."""
    from lichen.hw.device.device import Resources
    from lichen.hw.plan.planner import plan
    from lichen.network.description import Network
    from lichen.quant.calibration.options import Options
    from lichen.quant.calibration.quantize import quantize
    from lichen.quant.float.network import from_compressai
    from lichen.sim.golden import run_transform
    from lichen.sim.images import read_image
    from lichen.sim.transform import simulate_transform

    start = unevenly_slimmed("bmshj2018-factorized", images)
    image = read_image(next(iter(images.iterdir())))
    parent = from_compressai(build_model(*start[:4]), *start[:3])
    options = Options(method="minmax")
    network: Network = quantize(parent, CalibrationImages([image[:64, :64]]), options).network
    transform = network.transforms["g_a"]
    assert [stage.out_channels for stage in transform.stages] == [7, 6, 5, 11]
    found = plan(transform, Resources(dsp=60, bram=80, lut=40_000), max_width=64)
    simulation = simulate_transform(transform, found.folding, image[:16, :32], simulator="icarus")
    assert not simulation.faults, simulation.faults
    assert simulation.mismatches == 0 and simulation.compared == 1 * 2 * 11
    latents = run_transform(transform, image[:16, :32])
    np.testing.assert_array_equal(simulation.output, latents)
    assert latents.std() > 1


def test_the_command(images, tmp_path):
    out, again = tmp_path / "out.safetensors", tmp_path / "out2.safetensors"
    arguments = ["tiny.fp32", "-o", str(out), "--train", str(images), "--macs", "0.8"]
    arguments += [
        "--rounds",
        "1",
        "--steps",
        "2",
        "--batches",
        "1",
        "--patch",
        "64",
        "--batch",
        "1",
    ]
    arguments += ["--multiple", "4", "--quiet", "--half", "--json", "-"]
    arguments += ["--validate", str(images)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["macs"]["after"] <= 0.8 * report["macs"]["before"]
    loaded = load_checkpoint(out)
    assert report["widths"] == channel_counts(loaded.arch, loaded.state_dict)
    assert {k: len(v) for k, v in report["kept_channels"].items()} == report["widths"]
    assert report["rounds"][-1]["tuned"] == report["loss"]["after"]
    assert report["loss"]["before"]["loss"] > 0
    assert "million MACs" in done.stderr
    # a part of a part: the map leads to the first network
    arguments[0], arguments[2] = str(out), str(again)
    report2 = json.loads(CliRunner().invoke(command, arguments).stdout)
    for name, kept in report2["kept_channels"].items():
        assert set(kept) <= set(report["kept_channels"][name])
    assert load_checkpoint(again).metadata["unpruned_n"] == 16


def test_defaults_and_bad_options(images, tmp_path):
    defaults = SlimConfig(macs=0.5)
    for name, value in SLIM.items():
        assert getattr(defaults, name) == value, name
    for change in (
        {"macs": 1.0}, {"rounds": 0}, {"steps": -1}, {"final_steps": -1}, {"multiple": 0},
        {"batches": 0}, {"sparsity": -1.0}, {"importance": "x"}, {"compensation": "x"},
        {"kinds": ("x",)}, {"count": ()},
    ):  # fmt: skip
        with pytest.raises(UserError):
            SlimConfig(**{"macs": 0.5} | change)
    out = tmp_path / "out.safetensors"
    base = ["tiny.fp32", "-o", str(out), "--train", str(images), "--macs", "0.8", "--quiet"]
    for more, word in (
        (["--transforms", "h_a"], "has no h_a"),
        (["--transforms", "g_a", "--macs", "0.2"], "at least"),
        (["--resume"], "no run to resume"),
        (["--patch", "10"], "multiple of 16"),
        (["-o", str(tmp_path / "out.pth")], "end in .safetensors"),
    ):
        done = CliRunner().invoke(command, base + more)
        assert isinstance(done.exception, UserError) and word in str(done.exception), more
    assert [path.name for path in tmp_path.iterdir()] == []
    work_folder(out).mkdir()
    done = CliRunner().invoke(command, base)
    assert "--resume" in str(done.exception)
