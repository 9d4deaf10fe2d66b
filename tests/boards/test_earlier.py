# amaranth: UnusedElaboratable=no
"""What a build takes over from an earlier one, and what it says of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lichen.boards.board import ULX3S_85F
from lichen.boards.build import earlier
from lichen.boards.build.earlier import PLACES, PlacesDifferError
from lichen.boards.build.flow import REPORT, Report, build
from lichen.boards.build.tools import Progress
from lichen.boards.ecp5.floorplan import earlier as places
from lichen.boards.ecp5.floorplan.place import Effort
from lichen.boards.ecp5.floorplan.plan import apply
from lichen.errors import UserError

from . import fakes
from .netlists import ring
from .test_build import PLANNED, PLL, make_top

COUNTS = {"dsp": PLANNED.dsp, "bram": PLANNED.bram}
SEES = "pathlib.Path('logs/seen.json').write_text(pathlib.Path('top.json').read_text())\n"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Fakes whose netlist has multipliers and block RAMs; call it with another netlist."""
    monkeypatch.setattr("lichen.boards.ecp5.floorplan.plan.TRIES", 1)
    monkeypatch.setattr("lichen.boards.ecp5.floorplan.place.Effort", lambda: Effort(spread=20))

    def install(design: dict) -> None:
        body = fakes.YOSYS % COUNTS
        fakes.install(
            tmp_path / "tools",
            monkeypatch,
            **COUNTS,
            yosys=body + f"pathlib.Path('top.json').write_text({json.dumps(design)!r})\n",
            nextpnr_ecp5=fakes.NEXTPNR % (COUNTS | {"fmax": 80}) + SEES,
        )

    install(ring(1))
    return install


def run(folder: Path, source: Path | None = None, **options) -> tuple[Report, str]:
    """Build; returns the report and what was said."""
    said = io.StringIO()
    found = None if source is None else earlier.find(source, REPORT)
    report = build(
        top=make_top(), board=fakes.LIGHT_BOARD, pll=PLL, folder=folder, earlier=found,
        progress=Progress(said), **options,
    )  # fmt: skip
    return report, said.getvalue()


def given(folder: Path) -> dict[str, str]:
    """The places that place and route was given, by cell."""
    seen = json.loads((folder / "logs" / "seen.json").read_text())
    cells = seen["modules"]["top"]["cells"]
    return {n: c["attributes"]["BEL"] for n, c in cells.items() if "BEL" in c["attributes"]}


def test_the_same_inputs_make_the_same_bitstream(tmp_path, tools):
    """No tool runs again; what the caller knows of the network is new."""
    first, _ = run(tmp_path / "a", details={"network": "one"}, cycles_per_frame=1_000_000)
    tools({})  # a netlist that ends any build
    second, said = run(
        tmp_path / "b", tmp_path / "a", details={"network": "two"}, cycles_per_frame=2_000_000
    )
    assert "a was made of the same: its bitstream is taken over" in said
    assert (first.reused, second.reused) == (None, "build")
    assert (first.fps, second.fps) == (50.0, 25.0)
    assert list(second.seconds) == ["elaborate"]
    assert second.to_json()["network"] == "two"
    assert json.loads((tmp_path / "b" / REPORT).read_text()) == second.to_json()
    differ = {"fps", "cycles_per_frame", "seconds", "reused", "network"}
    same = first.to_json().keys() - differ
    assert {k: second.to_json()[k] for k in same} == {k: first.to_json()[k] for k in same}
    names = [{path.name for path in (tmp_path / x).iterdir()} for x in "ab"]
    assert names[0] == names[1] >= {"top.bit", "floorplan.png", PLACES}
    assert (tmp_path / "a" / "top.bit").read_bytes() == (tmp_path / "b" / "top.bit").read_bytes()


def test_a_build_may_replace_the_one_it_is_taken_from(tmp_path, tools):
    run(tmp_path / "a")
    report, _ = run(tmp_path / "a", tmp_path / "a", plot=tmp_path / "plan.svg")
    assert report.reused == "build" and (tmp_path / "a" / "top.bit").exists()


@pytest.mark.parametrize(
    "options", [{"seed": 2}, {"seeds": 2}, {"floorplan": 2}, {"any_clock": True}], ids=str
)
def test_other_options_are_another_build(tmp_path, tools, options):
    """Of which only the places stay."""
    run(tmp_path / "a")
    report, said = run(tmp_path / "b", tmp_path / "a", **options)
    assert "the places of its multipliers and block RAMs are taken over" in said
    assert report.reused == "places" and given(tmp_path / "b") == given(tmp_path / "a")


def test_a_damaged_bitstream_is_made_again(tmp_path, tools):
    run(tmp_path / "a")
    good = (tmp_path / "a" / "top.bit").read_bytes()
    (tmp_path / "a" / "top.bit").write_bytes(good[:-1])
    report, said = run(tmp_path / "b", tmp_path / "a")
    assert "its files are damaged" in said and report.reused == "places"
    assert (tmp_path / "b" / "top.bit").read_bytes() == good


@pytest.mark.parametrize(
    "change",
    [{"fmax_mhz": "fast"}, {"seeds": [1]}, {"dsp": None}, {"link": {"bram": "2"}}],
    ids=str,
)
def test_a_report_that_was_changed_by_hand_is_made_again(tmp_path, tools, change):
    run(tmp_path / "a")
    report = tmp_path / "a" / REPORT
    report.write_text(json.dumps(json.loads(report.read_text()) | change))
    made, said = run(tmp_path / "b", tmp_path / "a")
    assert "its files are damaged" in said and made.reused == "places"


