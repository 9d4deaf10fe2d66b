"""FP32 checkpoints of any origin: one network, or one sentence."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from safetensors.torch import save_file  # noqa: E402

from lichen.errors import UserError  # noqa: E402
from lichen.network.file import FP32_FORMAT  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages  # noqa: E402
from lichen.quant.calibration.options import Options  # noqa: E402
from lichen.quant.calibration.quantize import quantize  # noqa: E402
from lichen.quant.float.architectures import (  # noqa: E402
    ARCHS,
    build_model,
    channel_counts,
    new_model,
    parameter_shapes,
    parameters_of,
    usual_channel_counts,
)
from lichen.quant.float.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from lichen.quant.float.source import load_float_network  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    torch.manual_seed(3)
    return new_model("bmshj2018-factorized", 4, 6)


def refusal(path: Path) -> str:
    """The one sentence that a checkpoint is refused with."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    assert path.name in text
    return text


@pytest.mark.parametrize("arch", ARCHS)
def test_shapes_are_those_of_the_models(arch):
    """Checks of checkpoints build no model; the shapes they expect are a model's."""
    uniform = dict(new_model(arch, 6, 9).named_parameters())
    counts = usual_channel_counts(arch, 6, 9)
    assert counts == channel_counts(arch, uniform)
    assert parameter_shapes(arch, counts) == {k: tuple(p.shape) for k, p in uniform.items()}
    slim = {"g_a.conv1": 3, "g_s.conv2": 11}
    if ARCHS[arch].hyperprior:
        slim |= {"h_a.conv3": 5, "h_s.conv1": 2}
    other = new_model(arch, 6, 9, slim)
    assert (other.N, other.M) == (6, 9)
    found = {k: tuple(p.shape) for k, p in other.named_parameters()}
    assert parameter_shapes(arch, counts | slim) == found
    x = torch.rand(1, 3, 64, 64)
    assert other.eval()(x)["x_hat"].shape == x.shape


@pytest.mark.parametrize("arch", ARCHS)
def test_architectures_are_recognised(arch, tmp_path):
    torch.manual_seed(1)
    model = new_model(arch, 5, 7)
    model.update()
    torch.save(
        {"state_dict": model.state_dict(), "epoch": 3, "loss": torch.tensor(1.0)}, tmp_path / "a"
    )
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded[:3] == (arch, 5, 7)
    assert loaded.metadata["epoch"] == 3
    assert len(loaded.metadata["sha256"]) == 64
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)["x_hat"]
        assert torch.equal(build_model(*loaded[:4])(x)["x_hat"], expected)


def test_wrappings_load_to_the_same_model(model, tmp_path):
    bare = model.state_dict()
    model.update()
    with_tables = model.state_dict()

    def renamed(pattern: str) -> OrderedDict:
        one = {"matrices": "matrix", "biases": "bias", "factors": "factor"}
        out = OrderedDict()
        for key, value in bare.items():
            head, _, tail = key.partition("entropy_bottleneck.")
            name, _, index = tail.partition(".")
            if not head and name in one:
                key = "entropy_bottleneck." + pattern.format(many=name, one=one[name], i=index)
            out[key] = value
        return out

    wrappings = {
        "bare": bare,
        "tables": with_tables,
        "network": {"network": bare, "step": 4},
        "state_dict": {"state_dict": bare, "optimizer": {"state": {}, "param_groups": []}},
        "model_state_dict": {"model_state_dict": bare},
        "model": {"model": with_tables},
        "nested": {"model": {"state_dict": bare}},
        "parallel": {"state_dict": {f"module.{k}": v for k, v in bare.items()}},
        "compiled": {f"_orig_mod.module.{k}": v for k, v in bare.items()},
        "old": renamed("_{one}{i}"),
        "older": {"state_dict": renamed("_{many}.{i}")},
        "double": OrderedDict((k, v.double()) for k, v in bare.items()),
    }
    expected = parameters_of(model)
    for name, content in wrappings.items():
        for legacy in (False, True):
            path = tmp_path / f"{name}{legacy}.pth.tar"
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
            loaded = load_checkpoint(path)
            assert loaded[:3] == ("bmshj2018-factorized", 4, 6), name
            assert loaded.state_dict.keys() == expected.keys()
            for key, value in loaded.state_dict.items():
                assert value.dtype == torch.float32
                assert torch.equal(value, expected[key]), (name, key)
    save_checkpoint(tmp_path / "own.safetensors", "bmshj2018-factorized", 4, 6, expected, {"x": 1})
    own = load_checkpoint(tmp_path / "own.safetensors")
    assert all(torch.equal(v, expected[k]) for k, v in own.state_dict.items())
    assert own.metadata["x"] == 1


