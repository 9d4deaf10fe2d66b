# amaranth: UnusedElaboratable=no
"""Transforms of a network, folded for a board: what `generate` and `build` start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lichen.boards.link.filler import loading_resources
from lichen.boards.link.rate import tensor_seconds
from lichen.boards.port.port import TransformPort
from lichen.boards.record import Board, Clock
from lichen.boards.top import Top
from lichen.errors import UserError
from lichen.hw.device.device import Resources
from lichen.hw.plan import planner
from lichen.hw.stage.folding import Folding
from lichen.hw.stage.kinds import check_folding
from lichen.hw.stage.loaded import StageTemplate, filled, loadable
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.arithmetic import ceil_div
from lichen.network.description import PHOTO, Network, Transform
from lichen.network.identity import static_digest
from lichen.network.model import ValidationError

FRAME = PHOTO[::-1]
"""Width and height in pixels of the image that frames per second are counted in."""


def read_folding(path: Path, transform_name: str) -> Folding:
    """Read a transform's folding: its JSON, or that of a report with a field ``folding``.

    Where the report is one of several, under ``transforms``, it is that of the one named. Raises
    UserError when the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError:
        raise UserError(f"{path} is not JSON.") from None
    if isinstance(content, dict):
        several = content.get("transforms")
        if isinstance(several, dict):
            content = several.get(transform_name)
            if not isinstance(content, dict):
                raise UserError(f"{path} holds no folding of {transform_name}.")
        content = content.get("folding", content)
    try:
        return Folding.model_validate(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        raise UserError(f"{path} holds no folding: {where or 'it'}: {error.reason}.") from None


def fold(
    network: Network,
    transform_names: Sequence[str],
    board: Board,
    *,
    max_width: int | None = None,
    multipliers: int | None = None,
    loads: bool = False,
) -> list[Folding]:
    """The planner's foldings for a board that the transforms share, the link's part set aside.

    They leave some block RAMs free (`Board.roomy_budget`) unless nothing fits then.

    A transform takes what it reads of images of up to ``max_width`` pixels; None chooses the width
    that is fastest in tiles. All use at most ``multipliers`` together, if given. Raises UserError
    when one cannot be generated; whether they fit the board is for `check_fits` to say.
    ``loads`` plans for constants that are filled at run time.
    """
    wanted = []
    for name in transform_names:
        try:
            transform = network.transform(name)
        except ValueError as error:
            raise UserError(f"{error}.") from None
        frame = network.frames(*PHOTO)[name]
        width = None if max_width is None else ceil_div(max_width * frame[1], PHOTO[1])
        planned = loadable(transform) if loads else transform
        wanted.append(planner.Wanted(planned, frame, width))
    stages = [len(one.transform.stages) for one in wanted]
    more = loading_resources(stages, board.family).lut if loads else 0
    for whole in (board.roomy_budget, board.pipeline_budget):
        budget = replace(whole, lut=whole.lut - more)
        found = planner.plan_together(wanted, budget, device=board.family, multipliers=multipliers)
        if planner.fits(Resources.total(plan.resources for plan in found), budget):
            break
    return [plan.folding for plan in found]


def binds(fps: float | None, fps_link: float | None) -> str | None:
    """What a frame waits for, ``engine`` or ``link``; None where that is not known."""
    if fps is None or fps_link is None:
        return None
    return "link" if fps_link < fps else "engine"


def check_fits(resources: Resources, board: Board) -> None:
    """Raise UserError, naming what does not fit and by how much, if the plan is too large."""
    problems = board.budget.overruns(resources)
    if problems:
        raise UserError(f"the design does not fit the {board.title}: {', '.join(problems)}.")


@dataclass(frozen=True, kw_only=True)
class Design:
    """A transform and its folding.

    Attributes
    ----------
    network : Network
    transform_name : str
        ``g_a``, ...
    folding : Folding
    digest : str
        SHA-256 of the network file as it is without context models, which gateware of transforms
        knows nothing of; hexadecimal.
    templates : tuple of StageTemplate or None
        What is fixed of every stage where the constants are filled at run time; None where they
        stand in the gateware.
    """

    network: Network
    transform_name: str
    folding: Folding
    digest: str
    templates: tuple[StageTemplate, ...] | None = None

    @classmethod
    def make(
        cls,
        network: Network,
        transform_name: str,
        folding: Folding,
        templates: tuple[StageTemplate, ...] | None = None,
    ) -> Design:
        """Check that the folding fits; raises UserError naming the stage where it does not.

        With templates, the transform has to fit them, too.
        """
        found = cls(
            network=network,
            transform_name=transform_name,
            folding=folding,
            digest=static_digest(network),
            templates=templates,
        )
        try:
            check_folding(folding, found.transform)
        except ValueError as error:
            raise UserError(f"{error}.") from None
        return found

    @property
    def name(self) -> str:
        """The network's name for people."""
        return self.network.title

    @cached_property
    def transform(self) -> Transform:
        """What is folded: with templates, the transform with channels of zeros beside its own."""
        own = self.network.transform(self.transform_name)
        return own if self.templates is None else filled(own, self.templates)

    @property
    def loads(self) -> bool:
        """Whether the constants are filled at run time."""
        return self.templates is not None

    @property
    def max_width(self) -> int:
        """Widest frame in pixels."""
        return self.folding.max_width

    def pipeline(self, *, restartable: bool = False) -> Pipeline:
        """A fresh pipeline."""
        return Pipeline(self.transform, self.folding, restartable=restartable)

    def port(self) -> TransformPort:
        """A fresh pipeline whose input and output are bytes."""
        pipeline = self.pipeline(restartable=True)
        return TransformPort(name=self.transform_name, pipeline=pipeline, max_width=self.max_width)

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of what the transform reads of a 768x512 image."""
        return self.network.frames(*PHOTO)[self.transform_name]

    @cached_property
    def cycles_per_frame(self) -> int | None:
        """Cycles of one 768x512 image, all tiles and halos included where it is wider than the
        pipeline; None when the pipeline is too narrow even for tiles."""
        try:
            return planner.frame_cycles(self.pipeline(), *self.frame)
        except ValueError:
            return None

    def fps_link(self, board: Board) -> float | None:
        """How many 768x512 images a second the board's link has time for; None as of
        `cycles_per_frame`."""
        form = self.port().format
        seconds = tensor_seconds(self.transform, form, *self.frame, board.link)
        return None if seconds is None else 1 / seconds

    def describe(self) -> dict[str, Any]:
        """What a report says of the design."""
        return {
            "network": {
                "name": self.name,
                "arch": self.network.architecture,
                "n": self.network.n,
                "m": self.network.m,
                "sha256": self.digest,
            },
            "transform": self.transform_name,
            "weights": "load" if self.loads else "fixed",
            "max_width": self.max_width,
            "folding": self.folding.model_dump(mode="json"),
        }


@dataclass(frozen=True, kw_only=True)
class Bitstream:
    """What a board is to hold: designs of one network, side by side.

    Attributes
    ----------
    designs : tuple of Design
        One or more, of different transforms.
    """

    designs: tuple[Design, ...]

    @property
    def loads(self) -> bool:
        """Whether the constants are filled at run time."""
        return all(design.loads for design in self.designs)

    @property
    def cycles_per_frame(self) -> int | None:
        """Of the transform that takes longest, see `Design.cycles_per_frame`."""
        cycles = [design.cycles_per_frame for design in self.designs]
        known = [count for count in cycles if count is not None]
        return max(known) if len(known) == len(cycles) else None

    def fps_link(self, board: Board) -> float | None:
        """Of the transform that takes the link longest, see `Design.fps_link`."""
        rates = [design.fps_link(board) for design in self.designs]
        known = [rate for rate in rates if rate is not None]
        return min(known) if len(known) == len(rates) else None

    @property
    def foldings(self) -> list[Folding]:
        return [design.folding for design in self.designs]

    def resources(self, board: Board) -> Resources:
        """What the pipelines take."""
        return Resources.total(design.pipeline().resources(board.family) for design in self.designs)

    def top(self, board: Board, pll: Clock) -> Top:
        """The pipelines behind the board's link."""
        return Top(
            ports=[design.port() for design in self.designs],
            link=board.link,
            clock_hz=pll.output_hz,
            oscillator_hz=board.oscillator_hz,
            digest=bytes(32) if self.loads else bytes.fromhex(self.designs[0].digest),
        )

    def describe(self) -> dict[str, Any]:
        """What a report says of it: `Design.describe` of one, or of each under ``transforms``."""
        first, *others = (design.describe() for design in self.designs)
        if not others:
            return first
        own = ("transform", "max_width", "folding")
        each = {
            design.transform_name: {key: design.describe()[key] for key in own}
            | {"cycles_per_frame": design.cycles_per_frame}
            for design in self.designs
        }
        names = ",".join(each)
        shared = {key: first[key] for key in ("network", "weights")}
        return shared | {"transform": names, "transforms": each}
