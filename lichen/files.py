"""Writing files: whole or not at all, and never over something that is still needed.

Everything in the project that writes a file for the user does it through `write_atomically` or
what builds on it here. The module stands below all rooms and imports none of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lichen.errors import UserError

TEMPORARY = ".lichen-"
"""What temporary names begin with. They are short, however long the target's name is."""

NAME_BYTES = 255
"""Longest name of a file on common file systems."""

# Where a neighbour cannot be made or cannot take the file's name, the file itself may still be
# writable: a file that is a mount point, or one in a folder that is not ours.
_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)

Identity = tuple[int, int]
_written: set[Identity] = set()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that its name never holds half of it.

    A link is followed, and stays. The mode of a file that is there already is kept. What is no
    regular file (a device, a pipe) is written to as it is. Where the folder does not allow a
    second file but the first one may be written, it is overwritten, and restored if that fails.

    Raises UserError when the folder does not exist or cannot be written, when the file is
    write-protected, and when the disk is full; an earlier file is then what it was.
    """
    with writing(path):
        target = Path(os.path.realpath(path))
        try:
            found = target.stat()
        except FileNotFoundError:
            found = None
        if found is None:
            _replace(target, data, None)
        elif stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif not stat.S_ISREG(found.st_mode):
            with Path(path).open("wb") as file:
                file.write(data)
            return
        elif not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is write-protected")
        else:
            try:
                _replace(target, data, stat.S_IMODE(found.st_mode))
            except OSError as error:
                if error.errno not in _IN_PLACE:
                    raise
                _overwrite(target, data)
        _written.add(_identity(target.stat()))


def write_privately(path: str | Path, data: bytes) -> None:
    """Write a file that nobody else may write or read, whatever the umask is; whole or not at all.

    An earlier file, and its mode, are replaced. Raises UserError as `write_atomically` does.
    """
    with writing(path):
        _replace(Path(path), data, 0o600)


def write_text(path: str | Path, text: str) -> None:
    r"""`write_atomically` of UTF-8 with ``\n``, whatever the environment's encoding is.

    What cannot be encoded (a file name that was no UTF-8) becomes an escape.
    """
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """`write_atomically` of `json_text`."""
    write_atomically(path, json_text(value).encode("ascii"))


def json_text(value: Any) -> str:
    """JSON as it is written everywhere: indented, in ASCII, with a last line feed."""
    return json.dumps(value, indent=2) + "\n"


def forget_written() -> None:
    """Begin anew to remember what is written, for `written_here`."""
    _written.clear()


def written_here(path: str | Path) -> bool:
    """Whether the running command has written the file of that name, or another name for it."""
    try:
        return _identity(Path(path).stat()) in _written
    except OSError:
        return False


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two names are one file, or would be: links and spellings do not matter."""
    with suppress(OSError):
        return Path(one).samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def temporary_name(name: str, suffix: str) -> str:
    """``name`` with a suffix, cut where that would be too long for a name; always the same."""
    encoded = os.fsencode(name)
    if len(encoded) + len(suffix) <= NAME_BYTES:
        return name + suffix
    mark = f"-{hashlib.sha256(encoded).hexdigest()[:8]}{suffix}"
    kept = encoded[: NAME_BYTES - len(mark)]
    return kept.decode("utf-8", "ignore") + mark


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Around the writing of a file: UserError with its name for what the system says."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}.") from None


def reason(error: OSError) -> str:
    """What the system says, without number and name."""
    return error.strerror or str(error) or type(error).__name__


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    """Write beside ``target``, then give it the name."""
    handle, temporary = _neighbour(target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            # some file systems tell only now that there was no room
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _neighbour(folder: Path) -> tuple[int, Path]:
    """A new file in ``folder``, with the permissions that any new file gets."""
    while True:
        path = folder / f"{TEMPORARY}{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with suppress(FileExistsError):
            return os.open(path, flags, 0o666), path


def _overwrite(target: Path, data: bytes) -> None:
    before = target.read_bytes()
    try:
        _put(target, data)
    except BaseException:
        with suppress(OSError):
            _put(target, before)
        raise


def _put(target: Path, data: bytes) -> None:
    with target.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
