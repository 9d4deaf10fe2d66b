"""Rate and distortion on images, from bytes really coded and pixels really decoded.

Any codec that can be written as a `Codec` is measured alike: integer networks (`NetworkCodec`),
the image formats of Pillow (`PillowCodec`) and, in `lichen.quant.training.evaluate`, FP32 models.
Results come in the JSON format of CompressAI's ``eval_model``, with every image's own results
added.
"""

from __future__ import annotations

import io
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from lichen.codec.container import Container, inspect
from lichen.errors import UserError
from lichen.network.description import Network
from lichen.sim.images import read_image
from lichen.sim.quality import PSNR_EXACT, psnr

Pixels = npt.NDArray[np.uint8]
Metric = Callable[[Pixels, Pixels], float | None]


class Codec(ABC):
    """Something that codes 8-bit RGB images.

    Attributes
    ----------
    name : str
        For plots and tables.
    description : str
        What made the bytes.
    """

    name: str
    description: str

    @abstractmethod
    def encode(self, image: Pixels) -> list[bytes]:
        """The streams of an image (height, width, 3)."""

    @abstractmethod
    def decode(self, streams: Sequence[bytes], height: int, width: int) -> Pixels:
        """The image that the streams of `encode` stand for."""

    def sizes(self, streams: Sequence[bytes]) -> tuple[int, int | None]:
        """Bytes that `ImageResult` counts for an image: of all there is, and of streams alone.

        Here for a codec that makes no file: streams are all there is. None for one whose file has
        no streams to tell from the rest.
        """
        total = sum(map(len, streams))
        return total, total


class NetworkCodec(Codec):
    """An integer network: files of a version, as `lichen.codec.container` writes them.

    Parameters
    ----------
    network : Network
    version : int or None
        Of the file; None takes the newest that the network can write.

    Raises UserError for networks that cannot code an image.
    """

    def __init__(self, network: Network, version: int | None = None):
        self.network = network
        self.container = Container(network, version=version)
        self.name = network.title
        self.description = f"integer, .lic version {self.container.version}"

    def encode(self, image: Pixels) -> list[bytes]:
        return [self.container.encode(image)]

    def decode(self, streams: Sequence[bytes], height: int, width: int) -> Pixels:
        (data,) = streams
        return self.container.decode(data).picture.pixels

    def sizes(self, streams: Sequence[bytes]) -> tuple[int, int | None]:
        (data,) = streams
        header = inspect(data)
        return header.image_bytes, header.stream_bytes


@dataclass(frozen=True)
class PillowFormat:
    """An image format of Pillow's: what to save with, and the range of its quality."""

    title: str
    options: dict[str, Any]
    lowest: int
    highest: int
    curve: tuple[int, ...]


PILLOW_FORMATS = {
    "jpeg": PillowFormat("JPEG", {"optimize": True}, 1, 95, (5, 10, 20, 30, 45, 60, 75, 85, 92)),
    "webp": PillowFormat("WebP", {"method": 6}, 0, 100, (0, 10, 20, 35, 50, 65, 80, 88, 94)),
    "avif": PillowFormat("AVIF", {"speed": 3}, 0, 100, (20, 30, 40, 50, 60, 70, 78, 85)),
}
"""By the name used on the command line; 4:2:0 chroma everywhere, as is Pillow's default. `curve`
is the set of qualities that a plot takes."""


class PillowCodec(Codec):
    """JPEG, WebP or AVIF through Pillow; the bytes are those of the whole file.

    Raises UserError for unknown formats, qualities out of range and formats that this Pillow
    was built without.
    """

    def __init__(self, format_name: str, quality: int):
        if format_name not in PILLOW_FORMATS:
            raise UserError(
                f"{format_name} is no image format to measure; use {', '.join(PILLOW_FORMATS)}."
            )
        known = PILLOW_FORMATS[format_name]
        if not known.lowest <= quality <= known.highest:
            raise UserError(
                f"{known.title}'s quality runs from {known.lowest} to {known.highest}, "
                f"not to {quality}."
            )
        Image.init()
        if known.title.upper() not in Image.SAVE:
            raise UserError(f"this installation of Pillow cannot write {known.title}.")
        self._format, self._quality = known, quality
        self.name = f"{format_name}:{quality}"
        settings = ", ".join(f"{key} {value}" for key, value in known.options.items())
        self.description = f"{known.title}, Pillow {PIL.__version__}, 4:2:0, {settings}"

    def encode(self, image: Pixels) -> list[bytes]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(
            buffer, format=self._format.title, quality=self._quality, **self._format.options
        )
        return [buffer.getvalue()]

    def decode(self, streams: Sequence[bytes], height: int, width: int) -> Pixels:
        (stream,) = streams
        with Image.open(io.BytesIO(stream)) as picture:
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)

    def sizes(self, streams: Sequence[bytes]) -> tuple[int, int | None]:
        return sum(map(len, streams)), None


