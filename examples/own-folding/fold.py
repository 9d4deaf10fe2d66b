# amaranth: UnusedElaboratable=no
"""A folding made by hand: what it costs, how fast it is, and that it computes the same."""

from __future__ import annotations

import argparse
from pathlib import Path

from lichen import files, models
from lichen.boards import board as boards
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.description import PHOTO
from lichen.sim.images import crop_middle, read_image
from lichen.sim.transform import simulate_transform

BOARD = "ulx3s-45f"


def folding() -> Folding:
    """tiny's g_a: the first two layers get most, since their pictures are the largest.

    An array multiplies ``pixels x chains x chain_length x lanes`` pairs a cycle.
    """
    return Folding(
        max_width=PHOTO[1],
        stages=[
            StageFolding(
                chains=1,
                convolution=ArrayFolding(chain_length=8, lanes=3),
                normalization=ArrayFolding(chain_length=2, lanes=2),
            ),
            StageFolding(
                chains=1,
                convolution=ArrayFolding(chain_length=4, lanes=4),
                normalization=ArrayFolding(chain_length=2, lanes=1),
            ),
            StageFolding(
                chains=1,
                convolution=ArrayFolding(chain_length=4, lanes=1),
                normalization=ArrayFolding(chain_length=1, lanes=1),
            ),
            StageFolding(chains=1, convolution=ArrayFolding(chain_length=4, lanes=1)),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", required=True, type=Path, help="folding to write (JSON)")
    options = parser.parse_args()

    transform = models.load_network("tiny").transform("g_a")
    mine, board = folding(), boards.find(BOARD)
    pipeline = Pipeline(transform, mine)
    for name, cost in pipeline.stage_resources(board.family).items():
        print(f"{name:12} {cost.dsp:3} DSPs {cost.bram:3} block RAMs {cost.lut:6} LUTs")
    overruns = board.budget.overruns(pipeline.resources(board.family))
    print(f"{board.title}: {', '.join(overruns) or 'it fits'}")
    cycles = pipeline.predicted_cycles(*PHOTO)
    print(f"a photograph of 768x512 takes {cycles} cycles")

    image = crop_middle(read_image(models.photograph()), 16, 16)
    run = simulate_transform(transform, mine, image, simulator="icarus")
    print(f"simulated: {run.mismatches} of {run.compared} values differ from the golden model's,")
    print(f"{run.cycles} cycles where {run.predicted_cycles} were predicted")
    if run.faults:
        raise SystemExit("; ".join(run.faults))
    files.write_json(options.output, mine.model_dump(mode="json"))


if __name__ == "__main__":
    main()