class Code:
    """An object whose unpickling would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_bad_files_get_one_sentence(model, tmp_path):
    state = model.state_dict()
    good, own = tmp_path / "good.pth", tmp_path / "good.safetensors"
    torch.save(state, good)
    save_checkpoint(own, "bmshj2018-factorized", 4, 6, parameters_of(model), {})
    legacy = tmp_path / "legacy.pth"
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    trap = tmp_path / "trapped"

    def without(key: str) -> dict:
        return {k: v for k, v in state.items() if k != key}

    joint = {**state, "context_prediction.weight": torch.zeros(12, 6, 5, 5)}
    cases = {
        "empty": (b"", "is empty"),
        "cut.pth": (good.read_bytes()[:3000], "cut.pth"),
        "cut-legacy.pth": (legacy.read_bytes()[:3000], "cut-legacy.pth"),
        "cut.safetensors": (own.read_bytes()[:3000], "cut.safetensors"),
        "short.safetensors": (b"\x01", "short.safetensors"),
        "header.safetensors": (own.read_bytes()[:20], "header.safetensors"),
        "text.pth": (b"hello, world\n", "neither"),
        "image.pth": (b"\x89PNG\r\n\x1a\n", "neither"),
        "code.pth": ({"state_dict": state, "x": Code(trap)}, "runs code"),
        "code.pkl": (pickle.dumps(Code(trap)), "code.pkl"),
        "list.pth": ([1, 2], "list"),
        "tensor.pth": (torch.zeros(3), "Tensor"),
        "none.pth": ({}, "no state dict"),
        "scalar.pth": ({"g_a.0.weight": 3}, "g_a.0.weight"),
        "other.pth": ({"conv1.weight": torch.zeros(1)}, "conv1.weight"),
        "cheng.pth": ({"g_a.0.conv1.weight": torch.zeros(1)}, "g_a.0.conv1.weight"),
        "joint.pth": (joint, "context_prediction.weight"),
        "missing.pth": (without("g_s.3.gamma"), "g_s.3.gamma"),
        "shape.pth": ({**state, "g_a.2.bias": torch.zeros(3)}, "g_a.2.bias"),
        "flat.pth": ({**state, "g_a.6.weight": torch.zeros(3)}, "g_a.6.weight"),
        "nan.pth": ({**state, "g_a.2.bias": torch.full((4,), torch.nan)}, "g_a.2.bias"),
        "int.pth": ({**state, "g_a.2.bias": torch.zeros(4, dtype=torch.int64)}, "int64"),
        "extra.pth": ({**state, "g_a.7.weight": torch.zeros(3)}, "g_a.7.weight"),
    }
    for name, (content, word) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        assert word in refusal(path), name
    assert not trap.exists()
    for path, word in ((tmp_path / "nothing", "neither a file"), (tmp_path, "not a file")):
        with pytest.raises(UserError, match=word):
            load_checkpoint(path)


def test_zoo_names(monkeypatch, model, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, dst, **_: torch.save(model.state_dict(), dst)
    )
    for name in ("bmshj2018-factorized-3", "bmshj2018-factorized:4"):
        assert load_checkpoint(name)[:3] == ("bmshj2018-factorized", 4, 6)
    with pytest.raises(UserError, match="qualities 1 to 8"):
        load_checkpoint("bmshj2018-factorized-q9")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="no network"):
        load_checkpoint("mbt2018-mean-1")
    with pytest.raises(UserError) as error:
        load_checkpoint("bmshj2018-hyperprior:3")
    assert re.search(
        rf"fetch https://\S+/(bmshj2018-hyperprior-3-\w+\.pth\.tar) .* "
        rf"put it at {re.escape(str(tmp_path))}/checkpoints/\1\.$",
        str(error.value),
    )


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def test_however_it_was_saved(model, tmp_path):
    """Any prefix, any wrapping, and what other tools and training scripts leave beside."""
    bare = model.state_dict()
    expected = parameters_of(model)
    noise = {key: torch.randn_like(value) for key, value in bare.items()}
    arrays = {key: value.numpy() for key, value in bare.items()}
    trail = {
        "epoch": np.int64(3),
        "loss": np.float32(0.5),
        "rng": np.random.default_rng(1).random(3),
    }
    cases = {
        f"prefix {prefix}": prefixed(prefix, bare)
        for prefix in (
            "model.", "model._orig_mod.", "module.", "net.", "module.net.", "_orig_mod.module.",
            "generator.", "codec.encoder.", "_fsdp_wrapped_module.", "lit.model.module.",
        )
    }  # fmt: skip
    cases |= {
        f"wrapping {name}": {name: bare, "step": 3}
        for name in ("net", "params", "weights", "generator", "checkpoint", "whatever")
    }
    cases |= {
        "both": {"state_dict": prefixed("model.", bare), "hyper_parameters": {"lr": 0.1}},
        "deep": {"checkpoint": {"model": {"net": prefixed("module.", bare)}}},
        "parts": {key.replace("g_a.", "g_a._orig_mod."): value for key, value in bare.items()},
        "counters": bare
        | {"total_ops": torch.zeros(1), "g_a.0.total_params": torch.zeros(1)}
        | {"g_a.0.__flops__": torch.tensor(3), "n_averaged": torch.tensor(5)}
        | {"g_a.1.num_batches_tracked": torch.tensor(5)},
        "beside": bare | {"epoch": 3, "name": "run"},
        "others": prefixed("model.", bare) | {"criterion.weight": torch.ones(3)},
        "average": {"state_dict": bare, "ema": noise},
        "average within": prefixed("model.", bare) | prefixed("ema.", noise),
        "optimizer": {"net": bare, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        "numpy scalars": {"state_dict": bare, **trail},
        "numpy arrays": {"net": arrays},
        "arguments": {"model": bare, "args": argparse.Namespace(lr=1), "at": Path("run")},
    }
    path = tmp_path / "c.pth"
    for name, content in cases.items():
        torch.save(content, path)
        loaded = load_checkpoint(path)
        assert loaded[:3] == ("bmshj2018-factorized", 4, 6), name
        assert loaded.state_dict.keys() == expected.keys(), name
        for key, value in loaded.state_dict.items():
            assert torch.equal(value, expected[key]), (name, key)
    torch.save({"state_dict": bare, **trail}, path)
    assert load_checkpoint(path).metadata["epoch"] == 3
    assert load_checkpoint(path).metadata["loss"] == 0.5
    torch.save(prefixed("student.", bare) | prefixed("teacher.", noise), path)
    assert "2 networks (student, teacher)" in refusal(path)
    torch.save(bare | {"module.g_a.0.weight": noise["g_a.0.weight"]}, path)
    assert "g_a.0.weight twice" in refusal(path)
    # a PReLU of one number is no counter
    torch.save(bare | {"g_a.1.weight": torch.zeros(1)}, path)
    assert "g_a.1.weight" in refusal(path)


def test_a_flipped_bit_is_seen(model, tmp_path):
    """The archive's checksums cover pickle and numbers; PyTorch itself never asks them."""
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save(model.state_dict(), good)
    data = good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        members = archive.infolist()
        starts = []
        for member in members:
            name, extra = struct.unpack_from("<HH", data, member.header_offset + 26)
            starts.append(member.header_offset + 30 + name + extra)
    seen = 0
    for member, start in zip(members, starts, strict=True):
        for at in {0, member.file_size // 2, member.file_size - 1} if member.file_size else ():
            flipped = bytearray(data)
            flipped[start + at] ^= 1 << (at % 8)
            bad.write_bytes(flipped)
            assert f"checksum of '{member.filename}'" in refusal(bad)
            seen += 1
    assert seen > 40
    for change, word in (
        (data[:-1], "archive"),
        (data[: len(data) // 2], "archive"),
        (data + b"x", "follows its end"),
        (data + data, "archive"),
    ):
        bad.write_bytes(change)
        assert word in refusal(bad)
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as out:
        for member in members:
            out.writestr(member.filename, archive.read(member))
    assert "compressed" in refusal(bad)


def test_a_file_without_checksums_is_read_with_a_word(model, tmp_path, caplog):
    state = model.state_dict()
    old, bare = tmp_path / "old.pth", tmp_path / "bare.safetensors"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    save_file(parameters_of(model), bare)
    for path in (old, bare):
        with caplog.at_level(logging.WARNING):
            load_checkpoint(path)
        assert f"{path} holds no checksum" in caplog.text
        caplog.clear()
    data = old.read_bytes()
    old.write_bytes(data + b"junk")
    assert "4 bytes follow its end" in refusal(old)
    old.write_bytes(data[:-1])
    assert "old.pth" in refusal(old)
    bare.write_bytes(bare.read_bytes() + b"x")
    assert "damaged" in refusal(bare)
    with caplog.at_level(logging.WARNING):
        torch.save(state, tmp_path / "new.pth")
        load_checkpoint(tmp_path / "new.pth")
        save_checkpoint(tmp_path / "own", "bmshj2018-factorized", 4, 6, parameters_of(model), {})
        load_checkpoint(tmp_path / "own")
    assert not caplog.text


def test_own_checkpoints_carry_a_digest(model, tmp_path):
    path, bad = tmp_path / "own.safetensors", tmp_path / "bad.safetensors"
    header = {"lmbda": 0.013, "note": {2: "two", 10: "ten"}}
    save_checkpoint(path, "bmshj2018-factorized", 4, 6, parameters_of(model), header)
    assert load_checkpoint(path).metadata["lmbda"] == 0.013
    data = path.read_bytes()
    for at in (len(data) - 1, len(data) - 5000, data.index(b"0.013") + 3):
        flipped = bytearray(data)
        flipped[at] ^= 1
        bad.write_bytes(flipped)
        assert "not those that were written" in refusal(bad)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 2}, "version 2"),
        ({"version": "1"}, "version"),
        ({"version": True}, "version"),
        ({"version": None}, "version None"),
        ({"format": "lichen-network"}, "not an FP32 checkpoint"),
        ({"arch": None}, "another network"),
        ({"n": 5}, "another network"),
        ({"m": [6]}, "another network"),
        ({"kept_channels": [1]}, "kept_channels"),
        ({"kept_channels": {"g_a.conv1": [0, 1, 2, 10**30]}}, "g_a.conv1"),
    ],
)
def test_headers(change, word, model, tmp_path):
    header = {"format": FP32_FORMAT, "version": 1, "arch": "bmshj2018-factorized", "n": 4, "m": 6}
    path = tmp_path / "h.safetensors"
    save_file(parameters_of(model), path, {"lichen": json.dumps(header)})
    assert load_checkpoint(path).n == 4
    save_file(parameters_of(model), path, {"lichen": json.dumps(header | change)})
    assert word in refusal(path)


