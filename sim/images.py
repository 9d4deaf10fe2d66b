"""Images in and out: any PNG, JPEG or WebP as 8-bit RGB, and back to a file."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.sim.samples import DEEP_MODES, REDUCED, check_samples, load_deep, raw_mode, reduce

PIXELS_MAX = 1 << 28
"""Largest image read: a header that claims more is taken for an attack."""

PIXELS_FREE = 1 << 24
PIXELS_PER_BYTE = 1 << 14
"""What a file of any size may claim, or by its bytes: memory is taken before they are read. Deflate
makes at most 1032 bytes of one, or 8256 pixels of a bit each."""

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
"""Which files of a folder are images."""

MIB = 1 << 20
TEXT_BYTES = 64 * MIB
"""Largest colour profile or text of a PNG that is read. Pillow's own guard stands at 1 MiB, and
real profiles are larger; beyond ours the picture is read without them."""

# Our guards are the ones that count: Pillow's are put where they do not come first, unless the
# program around us has raised or lifted them itself.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, TEXT_BYTES)
PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, 4 * TEXT_BYTES)
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, PIXELS_MAX)

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_XMP = 700
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that hold text or a profile."""


def list_images(folder: str | Path, extensions: Sequence[str] = EXTENSIONS) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; UserError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of images.")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in extensions and p.is_file())
    if not files:
        raise UserError(f"{folder} holds no images (looked for {', '.join(extensions)}).")
    return files


def load_picture(path: str | Path) -> tuple[Image.Image, list[str]]:
    """Read an image as it is, EXIF orientation applied, and say what was left out.

    Raises UserError, one sentence, when there is no readable image.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an image.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")
    try:
        with warnings.catch_warnings():
            # our own limit is checked below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                return _load(path, path)
            except ValueError as error:
                plain = _without_texts(path) if "MAX_TEXT" in str(error) else None
                if plain is None:
                    raise
            picture, notes = _load(path, plain)
            most = f"{TEXT_BYTES // MIB} MiB"
            return picture, [*notes, f"texts and profile are dropped, being more than {most}"]
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image of a known format.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} claims more than {PIXELS_MAX} pixels.") from None
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UserError(f"{path} cannot be read as an image ({error}).") from None


def _load(path: Path, data: Path | bytes) -> tuple[Image.Image, list[str]]:
    """The picture in a file or in its bytes, and notes; whatever Pillow raises."""

    def open_it() -> Image.Image:
        return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)

    notes: list[str] = []
    with open_it() as opened:
        if opened.width * opened.height > PIXELS_MAX:
            raise UserError(
                f"{path} claims {opened.width} x {opened.height} pixels, more than {PIXELS_MAX}."
            )
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if opened.width * opened.height > max(PIXELS_FREE, PIXELS_PER_BYTE * size):
            raise UserError(
                f"{path} claims {opened.width} x {opened.height} pixels in {size} bytes, which "
                "hold no such picture."
            )
        if (frames := getattr(opened, "n_frames", 1)) > 1:
            notes.append(f"only the first of {frames} frames is used")
        check_samples(opened, path)
        if ";16" in (raw_mode(opened) or "") and opened.mode not in DEEP_MODES:
            notes.append(REDUCED)
        picture = load_deep(opened, open_it)
        if picture is None:
            opened.load()
            # a transposed or a plain copy, in any case one that outlives the file
            picture = ImageOps.exif_transpose(opened)
        elif REDUCED not in notes:
            notes.append(REDUCED)
        return picture, notes


def _without_texts(path: Path) -> bytes | None:
    """The bytes of a PNG without texts and profile; None where it is no PNG."""
    data = path.read_bytes()
    if not data.startswith(_PNG):
        return None
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if data[at + 4 : at + 8] not in _TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def load_image(path: str | Path) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Read an image as 8-bit RGB, and say what had to be given up for that.

    Returns
    -------
    uint8 array (height, width, 3), list of str
        EXIF orientation is applied. The notes tell of a dropped alpha channel, reduced depth,
        converted colour spaces, further frames.

    Raises UserError, one sentence, when there is no readable image.
    """
    picture, notes = load_picture(path)
    return rgb(picture, notes), notes


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """`load_image` without the notes."""
    return load_image(path)[0]


