"""The networks that ship with Lichen: integer networks, their FP32 parents, and photographs.

``NAME.lichen`` is an integer network, ``NAME.safetensors`` its FP32 parent and ``NAME.md`` the
model card of both. Every command takes ``NAME`` for the integer network and ``NAME.fp32`` for
the parent. ``retired/NAME@1.lichen`` is the decoding half of the first network of that name, which
decodes its files for ever, and so on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lichen.errors import UserError
from lichen.network import file
from lichen.network.description import Network
from lichen.network.identity import decoder_digest, static_digest

PARENT_SUFFIX = ".fp32"

DEFAULT = "small-q3"
"""The network that codes images where none is named."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RETIRED = re.compile(rf"{_NAME.pattern}@[1-9][0-9]*")


def folder() -> Path:
    """Where the shipped files lie."""
    return Path(__file__).parent


def names() -> list[str]:
    """Names of the shipped integer networks, sorted."""
    return sorted(path.stem for path in folder().glob("*.lichen"))


def retired_names() -> list[str]:
    """Names of networks that only decode, ``NAME@1`` and so on, sorted."""
    return sorted(path.stem for path in (folder() / "retired").glob("*.lichen"))


def _shipped(name: str, suffix: str) -> Path | None:
    path = folder() / f"{name}{suffix}"
    return path if _NAME.fullmatch(name) and path.is_file() else None


def shipped_network(name: str) -> Path | None:
    """The file of a shipped integer network, also a retired one; None if none is of that name."""
    if _RETIRED.fullmatch(name):
        path = folder() / "retired" / f"{name}.lichen"
        return path if path.is_file() else None
    return _shipped(name, ".lichen")


def shipped_parent(name: str) -> Path | None:
    """The file of a shipped FP32 network, named with or without ``.fp32``; None if unknown."""
    return _shipped(name.removesuffix(PARENT_SUFFIX), ".safetensors")


def load_network(name: str) -> Network:
    """Read a network file, or the shipped network of that name; an existing file goes first.

    A folder does not: who generates `tiny` into a folder ``tiny`` still has the network.

    Raises UserError when there is neither, and when the file is damaged.
    """
    path = Path(name)
    if (path.is_dir() or not path.exists()) and (shipped := shipped_network(name)) is not None:
        return file.load(shipped)
    if not path.exists() and (_NAME.fullmatch(name) or _RETIRED.fullmatch(name)):
        raise UserError(
            f"{name} is neither a file nor the name of a shipped network ({', '.join(names())})."
        )
    return file.load(name)


def digests(network: Network) -> list[str]:
    """What files of version 1 and 2 name a network by, hexadecimal."""
    found = [static_digest(network)]
    if network.contexts is not None:
        found.append(decoder_digest(network).hex())
    return found


def find_name(digest: str) -> str | None:
    """The shipped network that a file names; None if there is none.

    ``digests.json`` is asked first, which ``benchmarks/digests.py`` writes; a network that it
    does not know yet is looked at itself.
    """
    known: dict[str, list[str]] = json.loads(
        (folder() / "digests.json").read_text(encoding="utf-8")
    )
    for name, values in known.items():
        if digest in values and shipped_network(name) is not None:
            return name
    unknown = [name for name in (*names(), *retired_names()) if name not in known]
    return next((name for name in unknown if digest in digests(load_network(name))), None)


def find(digest: str) -> Network | None:
    """The shipped network that a file names; None if there is none."""
    name = find_name(digest)
    return None if name is None else load_network(name)


def measured(name: str) -> dict[str, Any] | None:
    """Rate and distortion of a shipped network, or of its parent ``NAME.fp32``; None if unknown.

    ``set`` and ``images`` say what was coded; ``bpp`` counts bytes really coded, ``psnr`` is RGB
    in dB, and both are means over the images. Written by ``benchmarks/cards.py``.
    """
    figures: dict[str, dict[str, Any]] = json.loads(
        (folder() / "measured.json").read_text(encoding="utf-8")
    )
    return figures.get(name)


BY_IMAGE = "measured_images.json"
"""What `measured_by_image` reads."""


def measured_by_image() -> dict[str, Any]:
    """Rate and distortion of shipped networks, their parents and image formats, by image.

    ``set``, ``images`` (names) and ``curves``, each with a ``name`` and ``points``: ``name``, and
    ``bpp`` and ``psnr`` in the order of the images. Written by ``benchmarks/results.py``.
    """
    return json.loads((folder() / BY_IMAGE).read_text(encoding="utf-8"))


def photograph() -> Path:
    """The photograph that ships for demonstrations: kodim23 of the Kodak suite, 768x512."""
    return folder() / "kodim23.png"


def calibration_photographs() -> list[Path]:
    """Crops of photographs to calibrate on, 256x256, where nobody gives better ones."""
    return sorted((folder() / "calibration").glob("*.png"))
