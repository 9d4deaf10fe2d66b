# amaranth: UnusedElaboratable=no
"""A small board with a real encoder and a real decoder, complete, in Verilator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lichen.boards.board import ULX3S_85F
from lichen.boards.host.connection import Connection
from lichen.boards.host.serial import SerialLine
from lichen.boards.host.session import Frame
from lichen.boards.port.port import TransformPort
from lichen.boards.record import Board
from lichen.boards.simulated import board as simulated
from lichen.boards.top import Top
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import IMAGE_FORMAT, Activation, Transform
from lichen.network.random import StageShape, random_transform
from lichen.sim.golden import run_transform

DIGEST = bytes.fromhex("c0ffee42") * 8
WIDEST = 16
UP = {"transposed": True}
QUARTER = simulated.with_baud(ULX3S_85F, ULX3S_85F.oscillator_hz // 4)
"""The board with its line at a quarter of the clock."""

# More bytes of latents than of pixels, so that the line holds the pipeline back, and the pipeline
# the host. Neither channels nor lanes divide each other.
ENCODER = random_transform(
    np.random.default_rng(7),
    [
        StageShape(out_channels=4, kernel=3, stride=2, activation=Activation.GDN),
        StageShape(out_channels=12, kernel=3, stride=1, output_bits=11),
    ],
)
FOLDING = Folding(
    max_width=WIDEST,
    stages=[
        StageFolding(
            chains=2,
            convolution=ArrayFolding(chain_length=2, lanes=2),
            normalization=ArrayFolding(chain_length=2, lanes=2),
        ),
        StageFolding(chains=5, convolution=ArrayFolding(chain_length=2, lanes=2)),
    ],
)
# Values of two bytes in, pixels out.
DECODER = random_transform(
    np.random.default_rng(8),
    [
        StageShape(out_channels=4, kernel=3, stride=2, activation=Activation.IGDN, **UP),
        StageShape(out_channels=3, kernel=3, stride=1, output=IMAGE_FORMAT, **UP),
    ],
    in_channels=12,
    source=ENCODER.output,
)
LAST = StageFolding(chains=2, convolution=ArrayFolding(chain_length=1, lanes=1))
DECODER_FOLDING = Folding(max_width=WIDEST, stages=[FOLDING.stages[0], LAST])
TRANSFORMS = (("g_a", ENCODER, FOLDING), ("g_s", DECODER, DECODER_FOLDING))


WATCHDOG_S = 0.02
"""A hundredth of a real board's: what hangs is told in seconds of simulation, not in minutes."""


def make_top(board: Board = QUARTER) -> Top:
    """What its bitstream would hold, for the clock of its oscillator, but for `WATCHDOG_S`."""
    return Top(
        ports=[
            TransformPort(
                name=name,
                pipeline=Pipeline(transform, folding, restartable=True),
                max_width=folding.max_width,
            )
            for name, transform, folding in TRANSFORMS
        ],
        clock_hz=board.oscillator_hz,
        oscillator_hz=board.oscillator_hz,
        link=board.link,
        digest=DIGEST,
        timeout=round(WATCHDOG_S * board.oscillator_hz),
    )


@contextmanager
def running(board: Board = QUARTER) -> Iterator[simulated.SimulatedBoard]:
    """The board, while the body runs."""
    with simulated.running(simulated.build(board, make_top(board)), board) as found:
        yield found


def connect(port: str) -> Connection:
    """A host at the board's port."""
    return Connection(SerialLine(port, QUARTER.uart.baud))


@dataclass(frozen=True)
class Job:
    """A frame and the bytes that must come of it."""

    frame: Frame
    golden: bytes


def _raw(values: np.ndarray, transform: Transform, *, output: bool) -> bytes:
    form = transform.output if output else transform.input
    return values.astype(f"<{'i' if form.signed else 'u'}{(form.bits + 7) // 8}").tobytes()


def job(seed: int, which: int, height: int, width: int) -> Job:
    """A frame of random values for the encoder (0) or the decoder (1)."""
    transform = TRANSFORMS[which][1]
    source = transform.input
    shape = (height, width, transform.in_channels)
    values = np.random.default_rng(seed).integers(source.lo, source.hi + 1, shape)
    golden = run_transform(transform, values)
    expected = _raw(golden, transform, output=True)
    frame = Frame(
        transform=which,
        width=width,
        height=height,
        payload=_raw(values, transform, output=False),
        expected=len(expected),
    )
    return Job(frame, expected)
