"""What yosys and nextpnr say about a design, as numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

LUT_PROMISE = 0.1
"""By how much placed lookup tables may differ from planned ones, as a share of the plan."""


def lut_remark(placed: int, planned: int) -> str | None:
    """A sentence where the estimate of lookup tables was worse than promised, else None."""
    if abs(placed - planned) <= LUT_PROMISE * planned:
        return None
    error = placed / planned - 1
    return (
        f"{placed} LUTs were placed where {planned} were planned, {100 * abs(error):.0f} % "
        f"{'more' if error > 0 else 'fewer'}; plans should be within {100 * LUT_PROMISE:.0f} %."
    )


class OutputError(Exception):
    """A tool wrote something else than it used to; the message says which file lacks what."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Primitives of a design after synthesis.

    Attributes
    ----------
    dsp : int
        18x18 multipliers.
    bram : int
        18-kbit block RAMs.
    """

    dsp: int
    bram: int


REST = "link"
"""What belongs to no unit: the link, what is around it, and the pipelines' own control."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a unit takes after synthesis.

    Attributes
    ----------
    dsp, bram, lut, ff : int
        Primitives. Place and route adds lookup tables of its own, a fifth or so, the most of them
        where carry chains begin and end.
    """

    dsp: int
    bram: int
    lut: int
    ff: int


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A design after place and route.

    Attributes
    ----------
    fmax_mhz : float
        Highest frequency of the system clock that nextpnr vouches for.
    dsp, bram, lut, ff : int
        Primitives in use.
    slow : tuple of str
        Nets of other clocks that do not reach the frequency they have.
    """

    fmax_mhz: float
    dsp: int
    bram: int
    lut: int
    ff: int
    slow: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Primitives:
    """Names of a family's cells, by what they count as; place and route knows the first of each."""

    dsp: tuple[str, ...]
    bram: tuple[str, ...]
    lut: tuple[str, ...]
    ff: tuple[str, ...]


def read_statistics(path: Path, primitives: Primitives) -> Counts:
    """Read what yosys' ``stat -json`` wrote.

    Raises OutputError when there is nothing to read in it.
    """
    text = path.read_text(encoding="utf-8")
    try:
        # The command's own banner may stand before the JSON.
        design = json.loads(text[text.index("{") :])["design"]
        cells = design["num_cells_by_type"]
    except (ValueError, KeyError) as error:
        raise OutputError(f"{path} holds no statistics of yosys ({error})") from None
    return Counts(
        dsp=sum(cells.get(name, 0) for name in primitives.dsp),
        bram=sum(cells.get(name, 0) for name in primitives.bram),
    )


def read_placement(path: Path, clock: str, primitives: Primitives) -> Placed:
    """Read nextpnr's ``--report``.

    ``clock`` is the name of the system clock's net. Raises OutputError when the report lacks
    it, or what every report has.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        used = {name: entry["used"] for name, entry in report["utilization"].items()}
        speeds = {
            name.removeprefix("$glbnet$"): entry["achieved"]
            for name, entry in report["fmax"].items()
        }
        return Placed(
            fmax_mhz=round(speeds[clock], 2),
            dsp=used[primitives.dsp[0]],
            bram=used[primitives.bram[0]],
            lut=used[primitives.lut[0]],
            ff=used[primitives.ff[0]],
            slow=tuple(
                name.removeprefix("$glbnet$")
                for name, entry in report["fmax"].items()
                if name.removeprefix("$glbnet$") != clock
                and entry["achieved"] < entry.get("constraint", 0)
            ),
        )
    except (ValueError, KeyError) as error:
        raise OutputError(f"{path} is not the report of nextpnr expected ({error})") from None
