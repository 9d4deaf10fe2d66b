# amaranth: UnusedElaboratable=no
"""`lichen generate` and `lichen build` on a random network."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from lichen.boards import board as boards
from lichen.boards.build import achieved
from lichen.boards.build.achieved import Achieved, fingerprint
from lichen.boards.build.report import lut_remark
from lichen.boards.core.core import Core
from lichen.boards.core.interface import interface
from lichen.boards.design import Bitstream, Design, fold, read_folding
from lichen.cli import main
from lichen.hw.device.device import Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.hw.plan.occupancy import frame_occupancy
from lichen.hw.plan.planner import evaluate
from lichen.hw.plan.tiling import tiles
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.models import load_network
from lichen.network.description import Activation, Network
from lichen.network.file import digest, save
from lichen.network.random import StageShape, random_factorized, random_hyperprior, random_transform

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

    assert (description["top"], description["target"]) == ("two_stages_g_a", "ecp5")
    name, *others = description["files"]
    assert name == "two_stages_g_a.v" and all(o.startswith("two_stages_g_a_") for o in others)
    text = (tmp_path / "a" / name).read_text()
    comment = text[: text.index("\n\n")]
    assert all(line.startswith("//") for line in comment.splitlines())
    for fact in ("two stages", digest(network), "conv1: 3x3 stride 2", "gdn: gamma", "48 x 65535"):
        assert fact in comment
    # The ports are the module's, in name, direction and width.
    module = re.search(rf"^module {description['top']} \((.*?)\);", text, re.M | re.S)
    found = {line.strip().rstrip(",") for line in module.group(1).strip().splitlines()}
    wanted = set()
    for port in description["ports"]:
        size = f"[{port['width'] - 1}:0] " if port["width"] > 1 else ""
        wanted.add(f"{port['direction']}put wire {size}{port['name']}")
    assert found == wanted

    # The same again, without a date or a path in it.
    lichen(capsys, "generate", net, *where, "-o", tmp_path / "b")
    paths = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(paths) > len(description["files"])
    for path in paths:
        content = path.read_bytes()
        assert content == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        assert str(tmp_path).encode() not in content


def test_generate_wants_a_target_and_a_name_for_verilog(tmp_path, capsys, files):
    net, folding = files
    status, _, err = lichen(capsys, "generate", net, "--folding", folding, "-o", tmp_path / "a")
    assert status == 2 and "--board NAME, or --target" in err
    status, _, err = lichen(
        capsys, "generate", net, "--folding", folding, "--target", "portable", "--top", "small",
        "-o", tmp_path / "a",
    )  # fmt: skip
    assert status == 2 and "'small' cannot name a module" in err
    assert not (tmp_path / "a").exists()


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
    """`--board ulx3s-85f` without the cost of elaborating for it, and nothing built before."""
    monkeypatch.setattr(achieved, "records", lambda: ())
    monkeypatch.setitem(boards.BOARDS, "ulx3s-85f", fakes.LIGHT_BOARD)


LINK = boards.ULX3S_85F.uart.bram
"""Block RAMs that a build has beside its plan's."""


def planned(network: Network) -> Resources:
    """What a build makes."""
    own = Design.make(network, "g_a", SMALL).pipeline().resources(ECP5)
    return own + Resources(bram=LINK)


