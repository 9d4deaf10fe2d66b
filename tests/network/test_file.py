"""Network files: round trips, and one sentence for everything that can be wrong with one."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from lichen.cli import main
from lichen.errors import UserError
from lichen.network.description import Activation, Network
from lichen.network.file import HEADER, digest, dumps, load, save
from lichen.network.random import StageShape, random_factorized, random_transform
from lichen.sim.golden import run_transform


@pytest.fixture(scope="module")
def network() -> Network:
    return random_factorized(1, n=3, m=4)


def arrays(value: Any, path: str = "") -> dict[str, np.ndarray]:
    if isinstance(value, np.ndarray):
        return {path: value}
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in arrays(item, f"{path}.{key}").items()}
    return {}


def arrays_of(network: Network) -> dict[str, np.ndarray]:
    return arrays(network.model_dump())


def test_round_trip(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.lichen"
    save(network, path)
    loaded = load(path)
    before, after = arrays_of(network), arrays_of(loaded)
    assert before.keys() == after.keys() and len(before) > 40
    for name, array in before.items():
        assert array.dtype == after[name].dtype, name
        np.testing.assert_array_equal(array, after[name], err_msg=name)
    assert path.read_bytes() == dumps(loaded) == dumps(network)
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3))
    np.testing.assert_array_equal(
        run_transform(loaded.transforms["g_a"], image),
        run_transform(network.transforms["g_a"], image),
    )


def test_round_trip_of_everything_optional(tmp_path: Path) -> None:
    shapes = [StageShape(out_channels=3, activation=a) for a in Activation]
    transform = random_transform(np.random.default_rng(0), shapes)
    first = transform.stages[0].model_copy(
        update={
            "scales": {"weight": np.array([0.5, 0.25, 1e-9])},
            "kept_channels": np.array([0, 2, 5]),
        }
    )
    transform = transform.model_copy(update={"stages": [first, *transform.stages[1:]]})
    provenance = {"source": {"sha256": "0" * 64, "lmbda": 0.013}, "nothing": None, "list": [1, "é"]}
    original = Network(
        architecture="custom", n=3, m=3, transforms={"g_a": transform}, provenance=provenance
    )
    save(original, tmp_path / "net.lichen")
    loaded = load(tmp_path / "net.lichen")
    assert loaded.provenance == provenance
    stage = loaded.transforms["g_a"].stages[0]
    np.testing.assert_array_equal(stage.scales["weight"], [0.5, 0.25, 1e-9])
    assert stage.kept_channels is not None and stage.kept_channels.tolist() == [0, 2, 5]
    assert dumps(loaded) == dumps(original)


def test_digest_is_stable(network: Network, tmp_path: Path) -> None:
    """It is the file's, survives saving and loading, and changes with a single weight."""
    path = tmp_path / "net.lichen"
    save(network, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest(network) == digest(load(path)) == digest(random_factorized(1, n=3, m=4))
    assert digest(network) == expected
    path.write_bytes(
        edited(network, lambda t, a: set_tensor(a, f"{CONV1}.convolution.weight", (0, 0, 0, 0), 1))
    )
    assert digest(load(path)) != expected


def test_digest_is_that_of_the_file_that_was_read(network: Network, tmp_path: Path) -> None:
    """Also of one that an older Lichen wrote in other bytes, until something is changed."""
    path = tmp_path / "net.lichen"
    save(network, path)
    path.write_bytes(edited(network, lambda tree, _: tree.pop("scale_thresholds")))
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load(path)
    assert digest(loaded) == digest(loaded.model_copy()) == old != digest(network)
    assert dumps(loaded) == dumps(network)
    assert digest(loaded.model_copy(update={"name": network.name})) == digest(network)


def test_saving_replaces_and_leaves_nothing_behind(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.lichen"
    path.write_text("old")
    save(network, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.lichen"]
    load(path)
    with pytest.raises(UserError, match="cannot write"):
        save(network, tmp_path / "nowhere" / "net.lichen")
    with pytest.raises(UserError, match="cannot write"):
        save(network, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.lichen"]


# Damage -------------------------------------------------------------------------------------

Tree = dict[str, Any]
Tensors = dict[str, np.ndarray]
CONV1 = "transforms.g_a.stages.0"


def stage_of(tree: Tree, index: int = 0) -> Tree:
    return tree["transforms"]["g_a"]["stages"][index]


def set_tensor(tensors: Tensors, name: str, where: Any, value: int) -> None:
    array = tensors[name].copy()
    array[where] = value
    tensors[name] = array


def edited(network: Network, edit: Callable[[Tree, Tensors], Any]) -> bytes:
    """The network's file with header and tensors edited."""
    data = dumps(network)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tree, tensors = json.loads(header["__metadata__"][HEADER]), load_tensors(data)
    edit(tree, tensors)
    return save_tensors(tensors, metadata={HEADER: json.dumps(tree)})


EDITS: dict[str, tuple[Callable[[Tree, Tensors], Any], str]] = {
    "another version": (lambda t, a: t.update(format=2), "format"),
    "no version at all": (lambda t, a: t.update(format=None), "format"),
    "an unknown field": (lambda t, a: t.update(surprise=1), "surprise"),
    "an unknown field of a stage": (
        lambda t, a: stage_of(t).update(dilation=2),
        f"{CONV1}.dilation",
    ),
    "a missing field": (lambda t, a: t.pop("architecture"), "architecture"),
    "a missing tensor": (
        lambda t, a: a.pop(f"{CONV1}.convolution.weight"),
        f"tensor {CONV1}.convolution.weight is missing",
    ),
    "a weight too many bits": (
        lambda t, a: set_tensor(a, f"{CONV1}.convolution.weight", (0, 0, 0, 0), 128),
        f"{CONV1}.convolution: weight must lie in -127 .. 127, but spans",
    ),
    "the most negative code": (
        lambda t, a: set_tensor(a, f"{CONV1}.convolution.weight", (0, 0, 0, 0), -128),
        "weight must lie in -127 .. 127",
    ),
    "a weight's shape": (
        lambda t, a: a.update(
            {f"{CONV1}.convolution.weight": a[f"{CONV1}.convolution.weight"][..., :4].copy()}
        ),
        f"{CONV1}.convolution: weight must have shape (out, in, 5, 5), not (3, 3, 5, 4)",
    ),
    "a bias's shape": (
        lambda t, a: a.update({f"{CONV1}.convolution.bias": np.zeros(9, np.int64)}),
        f"{CONV1}.convolution: bias must have shape (3,), not (9,)",
    ),
    "real weights": (
        lambda t, a: a.update({f"{CONV1}.convolution.weight": np.zeros((3, 3, 5, 5), np.float32)}),
        f"{CONV1}.convolution.weight: must be an integer tensor, not float32",
    ),
    "a pre-shift": (
        lambda t, a: set_tensor(a, f"{CONV1}.requantizer.pre_shift", 0, 32),
        f"{CONV1}.requantizer: pre_shift must lie in 0 .. 31",
    ),
    "a multiplier of 18 bits": (
        lambda t, a: set_tensor(a, f"{CONV1}.requantizer.multiplier", 1, 1 << 17),
        f"{CONV1}.requantizer: multiplier must lie in 0 .. 131071",
    ),
    "a shift": (lambda t, a: stage_of(t)["requantizer"].update(shift=36), "requantizer.shift"),
    "a negative gamma": (
        lambda t, a: set_tensor(a, f"{CONV1}.normalization.gamma", (0, 0), -1),
        f"{CONV1}.normalization: gamma must lie in 0 .. 255",
    ),
    "a beta of 0": (
        lambda t, a: set_tensor(a, f"{CONV1}.normalization.beta", 0, 0),
        f"{CONV1}.normalization: beta must lie in 1 .. 4294967295",
    ),
    "a norm beyond 32 bits": (
        lambda t, a: set_tensor(a, f"{CONV1}.normalization.beta", 0, (1 << 32) - 1),
        "beyond 32 bits",
    ),
    "u that does not fit": (
        lambda t, a: stage_of(t)["normalization"].update(u_shift=0),
        "does not fit u_bits 8",
    ),
    "a normalization that is not there": (
        lambda t, a: stage_of(t).update(normalization=None),
        f"{CONV1}: gdn needs a normalization",
    ),
    "another activation": (
        lambda t, a: stage_of(t).update(activation="igdn"),
        "normalization.kind is gdn, but the activation is igdn",
    ),
    "an unknown activation": (
        lambda t, a: stage_of(t).update(activation="swish"),
        f"{CONV1}.activation",
    ),
    "a clipping range": (
        lambda t, a: stage_of(t)["requantizer"]["output"].update(hi=128),
        f"{CONV1}.requantizer.output: lo and hi must satisfy",
    ),
    "a kernel": (lambda t, a: stage_of(t)["convolution"].update(kernel=3), "(out, in, 3, 3)"),
    "a stride": (lambda t, a: stage_of(t)["convolution"].update(stride=5), "convolution.stride"),
    "two stages of one name": (
        lambda t, a: stage_of(t, 1).update(name="conv1"),
        "stage names must be unique",
    ),
    "channels that do not fit": (
        lambda t, a: t["transforms"]["g_a"]["stages"].pop(),
        "g_a makes 3 latent channels, but g_s takes 4",
    ),
    "no stages": (lambda t, a: t["transforms"]["g_a"].update(stages=[]), "transforms.g_a.stages"),
    "an unknown transform": (
        lambda t, a: t["transforms"].update(g_x=t["transforms"].pop("g_a")),
        "unknown transform g_x",
    ),
    "a CDF that falls": (
        lambda t, a: set_tensor(a, "entropy.y.cdf", (2, 1), 0),
        "entropy.y: cdf row 2 must rise strictly from 0 to 65536",
    ),
    "a length too long": (
        lambda t, a: set_tensor(a, "entropy.y.lengths", 0, 10**6),
        "entropy.y: lengths must lie in",
    ),
    "text for a number": (lambda t, a: t.update(n="many"), "n: "),
    "a list for the network": (lambda t, a: t.update(transforms=[]), "transforms"),
}


def refusal(path: Path) -> str:
    """The sentence with which `load` refuses a file."""
    with pytest.raises(UserError) as caught:
        load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence and "Traceback" not in sentence
    assert sentence.endswith((".", "`lichen quantize`."))
    return sentence


@pytest.mark.parametrize("name", EDITS)
def test_a_wrong_description_is_refused(network: Network, name: str, tmp_path: Path) -> None:
    edit, words = EDITS[name]
    path = tmp_path / "net.lichen"
    path.write_bytes(edited(network, edit))
    assert words in refusal(path)


def test_an_edit_that_changes_nothing_is_accepted(network: Network, tmp_path: Path) -> None:
    """So what is refused above is the edit."""
    path = tmp_path / "net.lichen"
    path.write_bytes(edited(network, lambda tree, tensors: None))
    assert dumps(load(path)) == dumps(network)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_files_that_are_no_networks_are_refused(network: Network, tmp_path: Path) -> None:
    data = dumps(network)
    length = int.from_bytes(data[:8], "little")
    trap = tmp_path / "trapped"
    other = save_tensors({"a": np.zeros(3)})
    listed = save_tensors({}, metadata={HEADER: "[1, 2]"})
    deep = save_tensors({}, metadata={HEADER: "[" * 100_000})
    broken = save_tensors({}, metadata={HEADER: '{"format": 1, "n": '})
    foreign = save_tensors({}, metadata={HEADER: '{"format": 1, "n": NaN}'})
    files = {
        "empty": (b"", "not a readable Lichen network"),
        "cut in the header": (data[: length // 2], "not a readable Lichen network"),
        "cut in the tensors": (data[:-5], "not a readable Lichen network"),
        "cut in the length": (data[:5], "not a readable Lichen network"),
        "longer": (data + b"\0" * 8, "not a readable Lichen network"),
        "pickle": (pickle.dumps(Trap(trap)), "not a readable Lichen network"),
        "text": (b"hello, world\n" * 10, "not a readable Lichen network"),
        "huge header": (b"\xff" * 8 + data[8:], "not a readable Lichen network"),
        "safetensors of others": (other, "not a Lichen network"),
        "header that is no JSON": (broken, "is not a valid network"),
        "header that is too deep": (deep, "is not a valid network"),
        "header that is a list": (listed, "is not a valid network"),
        "header without fields": (foreign, "is not a valid network"),
    }
    for name, (content, words) in files.items():
        path = tmp_path / f"{name}.lichen"
        path.write_bytes(content)
        assert words in refusal(path), name
    assert not trap.exists()
    assert "is a folder" in refusal(tmp_path)
    assert "is no regular file" in refusal(Path("/dev/zero"))
    assert "does not exist" in refusal(tmp_path / "nothing.lichen")


def test_a_flipped_byte_of_the_header_never_escapes_as_another_error(
    network: Network, tmp_path: Path
) -> None:
    data = dumps(network)
    length = int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    path = tmp_path / "net.lichen"
    refused = 0
    for position in rng.integers(0, 8 + length, 150):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            load(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 75


def test_the_command_line_says_it_in_one_sentence(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "net.lichen"
    path.write_bytes(edited(network, EDITS["a beta of 0"][0]))
    (tmp_path / "image.png").write_bytes(b"")
    for arguments in (
        ["plan", str(path), "--board", "ulx3s-85f"],
        ["simulate", str(path), "--image", str(tmp_path / "image.png")],
        ["generate", str(path), "--board", "ulx3s-85f", "-o", str(tmp_path / "out")],
    ):
        with CliRunner().isolation() as streams, pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        message = streams[1].getvalue().decode()
        assert message.startswith("lichen: ") and message.count("\n") == 1
        assert "conv" in message or CONV1 in message
