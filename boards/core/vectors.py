"""Golden frames of a core: inputs, what every stage makes of them, and the cycles."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lichen.boards.core.core import Core
from lichen.models import photograph
from lichen.network.description import Network
from lichen.network.flow import LATENTS
from lichen.sim.golden import run_stages
from lichen.sim.images import crop_middle, read_image
from lichen.sim.inputs import transform_input

SIZES = ((1, 1), (1, 2), (2, 1))
"""Rows and columns of frames of a photograph, in units of what the transform reduces."""

RANDOM_SIZE = (2, 2)
"""Those of the frame of random values: where there are two outputs in either direction, the borders
spare no tap of a kernel of 5."""


@dataclass(frozen=True)
class GoldenFrame:
    """A frame.

    Attributes
    ----------
    name : str
    tensor : int array (height, width, channels)
    stages : dict of str to int array
        Every stage's output, by its name.
    cycles : int
        From the first beat taken to the last beat given, both included, without a pause.
    """

    name: str
    tensor: npt.NDArray[np.integer]
    stages: dict[str, npt.NDArray[np.integer]]
    cycles: int


def golden_frames(core: Core) -> list[GoldenFrame]:
    """Crops of the photograph that ships, and one frame of random values out of the whole range."""
    transform = core.design.transform
    step = _step(core)
    widest = core.design.max_width
    tensors = [_crop(core, h * step, min(w * step, widest)) for h, w in SIZES]
    rng = np.random.default_rng(23)
    source = transform.input
    size = (RANDOM_SIZE[0] * step, min(RANDOM_SIZE[1] * step, widest), transform.in_channels)
    tensors.append(rng.integers(source.lo, source.hi + 1, size))
    found = []
    for number, tensor in enumerate(tensors):
        outputs = run_stages(transform, tensor)
        named: dict[str, npt.NDArray[np.integer]] = {
            stage.name: out for stage, out in zip(transform.stages, outputs, strict=True)
        }
        cycles = core.pipeline.predicted_cycles(*tensor.shape[:2])
        found.append(GoldenFrame(f"frame{number}", tensor, named, cycles))
    return found


def _step(core: Core) -> int:
    """Rows and columns of the smallest frame that leaves something."""
    return max(1, int(core.design.transform.downsampling))


def _crop(core: Core, height: int, width: int) -> npt.NDArray[np.integer]:
    """What the transform reads of a photograph, cut to a size."""
    network, name = core.design.network, core.design.transform_name
    channels = core.design.transform.in_channels
    source = core.design.transform.input
    try:
        image = read_image(photograph())
        if name == LATENTS[0].analysis:
            pixels = crop_middle(image, height, width)
            if pixels.shape[2] != channels or (source.lo, source.hi) != (0, 255):
                raise ValueError("it takes something else than pictures")
            return pixels
        factor = network.factor
        rows, columns = (min(n * factor, 256) for n in (height, width))
        tensor = transform_input(network, name, crop_middle(image, rows, columns))
        if tensor.shape[0] < height or tensor.shape[1] < width:
            raise ValueError("the photograph is too small")
        return tensor[:height, :width]
    except ValueError:
        # A transform on its own: any values will do.
        rng = np.random.default_rng([height, width])
        return rng.integers(source.lo, source.hi + 1, (height, width, channels))


def mirrored(network: Network, name: str) -> Network:
    """A network of the same shape that makes something else: every weight the other way round.

    Biases stay, so that what comes out is not merely the negative.
    """
    transform = network.transform(name)
    stages = [
        stage.model_copy(
            update={
                "convolution": stage.convolution.model_copy(
                    update={"weight": -stage.convolution.weight.astype(np.int64)}
                )
            }
        )
        for stage in transform.stages
    ]
    changed = {**network.transforms, name: transform.model_copy(update={"stages": stages})}
    return network.model_copy(update={"transforms": changed})


def pack(frames: list[GoldenFrame]) -> bytes:
    """The frames as ``.npz``, equal bytes for equal frames."""
    arrays = {}
    for frame in frames:
        arrays[f"{frame.name}_input"] = frame.tensor.astype(np.int32)
        for name, tensor in frame.stages.items():
            arrays[f"{frame.name}_{name}"] = tensor.astype(np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
