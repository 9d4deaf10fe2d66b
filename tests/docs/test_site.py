"""The site builds, and no link in it leads nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("mkdocs")


def test_the_site_builds_without_a_warning(tmp_path):
    """`mkdocs build --strict`: missing pages, links and anchors are errors."""
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "site" / "manual" / "commands" / "index.html").read_text()
    assert "lichen encode" in page


def test_pages_ask_no_other_server(tmp_path):
    """A reader without a network sees all of it: no font, script or picture from elsewhere."""
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
        capture_output=True,
    )
    page = (tmp_path / "site" / "index.html").read_text()
    for tag in ('<script src="http', '<link rel="stylesheet" href="http', '<img src="http'):
        assert tag not in page
