"""Images through a board: what `lichen.boards.open` gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from lichen import models
from lichen.boards.host.connection import Connection
from lichen.boards.host.session import Frame
from lichen.boards.port.format import PortFormat
from lichen.codec.container import Container, Decoded
from lichen.codec.picture import Picture
from lichen.errors import UserError
from lichen.hw.plan.tiling import tiles
from lichen.network.description import LATENTS, Format, Network
from lichen.network.identity import static_digest
from lichen.sim.golden import Latents, Tensor, code_latent, picture_input
from lichen.sim.images import pad_image
from lichen.sim.transform import join_tiles

Progress = Callable[[int, int], object]
"""Takes how many bytes of input have arrived, and of how many."""


def _nothing(done: int, total: int) -> None:
    pass


class Engine:
    """The transforms of a board that was found to be Lichen's.

    Parameters
    ----------
    connection : Connection
    network : Network or None
        Whose transforms are wanted; None takes the shipped one that the board holds.

    Attributes
    ----------
    network : Network
    transforms : dict of str to PortFormat
        Those in the board, by name.

    Raises UserError where the board holds another network.
    """

    def __init__(self, connection: Connection, network: Network | None = None):
        self.connection = connection
        digest = connection.identity.digest.hex()
        name = connection.line.name
        if network is None:
            network = models.find(digest)
            if network is None:
                raise UserError(
                    f"the board on {name} holds the network {digest[:16]}…, which is none of the "
                    "shipped ones; name its file with -m."
                )
        elif static_digest(network) != digest:
            raise UserError(_another(name, network, models.find_name(digest) or f"{digest[:16]}…"))
        self.network = network
        self.transforms: dict[str, PortFormat] = {
            form.name: form for form in connection.identity.transforms
        }

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the board."""
        self.connection.close()

    def encode(
        self,
        image: Picture | Image.Image | npt.NDArray[np.uint8],
        *,
        version: int | None = None,
        progress: Progress = _nothing,
    ) -> bytes:
        """The ``.lic`` file of an image, byte for byte that of `lichen.codec.encode`.

        g_a runs on the board, the rest in the golden model. Raises UserError when the board has no
        g_a or fails.
        """
        picture = Picture.of(image)
        container = Container(self.network, version=version)
        return container.pack(self.analyze(picture, progress=progress), picture)

    def decode(self, data: bytes, *, progress: Progress = _nothing) -> Decoded:
        """The image of a ``.lic`` file, pixel for pixel that of `lichen.codec.decode`.

        g_s runs on the board, the rest in the golden model. Raises UserError when the board has no
        g_s or fails, ContainerError for damaged files and those of other networks.
        """

        def synthesize(
            network: Network, symbols: Tensor, means: Tensor | None, height: int, width: int
        ) -> npt.NDArray[np.uint8]:
            return self.synthesize(symbols, means, height, width, progress=progress)

        return Container(self.network).decode(data, synthesize=synthesize)

    def analyze(self, picture: Picture, *, progress: Progress = _nothing) -> Latents:
        """All that the entropy coder codes of a picture, y from the board."""
        pixels = pad_image(picture.pixels, self.network.factor)
        y = self.run(LATENTS[0].analysis, pixels, progress=progress)
        return code_latent(self.network, y, picture.height, picture.width)

    def synthesize(
        self,
        symbols: Tensor,
        means: Tensor | None,
        height: int,
        width: int,
        *,
        progress: Progress = _nothing,
    ) -> npt.NDArray[np.uint8]:
        """The pixels of symbols, as `lichen.sim.golden.synthesis` makes them, from the board."""
        tensor = picture_input(self.network, symbols, means, height, width)
        output = self.run(LATENTS[0].synthesis, tensor, progress=progress)
        return output[:height, :width].astype(np.uint8)

    def run(
        self, name: str, tensor: Tensor, *, progress: Progress = _nothing
    ) -> npt.NDArray[np.int64]:
        """What a transform on the board makes of a tensor (height, width, channels).

        A tensor that is wider than the build goes through in tiles. Raises UserError when the board
        does not have the transform, or fails.
        """
        if name not in self.transforms:
            have = " and ".join(self.transforms)
            raise UserError(
                f"the board on {self.connection.line.name} runs {have} only; build a bitstream "
                f"with {name} (`lichen build NET --board BOARD --transform {name} -o DIR`) and "
                "load it (`lichen flash DIR --board BOARD`)."
            )
        form, transform = self.transforms[name], self.network.transform(name)
        index = list(self.transforms).index(name)
        try:
            cut = tiles(transform, tensor.shape[1], form.max_width)
        except ValueError as error:
            raise UserError(f"the board on {self.connection.line.name}: {error}.") from None
        payloads = [
            to_bytes(tensor[:, tile.start : tile.stop], transform.input, form.in_bytes)
            for tile in cut
        ]
        total, before = sum(map(len, payloads)), 0
        outputs = []
        for tile, payload in zip(cut, payloads, strict=True):
            height, width = tensor.shape[0], tile.stop - tile.start
            shape = (*transform.sizes(height, width)[-1], transform.out_channels)
            frame = Frame(
                transform=index,
                width=width,
                height=height,
                payload=payload,
                expected=int(np.prod(shape)) * form.out_bytes,
            )
            arrived = partial(_shifted, progress, before, total)
            raw = self.connection.run(frame, arrived)
            before += len(payload)
            progress(before, total)
            outputs.append(from_bytes(raw, transform.output, form.out_bytes).reshape(shape))
        return join_tiles(outputs, cut)


def _shifted(progress: Progress, before: int, total: int, done: int) -> None:
    """Progress of a tile, told as that of the whole."""
    progress(before + done, total)


def to_bytes(tensor: Tensor, source: Format, size: int) -> bytes:
    """Values in raster order, ``size`` bytes each, as a port takes them.

    Raises ValueError for values that the format does not hold.
    """
    if tensor.min() < source.lo or tensor.max() > source.hi:
        raise ValueError(f"values must lie in {source.lo} .. {source.hi}")
    return np.ascontiguousarray(tensor, _dtype(source, size)).tobytes()


def from_bytes(raw: bytes, target: Format, size: int) -> npt.NDArray[np.int64]:
    """The values of bytes that a port gave."""
    return np.frombuffer(raw, _dtype(target, size)).astype(np.int64)


def _dtype(form: Format, size: int) -> str:
    return f"<{'i' if form.signed else 'u'}{size}"


def _another(port: str, network: Network, found: str) -> str:
    """That a board holds another network, and what to do."""
    return (
        f"the board on {port} holds {found}, not {network.title}; build and load it: "
        f"`lichen build {network.title} --board BOARD -o DIR`, then "
        "`lichen flash DIR --board BOARD`."
    )
