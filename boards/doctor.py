"""What is installed for Lichen's work, in which version, and what mends what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lichen import caches
from lichen.boards.build.toolchain import all_tools
from lichen.errors import UserError
from lichen.sim import verilator

PYTHON = (3, 11)
"""The oldest that runs Lichen."""

EXTRAS = {
    "quant": (
        "train, quantize, slim and search",
        ("torch", "torchvision", "compressai", "pytorch-optimizer", "scipy"),
    ),
    "usb": ("build --link usb", ("luna-usb",)),
}
"""What extras are for, and their distributions."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    needed_for : str
        What does not work without it.
    found : bool
        There, and usable.
    version : str or None
        As it says itself; None where it says nothing, or is not there.
    place : str or None
        File or folder.
    problem : str or None
        What is wrong, as a sentence.
    mend : str or None
        The command, or else the words, that mend it.
    optional : bool
        Lichen is whole without it.
    """

    name: str
    needed_for: str
    found: bool
    version: str | None = None
    place: str | None = None
    problem: str | None = None
    mend: str | None = None
    optional: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON-serialisable values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything; slow where a tool is asked for its version the first time."""
    return [
        _python(),
        *(_distribution(name, pin) for name, pin in _requirements()),
        _program("g++", "g++", "simulate with Verilator"),
        _guarded("Verilator", "simulate", _verilator),
        _guarded("Python's library", "simulate", _python_library),
        _program("iverilog", "iverilog", "simulate --simulator icarus", optional=True),
        *(_tool(name) for name in all_tools()),
        _cache(),
        *(_distribution(name, None, extra) for extra in EXTRAS for name in EXTRAS[extra][1]),
    ]


def _python() -> Finding:
    fits = sys.version_info[:2] >= PYTHON
    wanted = ".".join(map(str, PYTHON))
    return Finding(
        name="Python", needed_for="everything", found=fits, version=platform.python_version(),
        place=sys.executable,
        problem=None if fits else f"Lichen needs Python {wanted} or newer.",
        mend=None if fits else f"install Python {wanted} and Lichen into it",
    )  # fmt: skip


def _requirements() -> list[tuple[str, str | None]]:
    """Distributions that Lichen itself names, and the one version that will do, if it is one."""
    found = []
    for line in importlib.metadata.requires("lichen") or []:
        requirement, _, condition = line.partition(";")
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match is not None and "extra" not in condition:
            pin = re.search(r"==([^,\s]+)", requirement)
            found.append((match[0], None if pin is None else pin[1]))
    return found


def _distribution(name: str, pin: str | None, extra: str | None = None) -> Finding:
    optional = extra is not None
    what = "everything" if extra is None else EXTRAS[extra][0]
    mend = "pip install " + (f"'lichen[{extra}]'" if extra else "--force-reinstall lichen")
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            name=name, needed_for=what, found=False, optional=optional, mend=mend,
            problem=f"{name} is not installed.",
        )  # fmt: skip
    if pin is not None and version != pin:
        return Finding(
            name=name, needed_for=what, found=False, version=version,
            problem=f"{name} is {version}; Lichen is tested with {pin}.",
            mend=f"pip install {name}=={pin}",
        )  # fmt: skip
    return Finding(name=name, needed_for=what, found=True, version=version, optional=optional)


def _program(command: str, package: str, what: str, *, optional: bool = False) -> Finding:
    versions: dict[str, Callable[[], str]] = {
        "g++": verilator.compiler_version, "iverilog": verilator.icarus_version,
    }  # fmt: skip
    try:
        place = verilator.find_tool(command, package)
        return Finding(
            name=command, needed_for=what, found=True, version=versions[command](), place=place,
            optional=optional,
        )  # fmt: skip
    except UserError as error:
        return _missing(command, what, error, optional=optional)


def _guarded(name: str, what: str, look: Callable[[], tuple[str | None, str]]) -> Finding:
    try:
        version, place = look()
    except UserError as error:
        return _missing(name, what, error)
    except ImportError as error:
        return _missing(name, what, UserError(f"it takes {error.name}, which is not installed"))
    return Finding(name=name, needed_for=what, found=True, version=version, place=place)


def _missing(name: str, what: str, error: Exception, *, optional: bool = False) -> Finding:
    """A finding of a sentence that may end in the command that helps."""
    sentence = str(error).rstrip(".")
    quoted = re.search(r"`([^`]+)`", sentence)
    command = quoted[1] if quoted else sentence.rpartition(": ")[2]
    mends = quoted is not None or command != sentence
    return Finding(
        name=name, needed_for=what, found=False, optional=optional, problem=f"{sentence}.",
        mend=command if mends else None,
    )  # fmt: skip


def _verilator() -> tuple[str | None, str]:
    return importlib.metadata.version("verilator"), str(verilator.verilator_root())


def _python_library() -> tuple[str | None, str]:
    from lichen.sim.runner import python_library

    return None, python_library()


def _tool(name: str) -> Finding:
    tool = all_tools()[name]
    what = "flash" if name == "openFPGALoader" else "build"
    try:
        place = tool.find()
    except UserError as error:
        return _missing(name, what, error)
    version = tool.version()
    if version == "unknown":
        return Finding(
            name=name, needed_for=what, found=False, place=place,
            problem=f"{name} does not say its version; it may not run here.",
            mend=f"pip install --force-reinstall {tool.package}",
        )  # fmt: skip
    return Finding(name=name, needed_for=what, found=True, version=version, place=place)


def _cache() -> Finding:
    """The folder for what is compiled, with room for a simulator."""
    place = caches.user_folder()
    free = shutil.disk_usage(_existing(place)).free
    enough = free > 1 << 28
    return Finding(
        name="cache folder", needed_for="speed", found=enough, place=str(place),
        version=f"{free / (1 << 30):.1f} GiB free", optional=True,
        problem=None if enough else f"{place} has less than 256 MiB free.",
        mend=None if enough else f"make room, or set {caches.VARIABLE} to another folder",
    )  # fmt: skip


def _existing(path: Path) -> Path:
    while not os.path.lexists(path):
        path = path.parent
    return path
