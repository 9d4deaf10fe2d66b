"""Where the clock of a plan comes from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lichen.boards import board as boards
from lichen.boards.board import ULX3S_85F
from lichen.boards.build import achieved
from lichen.boards.build.achieved import Achieved, Clock, expected_clock, fingerprint
from lichen.boards.build.report import LUT_PROMISE
from lichen.boards.design import Bitstream, Design, fold
from lichen.hw.device.device import Resources
from lichen.hw.stage.folding import Folding
from lichen.models import load_network, shipped_network

CHECKPOINTS = Path(__file__).parents[2] / "benchmarks" / "checkpoints"
BUILDS = Path(__file__).parents[2] / "benchmarks" / "builds"


FOLDING = Folding.model_validate(
    {
        "max_width": 64,
        "stages": [
            {
                "chains": 1,
                "convolution": {"pixels": 1, "chain_length": 2, "lanes": 3, "backend": "lut"},
                "normalization": None,
            }
        ],
    }
)


def build(name: str, fmax: float, folding: str = "", **used: int) -> Achieved:
    return Achieved(
        design=name,
        device="LFE5U-85F-6",
        fmax_mhz=fmax,
        folding=folding,
        **({"dsp": 0, "bram": 0, "lut": 0} | used),
    )


@pytest.fixture
def known(monkeypatch):
    """Three builds of the device, and a faster one of another."""
    records = (
        build("half", 120.0, dsp=78),
        build("most", 95.0, bram=187),
        build("all", 80.0, dsp=100, lut=83640),
        build("slow", 70.0, fingerprint([FOLDING], 1000, dsp=10, bram=1), dsp=10, bram=1),
        build("fast", 72.0, fingerprint([FOLDING], 1000, dsp=10, bram=1), dsp=10, bram=1),
        dataclasses.replace(build("other", 200.0, dsp=156, bram=208), device="LFE5U-85F-8"),
    )
    monkeypatch.setattr(achieved, "records", lambda: records)


@pytest.mark.parametrize(
    ("used", "mhz", "said", "interval"),
    [
        ({"dsp": 11}, 120, "built, one at least as full: half (120 MHz, 50% full)", (80, 120)),
        ({"dsp": 78}, 120, "built, one at least as full: half", (80, 120)),
        ({"dsp": 79}, 95, "built, one at least as full: most (95 MHz, 90% full)", (80, 120)),
        ({"lut": 83000}, 80, "built, one at least as full: all (80 MHz, 100% full)", (80, 120)),
        (
            {"lut": 84000},
            80,
            "not built: the fullest so far is all (80 MHz, 100% full), and this needs more",
            (50, 120),
        ),
    ],
)
def test_the_clock_is_that_of_a_build_as_full(known, used, mhz, said, interval):
    clock = expected_clock(ULX3S_85F, Resources(**used), foldings=[FOLDING], cycles_per_frame=1000)
    assert clock.limit_mhz == mhz
    assert clock.source.startswith(said)
    assert clock.interval_mhz == interval


def test_a_folding_that_was_built_has_its_own_clock(known):
    """The slowest build of it, though a fuller design was faster."""
    used = Resources(dsp=10, bram=1)
    clock = expected_clock(ULX3S_85F, used, foldings=[FOLDING], cycles_per_frame=1000)
    assert clock == Clock(limit_mhz=70.0, source="built, this folding: slow (70 MHz, 6% full)")
    for cycles, dsp, width in ((1001, 10, 64), (1000, 9, 64), (1000, 10, 65)):
        other = expected_clock(
            ULX3S_85F,
            Resources(dsp=dsp, bram=1),
            foldings=[FOLDING.model_copy(update={"max_width": width})],
            cycles_per_frame=cycles,
        )
        assert not other.source.startswith("built, this folding")


def test_a_record_of_several_seeds_promises_what_the_slowest_has(monkeypatch):
    report = json.loads((BUILDS / "small-opt-default.json").read_text())
    report |= {"seed": 3, "fmax_mhz": 99.5, "seeds": {"2": 91.25, "3": 99.5, "4": 95.0}}
    board = boards.find(report["board"])
    record = Achieved.of_report(report, board)
    assert (record.fmax_mhz, record.seeds) == (91.25, 3)
    monkeypatch.setattr(achieved, "records", lambda: (record,))
    clock = expected_clock(
        board,
        Resources(dsp=record.dsp, bram=record.bram - report["link"]["bram"]),
        foldings=[Folding.model_validate(report["folding"])],
        cycles_per_frame=report["cycles_per_frame"],
    )
    assert clock.limit_mhz == 91.25
    assert "(91.25 MHz, the slowest of 3 seeds, " in clock.source


def test_without_any_build_it_is_the_boards_default(monkeypatch):
    monkeypatch.setattr(achieved, "records", lambda: ())
    clock = expected_clock(ULX3S_85F, Resources())
    assert clock.limit_mhz == ULX3S_85F.clock_mhz
    assert clock.source == "not built: the ULX3S 85F's default, nothing was built for it yet"


def test_every_record_is_a_build_whose_report_is_kept():
    reports = [json.loads(path.read_text()) for path in sorted(BUILDS.glob("*.json"))]
    made = {Achieved.of_report(report, boards.find(report["board"])) for report in reports}
    assert made == set(achieved.records())
    assert len(made) == len(achieved.records())


@pytest.mark.parametrize(
    "name",
    [
        "small-opt-default",
        "small-opt-decoder",
        "tiny-ulx3s-25f",
        pytest.param("small-opt-ecpix5", marks=pytest.mark.slow),
        pytest.param("tiny-both", marks=pytest.mark.slow),
        pytest.param("tiny-orangecrab-25f", marks=pytest.mark.slow),
    ],
)
def test_what_is_on_record_is_what_the_planner_chooses(name):
    """So that a plan without options has been built."""
    report = json.loads((BUILDS / f"{name}.json").read_text())
    board = boards.find(report["board"]).with_link(report.get("link_kind", "uart"))
    network = load_network(report["network"]["name"])
    parts = report.get("transforms", {report["transform"]: report})
    made = [Folding.model_validate(part["folding"]) for part in parts.values()]
    assert fold(network, list(parts), board) == made


@pytest.mark.parametrize("path", sorted(BUILDS.glob("*.json")), ids=lambda path: path.stem)
def test_no_record_is_stale(path):
    """What is on record is what these networks and this gateware make today.

    Where it is not: ``python benchmarks/record_build.py --renew NAME``.
    """
    report = json.loads(path.read_text())
    name = report["network"]["name"]
    shipped = shipped_network(name) is not None
    network = load_network(name if shipped else str(CHECKPOINTS / f"{name}.lichen"))
    parts = report.get("transforms", {report["transform"]: report})
    designs = tuple(
        Design.make(network, transform, Folding.model_validate(part["folding"]))
        for transform, part in parts.items()
    )
    design = Bitstream(designs=designs)
    planned = design.resources(boards.find(report["board"]))
    assert {one.digest for one in designs} == {report["network"]["sha256"]}
    assert design.cycles_per_frame == report["cycles_per_frame"]
    link = report.get("link", {"bram": 0, "lut": 0})
    assert (planned.dsp, planned.bram) == (report["dsp"], report["bram"] - link["bram"])
    lut = planned.lut + link["lut"]
    assert abs(report["lut"] - lut) <= LUT_PROMISE * lut
