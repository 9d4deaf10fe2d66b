"""Output folders that appear complete or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lichen.errors import UserError


@contextmanager
def complete_folder(
    folder: Path, *, marker: str, keep_after: tuple[type[BaseException], ...] = ()
) -> Iterator[Path]:
    """A folder to fill, ``FOLDER.part``, that takes the name ``FOLDER`` if the body succeeds.

    Parameters
    ----------
    folder : Path
        May exist if it is empty or holds ``marker``: then it is replaced as a whole.
    marker : str
        A file by which an earlier folder of the same kind is known.
    keep_after : exceptions
        After these ``FOLDER.part`` stays, until the next time; after others it is removed.

    Raises UserError when ``folder`` holds something else, cannot be written, or when another
    process is filling it.
    """
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / marker).is_file())
    ):
        raise UserError(f"{folder} exists and holds something else; name another folder.")
    part = folder.with_name(folder.name + ".part") if folder.name else None
    if part is None:
        raise UserError(f"{folder} cannot be replaced; name another folder.")
    try:
        part.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another lichen is at work in {part}.") from None
        _empty(part)
        try:
            yield part
        except keep_after:
            raise
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if folder.is_dir():
            old = folder.with_name(f"{folder.name}.old-{os.getpid()}")
            folder.rename(old)
            part.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(folder)
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
