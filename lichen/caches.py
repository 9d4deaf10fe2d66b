"""Caches are a convenience: where none can be kept, work goes on without.

What compiles (numba, the WebAssembly tools, simulators, fonts of plots) keeps its results in the
user's cache folder. Where that cannot be written, all of it goes to a folder of the user's own
among the temporary files, and one sentence says so. The module stands below all rooms.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

VARIABLE = "XDG_CACHE_HOME"

OTHERS = ("YoWASP", "wasmtime", "numba")
"""Folders of the libraries that cache for us, in the user's."""


def user_folder() -> Path:
    """Where this user's caches are kept; not necessarily there yet."""
    prepare()
    return _user_folder()


def _user_folder() -> Path:
    return Path(platformdirs.user_cache_dir(appauthor=False))


@functools.cache
def folder(name: str) -> Path:
    """A folder of that name for our own caches, which can be written."""
    wanted = user_folder() / "lichen" / name
    if _usable(wanted):
        return wanted
    instead = _temporary() / "lichen" / name
    _say(wanted, instead)
    return instead


@functools.cache
def private_folder(name: str) -> Path:
    """`folder`, but one that nobody else can write, for what is run or loaded unseen."""
    wanted = user_folder() / "lichen" / name
    with suppress(OSError):
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_ISDIR(wanted.lstat().st_mode) and is_private(wanted.lstat()) and _usable(wanted):
            return wanted
    instead = _temporary() / "lichen" / name
    with suppress(OSError):
        instead.mkdir(mode=0o700, parents=True, exist_ok=True)
    return instead


def is_private(found: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else may change it."""
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


@functools.cache
def prepare() -> None:
    """See to a cache folder that can be written, for this process and those it starts."""
    wanted = _user_folder()
    # where nobody knows a home, "~" stays what it is
    if wanted.is_absolute() and _usable(wanted):
        return
    folder = _temporary()
    os.environ[VARIABLE] = str(folder)
    # whose own settings go before the general one
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    os.environ.pop("YOWASP_CACHE_DIR", None)
    _say(wanted, folder)


def _say(wanted: Path, instead: Path) -> None:
    print(f"lichen: {wanted} cannot be written; caches go to {instead}.", file=sys.stderr)


def _usable(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder and then files.

    Those of us that cache are folders of their own in there, and have to be writable, too.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return all(
        os.access(folder / name, os.W_OK | os.X_OK) for name in OTHERS if (folder / name).exists()
    )


def _temporary() -> Path:
    """A folder among the temporary files that nobody else can write: what lies there is run."""
    folder = Path(tempfile.gettempdir()) / f"lichen-cache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and is_private(found) and _usable(folder):
            return folder
    except OSError:
        pass
    folder = Path(tempfile.mkdtemp(prefix="lichen-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` that keeps what it compiles where it can, and compiles anew where it cannot.

    Parameters
    ----------
    **options
        Of ``numba.njit``, but for ``cache``.
    """
    import numba

    prepare()

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            dispatcher = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no place at all for a cache
            return numba.njit(**options)(function)
        dispatcher._cache = _Forgiving(dispatcher._cache)
        return dispatcher

    return decorate


class _Forgiving:
    """A cache of numba's whose damage and whose full disk stop nobody."""

    def __init__(self, cache: Any):
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return self._cache.load_overload(*arguments)
        except Exception:  # whatever unpickling half a file may raise
            try:
                self._cache.flush()
            except OSError:
                self._cache.disable()
            return None

    def save_overload(self, *arguments: Any) -> None:
        try:
            self._cache.save_overload(*arguments)
        except OSError:
            self._cache.disable()