def test_a_header_nested_beyond_reason(model, tmp_path):
    save_file(parameters_of(model), tmp_path / "deep.safetensors", {"lichen": "[" * 100_000})
    assert "damaged header" in refusal(tmp_path / "deep.safetensors")


def test_tensors_that_are_no_arrays_of_numbers(model, tmp_path):
    state, key = model.state_dict(), "g_a.2.weight"
    weight, path = state[key], tmp_path / "t.pth"
    cases = {
        "sparse_coo": weight.to_sparse(),
        "sparse_csr": torch.zeros(3, 3).to_sparse_csr(),
        "meta": weight.to("meta"),
        "int8": weight.to(torch.int8),
        "bool": weight.to(torch.bool),
        "complex64": weight.to(torch.complex64),
        "not finite": torch.full_like(weight, torch.inf),
        "1e+30": weight.abs().clamp(min=1) * 1e30,
        "-shaped": None,
        "more numbers": torch.zeros(1).expand(10**6, 10**6, 5, 5),
    }
    for word, tensor in cases.items():
        if tensor is not None:
            torch.save(state | {key: tensor}, path)
            assert word in (text := refusal(path)) and key in text
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}, path)
        assert load_checkpoint(path).state_dict[key].dtype == torch.float32
    # one layer's claim on N costs no model of that N
    wide = torch.zeros(50_000, 3, 5, 5, dtype=torch.float16)
    torch.save(state | {"g_a.0.weight": wide}, path)
    assert "50000" in refusal(path)


