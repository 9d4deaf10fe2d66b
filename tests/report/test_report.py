"""One page about a network or a build: what it says is what the other commands say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lichen import models
from lichen.boards import board as boards
from lichen.boards.build import achieved
from lichen.boards.design import fold
from lichen.cli import cli
from lichen.errors import UserError
from lichen.hw.plan.planner import evaluate
from lichen.network.description import PHOTO
from lichen.report import charts, facts, page
from lichen.report import make as make_module
from lichen.report.make import make
from lichen.report.subject import Subject, find
from lichen.sim.images import crop_middle, read_image

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "benchmarks" / "builds" / "small-opt.json"


class Outside(HTMLParser):
    """Collects what a page would ask a server for, and which tags are left open."""

    VOID = frozenset(("meta", "img", "input", "br", "path", "use"))

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            reaches = name in ("src", "href", "xlink:href", "srcset", "data")
            if reaches and not value.startswith(("#", "data:")):
                self.found.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return crop_middle(read_image(models.photograph()), 64, 64)


@pytest.fixture(scope="module")
def whole(pixels) -> str:
    """The page about `tiny` and about a build on record."""
    tiny, build = find(["tiny", str(BUILD)])
    # without its network, whose plans take half a minute
    subjects = [tiny, replace(build, network=None)]
    return make(subjects, board=boards.find("ulx3s-85f"), pixels=pixels)


def test_the_page_needs_no_network_and_is_well_formed(whole):
    parser = Outside()
    parser.feed(whole)
    assert parser.found == []
    assert parser.open == []
    assert "url(http" not in whole and "@import" not in whole
    assert len(set(parser.ids)) == len(parser.ids)


def test_it_has_every_section(whole):
    heads = re.findall(r"<h2>(.*?)</h2>", whole)
    assert heads == [
        "Summary",
        "Rate and distortion",
        "Stages",
        "Weights",
        "Sensitivity",
        "Plan",
        "Build",
        "Pictures",
    ]


def test_the_build_is_the_one_on_record(whole):
    record = json.loads(BUILD.read_text())
    assert f"{record['fmax_mhz']} MHz after place and route" in whole
    assert f'<td class="n">{record["ff"]:,}</td>' in whole


def test_plans_are_of_what_a_transform_reads(whole):
    """g_s reads latents: its arrays make as many products as they need, not 256 times as many."""
    network = models.load_network("tiny")
    plan = whole[whole.index("<h2>Plan</h2>") : whole.index("<h2>Build</h2>")]
    for key in ("g_a", "g_s"):
        part = plan[plan.index(f"<p>{key} on ") :]
        cycles = int(re.search(r": ([\d,]+) cycles", part)[1].replace(",", ""))
        folded = re.findall(r"(\d+) x (\d+) x (\d+)</td>", part[: part.index("</table>")])
        products = sum(int(p) * int(q) * int(s) for p, q, s in folded)
        needed = network.transforms[key].macs(*network.frames(*PHOTO)[key])
        assert 0.5 < needed / (cycles * products) <= 1, key


def numbers(html: str) -> list[list[int]]:
    """The rows of a table of counts."""
    return [
        [int(n.replace(",", "")) for n in re.findall(r'"n">(-?[\d,]+)<', line)]
        for line in html.splitlines()
        if "</td>" in line
    ]


def test_a_build_finds_its_network_and_what_was_planned_for_its_units():
    (build,) = find([str(BUILD)])
    assert build.network is not None
    (html,) = make_module._units(build)
    rows = numbers(html)
    assert len(rows) == 4 + 3 + 1  # convolutions, normalizations, the rest
    assert [sum(column) for column in zip(*rows, strict=True)] == [
        build.build["planned"][kind] for kind in ("dsp", "bram", "lut")
    ]
    assert min(rows[-1]) >= 0


def test_a_network_beside_its_build_is_described_once(pixels):
    """And once more where the build is of another network, under that network's name."""
    board = boards.find("ulx3s-85f")
    build = find([str(BUILD)])[0]
    network = models.load_network("tiny")
    own = replace(build, network=network, title="tiny g_a on ulx3s-85f")
    other = replace(own, network=models.load_network("small-q1"))
    for subjects, titles in (
        ([own, *find(["tiny"])], ["tiny"]),
        ([own], ["tiny"]),
        ([*find(["tiny"]), other], ["tiny", "small-q1"]),
    ):
        html = make(subjects, board=board, pixels=pixels, quick=True)
        for section in ("Stages", "Weights", "Pictures"):
            start = html.index(f"<h2>{section}</h2>")
            part = html[start : html.index("</section>", start)]
            assert re.findall(r"<h3>(.*?)</h3>", part) == titles
        built = html[html.index("<h2>Build</h2>") :]
        assert "MHz after place and route" in built


