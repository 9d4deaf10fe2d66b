"""Images through a board: what `lichen.boards.open` gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from lichen import models
from lichen.boards.design import Design
from lichen.boards.host.connection import ATTEMPTS, Connection, EmptyError
from lichen.boards.host.session import Frame, Load
from lichen.boards.port.fill import Fill, bytes_of, words_of
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
        Whose transforms are wanted; None takes the shipped one that the board holds. A board whose
        transforms are filled at run time gets it when it is first asked for something.

    Attributes
    ----------
    transforms : dict of str to PortFormat
        Those in the board, by name.

    Raises UserError where the board holds another network.
    """

    def __init__(self, connection: Connection, network: Network | None = None):
        self.connection = connection
        name, fixed = connection.line.name, connection.identity.digest
        self._network = network
        if network is None and self.loads:
            known = (models.find(held.hex()) for held in connection.loaded() if any(held))
            self._network = next((found for found in known if found is not None), None)
        elif network is None:
            self._network = models.find(fixed.hex())
            if self._network is None:
                raise UserError(_unknown(name, fixed))
        elif not self.loads and static_digest(network) != fixed.hex():
            found = models.find_name(fixed.hex()) or f"{fixed.hex()[:16]}…"
            raise UserError(_another(name, network, found))
        self._designs: dict[str, Design] = {}
        self.transforms: dict[str, PortFormat] = {
            form.name: form for form in connection.identity.transforms
        }

    @property
    def loads(self) -> bool:
        """Whether the board's transforms are filled at run time."""
        return bool(self.connection.identity.fills)

    @property
    def network(self) -> Network:
        """Whose transforms are wanted; UserError where none was named and the board holds none
        that is known."""
        if self._network is None:
            name = self.connection.line.name
            for digest in filter(any, self.connection.loaded()):
                raise UserError(_unknown(name, digest))
            raise UserError(
                f"the board on {name} holds no network yet; name one with -m, or load it with "
                f"`lichen load NET --engine {name}`."
            )
        return self._network

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

    def load(self, network: Network, *, progress: Progress = _nothing) -> None:
        """Fill the board's transforms with a network, which is the engine's from now on.

        A transform that holds it already, or that the network does not have, is left as it is.
        Raises UserError where the network does not fit, where the board holds one that stands in
        its gateware, and where the board fails.
        """
        if not self.loads:
            raise UserError(
                f"the network of the board on {self.connection.line.name} stands in its bitstream; "
                "build one with --weights load."
            )
        before, self._network = self._network, network
        self._designs.clear()
        try:
            wanted = [name for name in self.transforms if name in network.transforms]
            if not wanted:
                have = " and ".join(self.transforms)
                raise UserError(f"{network.title} has no {have}, which the board runs.")
            for name in wanted:
                self._design(name)  # before anything is lost, all of them fit
            for name in wanted:
                if not self.holds(name):
                    self.fill(name, progress=progress)
        except UserError:
            self._network = before
            self._designs.clear()
            raise

    def holds(self, name: str) -> bool:
        """Whether a transform of the board has the network's constants."""
        if not self.loads:
            return True
        return self.connection.loaded()[self._index(name)].hex() == static_digest(self.network)

    def fill(self, name: str, *, progress: Progress = _nothing) -> None:
        """Load the network's constants into a transform of the board.

        Raises UserError where they do not fit, or the board fails.
        """
        index = self._index(name)
        pipeline = self._design(name).pipeline()
        load = Load(
            transform=index,
            words=bytes_of(words_of(pipeline.image())),
            digest=bytes.fromhex(static_digest(self.network)),
        )
        total = len(load.payload)
        self.connection.run(load, partial(_shifted, progress, 0, total))
        progress(total, total)

    def _index(self, name: str) -> int:
        """A transform's place in the board; UserError where it has none of that name."""
        if name not in self.transforms:
            have = " and ".join(self.transforms)
            raise UserError(
                f"the board on {self.connection.line.name} runs {have} only; build a bitstream "
                f"with {name} (`lichen build NET --board BOARD --transform {name} -o DIR`) and "
                "load it (`lichen flash DIR --board BOARD`)."
            )
        return list(self.transforms).index(name)

    def _design(self, name: str) -> Design:
        """The network's transform as a board holds it that is filled at run time.

        Raises UserError where it does not fit.
        """
        if name not in self._designs:
            fill = self.connection.identity.fills[self._index(name)]
            self._designs[name] = _fitting(
                self.network, name, fill, f"the board on {self.connection.line.name}"
            )
        return self._designs[name]

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

        A tensor that is wider than the build goes through in tiles. A transform that is filled at
        run time is filled before, and again where the board has lost what it held. Raises UserError
        when the board does not have the transform, or fails.
        """
        index = self._index(name)
        for _ in range(ATTEMPTS):
            if not self.holds(name):
                self.fill(name)
            try:
                return self._run(name, index, tensor, progress)
            except EmptyError as error:
                lost = error
        raise lost

    def _run(
        self, name: str, index: int, tensor: Tensor, progress: Progress
    ) -> npt.NDArray[np.int64]:
        """`run` with a transform that is filled."""
        form, own = self.transforms[name], self.network.transform(name)
        transform = self._design(name).transform if self.loads else own
        more = transform.in_channels - own.in_channels
        tensor = np.pad(tensor, ((0, 0), (0, 0), (0, more)))

        def check() -> None:
            if not self.holds(name):
                raise EmptyError(
                    f"the board on {self.connection.line.name} has lost the network that it held."
                )

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
            raw = self.connection.run(frame, arrived, check)
            before += len(payload)
            progress(before, total)
            outputs.append(from_bytes(raw, transform.output, form.out_bytes).reshape(shape))
        return join_tiles(outputs, cut)[..., : own.out_channels]


def _unknown(port: str, digest: bytes) -> str:
    """That a board holds a network that does not ship."""
    return (
        f"the board on {port} holds the network {digest.hex()[:16]}…, which is none of the shipped "
        "ones; name its file with -m."
    )


def _fitting(network: Network, name: str, fill: Fill, where: str) -> Design:
    """A network's transform with a board's folding; UserError where it does not fit."""
    title = network.title
    mend = (
        f"build and load a bitstream for it: `lichen build {title} --board BOARD --transform "
        f"{name} --weights load -o DIR`, then `lichen flash DIR --board BOARD`."
    )
    try:
        design = Design.make(network, name, fill.folding, fill.templates)
        own = Fill.of(design.pipeline())
    except (UserError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{title} does not fit {where}: {reason}; {mend}") from None
    if (own.words, own.map) != (fill.words, fill.map):
        raise UserError(f"the bitstream of {where} was built by another Lichen; {mend}")
    return design


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
