"""Other programs and signals: nothing that was started outlives its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lichen import processes
from lichen.processes import Interrupted, concurrently, orderly_signals, run


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def eventually(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def family(file: Path) -> list[str]:
    """A program with a child of its own; both note their pids, and both would sleep."""
    return ["sh", "-c", f"sleep 600 & echo $! $$ > {file}.new; mv {file}.new {file}; wait"]


def pids(file: Path) -> list[int]:
    assert eventually(file.exists)
    return [int(word) for word in file.read_text().split()]


def ended(file: Path) -> bool:
    """Whether a family is gone, long before it would have slept enough.

    A busy machine takes a moment for what was killed.
    """
    return eventually(lambda: not any(alive(pid) for pid in pids(file)))


def test_output_status_and_environment(tmp_path):
    done = run(["sh", "-c", "pwd; echo $X >&2; touch $TMPDIR/litter; echo $TMPDIR; exit 3"],
               cwd=tmp_path, env={**os.environ, "X": "y"})  # fmt: skip
    where, x, scratch = done.output.splitlines()
    assert (done.status, where, x) == (3, str(tmp_path), "y")
    assert not Path(scratch).exists()
    with (tmp_path / "log").open("wb") as log:
        assert run(["echo", "hello"], output=log).output == ""
    assert (tmp_path / "log").read_text() == "hello\n"
    assert run(["sh", "-c", "kill -9 $$"]).status == -9
    with pytest.raises(FileNotFoundError):
        run([str(tmp_path / "nothing")])


def test_much_output_and_what_is_left_running_do_not_block():
    assert len(run(["sh", "-c", "yes | head -c 3000000"]).output) == 3_000_000
    began = time.monotonic()
    left = run(["sh", "-c", "sleep 60 & echo $!"]).output
    assert time.monotonic() - began < 30
    assert eventually(lambda: not alive(int(left)))


def test_what_takes_too_long_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TICK_S", 0.05)
    ticks = []
    with pytest.raises(subprocess.TimeoutExpired):
        run(family(tmp_path / "pids"), timeout=1, tick=lambda: ticks.append(1))
    assert ticks and ended(tmp_path / "pids")


def test_what_does_not_listen_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    deaf = f"trap '' TERM; echo $$ > {tmp_path}/pids; while :; do sleep 1; done"
    with pytest.raises(subprocess.TimeoutExpired):
        run(["sh", "-c", deaf], timeout=0.5)
    assert ended(tmp_path / "pids")


def test_results_come_in_the_order_of_the_jobs():
    assert concurrently(lambda i: (time.sleep(0.01 * (5 - i)), i)[1], range(5)) == [*range(5)]


def test_one_failure_ends_the_others(tmp_path):
    def job(i: int) -> None:
        if i == 1:
            pids(tmp_path / "0")
            raise ZeroDivisionError
        run(family(tmp_path / str(i)))

    with pytest.raises(ZeroDivisionError):
        concurrently(job, range(9), workers=2)
    assert ended(tmp_path / "0")
    assert not (tmp_path / "8").exists()


@pytest.mark.parametrize("number", processes.SIGNALS)
def test_a_signal_is_an_exception_that_ends_everything(tmp_path, number):
    """Programs of threads, of the main thread, and those that a library has started."""
    other = subprocess.Popen(["sleep", "600"])
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    with pytest.raises(Interrupted) as caught, orderly_signals():
        timer.start()
        concurrently(lambda i: run(family(tmp_path / str(i))), range(2), workers=2)
    assert caught.value.signum == number
    assert all(ended(tmp_path / str(i)) for i in range(2))
    other.wait(10)
    assert other.returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run(["true"]).status == 0  # and afterwards all is as before


def test_the_same_request_twice_does_not_disturb_cleaning_up():
    with pytest.raises(Interrupted), orderly_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            cleaned = True
    assert cleaned


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with orderly_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGTERM, "-V"), (signal.SIGHUP, "-V"), (signal.SIGTERM, "--version")],
)
def test_a_build_ends_with_its_tools(tmp_path, number, asked):
    """The command as it is installed: status 128 + n, no orphan, no folder half filled.

    A tool that answers only ``--version`` hangs where Amaranth asks for ``-V``: what a library has
    started ends, too.
    """
    tool = tmp_path / "yosys"
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = {asked} ] && exit\nsleep 600 & echo $! $$ > {tmp_path}/new\n'
        f"mv {tmp_path}/new {tmp_path}/pids; wait\n"
    )
    tool.chmod(0o755)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {
        **os.environ, "TMPDIR": str(scratch),
        "YOSYS": str(tool), "NEXTPNR_ECP5": str(tool), "ECPPACK": str(tool),
    }  # fmt: skip
    command = [sys.executable, "-m", "lichen.cli", "build", "tiny", "--board", "ulx3s-85f",
               "--multipliers", "16", "--unit", "conv1", "-o", str(tmp_path / "out")]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert eventually((tmp_path / "pids").exists, 200)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in said and said.endswith("lichen: interrupted\n")
    assert eventually(lambda: not any(alive(pid) for pid in pids(tmp_path / "pids")))
    assert not list(tmp_path.glob("out*")) and not list(scratch.iterdir())
