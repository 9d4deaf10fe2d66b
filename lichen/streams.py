"""Standard output and error of the command line, whatever they lead to.

A terminal or a file may not know every character, a pipe's reader may be gone, a disk full, a
stream closed. What cannot be written to standard output is told in one sentence; nothing is worth
stopping for on standard error.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from lichen.errors import UserError
from lichen.files import reason

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Output(io.FileIO):
    """Standard output; UserError where it cannot be written."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # what is still in buffers has nowhere to go, and would be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise UserError(f"cannot write to the standard output: {reason(error)}.") from None


class _Messages(io.FileIO):
    """Standard error; what cannot be written is dropped."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data))


def guard() -> None:
    """Replace the process's own streams; those that a caller has put in their place stay.

    Characters that a stream's encoding lacks, and bytes of file names that are no characters,
    are written as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # a file opened next must not become a standard stream; writing to it fails
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="ascii")  # noqa: PTH123, SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: object) -> io.TextIOWrapper:
    """A text stream like the one before, which is None where the stream was closed."""
    if isinstance(before, io.TextIOWrapper):
        before.flush()
        encoding, buffered = before.encoding, before.line_buffering
    else:
        encoding, buffered = "utf-8", True
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=buffered
    )
