"""Every command that README, docs and examples show is run by a test.

Blocks of shell commands are run here, a page's in its order and in one folder, with small stand-ins
for the reader's files. What would take hours gets the same options with fewer steps. Blocks that
another test runs name it.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lichen import models
from lichen.sim.images import crop_middle, read_image, write_image

ROOT = Path(__file__).parents[2]

PROGRAMS = ("lichen", "make", "python", "python3", "pip", "pytest", "git")
COMMAND = re.compile(rf"^(?:\$ |\.venv/bin/)?(?:{'|'.join(PROGRAMS)}) ", re.M)

QUICK, SLOW = "quick", "slow"

WHERE = {
    "README.md": {
        "make demo": "tests/test_release.py::test_a_fresh_clone",
        "pip install .": "tests/test_release.py::test_wheel_and_sdist",
        "lichen models": QUICK,
        "lichen train": SLOW,
        "lichen plan": SLOW,
    },
    "CONTRIBUTING.md": {"make test": "tests/docs/test_commands.py::test_targets_of_make"},
    "docs/tutorial.md": {
        "python3 -m": "tests/test_release.py::test_a_fresh_clone",
        "lichen ": "tests/docs/test_tutorial.py::test_all_of_it",
    },
    "docs/onnx.md": {"lichen export": QUICK},
    "docs/manual/boards.md": {
        "lichen plan": SLOW,
        "lichen build small-opt-q2": "tests/boards/test_loading.py::test_one_network_after_another",
        "lichen build small-opt-q3": "tests/boards/test_earlier.py::test_real_builds",
        "lichen ": "tests/boards/test_engine.py::test_a_photograph_through_a_simulated_board",
    },
    "docs/manual/codec.md": {"lichen ": QUICK},
    "docs/manual/core.md": {
        "lichen generate": SLOW,
        "lichen plan": SLOW,
        "pip install": "tests/boards/test_core.py::test_requirements_alone_are_enough",
    },
    "docs/manual/commands.md": {"lichen encode": QUICK},
    "docs/manual/quantizing.md": {"lichen ": QUICK},
    "docs/manual/search.md": {
        "pip install": "tests/test_release.py::test_wheel_and_sdist",
        "lichen ": SLOW,
        "python benchmarks/optimize.py": "tests/quant/test_optimize.py::test_the_commands_exist",
    },
    "docs/manual/slim.md": {"lichen ": SLOW},
    "docs/manual/training.md": {
        "pip install": "tests/test_release.py::test_wheel_and_sdist",
        "lichen train": SLOW,
    },
    "docs/notes/draq.md": {
        "lichen quantize bls2017": "tests/quant/test_bls2017.py"
        "::test_draq_loses_at_most_0_15_db_and_1_percent_on_kodak",
        "python benchmarks/converged.py": "tests/quant/test_bls2017.py"
        "::test_draq_loses_at_most_0_15_db_and_1_percent_on_kodak",
    },
    "examples/core-amaranth/README.md": {"python ": QUICK},
    "examples/core-verilog/README.md": {
        "lichen generate": "tests/examples/test_cores.py::test_core_in_plain_verilog"
    },
    "examples/custom-unit/README.md": {"python -m pytest": QUICK},
    "examples/own-checkpoint/README.md": {"python ": SLOW, "lichen ": SLOW},
    "examples/own-folding/README.md": {"python ": SLOW, "lichen ": SLOW},
}
"""For every page, by what its blocks begin with: whether they are quick or slow, or which test runs
them. The longest beginning counts."""

FEW = "--steps 2 --batch 1 --patch 64"
SHORTER = {
    "train": f"{FEW} --warmup 0 --precision float32 --overwrite",
    "slim": f"{FEW} --rounds 1 --final-steps 2 --batches 1 --overwrite",
    "quantize": f"{FEW} --regularize-steps 2 --clip-factor 1.5 --max-images 2 --crop 64",
    "search": "--max-images 2 --crop 64 --samples 500 --stop-after 1",
    "build": "--multipliers 24",
    "simulate": "--multipliers 24",
}
"""Options that are added to a command, the last ones count: the same work, less of it. `--minutes`
and `--compile` are left out."""


@dataclass(frozen=True)
class Block:
    """A block of commands of a page."""

    page: str
    text: str

    @property
    def where(self) -> str:
        """`QUICK`, `SLOW` or a test."""
        keys = [key for key in WHERE.get(self.page, {}) if self.text.startswith(key)]
        return WHERE[self.page][max(keys, key=len)] if keys else ""

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0]}"


def pages() -> Iterator[Path]:
    """What a reader reads, without what lies in folders that are no part of the repository."""
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    for folder in ("docs", "examples"):
        yield from sorted((ROOT / folder).rglob("*.md"))


def fences() -> Iterator[tuple[Path, str, str]]:
    """Page, language and text of every fenced block."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
            yield page, language, body


