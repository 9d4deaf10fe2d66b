"""Every mutant is found by its default test, whose message names the unit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hw.mutants import MUTANTS, Mutant, apply, copy_tree, run


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    copy_tree(tmp_path)
    apply(mutant, tmp_path)
    status, lines = run(mutant, tmp_path)
    assert status == 1, f"{mutant.test} does not see: {mutant.name}"
    assert any(re.search(mutant.names, line) for line in lines), lines


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_mutant_still_applies(mutant: Mutant) -> None:
    """Cheap, so that whoever edits a line that has a mutant learns of it at once."""
    root = Path(__file__).parents[2]
    assert (root / mutant.path).read_text().count(mutant.old) == 1, mutant.path
    path = mutant.test.partition(" -k ")[0].partition("::")[0]
    assert (root / path).exists(), mutant.test