def test_plan_takes_its_clock_from_a_build(tmp_path, capsys, files, network, monkeypatch):
    net, folding = files
    build = Achieved(
        design="x", device="LFE5U-85F-6", fmax_mhz=93.9, dsp=150, bram=200, lut=60_000, folding=""
    )
    monkeypatch.setattr(achieved, "records", lambda: (build,))
    arguments = ("plan", net, "--board", "ulx3s-85f", "--folding", folding, "--json")
    status, out, _ = lichen(capsys, *arguments, tmp_path / "plan.json")
    assert status == 0
    assert out.splitlines()[-1] == (
        "clock: built, one at least as full: x (93.9 MHz, 96% full); "
        "a build may come out between 93.9 and 93.9 MHz"
    )
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert set(plan) >= {
        *("stages", "clock_mhz", "tile_width", "cycles_per_frame", "fps", "dsp", "lut", "bram"),
        *("fits", "clock_source", "clock_interval_mhz", "bound_by", "folding"),
    }
    assert plan["clock_interval_mhz"] == [93.9, 93.9]
    # The fastest clock that the PLL can make of 25 MHz below what was achieved.
    assert plan["clock_mhz"] == pytest.approx(93.75)
    assert plan["fps"] == pytest.approx(93.75e6 / plan["cycles_per_frame"])
    assert [row["name"] for row in plan["stages"]] == ["conv1", "conv1_norm", "conv2"]
    lichen(capsys, *arguments, tmp_path / "plan.json", "--clock", 60)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["clock_mhz"], plan["clock_source"]) == (60, "as asked for")
    assert plan["clock_interval_mhz"] is None
    # Another build of this very folding is what counts.
    used = evaluate(network.transform("g_a"), SMALL)
    same = dataclasses.replace(
        build,
        fmax_mhz=77.0,
        folding=fingerprint(
            [SMALL], used.cycles_per_frame, dsp=used.resources.dsp, bram=used.resources.bram
        ),
    )
    monkeypatch.setattr(achieved, "records", lambda: (build, same))
    _, out, _ = lichen(capsys, *arguments, tmp_path / "plan.json")
    assert out.splitlines()[-1] == "clock: built, this folding: x (77 MHz, 96% full)"
    assert json.loads((tmp_path / "plan.json").read_text())["clock_mhz"] == pytest.approx(76.785714)


def test_plans_count_what_the_transform_reads(tmp_path, capsys):
    """h_a reads 32x48 latents of a photograph, not its 512x768 pixels."""
    net, width, folding = tmp_path / "net.lichen", 48, tmp_path / "folding.json"
    network = random_hyperprior(1, n=2, m=3)
    save(network, net)
    stages = [StageFolding(chains=1, convolution=ArrayFolding(chain_length=1, lanes=1))] * 3
    one = Folding(max_width=width, stages=stages)
    folding.write_text(json.dumps({"folding": one.model_dump(mode="json")}))
    arguments = ("plan", net, "--board", "ulx3s-85f", "--transform", "h_a", "--json", "-")
    for more in (("--folding", folding), ()):
        plan = json.loads(lichen(capsys, *arguments, *more)[1])
        assert (plan["tiles"], plan["tile_width"]) == (1, 48)
        planned = Design.make(network, "h_a", Folding.model_validate(plan["folding"]))
        assert plan["cycles_per_frame"] == planned.pipeline().predicted_cycles(32, 48)
        cycles = interface(Core.make(planned, "ecp5"), [], boards.ULX3S_85F)["cycles"]
        assert cycles == {"width": 48, "height": 32, "cycles": plan["cycles_per_frame"]}


