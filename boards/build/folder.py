"""Output folders that appear complete or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lichen.errors import UserError
from lichen.files import TEMPORARY, reason, temporary_name
from lichen.processes import uninterrupted

PART = ".part"
"""What the folder is called while it is filled, after its own name."""

_INSIDE = f"{TEMPORARY}part"
"""Name of the folder that is filled within one that cannot be exchanged as a whole."""

_OLD = f"{TEMPORARY}old"


@contextmanager
def complete_folder(
    folder: Path,
    *,
    marker: str,
    field: str,
    keep_after: tuple[type[BaseException], ...] = (),
) -> Iterator[Path]:
    """A folder to fill, ``FOLDER.part``, that takes the name ``FOLDER`` if the body succeeds.

    Where ``FOLDER`` is a link, that stays, and what it leads to is meant. Where the folder cannot
    be exchanged as a whole (a mount point, one in a folder that cannot be written, the folder one
    works in), the one to fill lies in it, and its files are moved up at the end, ``marker`` last.

    Parameters
    ----------
    folder : Path
        May exist if it is empty or holds an earlier one of the same kind, which is replaced as a
        whole.
    marker : str
        A JSON file by which an earlier folder of the same kind is known.
    field : str
        Has to be in that file.
    keep_after : exceptions
        After these the folder to fill stays, until the next time; after others it is removed.

    Raises UserError when ``folder`` holds something else, cannot be written, when the disk is
    full, and when another process is filling it.
    """
    wanted = Path(os.path.realpath(folder))
    _check_replaceable(folder, wanted, marker, field)
    part, handle = _lock(folder, wanted)
    kept = ""
    try:
        try:
            _empty(part)
            yield part
        except BaseException as error:
            if not isinstance(error, keep_after):
                shutil.rmtree(part, ignore_errors=True)
            raise
        kept = f"; what was made is in {part}"
        _install(part, wanted, marker)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {reason(error)}{kept}.") from None
    finally:
        os.close(handle)


def _check_replaceable(folder: Path, wanted: Path, marker: str, field: str) -> None:
    """UserError unless the folder is not there, empty, or of the same kind."""
    try:
        names = {path.name for path in wanted.iterdir()} - {_INSIDE, _OLD}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        if not wanted.exists():
            return  # something above it is a file, which making it will tell
        names = {wanted.name}
    except OSError as error:
        raise UserError(f"cannot write {folder}: {reason(error)}.") from None
    if not names:
        return
    try:
        found = json.loads((wanted / marker).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or field not in found:
        raise UserError(f"{folder} exists and holds something else; name another folder.")


def _lock(folder: Path, wanted: Path) -> tuple[Path, int]:
    """The folder to fill and a handle that holds its lock."""
    beside = wanted.with_name(temporary_name(wanted.name, PART)) if wanted.name else None
    # as the user has spelled it, for messages
    if beside is not None and os.path.realpath(folder.parent) == str(wanted.parent):
        beside = folder.with_name(beside.name)
    places = [wanted / _INSIDE] if wanted.is_dir() else []
    if beside is not None and not _stays(wanted):
        places.insert(0, beside)
    for part in places:
        try:
            return part, _locked(part)
        except OSError as error:
            if part is places[-1]:
                raise UserError(f"cannot write {part}: {reason(error)}.") from None
    raise AssertionError("a folder that is not there has a name")


def _stays(wanted: Path) -> bool:
    """Whether a folder cannot, or should not, give its name to another."""
    if not wanted.is_dir():
        return False
    here = Path.cwd()
    return wanted.is_mount() or wanted == here or wanted in here.parents


def _locked(part: Path) -> int:
    while True:
        part.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"another lichen is at work in {part}.") from None
        except OSError:
            pass  # a file system without locks
        # who held the lock may have given the folder its name meanwhile
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), part.stat()):
                return handle
        os.close(handle)


def _install(part: Path, wanted: Path, marker: str) -> None:
    """Give the filled folder its name, or its files their place in a folder that stays."""
    if part.name != _INSIDE and not wanted.exists():
        part.rename(wanted)
        return
    if part.name != _INSIDE:
        old = wanted.with_name(f"{TEMPORARY}old-{os.getpid()}")
        with uninterrupted():
            try:
                wanted.rename(old)
            except OSError:
                exchanged = False  # not ours to rename: its files are exchanged
            else:
                exchanged = True
                try:
                    part.rename(wanted)
                except OSError:
                    old.rename(wanted)
                    raise
        if exchanged:
            shutil.rmtree(old, ignore_errors=True)
            return
    _move_up(part, wanted, marker)
    shutil.rmtree(part, ignore_errors=True)


def _move_up(part: Path, wanted: Path, marker: str) -> None:
    """Exchange what is in ``wanted`` for what is in ``part``; all is as it was if that fails."""
    inside = wanted / _INSIDE
    if part != inside:  # on another file system, perhaps: what takes long and may fail comes first
        shutil.rmtree(inside, ignore_errors=True)
        try:
            shutil.copytree(part, inside, symlinks=True)
        except shutil.Error as error:
            shutil.rmtree(inside, ignore_errors=True)
            raise OSError(0, str(error.args[0][0][-1])) from None
        except OSError:
            shutil.rmtree(inside, ignore_errors=True)
            raise
    old = wanted / _OLD
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    moves = [
        (path, old / path.name)
        for path in sorted(wanted.iterdir(), key=lambda path: path.name != marker)
        if path not in (inside, old)
    ]
    moves += [
        (path, wanted / path.name)
        for path in sorted(inside.iterdir(), key=lambda path: path.name == marker)
    ]
    done = []
    with uninterrupted():
        try:
            for source, target in moves:
                source.rename(target)
                done.append((source, target))
        except OSError:
            for source, target in reversed(done):
                target.rename(source)
            old.rmdir()
            if part != inside:
                shutil.rmtree(inside, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(inside, ignore_errors=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
