# amaranth: UnusedElaboratable=no
"""The build: its report, its gate on the plan, its folder, and what it says when things fail."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
from pathlib import Path

import pytest

from lichen.boards.board import ULX3S_85F
from lichen.boards.build.cluster import connected
from lichen.boards.build.flow import BuildFailedError, Report, build
from lichen.boards.build.tools import Progress, Tool
from lichen.boards.design import check_fits
from lichen.boards.ecp5.floorplan.place import Effort
from lichen.boards.ecp5.toolchain import NEXTPNR_ECP5
from lichen.boards.port.port import TransformPort
from lichen.boards.top import Top
from lichen.errors import UserError
from lichen.hw.device.device import Resources
from lichen.hw.device.ecp5 import ECP5

from . import fakes
from .netlists import ring
from .standin import Standin

PLL = ULX3S_85F.pll()


def make_top(pipeline: Standin | None = None, digest: bytes = bytes(32)) -> Top:
    return Top(
        ports=[TransformPort(name="g_a", pipeline=pipeline or Standin(), max_width=64)],
        clock_hz=PLL.output_hz,
        oscillator_hz=ULX3S_85F.oscillator_hz,
        link=ULX3S_85F.link,
        digest=digest,
    )


PLANNED = make_top().resources(ECP5)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Install fakes that agree with the plan; call it with bodies to replace some."""

    def install(**changes):
        agree = {"dsp": PLANNED.dsp, "bram": PLANNED.bram}
        fakes.install(tmp_path / "tools", monkeypatch, **(agree | changes))

    install()
    return install


def run(folder: Path, **options) -> Report:
    return build(top=make_top(), board=fakes.LIGHT_BOARD, pll=PLL, folder=folder, **options)


def test_a_complete_build(tmp_path, tools):
    report = run(
        tmp_path / "out", seed=7, cycles_per_frame=2_500_000, details={"network": {"name": "x"}}
    )
    assert report.timing_met
    assert report.shortfall() is None
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == report.to_json()
    assert set(written) >= {
        *("fmax_mhz", "clock_mhz", "fps", "dsp", "lut", "ff", "bram", "tool_versions"),
        *("planned", "cycles_per_frame", "seconds", "network", "units"),
    }
    assert (written["fmax_mhz"], written["clock_mhz"], written["fps"]) == (80.0, 50.0, 20.0)
    assert (written["lut"], written["ff"], written["seed"]) == (1234, 567, 7)
    assert written["tool_versions"]["nextpnr-ecp5"] == "1.2.3"
    assert list(written["seconds"]) == [
        *("elaborate", "yosys", "floorplan", "nextpnr-ecp5", "ecppack")
    ]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"top.bit", "top.v", "top.lpf", "top.ys", "report.json", "logs"}
    assert not (tmp_path / "out.part").exists()


@pytest.fixture
def marked_seeds(tools):
    """Seed 5 of 4 to 6 is the fastest, and every seed leaves its mark in the result."""
    body = fakes.NEXTPNR % {"dsp": PLANNED.dsp, "bram": PLANNED.bram, "fmax": 0}
    body = body.replace(
        '"achieved": 0.000000', '"achieved": {"4": 61.0, "5": 70.5, "6": 66.0}[seed]'
    )
    body = (
        "import sys\nseed = sys.argv[sys.argv.index('--seed') + 1]\n"
        "if not open('top.json').read(): sys.exit('no netlist')\nprint('seed', seed)\n"
        + body
        + "pathlib.Path(sys.argv[sys.argv.index('--textcfg') + 1]).write_text(seed)\n"
    )
    check = "assert pathlib.Path('top.config').read_text() == '5'\n"
    tools(nextpnr_ecp5=body, ecppack=fakes.ECPPACK.replace("\npathlib", "\n" + check + "pathlib"))


def test_of_several_seeds_the_fastest_is_kept(tmp_path, marked_seeds):
    report = run(tmp_path / "out", seed=4, seeds=3)
    assert (report.fmax_mhz, report.seed) == (70.5, 5)
    assert report.seeds == {"4": 61.0, "5": 70.5, "6": 66.0}