def test_plan_draws_what_works_when(tmp_path, capsys, files, network):
    net, folding = files
    arguments = ("plan", net, "--board", "ulx3s-85f", "--folding", folding, "--plot")
    for name in ("a.svg", "b.svg", "c.png"):
        assert lichen(capsys, *arguments, tmp_path / name)[0] == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    assert text.startswith("<?xml") and str(tmp_path) not in text
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    status, _, err = lichen(capsys, *arguments, tmp_path / "d.jpg")
    assert status == 2
    assert err.endswith("d.jpg must end in one of .svg, .png, .pdf to be drawn.\n")
    assert not (tmp_path / "d.jpg").exists()

    plan = evaluate(network.transform("g_a"), SMALL)
    slice_cycles, busy, starts = frame_occupancy(plan)
    assert busy.shape[0] == 3 and busy.max() <= 1 and starts[0] == 0 < len(starts)
    # Over the whole frame every array is as busy as its groups take cycles.
    for unit, spent in zip(plan.pipeline.units, busy.sum(axis=1) * slice_cycles, strict=True):
        shape, total = unit.core.shape, 0
        for tile in tiles(network.transform("g_a"), 768, 48):
            sizes = network.transform("g_a").sizes(512, tile.stop - tile.start)
            rows, columns = sizes[2 if unit is plan.pipeline.units[-1] else 1]
            total += rows * -(-columns // shape.pixels) * shape.group_cycles[0]
        assert spent == pytest.approx(total)


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
    remark = lut_remark(1234, report["planned"]["lut"])
    assert remark is not None and f"lichen: {remark}" in err.splitlines()
    assert "80 MHz for a clock of 80" in err
    assert (report["target_mhz"], report["clock_mhz"]) == (50.0, 80.0)
    # The report itself is a folding to build with.
    assert read_folding(tmp_path / "out" / "report.json", "g_a") == SMALL

    status, out, err = lichen(
        capsys, *arguments, "-o", tmp_path / "out", "--json", tmp_path / "report", "--clock", 74,
        "--seed", 3,
    )  # fmt: skip
    assert status == 0
    assert "80 MHz for a clock of 73.75" in out
    assert "clock: 73.75 MHz is the nearest below 74" in err
    assert json.loads((tmp_path / "report").read_text())["seed"] == 3


def test_what_is_built_does_not_hang_on_what_is_on_record(
    tmp_path, monkeypatch, capsys, files, network, light
):
    net, folding = files
    plan = planned(network)
    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp, bram=plan.bram)
    made, promised = [], []
    for fmax in (61.0, 122.0):
        record = Achieved(
            design="x",
            device="LFE5U-85F-6",
            fmax_mhz=fmax,
            dsp=150,
            bram=200,
            lut=60_000,
            folding="",
        )
        monkeypatch.setattr(achieved, "records", lambda record=record: (record,))
        folder = tmp_path / "out"
        status, out, _ = lichen(
            capsys, "build", net, "--board", "ulx3s-85f", "--folding", folding, "-o", folder,
            "--json", "-",
        )  # fmt: skip
        assert status == 0
        report = json.loads(out)
        promised.append(report["target_mhz"])
        names = ("top.v", "top.lpf", "top.ys")
        made.append([report["inputs"], *((folder / name).read_text() for name in names)])
    assert made[0] == made[1]
    assert "output_div" in made[0][1] and "FREQUENCY" in made[0][2]
    assert promised == [60.9375, 121.875]


def test_encoder_and_decoder_share_a_board(tmp_path, monkeypatch, capsys, light):
    """Planned together, built from that plan, put on record, and known again."""
    save(random_factorized(3, n=2, m=2), tmp_path / "net.lichen")
    where = (tmp_path / "net.lichen", "--board", "ulx3s-85f", "--transform", "g_a,g_s")
    both = tmp_path / "plan.json"
    few = ("--multipliers", 60, "--max-width", 128)
    assert lichen(capsys, "plan", *where, *few, "--json", both)[0] == 0
    found = json.loads(both.read_text())
    plans, total = found["transforms"], found["together"]
    assert list(plans) == ["g_a", "g_s"]
    for kind in ("dsp", "bram", "lut"):
        assert total[kind] == sum(plan[kind] for plan in plans.values())
    assert total["dsp"] <= 60 and total["fits"]
    # Neither is made fast at the other's cost.
    cycles = [plan["cycles_per_frame"] for plan in plans.values()]
    assert max(cycles) < 1.5 * min(cycles)

    # As Verilog they are two cores, whose modules can live in one design.
    cores = tmp_path / "cores"
    status, out, _ = lichen(
        capsys, "generate", *where, "--folding", both, "-o", cores, "--json", "-"
    )
    made = json.loads(out)["transforms"]
    assert status == 0 and list(made) == ["g_a", "g_s"]
    files = [set(made[name]["files"]) for name in plans]
    assert files[0] and files[1] and not files[0] & files[1]
    for name, plan in plans.items():
        assert json.loads((cores / name / "interface.json").read_text()) == made[name]
        for kind in ("dsp", "bram"):
            assert made[name]["resources"][kind] == plan[kind]

    fakes.install(tmp_path / "tools", monkeypatch, dsp=total["dsp"], bram=total["bram"] + LINK)
    output = ("-o", tmp_path / "out", "--json", tmp_path / "report.json")
    status, _, err = lichen(capsys, "build", *where, "--folding", both, *output)
    assert status == 0, err
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["transform"], report["cycles_per_frame"]) == ("g_a,g_s", max(cycles))
    for name, plan in plans.items():
        assert report["transforms"][name]["folding"] == plan["folding"]
    build = Achieved.of_report(report, boards.find("ulx3s-85f"))
    assert build.design == "random-3 g_a, 128 columns and g_s, 8 columns"
    monkeypatch.setattr(achieved, "records", lambda: (build,))
    again = ("--folding", tmp_path / "report.json", "--json", both)
    assert lichen(capsys, "plan", *where, *again)[0] == 0
    known = json.loads(both.read_text())["transforms"]["g_s"]
    assert known["clock_source"].startswith("built, this folding")

    for wrong in ("g_a,,g_s", "g_a,g_a"):
        status, _, err = lichen(capsys, "build", *where[:-1], wrong, *output)
        assert (status, err.count("\n")) == (2, 1)
        assert "--transform takes different transforms" in err
    status, _, err = lichen(capsys, "build", *where, "--unit", "conv1", *output)
    assert status == 2 and "--unit builds a unit of one transform" in err


