"""What loads holds together: sizes, channels, formats, tables, names, in every data type."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lichen import codec
from lichen.cli import main
from lichen.codec.container import inspect
from lichen.errors import UserError
from lichen.network.description import EntropyTables, Network
from lichen.network.file import OLDER_PICTURES, dumps, load, save
from lichen.network.model import ValidationError
from lichen.network.random import random_factorized, random_hyperprior
from lichen.sim.golden import synthesis
from tests.network.fuzz import copied, network_file

FACTORIZED = random_factorized(1, n=3, m=4)
SCALE = random_hyperprior(2, n=3, m=4)
MEAN = random_hyperprior(3, n=3, m=4, means=True)

Tree = dict[str, Any]


def stage(tree: Tree, transform: str, number: int) -> Tree:
    return tree["transforms"][transform]["stages"][number]


def convolution(transform: str, number: int, **fields: Any) -> Callable[[Tree], None]:
    def edit(tree: Tree) -> None:
        stage(tree, transform, number)["convolution"].update(fields)

    return edit


def output(transform: str, **fields: Any) -> Callable[[Tree], None]:
    def edit(tree: Tree) -> None:
        stage(tree, transform, -1)["requantizer"]["output"].update(fields)

    return edit


def channels_of_the_picture(tree: Tree) -> None:
    last = stage(tree, "g_s", -1)
    for name in ("weight", "bias"):
        last["convolution"][name] = np.concatenate([last["convolution"][name]] * 2)[:4]
    for name in ("pre_shift", "multiplier"):
        last["requantizer"][name] = np.concatenate([last["requantizer"][name]] * 2)[:4]


def strides(count: int, stride: int) -> Callable[[Tree], None]:
    """An analysis transform alone, of so many stages."""

    def edit(tree: Tree) -> None:
        tree["transforms"].pop("g_s")
        last = stage(tree, "g_a", -1)
        conv = last["convolution"] | {"stride": stride, "weight": np.ones((4, 4, 5, 5), np.int16)}
        more = [last | {"name": f"more{i}", "convolution": conv} for i in range(count)]
        tree["transforms"]["g_a"]["stages"] += more

    return edit


CASES: dict[str, tuple[Network, Callable[[Tree], None], str]] = {
    "rows that g_s does not make": (
        FACTORIZED,
        convolution("g_s", 3, output_padding=0),
        "g_s, stage conv4: kernels, strides, paddings and output_padding make 16 n - 1 rows of n",
    ),
    "a stage that shrinks in the middle": (
        FACTORIZED,
        convolution("g_s", 1, padding=3),
        "g_s, stage conv4: kernels, strides, paddings and output_padding make 16 n - 8 rows",
    ),
    "nothing left": (
        FACTORIZED,
        convolution("g_s", 0, padding=4, output_padding=0),
        "g_s, stage conv1: kernel and padding leave nothing of the smallest image",
    ),
    "latents that the decoder does not expect": (
        FACTORIZED,
        convolution("g_a", 3, padding=3),
        "g_a, stage conv4: kernels, strides and paddings make n + 1 rows of 16 n, where the "
        "latent y has n",
    ),
    "h_s that does not cover y": (
        SCALE,
        convolution("h_s", 1, output_padding=0),
        "h_s, stage conv3: kernels, strides, paddings and output_padding make 4 n - 1 rows of n, "
        "where the latent y has 4 n",
    ),
    "h_s that makes more than y": (
        MEAN,
        convolution("h_s", 2, padding=2),
        "h_s, stage conv3: kernels, strides, paddings and output_padding make 4 n + 2 rows of n",
    ),
    "strides too long": (FACTORIZED, strides(4, 4), "the strides multiply to 4096"),
    "strides that 64 bits don't hold": (FACTORIZED, strides(32, 4), f"multiply to {1 << 68}"),
    "too many stages": (FACTORIZED, strides(61, 1), "at most 64 items"),
    "pixels of ten bits": (
        FACTORIZED,
        output("g_s", bits=10, hi=1023),
        "g_s, stage conv4: output must be unsigned and of 8 bits",
    ),
    "signed pixels": (
        FACTORIZED,
        output("g_s", signed=True, lo=-127, hi=127),
        "g_s, stage conv4: output must be unsigned and of 8 bits",
    ),
    "four colours": (FACTORIZED, channels_of_the_picture, "a picture has 3 channels, not 4"),
    "an input that pixels leave": (
        FACTORIZED,
        lambda tree: tree["transforms"]["g_a"]["input"].update(hi=254),
        "g_a: input must take 0 .. 255",
    ),
    "symbols that h_s does not take": (
        SCALE,
        lambda tree: tree["transforms"]["h_s"]["input"].update(lo=-100),
        "the symbols of h_a must fit the input format of h_s: symbols span -127 .. 127",
    ),
    "means that are none": (
        SCALE,
        lambda tree: tree.update(means=True),
        "h_s must make 4 scales, or 8 scales and means, for 4 latent channels, not 4 with means",
    ),
    "means without a hyperprior": (
        FACTORIZED,
        lambda tree: tree.update(means=True),
        "means go with a transform h_s",
    ),
    "an offset far away": (
        FACTORIZED,
        lambda tree: tree["entropy"]["y"].update(offsets=np.array([0, 0, 1 << 25, 0])),
        "entropy.y.offsets must lie in",
    ),
    "a provenance that JSON lacks": (
        FACTORIZED,
        lambda tree: tree.update(provenance={"a": float("nan")}),
        "nothing but finite JSON values",
    ),
    "a provenance that is too deep": (
        FACTORIZED,
        lambda tree: tree.update(provenance={"a": json.loads("[" * 64 + "]" * 64)}),
        "must not be nested 64 times",
    ),
    "a scale for every other channel": (
        FACTORIZED,
        lambda tree: stage(tree, "g_a", 0).update(scales={"weight": np.ones(2)}),
        "scales.weight must have one value per channel",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_hold_together_is_refused(name):
    network, edit, sentence = CASES[name]
    tree = copied(network.model_dump())
    Network.model_validate(tree)
    edit(tree)
    with pytest.raises(ValidationError) as error:
        Network.model_validate(tree)
    assert sentence in str(error.value)


def test_more_rows_than_the_image_are_cut_off():
    tree = copied(FACTORIZED.model_dump())
    convolution("g_s", 3, padding=1)(tree)
    more = Network.model_validate(tree)
    image = np.arange(20 * 33 * 3, dtype=np.uint8).reshape(20, 33, 3)
    assert codec.decode(codec.encode(image, more), more).shape == image.shape


def test_a_picture_is_never_left_unfilled():
    """Even where a description goes round validation."""
    conv = (
        FACTORIZED.transforms["g_s"].stages[-1].convolution.model_copy(update={"output_padding": 0})
    )
    stages = list(FACTORIZED.transforms["g_s"].stages)
    stages[-1] = stages[-1].model_copy(update={"convolution": conv})
    g_s = FACTORIZED.transforms["g_s"].model_copy(update={"stages": stages})
    short = FACTORIZED.model_copy(update={"transforms": FACTORIZED.transforms | {"g_s": g_s}})
    with pytest.raises(ValueError, match="g_s makes 15 rows and 15 columns"):
        synthesis(short, np.zeros((1, 1, 4), np.int32), None, 16, 16)


# Data types -----------------------------------------------------------------------------------

FALLING = [[0, 40000, 20000, 65536]]
RISING = [[0, 20000, 40000, 65536]]
TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("kind", ["int32", "uint32", "int64", "uint64"])
def test_a_falling_cdf_is_refused_in_every_type(kind):
    fields = {"lengths": np.array([4]), "offsets": np.array([0])}
    EntropyTables(cdf=np.array(RISING, kind), **fields)
    with pytest.raises(ValidationError, match="cdf row 0 must rise strictly"):
        EntropyTables(cdf=np.array(FALLING, kind), **fields)
    with pytest.raises(ValidationError, match="cdf row 0 must be 0 after its 3 entries"):
        EntropyTables(cdf=np.array([[0, 9, 65536, 1]], kind), lengths=[3], offsets=[0])


@pytest.mark.parametrize("kind", TYPES)
def test_a_network_codes_the_same_with_integers_of_every_type(kind):
    """All tensors that fit, in this type: nothing wraps, nothing raises."""

    def retyped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: retyped(item) for key, item in value.items()}
        if isinstance(value, list):
            return [retyped(item) for item in value]
        if not isinstance(value, np.ndarray) or value.dtype.kind != "i":
            return value
        limits = np.iinfo(kind)
        fits = value.min() >= limits.min and value.max() <= limits.max
        return value.astype(kind) if fits else value

    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    for network in (FACTORIZED, SCALE, MEAN):
        other = Network.model_validate(retyped(network.model_dump()))
        data = codec.encode(image, network)
        recoded = codec.encode(image, other)
        # all but the digest of the network's file
        start = inspect(data).parts[0].offset
        assert recoded[start:] == data[start:] and recoded[:16] == data[:16]
        assert np.array_equal(codec.decode(recoded, other), codec.decode(data, network))


def test_integers_that_no_signed_type_holds():
    with pytest.raises(ValidationError, match="must lie in"):
        EntropyTables(cdf=RISING, lengths=np.array([4]), offsets=np.array([1 << 63], np.uint64))


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F8_E5M2", "BOOL"])
def test_data_types_that_networks_lack(tmp_path, kind):
    data = dumps(FACTORIZED)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = "transforms.g_a.stages.0.convolution.bias"
    header[name].update(dtype=kind, shape=[12 if kind == "BF16" else 24])  # of 3 64-bit ones
    text = json.dumps(header).encode()
    path = tmp_path / "net.lichen"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(UserError, match=f"tensor {name} has the data type {kind}") as error:
        load(path)
    assert "\n" not in str(error.value)


# Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["a;b", "", " ", "é", "conv 1", "\x1b[2J", "a\nb", "1conv", "_a", "x" * 64, "a.b", "\u202e"],
)
def test_names_of_stages_that_are_no_identifiers(tmp_path, name):
    tree = copied(FACTORIZED.model_dump())
    stage(tree, "g_s", 1)["name"] = name
    with pytest.raises(ValidationError, match="a name must be a letter followed by") as error:
        Network.model_validate(tree)
    assert all(c.isprintable() for c in error.value.reason)


@pytest.mark.parametrize("other", ["conv1", "CONV1", "conv1_norm", "Conv1_Norm"])
def test_units_that_would_share_a_name(other):
    tree = copied(FACTORIZED.model_dump())
    stage(tree, "g_a", 3)["name"] = other
    with pytest.raises(ValidationError, match=r"unique|share names"):
        Network.model_validate(tree)


def test_titles_are_fit_for_a_terminal():
    for name, title in (
        ("two\nstages", "two stages"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("", "bmshj2018-factorized"),
        ("x" * 200, "x" * 80 + "…"),
    ):
        named = FACTORIZED.model_copy(update={"name": name})
        assert named.title == title
    for architecture in ("a\nendmodule", "", "x" * 64):
        with pytest.raises(ValidationError, match="an architecture must be"):
            Network.model_validate(FACTORIZED.model_dump() | {"architecture": architecture})


def test_nothing_from_a_file_moves_the_cursor(tmp_path, capsys):
    """Names in sentences, of networks, stages, fields and files, in summaries and in errors."""
    wild = "\x1b]0;a\x07\x1b[2J\u202e"
    named = FACTORIZED.model_copy(update={"name": f"n{wild}"})
    folder = tmp_path / f"f{wild}"
    folder.mkdir()
    save(named, folder / "net.lichen")
    Image.new("RGB", (20, 30)).save(folder / "a.png")
    tree = copied(FACTORIZED.model_dump(exclude={"means"}))
    stage(tree, "g_a", 0)["name"] = f"s{wild}"
    (folder / "stage.lichen").write_bytes(network_file(tree))
    (folder / "field.lichen").write_bytes(network_file(FACTORIZED.model_dump() | {wild: 1}))
    half = {"transforms": {"g_a": named.transforms["g_a"]}}
    save(named.model_copy(update=half), folder / "half.lichen")
    shown = ""
    for arguments in (
        ["encode", folder / "a.png", "-o", folder / "a.lic", "-m", folder / "net.lichen"],
        ["info", folder / "a.lic"],
        ["decode", folder / "a.lic", "-o", folder / "b.png", "-m", folder / "net.lichen"],
        ["decode", folder / "a.lic", "-o", folder / "b.png", "-m", "tiny"],
        ["encode", folder, "-o", folder / "out", "-m", folder / "net.lichen"],
        *(
            ["encode", folder / "a.png", "-o", folder / "a.lic", "-m", folder / f"{name}.lichen"]
            for name in ("stage", "field", "half", "none")
        ),
        ["plan", folder / "half.lichen", "--board", "ulx3s-85f", "--transform", "g_s"],
    ):
        with contextlib.suppress(SystemExit):
            main([str(argument) for argument in arguments])
        shown += "".join(capsys.readouterr())
    assert shown.count("\n") >= 10 and "\\x1b]0;a\\x07" in shown
    assert all(character.isprintable() for character in shown.replace("\n", ""))


def test_older_pictures_are_those_of_the_golden_vectors():
    from tests.codec.cases import KINDS
    from tests.codec.golden_vectors import FOLDER

    digests = {load(FOLDER / f"{kind}.lichen").file_sha256 for kind in KINDS}
    assert digests == OLDER_PICTURES
    tree = load(FOLDER / "factorized.lichen").model_dump()
    with pytest.raises(ValidationError, match="unsigned and of 8 bits"):
        Network.model_validate(tree)
