"""What README and notes say is what the reports kept here say, and those are of what is here."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("torch")
sys.path.insert(0, str(ROOT / "benchmarks"))
results = pytest.importorskip("results")


def test_every_report_has_its_command_and_is_of_what_is_here():
    assert results.faults() == []


def test_pages_are_what_their_reports_say():
    for path, text in results.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"make results ({path})"


def test_readme_has_all_blocks_and_no_number_beside_them():
    """A measured number has a unit. Those that are no results are counted here."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    elsewhere = {"containers", "contexts", "speed", "photographs"}
    assert {m["name"] for m in results.BLOCK.finditer(text)} == set(results.BLOCKS) - elsewhere
    rest = results.BLOCK.sub("", text)
    units = r"(?:%|dB|bpp|MHz|kHz|frames|fps|photographs a second|times|seconds|minutes|G\b|MB|kB)"
    found = [m[0] for m in re.finditer(rf"\d[\d.,]*\s*{units}", rest)]
    assert found == []


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Copies of the reports, to be spoiled."""
    for name in ("docs/notes", "benchmarks/builds"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for path in (ROOT / name).glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "NOTES", tmp_path / "docs" / "notes")
    monkeypatch.setattr(results, "BUILDS", tmp_path / "benchmarks" / "builds")
    results.read.cache_clear()
    yield tmp_path
    results.read.cache_clear()


@pytest.mark.parametrize(
    "name", ["rd", "rd-clic-test", "optimized", "quantization", "containers", "builds/small-opt"]
)
def test_stale_digests_and_missing_commands_are_found(name, elsewhere):
    assert results.faults() == []
    path = results.reports()[name]
    report = json.loads(path.read_text())
    network, digest = next(
        (network, digest) for network, digest in results.recorded(name) if results.present(network)
    )
    text = json.dumps(report).replace(digest, "0" * len(digest))
    path.write_text(text)
    results.read.cache_clear()
    (fault,) = results.faults()
    assert f"was made from another {network}" in fault and report["command"] in fault
    path.write_text(json.dumps({k: v for k, v in report.items() if k != "command"}))
    results.read.cache_clear()
    (fault,) = results.faults()
    assert "does not say which command made it" in fault
