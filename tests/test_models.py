"""The shipped networks: complete, loadable, and listed."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from PIL import Image

from lichen import models
from lichen.commands.models import command
from lichen.errors import UserError
from lichen.network.file import load
from lichen.quant.float.checkpoint import load_checkpoint

FAMILIES = ("small", "small-hyper", "small-opt")


def card(name: str) -> str:
    return (models.folder() / f"{name}.md").read_text()


def test_every_network_is_complete():
    families = [f"{family}-q{i}" for family in FAMILIES for i in range(1, 5)]
    assert {"tiny", *families} <= set(models.names())
    for name in models.names():
        network = models.load_network(name)
        assert network.name == name
        assert (models.folder() / f"{name}.md").is_file(), f"{name} has no model card"
        parent = load_checkpoint(f"{name}.fp32")
        assert (parent.arch, parent.n, parent.m) == (
            network.architecture,
            network.n,
            network.m,
        )
        # all are measured, from the one that ships
        for which in (name, f"{name}.fp32"):
            figures = models.measured(which)
            assert figures is not None and figures["set"] == "kodak" and figures["images"] == 24
            assert f"{figures['bpp']:.4f} | {figures['psnr']:.2f} dB" in card(name), which
        # the parent's file is the one that was quantized
        assert network.provenance["source"]["sha256"] == parent.metadata["sha256"]


def test_no_command_of_a_card_overwrites_what_it_reads():
    for name in models.names():
        text = card(name)
        commands = [*text.split("```")[1::2], *re.findall("`(python .*? -o .*?)`", text)]
        assert commands, name
        for command_line in commands:
            words = command_line.replace("\\\n", " ").split()
            output = words[words.index("-o") + 1]
            assert words.count(output) == 1, f"{name}: {output}"


def test_nothing_of_the_machine_that_made_them_is_in_them():
    for path in models.folder().glob("*"):
        if path.suffix in (".lichen", ".safetensors", ".md"):
            content = path.read_bytes()
            for trace in (b"/work", b"/home", b"/tmp", b"/root", b"/Users"):
                assert trace not in content, f"{path.name} holds {trace.decode()}"


def test_photographs():
    with Image.open(models.photograph()) as photo:
        assert photo.size == (768, 512)
    crops = models.calibration_photographs()
    assert len(crops) >= 20
    for path in crops:
        with Image.open(path) as crop:
            assert crop.size == (256, 256) and crop.mode == "RGB"


def test_names_and_files(tmp_path, monkeypatch):
    shipped = models.shipped_network("tiny")
    assert shipped is not None and models.shipped_network("../models/tiny") is None
    assert models.shipped_parent("tiny") == models.shipped_parent("tiny.fp32") is not None
    with pytest.raises(UserError, match=r"neither a file nor the name .*tiny"):
        models.load_network("tinny")
    with pytest.raises(UserError, match="does not exist"):
        models.load_network("some/tinny.lichen")
    # a file of the same name goes first
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(b"no network")
    with pytest.raises(UserError, match="not a readable"):
        models.load_network("tiny")
    # a folder does not
    (tmp_path / "tiny").unlink()
    (tmp_path / "tiny").mkdir()
    assert models.load_network("tiny").name == "tiny"
    (tmp_path / "tinny").mkdir()
    with pytest.raises(UserError, match="tinny is a folder"):
        models.load_network("tinny")


def test_bits_of_mixed_networks_are_a_span():
    """small-opt's largest stage has 10 bits, and hardly any other."""
    result = CliRunner().invoke(command, [])
    line = next(line for line in result.stdout.splitlines() if line.startswith("small-opt-q3"))
    widths = {
        s.convolution.weight_bits
        for t in models.load_network("small-opt-q3").transforms.values()
        for s in t.stages
    }
    assert f" W{min(widths)}-{max(widths)}A" in line and len(widths) > 1
    rows = json.loads(CliRunner().invoke(command, ["--json", "-"]).stdout)
    bits = next(row for row in rows if row["name"] == "small-opt-q3")["bits"]
    assert bits["weights"] == [min(widths), max(widths)]
    assert bits["weights"][0] < bits["mean"] < bits["weights"][1]


def test_models_command():
    result = CliRunner().invoke(command, ["--json", "-"])
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(rows) == models.names()
    tiny = rows["tiny"]
    assert {"name", "arch", "n", "m", "size_bytes", "bits", "macs", "bops", "rd"} <= set(tiny)
    shipped = models.shipped_network("tiny")
    assert shipped is not None and tiny["size_bytes"] == shipped.stat().st_size
    # g_a's convolutions and normalizations by hand, and as many again in g_s
    h, w, n, m = 256, 384, tiny["n"], tiny["m"]
    macs = [h * w * 75 * n, h * w // 4 * 25 * n * n, h * w // 16 * 25 * n * n]
    macs += [h * w // 64 * 25 * n * m] + [h * w * n * n // 4**i for i in range(3)]
    assert tiny["macs"] == 2 * sum(macs)
    network = load(shipped)
    assert all(s.convolution.weight_bits == 8 for s in network.transform("g_a").stages)
    assert tiny["bops"] == 64 * tiny["macs"]
    assert tiny["bits"] == {
        "weight": 8, "activation": 8, "weights": [8, 8], "activations": [8, 8], "mean": 8.0
    }  # fmt: skip
    assert tiny["rd"]["set"] == "kodak" and tiny["rd"]["psnr"] > 26.5 and tiny["rd"]["bpp"] < 0.6


def test_files_find_their_network():
    """What files of either version name every network by is written down, and found."""
    known = json.loads((models.folder() / "digests.json").read_text("utf-8"))
    for name in models.names():
        assert known[name] == models.digests(models.load_network(name))
        assert [models.find_name(digest) for digest in known[name]] == [name, name]
    assert models.find("0" * 32) is None