@dataclass(frozen=True)
class ImageResult:
    """One image.

    Attributes
    ----------
    name : str
    width, height : int
        In pixels.
    bytes : int
        Of the whole file less EXIF, XMP, ICC profile and alpha; of streams where there is no file.
    bpp : float
        ``8 bytes / (width height)``.
    bpp_streams : float or None
        Bits of the streams alone; for FP32 models, which make no file, equal to ``bpp``; None for
        image formats.
    psnr : float
        RGB, in dB; `PSNR_EXACT` at most.
    ms_ssim : float or None
        RGB, 0 .. 1; None where it was not measured or the image is too small for it.
    encoding_time, decoding_time : float
        Seconds.
    """

    name: str
    width: int
    height: int
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float | None = None
    encoding_time: float = 0.0
    decoding_time: float = 0.0
    bpp_streams: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """One codec on a set of images, at least one; the figures are means over images."""

    name: str
    description: str
    images: list[ImageResult]

    def _mean(self, field: str) -> float:
        return float(np.mean([getattr(image, field) for image in self.images]))

    @property
    def bpp(self) -> float:
        return self._mean("bpp")

    @property
    def bpp_streams(self) -> float | None:
        """None unless every image has one."""
        return self._optional("bpp_streams")

    @property
    def psnr(self) -> float:
        return self._mean("psnr")

    @property
    def ms_ssim(self) -> float | None:
        """None unless every image has one."""
        return self._optional("ms_ssim")

    def _optional(self, field: str) -> float | None:
        if any(getattr(image, field) is None for image in self.images):
            return None
        return self._mean(field)

    def results(self) -> dict[str, float]:
        """The means under CompressAI's names."""
        found = {
            "psnr-rgb": self.psnr,
            "ms-ssim-rgb": self.ms_ssim,
            "bpp": self.bpp,
            "bpp_streams": self.bpp_streams,
        }
        return {key: value for key, value in found.items() if value is not None} | {
            "encoding_time": self._mean("encoding_time"),
            "decoding_time": self._mean("decoding_time"),
        }

    def to_json(self) -> dict[str, Any]:
        """Name, description, means and images as a plain dictionary."""
        return {
            "name": self.name,
            "description": self.description,
            "results": self.results(),
            "images": [
                {_JSON_NAMES.get(key, key): value for key, value in asdict(image).items()}
                for image in self.images
            ],
        }

    @classmethod
    def from_json(cls, point: dict[str, Any]) -> Evaluation:
        """Undo `to_json`; KeyError or TypeError where that did not write it."""
        fields = {value: key for key, value in _JSON_NAMES.items()}
        images = [
            ImageResult(**{fields.get(key, key): value for key, value in image.items()})
            for image in point["images"]
        ]
        return cls(point["name"], point["description"], images)


_JSON_NAMES = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb"}


def code(codec: Codec, image: Pixels) -> tuple[list[bytes], Pixels]:
    """An image's streams, and what they decode to.

    Raises RuntimeError when that is no image of the same shape.
    """
    streams = codec.encode(image)
    decoded = codec.decode(streams, *image.shape[:2])
    if decoded.shape != image.shape or decoded.dtype != np.uint8:
        raise RuntimeError(f"{codec.name} decoded {image.shape} to {decoded.shape}")
    return streams, decoded


def evaluate(
    codec: Codec,
    images: Iterable[str | Path | Pixels],
    *,
    ms_ssim: Metric | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Evaluation:
    """Code and decode images, and measure what comes back.

    Parameters
    ----------
    codec : Codec
    images : image files, or uint8 arrays (height, width, 3); at least one
    ms_ssim : callable or None
        ``ms_ssim(original, decoded)``, None for images that are too small.
    progress : callable
        Gets each image's name when it is done.

    Raises UserError when an image cannot be read or there is none.
    """
    results = []
    for index, item in enumerate(images):
        if isinstance(item, np.ndarray):
            name, image = f"image {index}", item
        else:
            name, image = Path(item).name, read_image(item)
        height, width = image.shape[:2]
        start = time.perf_counter()
        streams = codec.encode(image)
        middle = time.perf_counter()
        decoded = codec.decode(streams, height, width)
        end = time.perf_counter()
        size, stream_size = codec.sizes(streams)
        results.append(
            ImageResult(
                name=name,
                width=width,
                height=height,
                bytes=size,
                bpp=8 * size / (height * width),
                psnr=min(psnr(image, decoded), PSNR_EXACT),
                ms_ssim=None if ms_ssim is None else ms_ssim(image, decoded),
                encoding_time=middle - start,
                decoding_time=end - middle,
                bpp_streams=None if stream_size is None else 8 * stream_size / (height * width),
            )
        )
        progress(name)
    if not results:
        raise UserError("there are no images to measure on.")
    return Evaluation(codec.name, codec.description, results)


def family(name: str) -> str:
    """A point's name without its quality: ``small`` of ``small-q1``, ``jpeg`` of ``jpeg:75``."""
    return re.sub(r"[-_:]q?\d+(?=$|\.fp32$)", "", name)


def common_name(names: Sequence[str]) -> str:
    """What to call the curve of several points: ``small`` for ``small-q1`` and ``small-q4``."""
    if len(set(names)) == 1:
        return names[0]
    return " + ".join(dict.fromkeys(map(family, names)))


def to_json(evaluations: Sequence[Evaluation], name: str | None = None) -> dict[str, Any]:
    """Several points of one curve in CompressAI's format, in order of their rate.

    ``results`` holds a list for each figure, one entry per point; ``points`` (which
    CompressAI doesn't have) each point's name and images.
    """
    points = sorted(evaluations, key=lambda evaluation: evaluation.bpp)
    results = [point.results() for point in points]
    return {
        "name": common_name([p.name for p in evaluations]) if name is None else name,
        "description": f"Inference ({'; '.join(dict.fromkeys(p.description for p in points))})",
        "results": {
            key: [result[key] for result in results]
            for key in results[0]
            if all(key in result for result in results)
        },
        "points": [point.to_json() for point in points],
    }