def test_untrained_latents_are_refused_soon(model, tmp_path):
    """What tables would need minutes for, and numbers that overflow, are named."""
    torch.manual_seed(1)
    crops = [np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)]

    def quantized(state: dict) -> str:
        torch.save(state, tmp_path / "q.pth")
        network = load_float_network(str(tmp_path / "q.pth"))
        try:
            quantize(network, CalibrationImages(crops), Options(samples=500))
        except UserError as error:
            return str(error)
        return ""

    state = parameters_of(model)
    assert not quantized(state)
    # 16 bits asked for: tables go to where symbols are
    torch.save(state, tmp_path / "q.pth")
    network = load_float_network(str(tmp_path / "q.pth"))
    wide = quantize(network, CalibrationImages(crops), Options(samples=500, latent_bits=16)).network
    assert wide.entropy["y"].cdf.shape[1] <= 2 * 8191 + 3
    assert "latents y" in quantized(state | {"g_a.6.bias": torch.full((6,), 1e6)})
    torch.manual_seed(1)
    relu = parameters_of(new_model("bmshj2018-factorized-relu", 4, 6))
    huge = {k: 1e6 * v.sign() if re.match(r"g_a\.\d\.weight", k) else v for k, v in relu.items()}
    assert re.search(r"latents y|not finite", quantized(huge))
    tall = {k: 1e6 * v.sign() if re.match(r"g_s\.\d\.weight", k) else v for k, v in relu.items()}
    assert re.search(r"^$|not finite", quantized(tall))


