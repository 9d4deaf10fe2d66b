# amaranth: UnusedElaboratable=no
"""`lichen generate` and `lichen build` on a random network."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from lichen.boards import board as boards
from lichen.boards.design import Design, read_folding
from lichen.boards.generate import interface
from lichen.cli import main
from lichen.hw.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.unit import Resources
from lichen.models import load_network
from lichen.network.description import Activation, Network
from lichen.network.file import digest, save
from lichen.network.random import StageShape, random_transform

from . import fakes

SMALL = Folding(
    max_width=48,
    stages=[
        StageFolding(
            chains=1,
            convolution=ArrayFolding(chain_length=2, lanes=1),
            normalization=ArrayFolding(chain_length=2, lanes=1),
        ),
        StageFolding(chains=2, convolution=ArrayFolding(chain_length=1, lanes=1)),
    ],
)


@pytest.fixture(scope="module")
def network() -> Network:
    shapes = [
        StageShape(out_channels=4, kernel=3, activation=Activation.GDN),
        StageShape(out_channels=6, kernel=3, output_bits=9),
    ]
    transform = random_transform(np.random.default_rng(5), shapes)
    return Network(
        name="two\nstages", architecture="custom", n=4, m=6, transforms={"g_a": transform}
    )


@pytest.fixture
def files(tmp_path, network):
    """Paths of a network file and of a folding for it."""
    save(network, tmp_path / "net.lichen")
    (tmp_path / "folding.json").write_text(json.dumps({"folding": SMALL.model_dump(mode="json")}))
    return tmp_path / "net.lichen", tmp_path / "folding.json"


def lichen(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_generate_writes_verilog_that_says_what_it_is(tmp_path, capsys, files, network):
    net, folding = files
    where = ("--board", "ulx3s-85f", "--folding", folding)
    status, out, _ = lichen(capsys, "generate", net, *where, "-o", tmp_path / "a", "--json", "-")
    assert status == 0
    description = json.loads(out)
    assert description == json.loads((tmp_path / "a" / "interface.json").read_text())
    assert set(description) >= {"files", "top", "parameters"}
    parameters = description["parameters"]
    assert (parameters["in_channels"], parameters["out_channels"]) == (3, 6)
    assert (parameters["out_bits"], parameters["out_lanes"]) == (9, 2)
    assert (parameters["max_width"], parameters["downsampling"]) == (48, 4)

    (name,) = description["files"]
    text = (tmp_path / "a" / name).read_text()
    comment = text[: text.index("\n\n")]
    assert all(line.startswith("//") for line in comment.splitlines())
    for fact in ("two stages", digest(network), "conv1: 3x3 stride 2", "gdn: gamma", "48 x 65535"):
        assert fact in comment
    # The ports are the module's, in name, direction and width.
    module = re.search(rf"^module {description['top']}\((.*?)\);", text, re.M | re.S)
    ports = {port["name"]: port for port in description["ports"]}
    assert set(re.split(r",\s*", module.group(1))) == set(ports)
    body = text[module.start() :]
    for port in ports.values():
        size = f"[{port['width'] - 1}:0] " if port["width"] > 1 else ""
        assert f"  {port['direction']}put {size}{port['name']};\n" in body

    # The same again, without a date or a path in it.
    lichen(capsys, "generate", net, *where, "-o", tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert str(tmp_path) not in path.read_text()


def test_generate_does_not_write_into_strange_folders(tmp_path, capsys, files):
    net, folding = files
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    status, _, err = lichen(
        capsys, "generate", net, "--board", "ulx3s-85f", "--folding", folding,
        "-o", tmp_path / "mine",
    )  # fmt: skip
    assert status == 2
    assert err.endswith("mine exists and holds something else; name another folder.\n")


@pytest.fixture
def light(monkeypatch):
    """`--board ulx3s-85f` without the cost of elaborating for it."""
    monkeypatch.setitem(boards.BOARDS, "ulx3s-85f", fakes.LIGHT_BOARD)


def planned(network: Network) -> Resources:
    return Design.make(network, "g_a", SMALL).pipeline().resources()


def test_build_reports(tmp_path, monkeypatch, capsys, files, network, light):
    net, folding = files
    plan = planned(network)
    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp, bram=plan.bram)
    arguments = ("build", net, "--board", "ulx3s-85f", "--folding", folding)
    status, out, err = lichen(capsys, *arguments, "-o", tmp_path / "out", "--json", "-")
    assert status == 0
    report = json.loads(out)
    assert report["network"]["sha256"] == digest(network)
    assert report["folding"] == SMALL.model_dump(mode="json")
    assert "nextpnr-ecp5: " in err
    assert "80 MHz for a clock of 50" in err
    # The report itself is a folding to build with.
    assert read_folding(tmp_path / "out" / "report.json") == SMALL

    status, out, _ = lichen(
        capsys, *arguments, "-o", tmp_path / "out", "--json", tmp_path / "report", "--clock", 74,
        "--seed", 3,
    )  # fmt: skip
    assert status == 0
    assert "80 MHz for a clock of 75" in out
    assert json.loads((tmp_path / "report").read_text())["seed"] == 3


def test_build_exit_statuses(tmp_path, monkeypatch, capsys, files, network, light):
    net, folding = files
    plan = planned(network)
    arguments = ("build", net, "--board", "ulx3s-85f", "--folding", folding)
    arguments = (*arguments, "-o", tmp_path / "out")
    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp, bram=plan.bram, fmax=45)
    status, _, err = lichen(capsys, *arguments)
    assert status == 1
    assert err.splitlines()[-1].startswith("lichen: timing is missed: 45.0 MHz of the 50 MHz")
    assert (tmp_path / "out" / "top.bit").exists()
    assert lichen(capsys, *arguments, "--allow-timing-failure")[0] == 0

    fakes.install(tmp_path / "tools", monkeypatch, dsp=0, bram=plan.bram)
    status, _, err = lichen(capsys, *arguments)
    assert status == 1
    assert err.splitlines()[-1].startswith("lichen: synthesis made 0 multipliers")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--board": "icestick"}, "there is no board 'icestick'; known boards: "),
        ({"--clock": "1000"}, "no such clock on the ULX3S 85F: "),
        ({"--transform": "g_s"}, "network two\\nstages has no transform g_s, only g_a"),
        ({"--folding": "nowhere.json"}, "cannot read nowhere.json: No such file or directory."),
        ({"NET": "nosuchnet"}, "nosuchnet is neither a file nor the name of a shipped network"),
    ],
)
def test_unusable_arguments(tmp_path, capsys, files, light, change, sentence):
    net, folding = files
    options = {"--board": "ulx3s-85f", "--folding": folding, "-o": tmp_path / "out"} | change
    net = options.pop("NET", net)
    flat = [part for pair in options.items() for part in pair]
    status, out, err = lichen(capsys, "build", net, *flat)
    assert (status, out) == (2, "")
    assert sentence.replace("\\n", " ") in " ".join(err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no folding: it: "),
        ('{"max_width": 0, "stages": []}', "holds no folding: max_width: "),
        ('{"max_width": 9, "stages": [{"chains": 1}]}', "stages.0.convolution: Field required"),
    ],
)
def test_a_folding_file_that_is_none(tmp_path, capsys, files, content, sentence):
    (tmp_path / "f.json").write_text(content)
    status, _, err = lichen(
        capsys, "generate", files[0], "--board", "ulx3s-85f", "-o", tmp_path / "out",
        "--folding", tmp_path / "f.json",
    )  # fmt: skip
    assert status == 2
    assert sentence in err


def test_a_folding_for_another_network(network):
    stages = SMALL.stages[:1]
    with pytest.raises(Exception, match="the folding has 1 stages, the transform 2"):
        Design.make(network, "g_a", Folding(max_width=8, stages=stages))


def test_what_takes_no_pixels_has_no_bitstream(network):
    shapes = [StageShape(out_channels=2, kernel=3)]
    source = network.transforms["g_a"].output
    inner = random_transform(np.random.default_rng(1), shapes, in_channels=6, source=source)
    both = Network(name="x", architecture="custom", n=2, m=2, transforms={"h_a": inner})
    folding = Folding(
        max_width=8, stages=[StageFolding(chains=1, convolution=SMALL.stages[1].convolution)]
    )
    design = Design.make(both, "h_a", folding)
    board = boards.ULX3S_85F
    with pytest.raises(Exception, match="a bitstream takes pixels of 8 bits, but h_a of x"):
        design.top(board, board.pll())
    # As Verilog it is welcome.
    parameters = interface(design, board, design.pipeline())["parameters"]
    assert (parameters["in_bits"], parameters["in_signed"]) == (9, True)


def test_load_network_reads_files(files, network):
    assert digest(load_network(str(files[0]))) == digest(network)
