"""What an earlier build is good for: all of it, or the places of its multipliers and block RAMs.

A build tells in its report what it was made of (``inputs``), and keeps the places beside it. Tools
give the same result for the same input, so a build of equal inputs is taken over as it is. Where
constants differ the logic differs with them, for synthesis folds them into lookup tables; what
stays are multipliers and block RAMs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lichen.errors import UserError
from lichen.files import reason

PLACES = "places.json"
"""Where the multipliers and block RAMs of a build are."""


class PlacesDifferError(Exception):
    """Places are of another design; the message says what differs."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A complete build.

    Attributes
    ----------
    folder : Path
    report : dict
        Its report.json.
    bitstream : Path
    """

    folder: Path
    report: dict[str, Any]
    bitstream: Path

    @property
    def whole(self) -> bool:
        """Whether its bitstream is the one that the report tells of."""
        try:
            return sha256_of(self.bitstream) == self.report.get("bitstream_sha256")
        except OSError:
            return False

    def places(self) -> dict[str, Any]:
        """What it says of places; PlacesDifferError where it says nothing."""
        try:
            found = json.loads((self.folder / PLACES).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise PlacesDifferError("it has no floorplan")
        return found

    def copy(self, target: Path, names: Iterable[str]) -> None:
        """Copy those of its files and folders that are there."""
        for name in names:
            source = self.folder / name
            if source.is_dir():
                shutil.copytree(source, target / name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, target / name)


def find(folder: Path, report: str) -> Earlier:
    """The build in a folder; UserError unless there is a complete one."""
    path = folder / report
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no complete build in {folder}: {reason(error)}.") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("bitstream"), str):
        raise UserError(f"{path} is not the report of a build.")
    return Earlier(folder=folder, report=found, bitstream=folder / found["bitstream"])


def sha256_of(file: Path) -> str:
    """SHA-256 (hexadecimal) of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_of(files: Iterable[Path], settings: object) -> str:
    """SHA-256 (hexadecimal) of files and their names, and of settings."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in sorted(files):
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()
