"""Other programs, and signals: what is started here does not outlive its caller.

Every program runs in a process group of its own, so that what it starts in turn (a compiler's
passes) ends with it, and with a folder of its own for temporary files, which goes with it. The
module stands below all rooms and imports none of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a program to end."""

GRACE_S = 3.0
"""A program gets so long to end by itself."""

REPEAT_S = 5.0
"""A signal that comes again so soon is the same request: cleaning up is not disturbed."""

TICK_S = 0.5

Job = TypeVar("Job")
Result = TypeVar("Result")


class Interrupted(KeyboardInterrupt):
    """A signal asked this program to end.

    Code that ends well on Ctrl-C does so on the others, too.

    Attributes
    ----------
    signum : int
    """

    def __init__(self, signum: int = signal.SIGINT):
        super().__init__(signum)
        self.signum = int(signum)


@contextmanager
def orderly_signals() -> Iterator[None]:
    """Make an `Interrupted` in the main thread of each of `SIGNALS`.

    A signal that is ignored (by ``nohup``, or in a shell's background) stays ignored. On the way
    out of an interruption whatever this process has started is ended. Without effect in other
    threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -REPEAT_S

    def interrupt(signum: int, frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= REPEAT_S:
            raise Interrupted(signum)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    previous = {
        number: signal.signal(number, interrupt)
        for number in SIGNALS
        if signal.getsignal(number) in usual
    }
    try:
        yield
    except KeyboardInterrupt:
        end_children()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep `SIGNALS` waiting while the body runs; for what takes no time and must not be torn."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes
    ----------
    status : int
        Exit status; negative if a signal ended it.
    output : str
        What it printed, unless that went to a file.
    """

    status: int
    output: str = ""


class _Scope:
    """The programs that one caller's threads have running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ended:
                raise Interrupted
            process = subprocess.Popen(command, process_group=0, **options)
            self._running.add(process)
        return process

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """End the program if it still runs, and what it has left running, and forget it."""
        try:
            _end([process])
            _signal_group(process, signal.SIGKILL)
        finally:
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """End all that runs; nothing starts any more."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        _end(running)


_own = _Scope()
_thread = threading.local()


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: BinaryIO | None = None,
    timeout: float | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Finished:
    """Run a program to its end, standard input empty, standard error with its output.

    Parameters
    ----------
    command : sequence of str
    cwd : Path, optional
        Where it runs.
    env : mapping, optional
        Its environment; this process's without. ``TMPDIR`` is added.
    output : binary file, optional
        Where its output goes; without, into the result.
    timeout : float, optional
        Seconds until it is ended.
    tick : callable
        Called about twice a second.

    Raises OSError when it cannot be run, subprocess.TimeoutExpired when it took too long.
    """
    scope: _Scope = getattr(_thread, "scope", _own)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lichen-", ignore_cleanup_errors=True) as scratch:
        process = scope.start(
            command,
            cwd=cwd,
            env={**(os.environ if env is None else env), "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.STDOUT,
        )
        try:
            # not by way of a file: where the disk is full, the program says so
            reader = _Reader(process.stdout)
            while True:
                try:
                    status = process.wait(TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    if timeout is not None and time.monotonic() - began > timeout:
                        raise
                    tick()
        finally:
            scope.finish(process)
    return Finished(status, reader.text())


@contextmanager
def running(
    command: Sequence[str], *, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A program beside the body, without standard input and output; it ends with the body.

    Parameters
    ----------
    command : sequence of str
    pass_fds : sequence of int
        Descriptors that it inherits.

    Raises OSError when it cannot be run.
    """
    scope: _Scope = getattr(_thread, "scope", _own)
    nothing = subprocess.DEVNULL
    process = scope.start(command, stdin=nothing, stdout=nothing, pass_fds=tuple(pass_fds))
    try:
        yield process
    finally:
        scope.finish(process)


class _Reader:
    """Takes what comes through a pipe while its other end runs."""

    def __init__(self, pipe: IO[bytes] | None):
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[bytes] | None) -> None:
        if pipe is not None:
            with pipe:
                self._parts += pipe

    def text(self) -> str:
        # what has left the program's group may hold the pipe open
        self._thread.join(GRACE_S)
        return b"".join(self._parts).decode(errors="replace")


def concurrently(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int | None = None
) -> list[Result]:
    """The function's results for all jobs, several at a time, in the order of the jobs.

    When one fails or this process is interrupted, the programs that others have running are
    ended, and what has not begun never does.
    """
    scope = _Scope()

    def join() -> None:
        _thread.scope = scope

    pool = ThreadPoolExecutor(workers or os.cpu_count(), initializer=join)
    try:
        futures = [pool.submit(function, job) for job in jobs]
        done = wait(futures, return_when=FIRST_EXCEPTION).done
        for future in futures:
            if future in done:
                future.result()
        return [future.result() for future in futures]
    except BaseException:
        scope.end()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def end_children() -> None:
    """End all that this process has started, by whatever library, and that still runs."""
    _own.end()
    _own._ended = False
    pids = _descendants("self")
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline = time.monotonic() + GRACE_S
        while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.02)


def _descendants(pid: str) -> list[int]:
    """The processes below one, where the system tells them."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text(encoding="ascii").split():
                found += [int(child), *_descendants(child)]
    return found


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask process groups to end, and insist after a while."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        # its children may have taken the request less to heart
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