def mutate(rng: np.random.Generator, state: dict) -> dict:
    """The state dict with one key, shape, type or value changed."""
    state = dict(state)
    key = list(state)[rng.integers(len(state))]
    tensor = state[key]
    flat = tensor.flatten()
    kinds = [torch.int64, torch.bool, torch.complex64, torch.float16, torch.float8_e5m2]
    values = [0.0, -1e30, 1e5, torch.nan, torch.inf, 1e-40]
    changes: list[Callable[[], object]] = [
        lambda: state.pop(key),
        lambda: state.update({key[:-1]: state.pop(key)}),
        lambda: state.update({"x." + key: tensor}),
        lambda: state.update({key + ".y": tensor}),
        lambda: state.update({key: flat}),
        lambda: state.update({key: tensor[..., :-1]}),
        lambda: state.update({key: tensor[None]}),
        lambda: state.update({key: tensor.flip(0).T if tensor.ndim == 2 else tensor.flip(0)}),
        lambda: state.update({key: tensor.to_sparse() if tensor.ndim else tensor}),
        lambda: state.update({key: tensor.to(kinds[rng.integers(len(kinds))])}),
        lambda: state.update({key: torch.zeros(())}),
        lambda: state.update({key: torch.zeros(0)}),
        lambda: state.update(
            {key: torch.full_like(tensor.float(), values[rng.integers(len(values))])}
        ),
        lambda: state.update({key: tensor.expand(2**20, *tensor.shape)}),
        lambda: state.update({key: [None, 3, "x", {}, [1]][rng.integers(5)]}),
    ]
    changes[rng.integers(len(changes))]()
    return state


@pytest.mark.parametrize("mutations", [30, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("arch", ARCHS)
def test_mutated_checkpoints_give_a_network_or_a_sentence(arch, mutations, tmp_path):
    """Seeded: keys, shapes, types and values; bytes of all three formats."""
    rng = np.random.default_rng([mutations, *arch.encode()])
    torch.manual_seed(5)
    model = new_model(arch, 3, 4)
    model.update()
    state, path = dict(model.state_dict()), tmp_path / "m"
    expected = parameters_of(model)
    outcomes = {True: 0, False: 0}

    def loads() -> bool:
        try:
            loaded = load_checkpoint(path)
        except UserError as error:
            text = str(error)
            assert "\n" not in text and text.endswith(".") and "/m" in text, text
            good = False
        else:
            assert parameters_of(build_model(*loaded[:4])).keys() == loaded.state_dict.keys()
            good = True
        outcomes[good] += 1
        return good

    for _ in range(mutations):
        torch.save(mutate(rng, state), path)
        loads()
    torch.save(state, path)
    archive = path.read_bytes()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    save_checkpoint(path, arch, 3, 4, expected, {"x": 1})
    own = path.read_bytes()
    for data in (archive, legacy, own):
        for _ in range(mutations // 2):
            changed = bytearray(data)
            for at in rng.integers(len(data), size=rng.integers(1, 4)):
                changed[at] = rng.integers(256)
            if rng.random() < 0.2:
                changed = changed[: rng.integers(len(changed))]
            path.write_bytes(changed)
            if loads() and data is not legacy:  # which alone has no checksum
                found = load_checkpoint(path).state_dict
                assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert min(outcomes.values()) > 5, outcomes
