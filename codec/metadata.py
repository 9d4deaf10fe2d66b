"""Colour profiles and metadata of pictures."""

from __future__ import annotations

import functools
import io
import struct

import numpy as np
from PIL import Image

_DATE = slice(24, 36)
"""When a profile was made, in its header: no two would be equal."""

ORIENTATION = 0x0112
"""EXIF's tag of how the image lies."""

_STEPS = 9
"""Values of each colour that profiles are compared at."""


@functools.cache
def srgb_profile() -> bytes:
    """An ICC profile of sRGB, the same at any time."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[_DATE] = bytes(12)
    return bytes(profile)


@functools.lru_cache(maxsize=64)
def is_srgb(icc: bytes | None) -> bool:
    """Whether a profile is one of sRGB: colours come through it as they are.

    Such profiles are many (with and without a black point, of 8 or 16 bits, of any age), so
    what they do counts and not their bytes: none of a grid of colours may move by more than one
    step of 8 bits.
    """
    if icc is None or icc[16:20] != b"RGB ":
        return False
    from PIL import ImageCms

    values = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(values, values, values, indexing="ij"), axis=-1)
    colours = Image.fromarray(grid.reshape(_STEPS, _STEPS**2, 3))
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        made = ImageCms.profileToProfile(
            colours, given, ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return False
    if made is None:
        return False
    moved = np.asarray(made, np.int16) - np.asarray(colours, np.int16)
    return bool(np.abs(moved).max() <= 1)


def exif(image: Image.Image) -> bytes | None:
    """The EXIF of an image that lies upright, None without any.

    Raises nothing: what cannot be read as EXIF is left behind.
    """
    try:
        found = image.getexif()
        found.pop(ORIENTATION, None)
        return found.tobytes() if len(found) or found._ifds else None
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error, OverflowError):
        return None


def xmp(image: Image.Image) -> bytes | None:
    """The XMP packet of an image, None without one."""
    for key in ("xmp", "XML:com.adobe.xmp"):
        found = image.info.get(key)
        if isinstance(found, str):
            found = found.encode()
        if isinstance(found, bytes) and found.strip():
            return found
    return None