def test_other_logic_has_the_same_places(tmp_path, tools):
    """Multipliers and block RAMs stay where they were, wherever a floorplan would have them."""
    run(tmp_path / "a")
    design = ring(1)
    for cell in design["modules"]["top"]["cells"].values():
        if cell["type"] == "LUT4":
            cell["parameters"]["INIT"] = "1" * 16
    tools(design)
    report, _ = run(tmp_path / "b", tmp_path / "a", seed=2)
    assert given(tmp_path / "b") == given(tmp_path / "a") != {}
    assert report.floorplan == json.loads((tmp_path / "a" / REPORT).read_text())["floorplan"]
    # And a third build takes them from the second.
    third, _ = run(tmp_path / "c", tmp_path / "b", seed=3)
    assert third.reused == "places" and given(tmp_path / "c") == given(tmp_path / "a")


def test_other_multipliers_have_a_floorplan_of_their_own(tmp_path, tools):
    run(tmp_path / "a")
    tools(ring(2))
    report, said = run(tmp_path / "b", tmp_path / "a", seed=2)
    assert "nothing of " in said and "it has other multipliers or block RAMs" in said
    assert report.reused is None and report.floorplan["macros"] == 6


def test_a_build_without_a_floorplan_has_no_places(tmp_path, tools):
    run(tmp_path / "a", floorplan=None)
    assert not (tmp_path / "a" / PLACES).exists()
    report, said = run(tmp_path / "b", tmp_path / "a")
    assert "it has no floorplan" in said and report.reused is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no complete build in"),
        ("{", "is not the report of a build"),
        ("[]", "is not the report of a build"),
        ('{"device": "x"}', "is not the report of a build"),
    ],
)
def test_no_build_to_take_from(tmp_path, content, reason):
    if content is not None:
        (tmp_path / REPORT).write_text(content)
    with pytest.raises(UserError, match=reason):
        earlier.find(tmp_path, REPORT)


def write_netlist(folder: Path, names: dict[str, str]) -> Path:
    """A ring whose cells have other names."""
    design = ring(1)
    cells = design["modules"]["top"]["cells"]
    design["modules"]["top"]["cells"] = {names.get(n, n): c for n, c in cells.items()}
    (folder / "top.json").write_text(json.dumps(design))
    return folder / "top.json"


def test_yosys_names_multipliers_by_any_of_their_pins(tmp_path):
    multipliers = [
        name
        for name, cell in ring(1)["modules"]["top"]["cells"].items()
        if cell["type"] == "MULT18X18D"
    ]
    before = {name: f"u{i}.mul_TRELLIS_FF_Q_DI_MULT18X18D_P3" for i, name in enumerate(multipliers)}
    after = {name: f"u{i}.mul_TRELLIS_FF_Q_DI_MULT18X18D_P15" for i, name in enumerate(multipliers)}
    (tmp_path / "top.lpf").write_text("")
    plan = apply(
        write_netlist(tmp_path, before), tmp_path / "top.lpf", device="LFE5U-25F",
        package="CABGA381", aim_hz=110e6, tries=1, effort=Effort(spread=20),
    )  # fmt: skip
    assert plan is not None
    kept = json.loads(json.dumps(places.record(plan, "LFE5U-25F")))
    netlist = write_netlist(tmp_path, after)
    taken = places.apply(netlist, "LFE5U-25F", kept)
    for name in multipliers:
        assert taken.places[after[name]] == plan.places[before[name]]
    with pytest.raises(PlacesDifferError, match="it is for LFE5U-25F, not LFE5U-85F"):
        places.apply(netlist, "LFE5U-85F", kept)
    one, *_ = kept["places"]
    for place in (
        "X0/Y0/NOWHERE",
        ["X0"],
        None,
        next(p for n, p in kept["places"].items() if n != one),
    ):
        kept["places"][one] = place
        with pytest.raises(PlacesDifferError, match="its places are none of the device"):
            places.apply(netlist, "LFE5U-25F", kept)
    for told in (None, [], {"seed": 1}):
        with pytest.raises(PlacesDifferError, match="does not tell how its places were found"):
            places.apply(netlist, "LFE5U-25F", kept | {"floorplan": told})


def test_a_report_that_lost_a_field_is_of_no_build(tmp_path, tools):
    run(tmp_path / "a")
    path = tmp_path / "a" / REPORT
    told = json.loads(path.read_text())
    del told["clock_mhz"]
    path.write_text(json.dumps(told))
    report, said = run(tmp_path / "b", tmp_path / "a")
    assert "its files are damaged" in said and report.reused == "places"


@pytest.mark.slow
def test_real_builds(tmp_path):
    """With another network's digest the logic is another; its multipliers are where they were."""

    def real(name: str, digest: bytes, source: str | None = None) -> Report:
        found = None if source is None else earlier.find(tmp_path / source, REPORT)
        return build(
            top=make_top(digest=digest), board=ULX3S_85F, pll=PLL, folder=tmp_path / name,
            earlier=found,
        )  # fmt: skip

    real("a", bytes(32))
    other = real("b", bytes(range(32)), "a")
    assert other.reused == "places" and other.timing_met
    kept = [json.loads((tmp_path / name / PLACES).read_text()) for name in "ab"]
    assert kept[0] == kept[1] and kept[0]["places"]
    assert real("c", bytes(32), "a").reused == "build"
    assert (tmp_path / "a" / "top.bit").read_bytes() == (tmp_path / "c" / "top.bit").read_bytes()
