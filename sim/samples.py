"""Samples of more than 8 bits: what Pillow would cut or misread, converted or refused.

Pillow has no colours of more than 8 bits. It keeps the upper byte of each sample; here the lower
byte is read in a second pass, so that a sample of 16 bits becomes round(255 v / 65535). Nothing
tells the range of signed, 32-bit or floating-point samples, so they are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from lichen.errors import UserError

REDUCED = "reduced to 8 bits per channel"

DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes for grey samples of 16 bits."""

_FULL = 65535
# TIFF's tags, and their values
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_SAMPLE_FORMAT, _SIGNED = 339, 2


def check_samples(picture: Image.Image, name: str | Path) -> None:
    """UserError for samples whose range nothing tells.

    Parameters
    ----------
    picture : Image.Image
        As opened, its data perhaps not yet read.
    name : str or Path
        What to call it.
    """
    kind = None
    raw = raw_mode(picture)
    if picture.mode == "F":
        kind = "floating-point samples"
    elif picture.mode == "I" and raw is not None and "32" in raw:
        kind = "samples of 32 bits"
    elif _SIGNED in _tag(picture, _SAMPLE_FORMAT):
        kind = "signed samples"
    elif picture.mode == "I" and raw is not None:
        if picture.format not in ("PNG", "PPM"):
            kind = f"samples of an unknown size ({raw})"
    elif picture.mode == "I" and _outside(picture):
        kind = "samples outside 0 .. 65535"
    if kind is not None:
        raise UserError(
            f"{name} has {kind}, and nothing tells their range; convert it to 8 or 16 bits first."
        )


def _outside(picture: Image.Image) -> bool:
    low, high = picture.getextrema()
    return bool(low < 0 or high > _FULL)  # type: ignore[operator]


def raw_mode(picture: Image.Image) -> str | None:
    """How an opened file's samples lie in it, as Pillow names it; None if that is not known."""
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return None
    arguments = tiles[0][3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def load_deep(opened: Image.Image, open_again: Callable[[], Image.Image]) -> Image.Image | None:
    """An opened image of more than 8 bits a sample with 8, orientation applied.

    Parameters
    ----------
    opened : Image.Image
        Its data not yet read.
    open_again : callable
        Opens the same file once more.

    Returns
    -------
    Image.Image or None
        None where Pillow's own reading is right: 8 bits, or grey of 16, which it keeps.
    """
    raw = raw_mode(opened) or ""
    if raw == "I;12":
        return _grey(opened, 4095)
    if raw.startswith("I;16") and _WHITE_IS_ZERO in _tag(opened, _PHOTOMETRIC):
        return _grey(opened, _FULL, inverted=True)
    if raw == "LA;16B":
        return _grey_alpha(opened)
    swapped = _swapped(raw)
    if swapped is None:
        return None
    lower = open_again()
    lower.tile = [_with_raw(tile, swapped) for tile in lower.tile]  # type: ignore[attr-defined]
    deep = np.asarray(opened).astype(np.uint32) << 8 | np.asarray(lower)
    key = opened.info.get("transparency")
    if opened.mode == "RGB" and isinstance(key, tuple):
        # the colour that is transparent has 16 bits, too
        alpha = np.where((deep == np.array(key, np.uint32)).all(axis=2), 0, _FULL)
        deep = np.concatenate([deep, alpha[:, :, None].astype(np.uint32)], axis=2)
    mode = "CMYK" if opened.mode == "CMYK" else None
    return _like(opened, Image.fromarray(reduce(deep), mode))


def reduce(samples: npt.NDArray[Any], full: int = _FULL) -> npt.NDArray[np.uint8]:
    """Samples 0 .. full as round(255 v / full); full is odd, so there are no halves."""
    return ((samples.astype(np.uint32) * 510 + full) // (2 * full)).astype(np.uint8)


def _tag(opened: Image.Image, number: int) -> tuple[Any, ...]:
    """A TIFF's tag; empty where there is none."""
    value = getattr(opened, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)


def _grey(opened: Image.Image, full: int, inverted: bool = False) -> Image.Image:
    samples = np.asarray(opened).astype(np.uint32)
    return _like(opened, Image.fromarray(reduce(full - samples if inverted else samples, full)))


def _grey_alpha(opened: Image.Image) -> Image.Image:
    """Grey and alpha of 16 bits, which lie in a file as RGBA of 8 bits do."""
    opened.tile = [_with_raw(tile, "RGBA") for tile in opened.tile]  # type: ignore[attr-defined]
    octets = np.asarray(opened).astype(np.uint32)
    return _like(opened, Image.fromarray(reduce(octets[:, :, ::2] << 8 | octets[:, :, 1::2])))


def _swapped(raw: str) -> str | None:
    """The raw mode that takes the lower bytes where this one takes the upper ones."""
    kind, _, order = raw.partition(";")
    if kind not in ("RGB", "RGBX", "RGBA", "CMYK") or order not in ("16B", "16L", "16N"):
        return None
    if order == "16N":
        order = "16L" if sys.byteorder == "little" else "16B"
    return f"{kind};{'16L' if order == '16B' else '16B'}"


def _with_raw(tile: Any, raw: str) -> Any:
    arguments = tile[3]
    changed = (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
    return type(tile)(*tile[:3], changed)


def _like(opened: Image.Image, picture: Image.Image) -> Image.Image:
    """The picture with what the file says beside its samples, orientation applied."""
    picture.info = {k: v for k, v in opened.info.items() if k != "transparency"}
    picture.info.setdefault("exif", opened.getexif().tobytes())
    return ImageOps.exif_transpose(picture)
