"""Programs of tests are bounded in processor time, not in what a clock says."""

from __future__ import annotations

import signal
import sys

from tests.limits import run_bounded


def test_who_sleeps_is_waited_for_and_who_works_is_ended() -> None:
    slept = run_bounded([sys.executable, "-c", "import time; time.sleep(2); print('done')"], 1)
    assert (slept.returncode, slept.stdout) == (0, "done\n")
    worked = run_bounded([sys.executable, "-c", "while True: pass"], 1)
    assert worked.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
