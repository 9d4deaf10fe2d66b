"""A release tells its version everywhere alike; what is built of it works where it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lichen import __version__, models

ROOT = Path(__file__).parents[1]

MINUTES = 4
"""From a fresh clone to the first bit-exact simulation, installation included, where nothing else
runs on two cores."""


def environment(cache: Path) -> dict[str, str]:
    """A new user's: nothing of this process's paths, nothing compiled."""
    left = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return left | {"XDG_CACHE_HOME": str(cache)}


def run(*command: str | Path, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(list(command), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def clone_to(folder: Path) -> Path:
    """What is committed, so that nothing else is counted."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


def test_the_changelog_begins_with_this_version_or_what_comes_after():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, flags=re.M)
    versions = [name for name, _ in heads if name != "Unreleased"]
    assert versions[0] == __version__
    assert all(date for name, date in heads if name != "Unreleased")
    assert heads[0][0] in ("Unreleased", __version__)


@pytest.mark.slow
def test_wheel_and_sdist(tmp_path: Path):
    """Each in a venv of its own, which installs it with what it needs: files decode to the same
    pixels as here."""
    clone = clone_to(tmp_path / "clone")
    env = environment(tmp_path / "cache")
    build = (
        "import sys, setuptools.build_meta as b; here = sys.argv[1]; "
        "print(b.build_sdist(here)); print(b.build_wheel(here))"
    )
    made = run(sys.executable, "-c", build, tmp_path, cwd=clone, env=env)
    files = sorted(line for line in made.split() if line.endswith((".tar.gz", ".whl")))
    assert len(files) == 2 and all(f"lichen-{__version__}" in name for name in files)
    for number, name in enumerate(files):
        place = tmp_path / f"{number}"
        run(sys.executable, "-m", "venv", place, cwd=tmp_path, env=env)
        run(place / "bin" / "pip", "install", "-q", tmp_path / name, cwd=tmp_path, env=env)
        lichen = place / "bin" / "lichen"
        said = run(lichen, "--version", cwd=place, env=env)
        assert __version__ in said
        photo = str(models.photograph())
        run(lichen, "encode", photo, "-o", "a.lic", "-m", "tiny", "--quiet", cwd=place, env=env)
        run(lichen, "decode", "a.lic", "-o", "a.png", "--quiet", cwd=place, env=env)
        here = [sys.executable, "-m", "lichen.cli"]
        ours = {**os.environ, "PYTHONPATH": str(ROOT)}
        run(*here, "encode", photo, "-o", "b.lic", "-m", "tiny", "--quiet", cwd=place, env=ours)
        run(*here, "decode", "b.lic", "-o", "b.png", "--quiet", cwd=place, env=ours)
        for one, two in (("a.lic", "b.lic"), ("a.png", "b.png")):
            assert (place / one).read_bytes() == (place / two).read_bytes()


@pytest.mark.slow
def test_a_fresh_clone(tmp_path: Path):
    """`make demo` from nothing, as README has it; what comes before its bitstream is soon there."""
    begin = time.monotonic()
    clone = clone_to(tmp_path / "clone")
    env = environment(tmp_path / "cache")
    demo = subprocess.Popen(["make", "demo"], cwd=clone, env=env, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "0 mismatches" in line:
            minutes = (time.monotonic() - begin) / 60
            # on a machine that does other things as well, the clock says nothing
            if os.getloadavg()[0] < len(os.sched_getaffinity(0)) + 1:
                assert minutes < MINUTES
    assert demo.wait() == 0
    assert (clone / "build" / "demo" / "report.json").exists()
