"""What the core should do: frames, and the output of every stage for each of them.

``interface.json`` describes the core, ``vectors.npz`` holds the tensors, rows x columns x channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
_TEXT = (FOLDER.parent / "interface.json").read_text(encoding="utf-8")
INTERFACE: dict[str, Any] = json.loads(_TEXT)


@dataclass(frozen=True)
class Format:
    """How a stream carries a tensor: so many channels a beat, the first in the lowest bits.

    ``container`` is how many bits each takes in the beat: more than ``bits`` where channels are
    padded to whole bytes.
    """

    channels: int
    lanes: int
    bits: int
    signed: bool
    container: int

    @property
    def beats(self) -> int:
        """Beats of one pixel. Lanes past the last channel do not matter."""
        return -(-self.channels // self.lanes)

    def pack(self, tensor: np.ndarray) -> list[int]:
        """A tensor's beats."""
        beats = []
        mask = (1 << self.bits) - 1
        for pixel in tensor.reshape(-1, self.channels).tolist():
            for start in range(0, self.channels, self.lanes):
                beat = 0
                for lane, value in enumerate(pixel[start : start + self.lanes]):
                    beat |= (value & mask) << (lane * self.container)
                beats.append(beat)
        return beats

    def unpack(self, beats: Sequence[str]) -> list[list[int | None]]:
        """Channels of every whole pixel in beats given in binary; None where bits are unknown."""
        pixels = []
        for start in range(0, len(beats) - self.beats + 1, self.beats):
            pixel: list[int | None] = []
            for beat in beats[start : start + self.beats]:
                for lane in range(self.lanes):
                    end = len(beat) - lane * self.container
                    digits = beat[end - self.bits : end]
                    if set(digits) <= {"0", "1"}:
                        value = int(digits, 2)
                        negative = self.signed and digits[0] == "1"
                        pixel.append(value - (1 << self.bits) if negative else value)
                    else:
                        pixel.append(None)
            pixels.append(pixel[: self.channels])
        return pixels


def stream_format(description: dict[str, Any]) -> Format:
    """The format of one of the streams in ``interface.json``."""
    names = ("channels", "lanes", "bits", "signed", "container")
    return Format(**{name: description[name] for name in names})


@dataclass(frozen=True)
class Frame:
    """An input, what every stage makes of it, and the cycles that takes without a pause."""

    name: str
    tensor: np.ndarray
    stages: dict[str, np.ndarray]
    cycles: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.tensor.shape[1], self.tensor.shape[0]


def frames(network: str = "vectors") -> list[Frame]:
    """All frames, of different sizes; of another network that the core may be filled with, too."""
    found = []
    with np.load(FOLDER / f"{network}.npz") as file:
        for frame in INTERFACE["golden"]:
            stages = {s["name"]: file[f"{frame['name']}_{s['name']}"] for s in INTERFACE["stages"]}
            tensor = file[f"{frame['name']}_input"]
            found.append(Frame(frame["name"], tensor, stages, frame["cycles"]))
    return found


def difference(stage: str, wanted: Sequence[np.ndarray], beats: Sequence[str], form: Format) -> str:
    """A sentence about the first value of frames that is wrong in a stage's beats, or nothing.

    Beats may be missing at the end: what is there is compared.
    """
    pixels = form.unpack(beats)
    at = 0
    for number, tensor in enumerate(wanted):
        height, width, _ = tensor.shape
        for y in range(height):
            for x in range(width):
                if at == len(pixels):
                    return ""
                row = tensor[y, x].tolist()
                if pixels[at] != row:
                    c = next(c for c, value in enumerate(row) if pixels[at][c] != value)
                    got = pixels[at][c]
                    return (
                        f"stage {stage}, frame {number}, row {y}, column {x}, channel {c}: "
                        f"{'unknown bits' if got is None else got} where {row[c]} is right"
                    )
                at += 1
    if len(pixels) > at:
        return f"stage {stage}: {len(pixels) - at} pixels too many"
    return ""