BLOCKS = [
    Block(page.relative_to(ROOT).as_posix(), body)
    for page, language, body in fences()
    if language in ("sh", "bash")
]


def test_commands_stand_in_blocks_for_commands():
    """Else nobody would notice them here."""
    for page, language, body in fences():
        if language not in ("sh", "bash"):
            found = COMMAND.search(body)
            assert found is None, f"{page.relative_to(ROOT)}: {found and found[0]} is not in ```sh"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_run_by_a_test(block: Block):
    assert block.where, f"{block} is in no test: add it to WHERE"
    if block.where in (QUICK, SLOW):
        return
    file, _, name = block.where.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert name in functions, f"{block} should be run by {block.where}, which is not there"


def test_no_page_is_listed_that_is_not_there():
    for page, blocks in WHERE.items():
        for beginning in blocks:
            some = [b for b in BLOCKS if b.page == page and b.text.startswith(beginning)]
            assert some, f"{page} has no block that begins with {beginning!r}"


def test_targets_of_make():
    """`make test` is what CI runs; every other target that a page names is one, too."""
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, flags=re.M))
    for page in pages():
        text = page.read_text(encoding="utf-8")
        blocks = "".join(block.text for block in BLOCKS if ROOT / block.page == page)
        named = re.findall(r"`make (\w+)`", text) + re.findall(r"^make (\w+)", blocks, flags=re.M)
        for target in named:
            assert target in targets, f"{page.relative_to(ROOT)}: make {target}"


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A folder with everything that the pages take for granted, and nothing of other pages."""
    folder = tmp_path
    photo = crop_middle(read_image(models.photograph()), 384, 448)
    write_image(folder / "photo.png", photo)
    write_image(folder / "more.jpg", photo[:64, :96])
    for name in ("photos", "PHOTOS", "TRAIN", "CALIBRATE"):
        (folder / name).mkdir()
        for k in range(3):
            crop = np.ascontiguousarray(photo[100 * k : 100 * k + 128, 40 * k : 40 * k + 160])
            write_image(folder / name / f"{k}.png", crop)
    tiny, parent = models.shipped_network("tiny"), models.shipped_parent("tiny")
    assert tiny is not None and parent is not None
    shutil.copy(tiny, folder / "net.lichen")
    shutil.copy(parent, folder / "CHECKPOINT")
    (folder / "build").mkdir()
    for name in ("benchmarks", "examples"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    tools = folder / "bin"
    tools.mkdir()
    cases = "\n".join(f'  {name}) set -- "$@" {more};;' for name, more in SHORTER.items())
    (tools / "lichen").write_text(
        "#!/bin/bash\n"
        "skip=; for a; do shift\n"
        "  if [ $skip ]; then skip=; continue; fi\n"
        '  case "$a" in --compile) ;; --minutes) skip=1;; *) set -- "$@" "$a";; esac\n'
        "done\n"
        f'case "$1" in\n{cases}\nesac\nexec "{sys.executable}" -m lichen.cli "$@"\n'
    )
    (tools / "python").write_text(f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return folder


def run(page: str, kind: str, bench: Path) -> None:
    """All blocks of a kind, in order."""
    for block in BLOCKS:
        if block.page != page or block.where != kind:
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=bench,
            env={
                **os.environ,
                "PATH": f"{bench / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.where == QUICK}))
def test_what_takes_seconds(page: str, bench: Path):
    run(page, QUICK, bench)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({b.page for b in BLOCKS if b.where == SLOW}))
def test_what_takes_minutes(page: str, bench: Path):
    run(page, SLOW, bench)
