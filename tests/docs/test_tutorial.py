"""Every command of the tutorial runs, in its order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lichen import models

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"

LONG = {"quantize", "build", "flash"}
"""Commands that take minutes, and `flash`, which reads what `build` made. The default run has the
shipped network in the place of the one that `quantize` makes."""


def commands() -> list[str]:
    """The lines of all blocks marked ``sh``."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(line: str, folder: Path) -> None:
    """Run ``line`` with ``build/tutorial`` in ``folder``, as a shell in a clone would."""
    words = line.replace("build/tutorial", str(folder)).split()
    assert words[0] == "lichen"
    done = subprocess.run(
        [sys.executable, "-m", "lichen.cli", *words[1:]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_the_page_has_commands():
    assert [line.split()[1] for line in commands()] == [
        "models",
        "quantize",
        "encode",
        "info",
        "decode",
        "plan",
        "simulate",
        "generate",
        "build",
        "flash",
    ]


def test_what_takes_seconds(tmp_path):
    shipped = models.shipped_network("tiny")
    assert shipped is not None
    shutil.copy(shipped, tmp_path / "mine.lichen")
    for line in commands():
        if line.split()[1] not in LONG:
            run(line, tmp_path)


@pytest.mark.slow
def test_all_of_it(tmp_path):
    for line in commands():
        run(line, tmp_path)