def test_a_plan_leaves_some_block_rams(monkeypatch):
    """Where it can; where it cannot it takes all."""
    network = random_factorized(3, n=8, m=8)
    board = dataclasses.replace(fakes.LIGHT_BOARD, bram_share=0.5)
    wide = dataclasses.replace(board, budget=dataclasses.replace(board.budget, bram=60))

    def blocks(board) -> int:
        (folding,) = fold(network, ["g_s"], board, max_width=768, multipliers=30)
        return evaluate(network.transform("g_s"), folding).resources.bram

    least = blocks(wide)
    assert least <= 30
    tight = dataclasses.replace(board, budget=dataclasses.replace(board.budget, bram=least))
    assert least / 2 < blocks(tight) <= least


def test_boards_lists_them_all(capsys):
    status, out, _ = lichen(capsys, "boards", "--json", "-")
    assert status == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == list(boards.BOARDS)
    assert rows["ulx3s-85f"]["budget"] == {"dsp": 156, "bram": 208, "lut": 83640}
    usb = {"kind": "usb", "speed": "full"}
    assert rows["ulx3s-85f"]["links"] == [{"kind": "uart", "baud": 3_000_000}, usb]
    assert "small-opt-q3 g_s, 18 columns (103.55 MHz)" in rows["ulx3s-85f"]["builds"]  # of latents
    for row in rows.values():
        device = [one for one in achieved.records() if one.device == row["device"]]
        assert row["builds"] == [f"{one.design} ({one.fmax_mhz:g} MHz)" for one in device]
    # A faster grade of the same device is another one.
    assert rows["orangecrab-85f"]["device"] == "LFE5U-85F-8"
    assert rows["orangecrab-85f"]["builds"] == []
    status, out, _ = lichen(capsys, "boards")
    assert status == 0
    assert re.search(r"^ecpix5-45f +LFE5UM5G-45F-8 +72 +108 +43848 .* none$", out, re.M)


def test_estimates_worse_than_promised_are_told():
    assert lut_remark(1100, 1000) is None and lut_remark(900, 1000) is None
    assert lut_remark(1101, 1000) == (
        "1101 LUTs were placed where 1000 were planned, 10 % more; plans should be within 10 %."
    )
    assert "25 % fewer" in lut_remark(750, 1000)