def rgb(picture: Image.Image, notes: list[str]) -> npt.NDArray[np.uint8]:
    """A picture as 8-bit RGB (height, width, 3); the notes get what was given up."""
    check_samples(picture, "the image")
    if picture.mode in DEEP_MODES:
        notes.append(REDUCED)
        # 16-bit files arrive as 0 .. 65535 whatever Pillow calls the mode
        return np.repeat(reduce(np.asarray(picture))[:, :, None], 3, axis=2)
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        notes.append("the alpha channel is dropped")
        # premultiplied colours are divided by alpha first
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}.get(picture.mode, picture.mode))
    elif picture.mode not in ("RGB", "L", "1"):
        notes.append(f"converted from {picture.mode} to RGB")
    if picture.mode == "LAB":
        picture = _from_lab(picture)
    return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def _from_lab(picture: Image.Image) -> Image.Image:
    """CIE L*a*b* as sRGB, by colour management: Pillow's own conversions leave it out."""
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted


def pad_image(image: npt.NDArray[np.uint8], multiple: int) -> npt.NDArray[np.uint8]:
    """Replicate the right and bottom edges of (height, width, channels) up to a multiple."""
    height, width, _ = image.shape
    if height == 0 or width == 0:
        raise ValueError(f"an image must have pixels, not be {height} x {width}")
    return np.pad(image, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")


def crop_middle(image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """The middle ``height`` rows and ``width`` columns.

    Raises UserError when the image has fewer.
    """
    rows, columns = image.shape[:2]
    if height > rows or width > columns:
        raise UserError(
            f"a crop of {width}x{height} does not fit an image of {columns}x{rows} "
            "(width x height)."
        )
    y, x = (rows - height) // 2, (columns - width) // 2
    return image[y : y + height, x : x + width]


def image_format(path: str | Path) -> str:
    """Pillow's name of the format that a file's extension stands for.

    Raises UserError when none can be written.
    """
    suffix = Path(path).suffix.lower()
    Image.preinit()
    found = Image.EXTENSION.get(suffix)
    if found is None:
        # all the rest takes as long as decoding a photograph
        found = Image.registered_extensions().get(suffix)
    if found is None or found not in Image.SAVE:
        raise UserError(f"{path} names no image format that can be written; use .png.")
    return found


def _metadata_options(kind: str, exif: bytes | None, xmp: bytes | None) -> dict[str, Any]:
    """What Pillow takes to write EXIF and an XMP packet in a format."""
    if kind == "TIFF" and xmp:
        # of which they are tags; its own option for tags would put those of EXIF aside
        tags = Image.Exif()
        if exif:
            tags.load(exif)
        tags[_TIFF_XMP] = xmp
        return {"exif": tags}
    options: dict[str, Any] = {"exif": exif} if exif else {}
    if kind == "PNG" and xmp:
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", xmp)
        return options | {"pnginfo": texts}
    return options | ({"xmp": xmp} if xmp else {})


def write_image(path: str | Path, image: npt.NDArray[np.uint8] | Image.Image) -> None:
    """Write (height, width, 3), or a PIL image, in the format of the name's extension, atomically.

    A PIL image keeps its ICC profile, EXIF and XMP where the format has room for them. Raises
    UserError when the format is unknown or cannot hold such an image, and when the file cannot be
    written.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    kind = image_format(path)
    options: dict[str, Any] = {}
    if kind == "PNG":
        # photographs that come out of a codec repeat nothing: run lengths and Huffman codes alone
        # make smaller files of them than Pillow's default does, in a fifth of the time
        options["compress_type"] = zlib.Z_RLE
    if profile := picture.info.get("icc_profile"):
        options["icc_profile"] = profile
    options |= _metadata_options(kind, picture.info.get("exif"), picture.info.get("xmp"))
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=kind, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be written as {kind} ({error}); use .png.") from None
    write_atomically(path, buffer.getvalue())