@pytest.fixture
def scheduler():
    """The address of a cluster of two workers, threads of this process."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def test_seeds_on_a_cluster(tmp_path, marked_seeds, scheduler):
    """The same files and the same report as here, logs of every seed included."""
    here = run(tmp_path / "here", seed=4, seeds=3)
    with connected(scheduler) as cluster:
        there = run(tmp_path / "there", seed=4, seeds=3, cluster=cluster)
    assert (there.fmax_mhz, there.seed, there.seeds) == (here.fmax_mhz, here.seed, here.seeds)
    for seed in (4, 5, 6):
        name = f"logs/nextpnr-ecp5.log.{seed}"
        assert (tmp_path / "there" / name).read_text() == f"seed {seed}\n"
    files = [
        {path.relative_to(tmp_path / side) for path in (tmp_path / side).rglob("*")}
        for side in ("here", "there")
    ]
    assert files[0] == files[1]


def test_what_fails_on_a_cluster(tmp_path, tools, scheduler, monkeypatch):
    tools(nextpnr_ecp5="import sys\nsys.exit('ERROR: no place is left')")
    with connected(scheduler) as cluster:
        with pytest.raises(BuildFailedError, match=r"on a worker of .*: no place is left; see"):
            run(tmp_path / "out", cluster=cluster)
        (log,) = (tmp_path / "out.part" / "logs").glob("nextpnr-ecp5.log")
        assert "no place is left" in log.read_text()
        # Of every tool for the report, then of nextpnr here and there.
        versions = iter([*["1.2.3"] * len(ULX3S_85F.makers.toolchain.tools), "1.2.3", "9.9"])
        monkeypatch.setattr(Tool, "version", lambda tool: next(versions))
        with pytest.raises(BuildFailedError, match=r"nextpnr-ecp5 is 9\.9 there, and 1\.2\.3 here"):
            run(tmp_path / "out", cluster=cluster)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere"])
def test_no_scheduler(monkeypatch, address):
    pytest.importorskip("distributed")
    monkeypatch.setattr("lichen.cluster.CONNECT_S", 1)
    cluster = connected(address)
    with pytest.raises(UserError, match=f"there is no Dask scheduler at {address}"):
        cluster.__enter__()


@pytest.mark.parametrize(
    ("asked", "crowded", "floorplan", "placer"),
    [(None, False, None, "heap"), (None, True, None, "static"), (None, True, 1, "heap"),
     ("static", False, 1, "static"), ("heap", True, None, "heap")],
)  # fmt: skip
def test_crowded_designs_are_spread(
    tmp_path, tools, monkeypatch, asked, crowded, floorplan, placer
):
    budget = ULX3S_85F.budget.lut
    share = make_top().resources(ECP5).lut / budget
    monkeypatch.setattr("lichen.boards.build.flow.CROWDED", share * (0.99 if crowded else 1.01))
    body = fakes.NEXTPNR % {"dsp": PLANNED.dsp, "bram": PLANNED.bram, "fmax": 80}
    tools(nextpnr_ecp5=body + "pathlib.Path('logs/options').write_text(' '.join(sys.argv))\n")
    assert run(tmp_path / "out", placer=asked, floorplan=floorplan).placer == placer
    options = (tmp_path / "out" / "logs" / "options").read_text()
    assert ("--placer static" in options) == (placer == "static")
    assert ("--placer-heap" in options) == (placer == "heap")
    assert "--router router2" in options


def test_the_floorplan_stands_between_synthesis_and_placement(tmp_path, tools, monkeypatch):
    """nextpnr gets the netlist with places; the report, the picture and the seed tell of them."""
    monkeypatch.setattr("lichen.boards.ecp5.floorplan.plan.TRIES", 2)
    monkeypatch.setattr("lichen.boards.ecp5.floorplan.place.Effort", lambda: Effort(spread=20))
    design = ring(1)
    body = fakes.YOSYS % {"dsp": PLANNED.dsp, "bram": PLANNED.bram}
    tools(
        yosys=body + f"pathlib.Path('top.json').write_text({json.dumps(design)!r})\n",
        nextpnr_ecp5=(fakes.NEXTPNR % {"dsp": PLANNED.dsp, "bram": PLANNED.bram, "fmax": 80})
        + "pathlib.Path('logs/seen.json').write_text(pathlib.Path('top.json').read_text())\n",
    )
    report = run(tmp_path / "out", floorplan=2, plot=tmp_path / "floor.svg")
    seen = json.loads((tmp_path / "out" / "logs" / "seen.json").read_text())
    places = [c["attributes"].get("BEL") for c in seen["modules"]["top"]["cells"].values()]
    assert len(set(places) - {None}) == report.floorplan["macros"] == 3
    assert report.floorplan["seed"] == 2
    assert report.floorplan["wire_length"] in report.floorplan["tries"]
    assert (tmp_path / "floor.svg").read_text().startswith("<?xml")
    assert (tmp_path / "out" / "floorplan.png").read_bytes().startswith(b"\x89PNG")
    assert run(tmp_path / "out", floorplan=None).floorplan is None
    seen = json.loads((tmp_path / "out" / "logs" / "seen.json").read_text())
    assert seen == design and not (tmp_path / "out" / "floorplan.png").exists()
    # A picture that cannot be written costs a sentence, and no bitstream.
    with pytest.raises(UserError, match="cannot write"):
        run(tmp_path / "new", plot=tmp_path / "nowhere" / "floor.svg")
    assert (tmp_path / "new" / "top.bit").exists()


def routers(**options) -> str:
    """nextpnr, whose router does not come to an end with some seeds."""
    agree = {"dsp": PLANNED.dsp, "bram": PLANNED.bram, "fmax": 80}
    return fakes.STUCK % options + fakes.NEXTPNR % agree


def test_a_router_that_gets_nowhere_is_ended_and_the_next_seed_tried(tmp_path, tools):
    tools(nextpnr_ecp5=routers(seeds=["1", "2"]))
    said = io.StringIO()
    report = run(tmp_path / "out", progress=Progress(said))
    assert (report.seed, report.seeds) == (3, {"3": 80.0})
    assert "finds no way around a wire that two nets need, after 200 iterations" in said.getvalue()
    assert "trying seed 2" in said.getvalue() and "trying seed 3" in said.getvalue()
    logs = tmp_path / "out/logs"
    for seed in (1, 2):
        assert f"nextpnr-ecp5.log.{seed}; trying" in said.getvalue()
        assert "overused" in (logs / f"nextpnr-ecp5.log.{seed}").read_text()
    assert (logs / "nextpnr-ecp5.log").exists()


def test_several_seeds_go_on_without_one_that_gets_nowhere(tmp_path, tools):
    tools(nextpnr_ecp5=routers(seeds=["2"]))
    report = run(tmp_path / "out", seeds=3)
    assert set(report.seeds) == {"1", "3"}


def test_no_seed_comes_to_an_end(tmp_path, tools):
    tools(nextpnr_ecp5=routers(seeds=["4", "5", "6"]))
    with pytest.raises(BuildFailedError, match="finds no way around a wire"):
        run(tmp_path / "one", seed=4)
    with pytest.raises(BuildFailedError, match="finds no way around a wire"):
        run(tmp_path / "several", seed=4, seeds=3)


def test_a_router_that_gets_on_is_left_alone():
    def log(counts: list[int]) -> str:
        return "".join(f"Info: iter={i} wires=9 overused={n} x\n" for i, n in enumerate(counts, 1))

    stuck = NEXTPNR_ECP5.stuck
    assert stuck(log([*range(300, 1, -1)])) == ""
    assert stuck(log([1] * 149)) == ""
    assert stuck(log([*range(150, 0, -1), *[1] * 40])) == ""
    assert "2 wires that nets share" in stuck(log([2] * 200))


@pytest.mark.parametrize(
    ("netlist", "reason"),
    [
        ("{", "top.json is no netlist of yosys"),
        ('{"modules": {}}', "top.json is no netlist of yosys ('top')"),
        ('{"modules": {"top": {"ports": {}, "cells": []}}}', "top.json is no netlist of yosys"),
        ('{"modules": {"top": {"cells": {"a": {"type": "b"}}}}}', "is no netlist of yosys"),
        (
            json.dumps(ring(79)),
            "no floorplan: 158 multipliers have no room: LFE5U-85F has 156; --no-floorplan builds",
        ),
    ],
    ids=["no JSON", "no module", "no cells", "no pins", "no room"],
)
def test_no_floorplan_can_be_made(tmp_path, tools, netlist, reason):
    body = fakes.YOSYS % {"dsp": PLANNED.dsp, "bram": PLANNED.bram}
    tools(yosys=body + f"pathlib.Path('top.json').write_text({netlist!r})\n")
    with pytest.raises(BuildFailedError, match=re.escape(reason)):
        run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_build_is_replaced_as_a_whole(tmp_path, tools):
    run(tmp_path / "out")
    (tmp_path / "out" / "stray").touch()
    run(tmp_path / "out")
    assert not (tmp_path / "out" / "stray").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


def test_timing_missed_is_a_build_and_a_sentence(tmp_path, tools):
    tools(fmax=40.0)
    report = run(tmp_path / "out")
    assert not report.timing_met
    assert report.shortfall().startswith(
        "timing is missed: 40.0 MHz of the 50 MHz wanted, 20.0 % short"
    )
    assert (tmp_path / "out" / "top.bit").exists()


@pytest.mark.parametrize(
    ("fmax", "clock", "words"),
    [
        (79.5, 79.166667, ("0000000", "0010010", "0000101")),
        (40.0, 40.0, ("0000000", "0010111", "0001110")),
        (50.0, 50.0, ("0000000", "0010111", "0001011")),
    ],
)
def test_the_clock_follows_what_was_achieved(tmp_path, tools, fmax, clock, words):
    check = (
        "lines = pathlib.Path('top.config').read_text().splitlines()\n"
        f"assert 'word: CLKI_DIV {words[0]}' in lines, lines\n"
        f"assert 'word: CLKOS_DIV {words[1]}' in lines, lines\n"
        f"assert 'word: CLKOP_DIV {words[2]}' in lines, lines\n"
    )
    tools(fmax=fmax, ecppack=fakes.ECPPACK.replace("\npathlib", "\n" + check + "pathlib"))
    report = run(tmp_path / "out", any_clock=True, promised_mhz=66.0, cycles_per_frame=1_000_000)
    assert (report.target_mhz, report.fmax_mhz) == (66.0, fmax)
    assert report.clock_mhz == pytest.approx(clock)
    assert report.timing_met and report.shortfall() is None
    assert report.fps == pytest.approx(clock, abs=1e-3)
    assert report.baud == ULX3S_85F.uart.baud, "the line has a clock of its own"


def test_a_clock_that_cannot_be_set(tmp_path, tools):
    tools(nextpnr_ecp5=(fakes.NEXTPNR % {"dsp": 3, "bram": 2, "fmax": 80}).replace("CPHASE", "X"))
    with pytest.raises(BuildFailedError, match=r"the clock cannot be set: .*CPHASE"):
        run(tmp_path / "out", any_clock=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"dsp": 2}, {"bram": 9}])
def test_another_count_than_planned_fails(tmp_path, tools, change):
    tools(**change, nextpnr_ecp5="raise SystemExit('must not run')")
    with pytest.raises(BuildFailedError) as caught:
        run(tmp_path / "out")
    made = {"dsp": PLANNED.dsp, "bram": PLANNED.bram} | change
    assert str(caught.value) == (
        f"synthesis made {made['dsp']} multipliers and {made['bram']} block RAMs where "
        f"{PLANNED.dsp} and {PLANNED.bram} were planned; see {tmp_path}/out.part/logs/yosys.log."
    )
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.part" / "logs" / "yosys.log").exists()
    # The next build starts afresh.
    tools()
    run(tmp_path / "out")
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "print('Info: packing'); print('ERROR: no room\\nbye'); raise SystemExit(1)",
            "nextpnr-ecp5 failed: no room; see",
        ),
        ("raise SystemExit(3)", "nextpnr-ecp5 failed: exit status 3; see"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "nextpnr-ecp5 failed: it was killed by signal 9, perhaps for want of memory; see",
        ),
        (
            "import sys; open(sys.argv[sys.argv.index('--report') + 1], 'w').write('{}')",
            "nextpnr.json is not the report of nextpnr expected",
        ),
    ],
    ids=["error line", "silent", "killed", "other report"],
)
def test_a_tool_fails(tmp_path, tools, body, reason):
    tools(nextpnr_ecp5=body)
    with pytest.raises(BuildFailedError, match=re.escape(reason)) as caught:
        run(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "out.part" / "logs") in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_tool(tmp_path, tools, monkeypatch):
    monkeypatch.setenv("ECPPACK", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"ECPPACK names '.*nowhere', which is not an executable"):
        run(tmp_path / "out")
    assert not (tmp_path / "out.part").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path, tools):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="out exists and holds something else"):
        run(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_file_in_the_way(tmp_path, tools):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory\."):
        run(tmp_path / "file" / "out")


def test_two_builds_at_once(tmp_path, tools):
    (tmp_path / "out.part").mkdir()
    handle = os.open(tmp_path / "out.part", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"another lichen is at work in .*out\.part"):
        run(tmp_path / "out")
    os.close(handle)


def test_a_crash_leaves_nothing(tmp_path, tools, monkeypatch):
    monkeypatch.setattr("lichen.boards.ecp5.toolchain.read_placement", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


def test_what_does_not_fit_is_said_before_anything_runs():
    with pytest.raises(UserError) as caught:
        check_fits(Resources(dsp=200, bram=208, lut=90_000), ULX3S_85F)
    assert str(caught.value) == (
        "the design does not fit the ULX3S 85F: 44 multipliers too many (200 of 156), "
        "6360 LUTs too many (90000 of 83640)."
    )


def test_link_takes_what_is_set_aside_for_it():
    top = make_top(Standin(in_lanes=8, in_channels=8, out_channels=8, out_lanes=4, bits=16))
    link, board = top.link_resources(ECP5), ULX3S_85F
    assert (link.dsp, link.bram) == (0, board.uart.bram)
    assert board.budget.bram - board.pipeline_budget.bram == link.bram
    assert link.lut <= board.budget.lut - board.pipeline_budget.lut


@pytest.mark.parametrize("any_clock", [False, True])
def test_real_synthesis_makes_what_was_planned(tmp_path, tools, monkeypatch, any_clock):
    """The real yosys on the real top; place and route are skipped.

    They are to aim at more than the clock, whether any will do or not, and whatever the plan said.
    """
    monkeypatch.delenv("YOSYS")
    report = build(
        top=make_top(), board=ULX3S_85F, pll=PLL, folder=tmp_path / "out", any_clock=any_clock,
        promised_mhz=80.0 if any_clock else None,
    )  # fmt: skip
    assert (report.planned["dsp"], report.planned["bram"]) == (PLANNED.dsp, PLANNED.bram)
    constraints = (tmp_path / "out" / "top.lpf").read_text()
    assert 'LOCATE COMP "uart_0__rx__io" SITE "M1";' in constraints
    assert 'LOCATE COMP "uart_0__tx__io" SITE "L4";' in constraints
    assert 'FREQUENCY NET "clk" 55000000 HZ;' in constraints
    verilog = (tmp_path / "out" / "top.v").read_text()
    assert "EHXPLLL" in verilog
    assert str(Path.cwd()) not in verilog


@pytest.mark.slow
def test_a_real_bitstream(tmp_path):
    report = build(top=make_top(), board=ULX3S_85F, pll=PLL, folder=tmp_path / "out")
    assert report.timing_met
    assert (report.dsp, report.bram) == (PLANNED.dsp, PLANNED.bram)
    nextpnr = json.loads((tmp_path / "out" / "logs" / "nextpnr.json").read_text())
    assert nextpnr["fmax"]["$glbnet$clk"]["constraint"] == pytest.approx(55, abs=0.1)
    planned = report.planned["lut"]
    assert abs(report.lut - planned) <= 0.1 * planned
    # Everything is somebody's, but for the lookup tables that place and route adds.
    for kind in ("dsp", "bram", "ff"):
        assert sum(used[kind] for used in report.units.values()) == getattr(report, kind)
    first = (tmp_path / "out" / "top.bit").read_bytes()
    build(top=make_top(), board=ULX3S_85F, pll=PLL, folder=tmp_path / "out")
    assert (tmp_path / "out" / "top.bit").read_bytes() == first
