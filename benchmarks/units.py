"""Units of a small pipeline, each synthesized and placed alone, against their baselines.

The network is random, with 6-bit weights, and always the same; its folding has an array of every
back-end of the ECP5. Baselines are reports in benchmarks/units/; each metric has its tolerance
(lichen.boards.build.unit.TOLERANCES).

    python benchmarks/units.py                 # all units; exit status 1 if one is worse
    python benchmarks/units.py conv2 --update  # measure and keep as the new baseline
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from lichen.boards.board import ULX3S_85F
from lichen.boards.build.flow import BuildFailedError
from lichen.boards.build.tools import Progress
from lichen.boards.build.unit import build_unit
from lichen.boards.design import Design
from lichen.files import write_json
from lichen.hw.engine.element import Backend
from lichen.hw.stage.folding import ArrayFolding, Folding, StageFolding
from lichen.network.random import random_factorized

BASELINES = Path(__file__).with_name("units")
UNITS = ("conv1", "conv2", "conv2_norm", "conv3")
CLOCK_MHZ = 130.0


def design() -> Design:
    """The pipeline that the units are of."""

    def array(pixels: int, chain_length: int, lanes: int, backend: Backend) -> ArrayFolding:
        return ArrayFolding(pixels=pixels, chain_length=chain_length, lanes=lanes, backend=backend)

    dsp, lut, packed = Backend.DSP, Backend.LUT, Backend.PACKED
    arrays = [
        (array(2, 4, 3, lut), array(1, 2, 4, dsp)),
        (array(2, 4, 8, packed), array(1, 2, 4, lut)),
        (array(1, 4, 4, dsp), array(1, 1, 2, lut)),
        (array(1, 4, 4, packed), None),
    ]
    folding = Folding(
        max_width=256,
        stages=[
            StageFolding(chains=1, convolution=convolution, normalization=normalization)
            for convolution, normalization in arrays
        ],
    )
    return Design.make(random_factorized(1, n=16, m=24, weight_bits=6), "g_a", folding)


@click.command()
@click.argument("units", nargs=-1, type=click.Choice(UNITS))
@click.option("--update", is_flag=True, help="Keep the results as the new baselines.")
def main(units: tuple[str, ...], update: bool) -> None:
    """Measure units (all if none is named) and compare them with their baselines."""
    worse = False
    for unit in units or UNITS:
        baseline = BASELINES / f"{unit}.json"
        with tempfile.TemporaryDirectory(prefix="lichen-") as folder:
            try:
                report = build_unit(
                    design=design(),
                    unit=unit,
                    board=ULX3S_85F,
                    clock_mhz=CLOCK_MHZ,
                    folder=Path(folder) / unit,
                    progress=Progress(sys.stderr),
                )
            except BuildFailedError as error:
                raise click.ClickException(str(error)) from None
        click.echo(
            f"{unit}: {report.fmax_mhz:g} MHz, {report.dsp} multipliers, {report.bram} block "
            f"RAMs, {report.lut} LUTs ({report.planned['lut']} planned), {report.ff} flip-flops"
        )
        if update:
            write_json(baseline, report.to_json())
        elif not baseline.exists():
            raise click.ClickException(f"{baseline} does not exist; make it with --update.")
        else:
            found = report.regressions(json.loads(baseline.read_text(encoding="utf-8")))
            if found:
                worse = True
                click.echo(f"{unit} is worse than its baseline: {', '.join(found)}", err=True)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