def test_a_folding_on_record_has_the_clock_of_its_build(pixels, monkeypatch):
    board = boards.find("ulx3s-85f")
    network = models.load_network("tiny")
    folding = fold(network, ["g_a"], board, max_width=None, multipliers=None)[0]
    plan = evaluate(network.transform("g_a"), folding, frame=network.frames(*PHOTO)["g_a"])
    used = plan.resources
    record = achieved.Achieved(
        design="tiny g_a",
        device=achieved.part(board),
        fmax_mhz=61.5,
        dsp=used.dsp,
        bram=used.bram,
        lut=used.lut,
        folding=achieved.fingerprint(
            [folding], plan.cycles_per_frame, dsp=used.dsp, bram=used.bram
        ),
    )
    monkeypatch.setattr(achieved, "records", lambda: (record,))
    (tiny,) = find(["tiny"])
    html = "".join(make_module._plan(tiny, board))
    hertz = board.pll_below(61.5).output_hz
    assert (
        f"{hertz / plan.cycles_per_frame:.2f} frames/s at {hertz / 1e6:g} MHz (built, this" in html
    )


def test_planned_and_counted_units_stand_side_by_side():
    """Of both transforms of a bitstream; a pipeline's own control is of no unit of the plan."""
    (build,) = find([str(BUILD)])
    alone = build.build
    part = {key: alone[key] for key in ("max_width", "folding")}
    units = list(make_module._planned_units(build))
    made = {name: {"dsp": 1, "bram": 2, "lut": 3, "ff": i} for i, name in enumerate(units)}
    made |= {name: {"dsp": 0, "bram": 1, "lut": 10, "ff": 100} for name in ("g_a.gate", "link")}
    both = {**alone, "transform": "g_a", "transforms": {"g_a": part}, "units": made}
    del both["folding"]
    table, words = make_module._units(replace(build, build=both))
    rows = numbers(table)
    assert [row[3:] for row in rows[:-1]] == [[1, 2, 3, i] for i in range(len(units))]
    assert rows[-1][3:] == [0, 2, 20, 200]
    assert "netlist" in words


@pytest.mark.parametrize("units", ["many", [1], {"g_a.conv1": 3}, {"g_a.conv1": {"dsp": 1}}])
def test_units_in_another_form_are_left_out(units):
    (build,) = find([str(BUILD)])
    (html,) = make_module._units(replace(build, build={**build.build, "units": units}))
    assert "planned" in html


def test_rates_carry_intervals(monkeypatch):
    monkeypatch.setattr(make_module, "DRAWS", 40)
    (html,) = make_module._intervals(["small-opt"])
    found = re.findall(r"([-+][\d.]+) % \(([-+][\d.]+) \.\. ([-+][\d.]+)\)", html)
    assert len(found) == 2 * 3  # integers and FP32 against three formats
    for rate, low, high in found:
        assert float(low) <= float(rate) <= float(high)
    assert make_module._intervals(["tiny"]) == []


def test_stages_add_up_to_the_network():
    for name in ("tiny", "small-opt-q3", "small-hyper-q2"):
        network = models.load_network(name)
        rows = facts.stages(network)
        assert sum(row.macs for row in rows) == network.macs(*PHOTO)
        assert sum(row.bops for row in rows) == network.bops(*PHOTO)


def test_pruned_channels_are_counted():
    rows = facts.stages(models.load_network("small-opt-q3"))
    assert any(row.unpruned > row.channels for row in rows)


def test_losing_bits_loses_quality(pixels):
    """Two bits less of eight cost something in every stage of a network that is not idle."""
    lost = facts.sensitivity(models.load_network("tiny"), pixels, lambda _: None)
    assert set(lost) == {(t, f"conv{i}") for t in ("g_a", "g_s") for i in (1, 2, 3, 4)}
    assert sum(value > 0 for value in lost.values()) >= 6


def test_weights_before_are_those_of_the_checkpoint():
    spread = facts.weight_spread(models.load_network("tiny"), models.shipped_parent("tiny"))
    for key in ("g_a", "g_s"):
        before, after = spread[key]["before"], spread[key]["after"]
        assert before.shape == after.shape
        assert abs(before.mean() - after.mean()) < 0.05
        assert before.max() == after.max() == 1


def test_a_strange_name_stays_text(pixels):
    """Names come from files of strangers."""
    network = models.load_network("tiny").model_copy(update={"name": "tiny"})
    subject = Subject(title='<script>alert("x")</script>', network=network)
    found = make([subject], board=boards.find("ulx3s-85f"), pixels=pixels, quick=True)
    assert "<script>alert" not in found
    assert "&lt;script&gt;alert" in found


def test_colours_of_charts_follow_the_page():
    svg = charts.bars(["a", "b"], {"x": [1, 2]}, "units", "A chart")
    assert "currentColor" in svg and charts.INK not in svg and charts.MUTED not in svg
    assert svg == charts.bars(["a", "b"], {"x": [1, 2]}, "units", "A chart")


def test_error_maps_are_black_where_nothing_differs(pixels):
    assert not page.error_map(pixels, pixels).any()
    assert page.error_map(pixels, 255 - pixels).any()


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["report", *words], standalone_mode=False)
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        (["no-such-network"], "neither a file nor the name of a shipped network"),
        (["."], "holds no report.json"),
        (["tiny", "tiny", "tiny"], "one or two networks or builds, not 3"),
    ],
)
def test_what_is_no_subject_gets_a_sentence(tmp_path, monkeypatch, sources, sentence):
    monkeypatch.chdir(tmp_path)
    status, said = run(*sources, "-o", str(tmp_path / "x.html"))
    assert status == 2 and sentence in said
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"network": 3}', "not json", "[" * 100_000])
def test_damaged_reports_get_a_sentence(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=r"report\.json is not"):
        find([str(tmp_path)])
