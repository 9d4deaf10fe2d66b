# amaranth: UnusedElaboratable=no
"""The whole board at its pins: the real pipeline behind the real link, in simulation."""

from __future__ import annotations

import numpy as np
import pytest

from lichen.boards.board import ULX3S_85F
from lichen.boards.link import protocol
from lichen.boards.port.port import TransformPort
from lichen.boards.top import UARTTop
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import IMAGE_FORMAT, Activation
from lichen.network.random import StageShape, random_transform
from lichen.sim.golden import run_transform
from lichen.sim.runner import Simulator

from .pins import CYCLES_PER_BIT, Do, Pins, events, script, wired

DIGEST = bytes.fromhex("c0ffee42")
WIDEST = 16
UP = {"transposed": True}

# More bytes of latents than of pixels, so that the line holds the pipeline back, and the pipeline
# the host. Neither channels nor lanes divide each other.
TRANSFORM = random_transform(
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
    source=TRANSFORM.output,
)
LAST = StageFolding(chains=2, convolution=ArrayFolding(chain_length=1, lanes=1))
DECODER_FOLDING = Folding(max_width=WIDEST, stages=[FOLDING.stages[0], LAST])
IDLE = protocol.Status(
    max_width=WIDEST, in_channels=3, out_channels=12, latent_bytes=2, digest=DIGEST
)

# What comes while the PLL has not locked is not heard, not even the rest of the last byte.
START = (b"nothing of this", b"\xff", Do.PAUSE, Do.LOCK, *[Do.PAUSE] * 3)


@pytest.fixture(scope="module")
def board() -> Simulator:
    pll = ULX3S_85F.pll()
    made = (("g_a", TRANSFORM, FOLDING), ("g_s", DECODER, DECODER_FOLDING))
    top = UARTTop(
        ports=[
            TransformPort(
                name=name,
                pipeline=Pipeline(transform, folding, restartable=True),
                max_width=folding.max_width,
            )
            for name, transform, folding in made
        ],
        clock_hz=pll.output_hz,
        baud=round(pll.output_hz) // CYCLES_PER_BIT,
        digest=DIGEST,
    )
    return Simulator(Pins(), taps=True, verilog=wired(ULX3S_85F, top, pll))


def photo(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3))


def latents(pixels: np.ndarray) -> np.ndarray:
    """Bytes of the latents, those of a position as its channels."""
    values = run_transform(TRANSFORM, pixels)
    assert values.min() < -128 and values.max() > 127, "both bytes should matter"
    return values.astype("<i2").view(np.uint8).reshape(*values.shape[:2], -1)


def frame(pixels: np.ndarray) -> tuple[bytes, np.ndarray, Do]:
    """What a host does to send a frame."""
    height, width, _ = pixels.shape
    size = latents(pixels).size
    head = protocol.header(protocol.FRAME, width=width, height=height, expected=size)
    return head, pixels, Do.STATUS


def credits(pixels: np.ndarray) -> int:
    return pixels.size // protocol.CREDIT_BYTES


def check(board: Simulator, said: str, sent: list, results: list, answers: list) -> None:
    result = board.run(
        [script(*parts) for parts in sent],
        results,
        expected_taps={"events": [events(*parts) for parts in answers]},
    )
    assert result.ok, f"{said}: {result.faults}"


def test_frames_of_any_size_go_through(board):
    """Taller than wide, wider than tall, a single pixel, and what the bitstream is."""
    pixels = [photo(0, 16, 12), photo(1, 5, 16), photo(2, 16, 16), photo(3, 1, 1)]
    sent = [list(frame(p)) for p in pixels]
    answers = [[credits(p), IDLE] for p in pixels]
    sent[0][:0] = [*START, protocol.header(protocol.STATUS), Do.STATUS]
    answers[0][:0] = [IDLE]
    check(board, "frames one after the other", sent, [latents(p) for p in pixels], answers)


HALF = photo(8, 16, 16)
"""A frame that breaks off before there is any latent, and well after the last credit."""
SENT = HALF.reshape(-1)[:120]


@pytest.mark.parametrize("again", [photo(9, 16, 12), photo(9, 16, 16)], ids=["smaller", "as large"])
def test_a_frame_after_a_break_in_mid_frame(board, again):
    sent = [*START, frame(HALF)[0], SENT, Do.BREAK, Do.STATUS, *frame(again)]
    answers = [credits(SENT), IDLE, credits(again), IDLE]
    check(board, "after a break in mid-frame", [sent], [latents(again)], [answers])


@pytest.mark.parametrize("again", [photo(9, 16, 12), photo(9, 16, 16)], ids=["smaller", "as large"])
def test_a_frame_after_the_clock_was_lost_in_mid_frame(board, again):
    """LOCK falls, and everything is as it was at first, on both ends: no break is needed."""
    gap = (Do.LOSE_LOCK, *[Do.PAUSE] * 12, Do.LOCK, Do.PAUSE)
    sent = [*START, frame(HALF)[0], SENT, *gap, *frame(again)]
    answers = [credits(again), IDLE]
    check(board, "after the clock was lost in mid-frame", [sent], [latents(again)], [answers])


def symbols(seed: int, height: int, width: int) -> np.ndarray:
    """Latents of 11 bits, all of which matter."""
    lo, hi = TRANSFORM.output.lo, TRANSFORM.output.hi
    return np.random.default_rng(seed).integers(lo, hi + 1, (height, width, 12))


def test_encoder_and_decoder_in_one_bitstream(board):
    """Frames of both in turn; latents go in as they come out, two bytes each."""
    sent, results, answers = [], [], []
    for seed, size in enumerate([(6, 8), (3, 5)]):
        pixels, y = photo(seed, *size), symbols(seed, *size[::-1])
        picture = run_transform(DECODER, y)
        assert picture.min() == 0 and picture.max() > 127, "all bits should matter"
        raw = y.astype("<i2").view(np.uint8)
        head = protocol.header(
            protocol.FRAME + 1, width=y.shape[1], height=y.shape[0], expected=picture.size
        )
        sent += [list(frame(pixels)), [head, raw, Do.STATUS]]
        results += [latents(pixels), picture]
        answers += [[credits(pixels), IDLE], [credits(raw), IDLE]]
    sent[0][:0] = START
    check(board, "encoder and decoder in turn", sent, results, answers)
