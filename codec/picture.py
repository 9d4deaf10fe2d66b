"""What a user means by an image: colours or greys, perhaps alpha and a colour profile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from lichen.codec import metadata
from lichen.sim.images import load_picture, rgb
from lichen.sim.samples import DEEP_MODES

_GREY_MODES = ("1", "L", "LA", "La", *DEEP_MODES)
_PROFILE_SPACES = {True: b"GRAY", False: b"RGB "}


@dataclass(frozen=True)
class Picture:
    """An image of 8 bits per channel.

    Attributes
    ----------
    pixels : uint8 array (height, width, 3)
        RGB; of grey images three equal channels, or what a lossy codec made of them.
    alpha : uint8 array (height, width) or None
    grey : bool
        The image has no colours: `array` and `image` give one channel.
    icc : bytes or None
        ICC profile.
    notes : tuple of str
        What reading the image gave up.
    exif, xmp : bytes or None
        Metadata as Pillow has them, with nothing of the orientation, which has been applied.
    """

    pixels: npt.NDArray[np.uint8]
    alpha: npt.NDArray[np.uint8] | None = None
    grey: bool = False
    icc: bytes | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    exif: bytes | None = None
    xmp: bytes | None = None

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @staticmethod
    def of(image: Picture | Image.Image | npt.NDArray[np.uint8]) -> Picture:
        """A picture of a PIL image of any mode, or of an array.

        The EXIF orientation of PIL images is applied. Arrays are uint8 (height, width) for grey,
        or (height, width, channels) with one to four channels: grey, grey and alpha, RGB, RGB
        and alpha.

        Raises ValueError for other arrays and images without pixels, UserError for images of
        floating-point samples, whose range nothing tells.
        """
        if isinstance(image, Picture):
            return image
        if isinstance(image, Image.Image):
            return _of_pil(image)
        array = np.asarray(image)
        if array.ndim == 2:
            array = array[:, :, None]
        if array.dtype != np.uint8 or array.ndim != 3 or not 1 <= array.shape[2] <= 4:
            raise ValueError(
                "an image must be uint8 of shape (height, width) or (height, width, 1 to 4), "
                f"not {array.dtype} {array.shape}"
            )
        if array.size == 0:
            raise ValueError(f"an image must have pixels, not be {array.shape[0]} x "
                             f"{array.shape[1]}")  # fmt: skip
        grey, transparent = array.shape[2] < 3, array.shape[2] in (2, 4)
        colours = array[:, :, :-1] if transparent else array
        return Picture(
            np.ascontiguousarray(np.broadcast_to(colours, (*array.shape[:2], 3))),
            np.ascontiguousarray(array[:, :, -1]) if transparent else None,
            grey,
        )

    @staticmethod
    def read(path: str | Path) -> Picture:
        """A picture from a file, EXIF orientation applied; UserError when it cannot be read."""
        picture, notes = load_picture(path)
        found = _of_pil(picture)
        return replace(found, notes=(*notes, *found.notes))

    def opaque(self) -> npt.NDArray[np.uint8]:
        """`array` without alpha."""
        return replace(self, alpha=None).array()

    def array(self) -> npt.NDArray[np.uint8]:
        """(height, width) or (height, width, 2 to 4), as `of` takes it."""
        colours = self.pixels
        if self.grey:
            # ITU-R BT.601 luma in integers, as Pillow has it
            red, green, blue = (self.pixels[:, :, i].astype(np.uint32) for i in range(3))
            luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
            colours = luma.astype(np.uint8)[:, :, None]
        if self.alpha is not None:
            colours = np.concatenate([colours, self.alpha[:, :, None]], axis=2)
        return colours[:, :, 0] if colours.shape[2] == 1 else colours

    def image(self) -> Image.Image:
        """A PIL image of mode L, LA, RGB or RGBA, with its profile and metadata."""
        image = Image.fromarray(self.array())
        kept = {"icc_profile": self.icc, "exif": self.exif, "xmp": self.xmp}
        image.info.update({key: value for key, value in kept.items() if value is not None})
        return image


def _of_pil(image: Image.Image) -> Picture:
    # later there is no EXIF left that would tell
    image = ImageOps.exif_transpose(image)
    exif, xmp = metadata.exif(image), metadata.xmp(image)
    if image.width == 0 or image.height == 0:
        raise ValueError(f"an image must have pixels, not be {image.width} x {image.height}")
    notes: list[str] = []
    grey = image.mode in _GREY_MODES
    icc = image.info.get("icc_profile") or None
    if icc is not None and icc[16:20] != _PROFILE_SPACES[grey]:
        notes.append("the ICC profile is dropped, because it is not for what the image becomes")
        icc = None
    alpha = None
    key = image.info.get("transparency")
    if image.mode in DEEP_MODES and isinstance(key, int):
        # Pillow's own conversion clips deep samples
        alpha = np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)
    elif image.has_transparency_data:
        image = image.convert("LA" if grey and image.mode != "1" else "RGBA")
        alpha = np.asarray(image.getchannel("A"), dtype=np.uint8)
        image = image.convert("L" if grey else "RGB")
    return Picture(rgb(image, notes), alpha, grey, icc, tuple(notes), exif, xmp)