def test_build_of_a_unit(tmp_path, monkeypatch, capsys, files, network):
    net, folding = files
    plan = Design.make(network, "g_a", SMALL).pipeline().stage_resources(ECP5)["conv1_norm"]
    arguments = ("build", net, "--board", "ulx3s-85f", "--folding", folding, "--unit")
    # Amaranth would ask the fake yosys to write Verilog.
    monkeypatch.setattr(
        "lichen.boards.build.unit.emit",
        lambda part, name, target: f"{name}: {type(part).__name__} for {target.device}",
    )
    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp, bram=plan.bram)
    where = ("-o", tmp_path / "out", "--json", tmp_path / "report.json")
    status, out, _ = lichen(capsys, *arguments, "conv1_norm", *where)
    assert status == 0
    assert out.startswith("conv1_norm alone: 80 MHz; ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["array"] == SMALL.stages[0].normalization.model_dump(mode="json")
    assert report["planned"] == {"dsp": plan.dsp, "bram": plan.bram, "lut": plan.lut}
    assert (tmp_path / "out" / "top.v").read_text() == "top: NormUnit for LFE5U"

    # A little slower is no regression, much slower is.
    baseline = ("-o", tmp_path / "out", "--baseline", tmp_path / "report.json")
    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp, bram=plan.bram, fmax=73)
    assert lichen(capsys, *arguments, "conv1_norm", *baseline)[0] == 0
    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp, bram=plan.bram, fmax=71)
    status, _, err = lichen(capsys, *arguments, "conv1_norm", *baseline)
    assert status == 1
    assert err.splitlines()[-1].endswith("report.json: fmax_mhz 71 instead of 80.")

    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp + 1, bram=plan.bram)
    status, _, err = lichen(capsys, *arguments, "conv1_norm", "-o", tmp_path / "out")
    assert status == 1
    assert f"synthesis made {plan.dsp + 1} multipliers" in err
    status, _, err = lichen(capsys, *arguments, "conv9", "-o", tmp_path / "out")
    assert status == 2
    assert "this pipeline has conv1, conv1_norm, conv2." in " ".join(err.split())


def test_build_exit_statuses(tmp_path, monkeypatch, capsys, files, network, light):
    net, folding = files
    plan = planned(network)
    arguments = ("build", net, "--board", "ulx3s-85f", "--folding", folding)
    arguments = (*arguments, "-o", tmp_path / "out")
    fakes.install(tmp_path / "tools", monkeypatch, dsp=plan.dsp, bram=plan.bram, fmax=45)
    fixed = (*arguments, "--clock", 50)
    status, _, err = lichen(capsys, *fixed)
    assert status == 1
    assert err.splitlines()[-1].startswith("lichen: timing is missed: 45.0 MHz of the 50 MHz")
    assert (tmp_path / "out" / "top.bit").exists()
    assert lichen(capsys, *fixed, "--allow-timing-failure")[0] == 0
    # Free to choose, the build takes what it gets, and says how much less than hoped for that is.
    status, out, err = lichen(capsys, *arguments)
    assert status == 0
    assert "45 MHz for a clock of 45" in out
    assert err.splitlines()[-1] == ("lichen: the clock is 10.0 % below the 50 MHz of the plan.")

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
        ({"--plot": "floor.jpg"}, "floor.jpg must end in one of .svg, .png, .pdf to be drawn."),
        ({"--plot": "a.svg", "--unit": "conv1"}, "--plot draws a floorplan, and this build makes"),
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
        ('{"max_width": 9, "stages": [{"chains": 1}]}', "stages.0.convolution: is missing"),
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


def test_what_takes_no_pixels_has_a_bitstream_too(network):
    """Bytes follow from the formats: 9 bits are two of them."""
    shapes = [StageShape(out_channels=2, kernel=3)]
    source = network.transforms["g_a"].output
    inner = random_transform(np.random.default_rng(1), shapes, in_channels=6, source=source)
    both = Network(name="x", architecture="custom", n=2, m=2, transforms={"h_a": inner})
    folding = Folding(
        max_width=8, stages=[StageFolding(chains=1, convolution=SMALL.stages[1].convolution)]
    )
    design = Design.make(both, "h_a", folding)
    board = boards.ULX3S_85F
    (port,) = Bitstream(designs=(design,)).top(board, board.pll()).ports
    assert (port.format.name, port.format.in_position, port.format.out_position) == ("h_a", 12, 2)
    parameters = interface(Core.make(design, "ecp5"), [], board)["parameters"]
    assert (parameters["in_bits"], parameters["in_signed"]) == (9, True)


def test_load_network_reads_files(files, network):
    assert digest(load_network(str(files[0]))) == digest(network)
