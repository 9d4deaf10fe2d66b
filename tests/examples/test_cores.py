"""The examples around generated cores do what their pages say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lichen.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_core_in_plain_verilog(tmp_path, monkeypatch) -> None:
    """The command of the page, and the user's own test; a wrong latent is seen."""
    folder = tmp_path / "core-verilog"
    shutil.copytree(EXAMPLES / "core-verilog", folder)
    monkeypatch.chdir(folder)
    (line,) = re.findall(r"^lichen (.*)$", (folder / "README.md").read_text(), re.M)
    main(line.split())

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "test_thumbnail.py"], cwd=folder, capture_output=True, text=True
        )

    done = run()
    assert done.returncode == 0, done.stdout[-3000:]
    text = (folder / "thumbnail.v").read_text()
    (folder / "thumbnail.v").write_text(text.replace("<= coded;", "<= coded ^ 8'd1;"))
    assert run().returncode == 1
