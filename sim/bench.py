"""Runs the test bench that a generated folder brings, and reads what came of it."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lichen import processes
from lichen.errors import UserError

ENTRY = "test_runner.py"


@dataclass(frozen=True)
class BenchRun:
    """What a folder's bench found on one simulator.

    Attributes
    ----------
    simulator : str
    tests : dict of str to str
        The name of every test that ran, and the first sentence of what is wrong; empty if it has
        passed.
    skipped : list of str
        Tests that the bench leaves out of this simulator.
    log : str
        All that was printed.
    problem : str
        Why there are no tests; empty if there are.
    """

    simulator: str
    tests: dict[str, str]
    skipped: list[str]
    log: str = field(repr=False)
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Tests ran, and all of them passed."""
        return bool(self.tests) and not self.problem and not any(self.tests.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON-serialisable values."""
        return {
            "simulator": self.simulator,
            "passed": sum(not problem for problem in self.tests.values()),
            "failed": {name: problem for name, problem in self.tests.items() if problem},
            "skipped": self.skipped,
            "problem": self.problem or None,
        }


def interface_of(folder: Path) -> dict[str, Any]:
    """The description in a generated folder; UserError where there is no folder with a bench."""
    try:
        description = json.loads((folder / "interface.json").read_text(encoding="utf-8"))
        found = (folder / "test" / ENTRY).is_file() and "top" in description
    except (OSError, ValueError, TypeError):
        found = False
    if not found:
        raise UserError(f"{folder} holds no core with a test bench; `lichen generate` makes one.")
    return description


def run_bench(folder: Path, simulator: str) -> BenchRun:
    """Run a folder's bench in this interpreter's environment.

    Raises UserError where the folder has none.
    """
    interface_of(folder)
    place = (folder / "test").resolve()
    results = place / "build" / simulator / "results.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ENTRY]
    done = processes.run([*command, "-k", simulator], cwd=place)
    tests, skipped, problem = _read(results)
    if not tests:
        lines = [line for line in done.output.splitlines() if line.strip()]
        problem = problem or (lines[-1] if lines else "the bench ended without a word")
    elif done.status and not any(tests.values()):
        problem = f"the bench ended with status {done.status}"
    return BenchRun(simulator, tests, skipped, done.output, problem)


def _read(path: Path) -> tuple[dict[str, str], list[str], str]:
    """Tests that ran and that were skipped by cocotb's results; why, where they cannot be read."""
    try:
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        return {}, [], ""
    except ET.ParseError:
        return {}, [], "the simulation ended early"
    tests, skipped = {}, []
    for case in root.iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("skipped") is not None:
            skipped.append(name)
            continue
        fault = case.find("failure")
        fault = case.find("error") if fault is None else fault
        problem = ""
        if fault is not None:
            text = fault.get("error_msg") or fault.get("message") or fault.text or "it failed"
            problem = re.sub(r"\s+", " ", text.strip().splitlines()[0] if text.strip() else text)
        tests[name] = problem
    return tests, skipped, ""
