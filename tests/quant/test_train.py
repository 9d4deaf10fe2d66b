"""Training, FP32 checkpoints and their evaluation, on small synthetic images."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from compressai.layers import GDN, GDN1  # noqa: E402

from lichen import models  # noqa: E402
from lichen.commands._options import remark_on_precision  # noqa: E402
from lichen.commands.train import command  # noqa: E402
from lichen.errors import UserError  # noqa: E402
from lichen.quant.float.architectures import ARCHS, build_model, new_model, parameters_of  # noqa: E402
from lichen.quant.float.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from lichen.quant.training.data import CropSource, load_rgb  # noqa: E402
from lichen.quant.training.device import (  # noqa: E402
    bfloat16_pays,
    flushed_denormals,
    precision_remark,
)
from lichen.quant.training.evaluate import evaluate_fp32, integer_grid  # noqa: E402
from lichen.quant.training.loss import Transforms, forward_train  # noqa: E402
from lichen.quant.training.normalization import ProductGDN, use_products  # noqa: E402
from lichen.quant.training.runs import (  # noqa: E402
    deferred_interrupts,
    flatten,
    state_path,
    unflatten,
)
from lichen.quant.training.train import load_state, train  # noqa: E402
from lichen.quant.training.trainer import TrainConfig, Trainer  # noqa: E402
from lichen.sim.images import list_images, pad_image  # noqa: E402
from lichen.sim.quality import psnr  # noqa: E402

DATA = Path(__file__).resolve().parents[3] / "shared/data"
START = DATA / "start/factorized-n64-m96-l0.013.pth"
TRAIN = DATA / "train"
SMALL = {"n": 4, "m": 6, "batch": 2, "patch": 64, "warmup": 5}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Five smooth pictures of assorted sizes with a few edges."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    for i, (height, width) in enumerate([(96, 80), (64, 64), (70, 101), (128, 64), (90, 90)]):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = np.array(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        )
        picture[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def model():
    torch.manual_seed(3)
    return new_model("bmshj2018-factorized", 4, 6)


def one_sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 3e-3), ("soap", 1e-2)])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_few_steps_lower_the_loss(arch, optimizer, lr, precision, images):
    source = CropSource(list_images(images), patch=64)
    config = TrainConfig(
        arch=arch,
        steps=24,
        **SMALL,
        optimizer=optimizer,
        precision=precision,
        lr=lr,
        lr_adam=3e-3,
        round_from=0.7,
    )
    trainer = Trainer(config, source)
    losses = [trainer.train_step()[0] for _ in range(24)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_an_optimizer_state_keeps_its_memory_layout():
    """Products of matrices that lie transposed round differently, on some processors."""
    parameter = torch.zeros(3, 3)
    state = {
        "step": 4,
        "exp_avg_sq": torch.arange(9.0).reshape(3, 3).T,
        "Q": [torch.arange(6.0).reshape(2, 3).T, []],
        "GG": torch.arange(4.0),
    }
    tensors, values = flatten(state)
    values = json.loads(json.dumps(values))
    restored = unflatten({k: v.contiguous() for k, v in tensors.items()}, values, parameter)
    assert restored["step"] == 4 and restored["Q"][1] == []
    for before, after in (
        (state["exp_avg_sq"], restored["exp_avg_sq"]),
        (state["Q"][0], restored["Q"][0]),
        (state["GG"], restored["GG"]),
    ):
        assert torch.equal(before, after) and before.stride() == after.stride()
        assert after.data_ptr() % 16 == 0


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_a_resumed_run_equals_an_uninterrupted_one(optimizer, images, tmp_path):
    # more steps than soap lets pass between two changes of its basis
    config = TrainConfig(
        steps=13, **SMALL, optimizer=optimizer, downscale=0.5, seed=7, ema=0.9, precision="auto"
    )
    whole = train(config, images, tmp_path / "whole.safetensors", progress=False)
    parts = tmp_path / "parts.safetensors"
    train(config, images, parts, progress=False, stop_after=3)
    train(config, images, parts, progress=False, stop_after=4, resume=True)
    resumed = train(config, images, parts, progress=False, resume=True)
    assert resumed.step == whole.step == 13
    (a, _), (b, _) = whole.state(), resumed.state()
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key
    first, second = (load_checkpoint(tmp_path / f"{n}.safetensors") for n in ("whole", "parts"))
    for key, value in first.state_dict.items():
        assert torch.equal(value, second.state_dict[key]), key


def test_rounding_noise_and_precision(images, model):
    """What mixed precision may change: the transforms' outputs a little, latents' fractions not."""
    torch.manual_seed(1)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        exact, half = Transforms(model), Transforms(model, bfloat16=True)
        y = exact("g_a", x)
        assert torch.equal(y, model.g_a(x))
        assert half("g_a", x).dtype == torch.float32
        error = (half("g_a", x) - y).abs().max()
        assert 0 < error < 0.05 * y.abs().max()
        # the last layer's output is no bfloat16: 8 bits of mantissa do not hold it
        z = half("g_a", x)
        assert not torch.equal(z, z.bfloat16().float())


def test_noisy_training_passes_are_compressais(images):
    for arch in ARCHS:
        torch.manual_seed(3)
        model = new_model(arch, 4, 6).train()
        x = torch.rand(1, 3, 64, 64)
        torch.manual_seed(5)
        expected = model(x)
        torch.manual_seed(5)
        found = forward_train(model, arch, x, rounded=False)
        assert torch.equal(found["x_hat"], expected["x_hat"])
        assert found["likelihoods"].keys() == expected["likelihoods"].keys()
        for name, likelihood in expected["likelihoods"].items():
            assert torch.equal(found["likelihoods"][name], likelihood)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_normalization_by_matrix_products_is_compressais(inverse):
    torch.manual_seed(7)
    model = torch.nn.Sequential(GDN(5, inverse=inverse), GDN1(5, inverse=inverse)).double()
    with torch.no_grad():
        model[0].gamma.add_(0.3 * torch.rand(5, 5))
        model[0].beta.mul_(1 + torch.rand(5))
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    wanted = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]

    def passes() -> list[torch.Tensor]:
        seen = x.clone(memory_format=torch.channels_last).requires_grad_()
        found = model(seen)
        parameters = list(model.parameters())
        return [found, *torch.autograd.grad((found * wanted).sum(), [seen, *parameters])]

    expected = passes()
    use_products(model)
    assert [type(module) for module in model] == [ProductGDN, GDN1]
    assert [name for name, _ in model.named_parameters()] == names
    for value, before in zip(passes(), expected, strict=True):
        torch.testing.assert_close(value, before, rtol=1e-12, atol=1e-12)


TOGETHER = """
import sys, torch
from lichen.quant.training.data import CropSource
from lichen.quant.training.trainer import TrainConfig, Trainer
from lichen.sim.images import list_images
torch.set_num_threads(1)
source = CropSource(list_images(sys.argv[1]), patch=64)
config = TrainConfig(n=4, m=6, batch=4, patch=64, warmup=5, steps=3)
trainer = Trainer(config, source, "cpu")
losses = [trainer.train_step()[0] for _ in range(3)]
weights = torch.cat([p.detach().flatten() for p in trainer.named.values()])
torch.save((losses, weights), f"{sys.argv[2]}/{trainer.processes.rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "pays"),
    [
        ({"avx512_bf16": True, "amx_tile": False}, True),
        ({"avx512_bf16": False, "amx_tile": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_bfloat16_where_the_processor_has_it(known, pays, images, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert bfloat16_pays(torch.device("cpu")) is pays
    source = CropSource(list_images(images), patch=64)
    assert Trainer(TrainConfig(steps=2, **SMALL), source).bfloat16 is pays
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not bfloat16_pays(torch.device("cpu"))


@pytest.mark.parametrize("known", [{}, {"avx512_bf16": True}])
def test_a_precision_that_is_only_imitated_is_remarked_upon(known, monkeypatch, capsys):
    """Whoever asks for it gets it, thirty times slower."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    for precision in ("auto", "float32", "bfloat16"):
        remark = precision_remark(precision, "cpu")
        assert (remark is not None) is (precision == "bfloat16" and not known)
        remark_on_precision(precision, "cpu")
        assert ("--precision auto" in capsys.readouterr().err) is (remark is not None)


def test_processes_train_together(images, tmp_path):
    """Under torchrun: the same weights everywhere, and not those of one process alone."""
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        subprocess.run(
            [*torchrun, f"--nproc-per-node={count}", str(script), str(images), str(folder)],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    alone = torch.load(tmp_path / "1/0.pt", weights_only=True)
    first, second = (torch.load(tmp_path / f"2/{i}.pt", weights_only=True) for i in range(2))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], alone[1])
    # the same crops, other noise
    assert first[0][0] == pytest.approx(alone[0][0], rel=0.05)


def test_batches_are_shared_out_evenly(images, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError) as error:
        Trainer(TrainConfig(steps=4, **SMALL), CropSource(list_images(images), patch=64))
    assert "multiple of the 3 processes" in one_sentence(error)


@pytest.mark.parametrize(
    ("device", "word"), [("tpu", "auto, cpu or cuda"), ("cuda", "needs a GPU")]
)
def test_devices_that_are_not_there(device, word, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as error:
        Trainer(TrainConfig(steps=4, **SMALL), CropSource(list_images(images), patch=64), device)
    assert word in one_sentence(error)


def test_tensorboard_reads_the_logs(images, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    config = TrainConfig(steps=3, **SMALL)
    train(config, images, tmp_path / "run.safetensors", progress=False, tensorboard=logs)
    events = EventAccumulator(str(logs))
    events.Reload()
    assert {"loss", "bpp", "psnr", "learning rate"} <= set(events.Tags()["scalars"])
    (scalar,) = events.Scalars("loss")
    assert scalar.step == 3
    assert scalar.value > 0


def test_runs_are_seeded(images):
    source = CropSource(list_images(images), patch=64)
    assert np.array_equal(source.batch(1, 2, 3), source.batch(1, 2, 3))
    assert not np.array_equal(source.batch(1, 2, 3), source.batch(1, 3, 3))
    assert not np.array_equal(source.batch(1, 2, 3), source.batch(2, 2, 3))


def test_minutes_set_the_schedule(images):
    source = CropSource(list_images(images), patch=64)
    trainer = Trainer(TrainConfig(minutes=1.0, **SMALL), source)
    trainer.elapsed, trainer.step = 60.0, 1000
    trainer.restore(*trainer.state())
    assert trainer.progress == 1
    assert trainer.schedule() == pytest.approx(0.01)
    trainer.elapsed = 30.0
    trainer.restore(*trainer.state())
    assert trainer.schedule() == pytest.approx(0.505)


def test_a_diverging_run_stops_with_a_sentence_and_keeps_its_weights(images):
    trainer = Trainer(TrainConfig(steps=9, **SMALL), CropSource(list_images(images), patch=64))
    with torch.no_grad():
        trainer.named["g_s.6.bias"].fill_(1e30)
    before = parameters_of(trainer.model)
    with pytest.raises(UserError) as error:
        trainer.train_step()
    assert "lower the learning rate" in one_sentence(error)
    assert all(torch.equal(v, before[k]) for k, v in parameters_of(trainer.model).items())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": None}, "exactly one of steps and minutes"),
        ({"minutes": 1.0}, "exactly one of steps and minutes"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"patch": 40}, "multiple of 16"),
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"lmbda": -1.0}, "lmbda must be above 0, not -1"),
        ({"arch": "cheng2020-anchor"}, "cheng2020-anchor"),
        ({"n": 0}, "at least 1"),
        ({"optimizer": "sgd"}, "soap, adam"),
        ({"precision": "int8"}, "bfloat16"),
        ({"lr_adam": 0.0}, "lr adam must be above 0, not 0"),
        ({"lr_end": 1.5}, "lr end must be within 0 and 1, not 1.5"),
        ({"frozen": ["g_a", "h_a"]}, "bmshj2018-factorized has g_a, g_s to freeze, not h_a"),
    ],
)
def test_unusable_options(change, word, images):
    source = CropSource(list_images(images), patch=64)
    with pytest.raises(UserError) as error:
        Trainer(TrainConfig(**{"steps": 4, **SMALL, **change}), source)
    # options of a command are the command's to name
    assert word in one_sentence(error) and "--" not in str(error.value)


@pytest.mark.parametrize("arch", ["bmshj2018-hyperprior", "mbt2018-mean"])
def test_warm_start_from_a_factorized_model(arch, images, tmp_path, model):
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, "bmshj2018-factorized", 4, 6, parameters_of(model), {})
    source = CropSource(list_images(images), patch=64)
    config = TrainConfig(arch=arch, steps=24, **SMALL, optimizer="adam", lr=3e-3)
    warm, cold = Trainer(config, source), Trainer(config, source)
    warm.initialise(load_checkpoint(start))
    given, fresh = parameters_of(model), parameters_of(cold.model)
    assert any(name.startswith("h_s.") for name in warm.named)
    for name, value in parameters_of(warm.model).items():
        taken = name.startswith(("g_a.", "g_s."))
        assert torch.equal(value, given[name] if taken else fresh[name]), name
        assert torch.equal(value, warm.average[name]), name
    assert warm.init["transforms"] == ["g_a", "g_s"]
    assert warm.init["source"] == "start.safetensors"
    losses = [warm.train_step()[0] for _ in range(24)]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_a_prior_gives_what_other_transforms_lack(images, tmp_path, model):
    arch, source = "bmshj2018-hyperprior", CropSource(list_images(images), patch=64)
    config = TrainConfig(arch=arch, steps=2, **SMALL)
    known = new_model(arch, 4, 6)
    start, prior = tmp_path / "start.safetensors", tmp_path / "prior.safetensors"
    save_checkpoint(start, "bmshj2018-factorized", 4, 6, parameters_of(model), {})
    save_checkpoint(prior, arch, 4, 6, parameters_of(known), {})
    trainer = Trainer(config, source)
    trainer.initialise(load_checkpoint(start), load_checkpoint(prior))
    transforms, rest = parameters_of(model), parameters_of(known)
    for name, value in parameters_of(trainer.model).items():
        taken = name.startswith(("g_a.", "g_s."))
        if not name.endswith("quantiles"):
            assert torch.equal(value, (transforms if taken else rest)[name]), name
        assert torch.equal(value, trainer.average[name]), name
    assert trainer.init["source"] == "start.safetensors"
    assert trainer.init["prior"]["source"] == "prior.safetensors"
    for first, second in ((prior, start), (start, start), (prior, prior)):
        with pytest.raises(UserError, match="must be bmshj2018-hyperprior, and the start must not"):
            Trainer(config, source).initialise(load_checkpoint(first), load_checkpoint(second))
    output = tmp_path / "run.safetensors"
    command_line = ["--images", str(images), "-o", str(output), "--prior", str(prior)]
    result = CliRunner().invoke(command, [*command_line, "--steps", "1"])
    assert result.exit_code != 0 and "--prior goes with --init" in str(result.exception)


def test_frozen_transforms_keep_their_weights(images, tmp_path):
    """A prior learns of latents that stay, and goes on to after an interruption."""
    arch, output = "bmshj2018-hyperprior", tmp_path / "run.safetensors"
    frozen = {"arch": arch, **SMALL, "steps": 4, "round_from": 1.0, "frozen": ["g_a", "g_s"]}
    whole = train(TrainConfig(**frozen), images, tmp_path / "whole.safetensors", progress=False)
    before = parameters_of(Trainer(TrainConfig(**frozen), whole.source).model)
    after = parameters_of(whole.model)
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"h_a", "h_s", "entropy_bottleneck"}
    train(TrainConfig(**frozen), images, output, progress=False, stop_after=2)
    train(TrainConfig(**frozen), images, output, progress=False, resume=True)
    metadata = load_checkpoint(output).metadata
    assert metadata["frozen"] == ["g_a", "g_s"]
    for name, value in load_checkpoint(tmp_path / "whole.safetensors").state_dict.items():
        assert torch.equal(value, load_checkpoint(output).state_dict[name]), name
    again = tmp_path / "again.safetensors"
    options = ["--steps", "1", "--batch", "2", "--patch", "64", "--freeze", "h_a, g_s", "--quiet"]
    options = ["--images", str(images), "-o", str(again), "--init", str(output), *options]
    assert CliRunner().invoke(command, options).exit_code == 0
    assert load_checkpoint(again).metadata["frozen"] == ["h_a", "g_s"]


@pytest.mark.parametrize(
    ("arch", "n"), [("bmshj2018-factorized-relu", 4), ("bmshj2018-hyperprior", 5)]
)
def test_a_warm_start_from_other_transforms_is_refused(arch, n, images, tmp_path, model):
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, "bmshj2018-factorized", 4, 6, parameters_of(model), {})
    trainer = Trainer(
        TrainConfig(arch=arch, steps=2, **SMALL | {"n": n}),
        CropSource(list_images(images), patch=64),
    )
    before = parameters_of(trainer.model)
    with pytest.raises(UserError) as error:
        trainer.initialise(load_checkpoint(start))
    assert arch in one_sentence(error)
    assert all(torch.equal(v, before[k]) for k, v in parameters_of(trainer.model).items())


def test_states_that_do_not_fit_are_refused(images, tmp_path):
    out = tmp_path / "a.safetensors"
    config = TrainConfig(steps=1, **SMALL)
    with pytest.raises(UserError, match="nothing to resume"):
        train(config, images, out, progress=False, resume=True)
    train(config, images, out, progress=False)
    with pytest.raises(UserError, match="seed = 0, not 1"):
        train(TrainConfig(steps=1, **SMALL, seed=1), images, out, progress=False, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (70, 70)).save(other / "x.png")
    with pytest.raises(UserError, match="images differ"):
        train(config, other, out, progress=False, resume=True)
    state_path(out).write_bytes(state_path(out).read_bytes()[:1000])
    with pytest.raises(UserError, match="not a training state"):
        load_state(out)


def test_command_trains_resumes_and_reports(images, tmp_path):
    out = tmp_path / "run.safetensors"
    arguments = ["--images", str(images), "-o", str(out), "--quiet", "--json", "-"]
    shape = ["--n", "4", "--m", "6", "--batch", "1", "--patch", "64", "--threads", "1"]

    def run(*more: str):
        return CliRunner().invoke(command, [*arguments, *more])

    result = run(*shape, "--steps", "2")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["steps"] == 2
    assert report["bpp"] > 0
    assert np.isfinite(report["psnr"])
    metadata = load_checkpoint(out).metadata
    assert metadata["steps_done"] == 2
    assert metadata["images_count"] == 5
    assert metadata["lmbda"] == 0.013

    again = run(*shape, "--steps", "2")
    assert isinstance(again.exception, UserError)
    assert "--resume" in str(again.exception)
    longer = run("--resume", "--steps", "3")
    assert json.loads(longer.stdout)["steps"] == 3
    other = tmp_path / "other.safetensors"
    arguments[3] = str(other)
    short = ("--steps", "1", "--batch", "1", "--patch", "64")
    warm = run("--init", str(out), "--lmbda", "0.02", *short)
    assert (json.loads(warm.stdout)["n"], json.loads(warm.stdout)["m"]) == (4, 6)
    assert load_checkpoint(other).metadata["init"]["source"] == "run.safetensors"
    arguments[3] = str(tmp_path / "on.safetensors")
    run("--init", str(other), *short)
    assert load_checkpoint(tmp_path / "on.safetensors").metadata["lmbda"] == 0.02
    arguments[3] = str(tmp_path / "hyper.safetensors")
    hyper = run("--init", str(out), "--arch", "mbt2018-mean", "--steps", "1", "--patch", "64")
    assert json.loads(hyper.stdout)["arch"] == "mbt2018-mean"
    assert json.loads(hyper.stdout)["m"] == 6


# Images


def test_image_modes(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    deep = np.minimum(ramp.astype(np.int64) * 257 + 7, 65535).astype(np.uint16)  # 7 rounds off
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([ramp] * 4, 2)).save(tmp_path / "alpha.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "palette.png")
    for name in ("grey", "deep", "alpha", "palette"):
        picture = load_rgb(tmp_path / f"{name}.png")
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, np.stack([ramp] * 3, 2)), name


def test_unusable_images(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images"):
        list_images(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError) as error:
        load_rgb(tmp_path / "broken.png")
    assert "broken.png" in one_sentence(error)
    Image.new("RGB", (63, 100)).save(tmp_path / "narrow.png")
    with pytest.raises(UserError, match="smaller than the patch"):
        CropSource([tmp_path / "narrow.png"], patch=64)


# Checkpoints of runs


def test_half_precision_checkpoints(images, tmp_path):
    config = TrainConfig(steps=2, **SMALL)
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    train(config, images, whole, progress=False)
    train(config, images, half, progress=False, half=True)
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    a, b = (load_checkpoint(path).state_dict for path in (whole, half))
    for key, value in a.items():
        assert b[key].dtype == torch.float32
        assert torch.allclose(b[key], value, rtol=2**-11, atol=2**-24), key
    # the state is whole: going on from it is going on from the other
    for path in (whole, half):
        train(
            TrainConfig(**{**asdict(config), "steps": 3}), images, path, progress=False, resume=True
        )
    assert all(
        torch.equal(value, load_state(half)[0][key]) for key, value in load_state(whole)[0].items()
    )


def test_a_checkpoint_says_which_runs_it_comes_from(images, tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    config = TrainConfig(steps=2, **SMALL)
    train(config, images, files[0], progress=False)
    for before, after in itertools.pairwise(files):
        train(config, images, after, init=load_checkpoint(before), progress=False)
    history = load_checkpoint(files[2]).metadata["init"]["history"]
    assert [run["steps_done"] for run in history] == [2, 2]
    assert {"arch", "lmbda", "lr", "optimizer"} <= history[0].keys()


@pytest.mark.slow
def test_two_minutes_of_the_recipe(tmp_path):
    """The first command of the manual on training, cut short: from noise to photographs."""
    before = new_model("bmshj2018-factorized", 64, 96)
    output = tmp_path / "run.safetensors"
    recipe = ["--arch", "bmshj2018-factorized", "--n", "64", "--m", "96", "--lmbda", "0.013"]
    images = TRAIN if TRAIN.is_dir() else models.folder() / "calibration"
    result = CliRunner().invoke(
        command,
        [*recipe, "--images", str(images), "-o", str(output), "--minutes", "2", "--quiet"],
    )
    assert result.exit_code == 0, result.output
    photograph = [models.photograph()]
    start = evaluate_fp32(before, photograph)
    end = evaluate_fp32(build_model(*load_checkpoint(output)[:4]), photograph)

    def loss(result):
        return result.bpp + 0.013 * 255**2 * 10 ** (-result.psnr / 10)

    assert loss(end) < 0.2 * loss(start)
    assert end.psnr > 22


@pytest.mark.skipif(not START.exists(), reason="the starting weights are not here")
def test_starting_weights_load():
    loaded = load_checkpoint(START)
    assert loaded[:3] == ("bmshj2018-factorized", 64, 96)
    assert loaded.metadata["lmbda"] == 0.013


# Evaluation


def test_evaluation_counts_real_bytes_of_integer_symbols(model, images):
    with torch.no_grad():
        model.g_a[6].weight *= 40
        model.entropy_bottleneck.quantiles[:, 0, 1] = 0.4
    files = list_images(images)
    result = evaluate_fp32(model, files)
    assert [r.name for r in result.images] == [f.name for f in files]
    assert model.entropy_bottleneck.quantiles[0, 0, 1].item() == pytest.approx(0.4)

    image = load_rgb(files[2])
    padded = pad_image(image, 16)
    assert padded.shape == (80, 112, 3)
    assert np.array_equal(padded[-1, :101], image[-1])
    x = torch.from_numpy(padded.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    with torch.no_grad():
        y = torch.round(model.g_a(x))
        assert y.abs().max() >= 2
        x_hat = model.g_s(y).clamp(0, 1)[0, :, :70, :101]
        likelihood, _, _ = model.entropy_bottleneck._likelihood(
            y.permute(1, 0, 2, 3).reshape(6, 1, -1)
        )
    bits = -torch.log2(likelihood.clamp_min(1e-9)).sum().item()
    pixels = (x_hat * 255).round().to(torch.uint8).numpy().transpose(1, 2, 0)
    one = result.images[2]
    assert (one.width, one.height) == (101, 70)
    assert one.psnr == pytest.approx(psnr(image, pixels), abs=1e-3)
    assert one.bpp == pytest.approx(8 * one.bytes / (101 * 70))
    assert abs(8 * one.bytes - bits) < 0.05 * bits + 64


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_evaluates(arch, images):
    torch.manual_seed(2)
    model = new_model(arch, 4, 6)
    grid = integer_grid(model)
    assert grid.entropy_bottleneck.quantiles[:, 0, 1].abs().max().item() == 0
    result = evaluate_fp32(model, [load_rgb(list_images(images)[0])])
    assert result.bpp > 0
    assert np.isfinite(result.psnr)
    assert result.to_json()["images"][0]["width"] == 80


def test_psnr():
    a = np.zeros((4, 4, 3), dtype=np.uint8)
    assert psnr(a, a) == float("inf")
    assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)


def test_denormal_numbers_are_back_after_training():
    def least() -> float:
        return float(np.full(1, 1e-310)[0] * np.full(1, 0.5)[0])

    assert least() > 0
    with flushed_denormals(), flushed_denormals():
        assert (torch.full((1,), 1e-310, dtype=torch.float64) * 0.5).item() == 0
    assert least() > 0


def test_all_signals_are_deferred_and_name_themselves(images, tmp_path, monkeypatch):
    """Status 128 + n needs the number; a signal that is ignored (nohup) stays so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with deferred_interrupts() as received:
            os.kill(os.getpid(), number)
        assert received == [number]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with deferred_interrupts() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("length", [1, 237, 238, 255])
def test_states_of_long_names_fit(length):
    path = state_path("x" * length)
    assert len(path.name) <= 255 and path.name.endswith(".state.safetensors")
