"""Programs that tests start, with a bound on what they may take.

The bound is processor time: a machine that other work keeps busy makes a test slow, never wrong.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_bounded(
    command: Sequence[str | Path], cpu_s: int, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program and keep what it prints.

    Parameters
    ----------
    command : sequence
    cpu_s : int
        Seconds of a processor that it, and each program that it starts, may take; a signal ends
        one that takes more.
    more
        For `subprocess.run`.
    """

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))

    return subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, **more)
