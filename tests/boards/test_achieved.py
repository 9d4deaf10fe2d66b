"""Where the clock of a plan comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lichen.boards.board import ULX3S_85F
from lichen.boards.build import achieved
from lichen.boards.build.achieved import Achieved, expected_clock
from lichen.hw.device.device import Resources

BUILDS = Path(__file__).parents[2] / "benchmarks" / "builds"


def build(name: str, fmax: float, **used: int) -> Achieved:
    return Achieved(
        design=name, device="LFE5U-85F-6", fmax_mhz=fmax, **({"dsp": 0, "bram": 0, "lut": 0} | used)
    )


@pytest.fixture
def known(monkeypatch):
    """Three builds of the device, and a faster one of another."""
    records = (
        build("half", 120.0, dsp=78),
        build("most", 95.0, bram=187),
        build("all", 80.0, dsp=100, lut=83640),
        Achieved(design="other", device="LFE5U-85F-8", fmax_mhz=200, dsp=156, bram=208, lut=80000),
    )
    monkeypatch.setattr(achieved, "records", lambda: records)


@pytest.mark.parametrize(
    ("used", "mhz", "said"),
    [
        ({"dsp": 10}, 120, "achieved by a build of half (120 MHz, 50% full)"),
        ({"dsp": 78}, 120, "half"),
        ({"dsp": 79}, 95, "most (95 MHz, 90% full)"),
        ({"lut": 83000}, 80, "all (80 MHz, 100% full)"),
        ({"lut": 84000}, 80, "100% full, the fullest so far though this needs more"),
    ],
)
def test_the_clock_is_that_of_a_build_as_full(known, used, mhz, said):
    clock = expected_clock(ULX3S_85F, Resources(**used))
    assert clock.limit_mhz == mhz
    assert said in clock.source


def test_without_any_build_it_is_the_boards_default(monkeypatch):
    monkeypatch.setattr(achieved, "records", lambda: ())
    clock = expected_clock(ULX3S_85F, Resources())
    assert clock.limit_mhz == ULX3S_85F.clock_mhz
    assert clock.source == "the ULX3S 85F's default, nothing was built yet"


def test_every_record_is_a_build_whose_report_is_kept():
    reports = [json.loads(path.read_text()) for path in sorted(BUILDS.glob("*.json"))]
    made = {Achieved.of_report(report, ULX3S_85F) for report in reports}
    assert made == set(achieved.records())
    assert len(made) == len(achieved.records())
