"""GDN-Slimming: what leaves together, what stays equal, and what the command makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.quant import channels, slim  # noqa: E402
from lichen.quant.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.checkpoint import (  # noqa: E402
    ARCHS,
    build_model,
    infer_architecture,
    load_checkpoint,
    new_model,
    other_widths,
    parameters_of,
    save_checkpoint,
    widths_of,
)
from lichen.quant.data import CropSource  # noqa: E402
from lichen.quant.train import TrainConfig, forward_train, train  # noqa: E402

N, M = 8, 12


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    from lichen.commands.models import _total

    loaded = load_checkpoint(f"{name}.fp32")
    counted = channels.macs(loaded.arch, widths_of(loaded.arch, loaded.state_dict))
    assert sum(counted.values()) == _total(models.load_network(name), "macs")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("compensation", ["none", "mean"])
def test_a_closed_gate_is_a_channel_removed(arch, compensation, images):
    """Every group loses two channels: the gates say what the smaller network does."""
    model = lively(arch)
    pictures = batches(images)
    moments = slim.Gates(model, arch).measure(pictures)
    gates = slim.Gates(model, arch, moments if compensation == "mean" else None)
    x = pictures[0]
    whole = gates.loss(x, 0.01, 0).item()
    kept = {}
    for i, group in enumerate(channels.groups_of(arch)):
        count = widths_of(arch, parameters_of(model))[group.name]
        gone = [i % count, (i + 3) % count]
        kept[group.name] = np.setdiff1d(np.arange(count), gone)
        gates.values[group.name] = torch.ones(1, count)
        gates.values[group.name][0, gone] = 0
    state = slim.remove(model, arch, kept, moments, compensation)
    smaller = infer_architecture(state, "x")
    assert smaller == (arch, N - 2, M - 2)
    pruned = build_model(*smaller, state).train()
    run = slim.Gates(pruned, arch)

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
    moments = slim.Gates(model, arch).measure(pictures)
    whole = slim.Gates(model, arch).loss(pictures[0], 0.01, 0).item()
    losses = {}
    for compensation in ("linear", "mean"):
        state = slim.remove(model, arch, kept, moments, compensation)
        pruned = build_model(*infer_architecture(state, "x"), state).train()
        losses[compensation] = slim.Gates(pruned, arch).loss(pictures[0], 0.01, 0).item()
    assert abs(losses["linear"] - whole) < 0.2 * abs(losses["mean"] - whole)


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
    groups = slim.slimmable(arch, ("g_a", "latents"))
    options = {
        "lmbda": 0.01,
        "moments": None,
        "cost": lambda widths: float(sum(channels.macs(arch, widths).values())),
    }
    for method in ("taylor", "exact"):
        values = slim.importances(model, arch, groups, batches(images), method=method, **options)
        first = np.abs(values["g_a.conv1"])
        assert first[3] < 1e-5 < 1e-3 * first.max() < first[6], method
        if method == "exact":
            # a latent that isn't read costs its rate
            assert values["g_a.conv4"][5] < 0


def test_choice_keeps_multiples_and_takes_the_least_for_its_cost():
    arch = "mbt2018-mean"
    groups = channels.groups_of(arch)
    widths = widths_of(arch, parameters_of(new_model(arch, 20, 36)))
    rng = np.random.default_rng(0)
    values = {g.name: rng.random(widths[g.name]) for g in groups}
    values["g_s.conv2"] *= 100

    def cost(w):
        return float(sum(channels.macs(arch, w).values()))

    target = 0.5 * cost(widths)
    options = {"multiple": 8, "cost": cost}
    kept = slim.choose(arch, widths, values, groups, target=target, **options)
    assert "g_s.conv2" not in kept
    left = dict(widths)
    for group in groups:
        if group.name in kept:
            indices = kept[group.name]
            assert len(indices) % 8 == 0 and np.all(np.diff(indices) > 0)
            gone = np.setdiff1d(np.arange(widths[group.name]), indices)
            assert values[group.name][gone].max() < values[group.name][indices].min()
            left = channels.without(group, left, len(gone))
    assert left["h_s.conv3"] == 2 * left["g_a.conv4"]
    assert 0.35 * cost(widths) < cost(left) <= target
    with pytest.raises(UserError, match=r"leave .* at least"):
        slim.choose(arch, widths, values, groups[:1], target=target, **options)


def test_scales_fold_away(images):
    arch = "bmshj2018-hyperprior"
    model = lively(arch)
    names = [group.name for group in channels.groups_of(arch)]
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
        norms.append(float(scale.abs().sum()))
    assert norms[1] < 0.95 * norms[0]


def tiny_config(**more) -> slim.SlimConfig:
    options = {"macs": 0.6, "rounds": 2, "steps": 3, "batches": 1, "batch": 2, "patch": 64}
    return slim.SlimConfig(**options | {"multiple": 4, "sparsity": 0.1, "lr": 1e-4} | more)


@pytest.fixture(scope="module")
def slimmed(images, crops, tmp_path_factory) -> tuple[Path, slim.SlimResult]:
    folder = tmp_path_factory.mktemp("slimmed")
    source = CropSource(sorted(images.iterdir()), patch=64)
    out = folder / "small.safetensors"
    start = load_checkpoint("tiny.fp32")
    return out, slim.slim(start, tiny_config(), source, crops, out, progress=False)


def test_an_interrupted_run_ends_at_the_same_network(slimmed, images, crops, tmp_path):
    """Interrupted twice in the middle of training, and before its first step."""
    expected, _ = slimmed
    source = CropSource(sorted(images.iterdir()), patch=64)
    start = load_checkpoint("tiny.fp32")
    out = tmp_path / expected.name
    arguments = (start, tiny_config(), source, crops, out)
    with pytest.raises(KeyboardInterrupt):
        slim.slim(*arguments, progress=False, stop_after=2)
    with pytest.raises(UserError, match="rounds = 2, not 3"):
        slim.slim(start, tiny_config(rounds=3), *arguments[2:], resume=True, progress=False)
    with pytest.raises(KeyboardInterrupt):
        slim.slim(*arguments, progress=False, stop_after=2, resume=True)
    assert not out.exists()
    result = slim.slim(*arguments, progress=False, resume=True)
    assert not slim.work_folder(out).exists()
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
    widths = widths_of(loaded.arch, loaded.state_dict)
    assert len(set(list(widths.values())[:3])) > 1 or other_widths(*loaded[:4])
    for name, kept in result.kept.items():
        assert len(kept) == widths[name]
    assert (loaded.metadata["unpruned_n"], loaded.metadata["unpruned_m"]) == (16, 48)
    # trained on, slimmed again and read back, it keeps its map
    source = CropSource(sorted(images.iterdir()), patch=64)
    again = tmp_path / "again.safetensors"
    config = TrainConfig(
        n=loaded.n, m=loaded.m, widths=other_widths(*loaded[:4]), steps=1, batch=2, patch=64
    )
    train(config, source, again, init=loaded, progress=False)
    assert load_checkpoint(again).metadata["kept_channels"] == result.kept
    with pytest.raises(UserError, match="other widths"):
        train(
            TrainConfig(n=loaded.n, m=loaded.m, steps=1, batch=2, patch=64),
            source, tmp_path / "x.safetensors", init=loaded, progress=False,
        )  # fmt: skip
    spoilt = tmp_path / "spoilt.safetensors"
    kept = result.kept | {"g_a.conv1": [0]}
    save_checkpoint(spoilt, *loaded[:4], loaded.metadata | {"kept_channels": kept})
    with pytest.raises(UserError, match="kept_channels does not say"):
        load_checkpoint(spoilt)
