# amaranth: UnusedElaboratable=no
"""A design made into a core: which target, which name, which bus."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from amaranth.lib import wiring

from lichen.boards.core.axi import AXICore, container_bits
from lichen.boards.core.loader import Loader, StreamCore
from lichen.boards.design import Design
from lichen.boards.port.fill import checksum, words_of
from lichen.errors import UserError
from lichen.hw.device import ecp5
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.families import FAMILIES
from lichen.hw.rtl.design import modules
from lichen.hw.rtl.names import KEYWORDS
from lichen.hw.stage.pipeline import Pipeline
from lichen.network.stage import Format

MAX_HEIGHT = 65535
"""Rows that a frame may have: what the port holds."""

RESET_MARGIN = 8
"""Cycles that a reset lasts beyond what registers without one need to run empty."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """What a generated folder holds.

    Attributes
    ----------
    design : Design
    target : str
        ``ecp5``, with the family's cells, or ``portable``.
    top : str
        Name of the module; all others are called ``TOP_*``.
    bus : str
        ``stream`` or ``axi``.
    """

    design: Design
    target: str
    top: str
    bus: str = "stream"

    @classmethod
    def make(cls, design: Design, target: str, top: str | None = None, bus: str = "stream") -> Core:
        """Check the name, or make one of the network's and the transform's.

        Raises UserError when the name is none that Verilog takes.
        """
        if top is None:
            top = re.sub(r"\W+", "_", f"{design.name}_{design.transform_name}", flags=re.ASCII)
            top = f"lichen_{top}" if not re.match("[A-Za-z]", top) else top
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,99}", top) or top in KEYWORDS:
            raise UserError(
                f"{top!r} cannot name a module; take a letter, then letters, digits and _, "
                "at most 100, and no keyword of Verilog."
            )
        return cls(design=design, target=target, top=top, bus=bus)

    @property
    def device(self) -> Device:
        return FAMILIES[self.target]

    @cached_property
    def pipeline(self) -> Pipeline:
        """To be asked, not elaborated."""
        return self.design.pipeline()

    @property
    def resources(self) -> Resources:
        """What the pipeline takes, and what fills it. Registers behind AXI are not counted."""
        own = self.pipeline.resources(self.device)
        return own + Loader.resources() if self.design.loads else own

    def component(self) -> wiring.Component:
        """A fresh component of what the top module is."""
        if self.bus == "stream":
            pipeline = self.design.pipeline()
            return StreamCore(pipeline=pipeline) if self.design.loads else pipeline
        pipeline = self.design.pipeline(restartable=True)
        digest = self.map_digest if self.design.loads else self.design.digest
        return AXICore(pipeline=pipeline, digest=bytes.fromhex(digest))

    @cached_property
    def map_digest(self) -> str:
        """SHA-256 of what has to agree between gateware and what it is filled with; hexadecimal."""
        templates = [template.model_dump(mode="json") for template in self.design.templates or ()]
        places = {name: asdict(place) for name, place in self.pipeline.places.items()}
        folding = self.design.folding.model_dump(mode="json")
        agreed = {"templates": templates, "places": places, "folding": folding}
        return hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()

    @cached_property
    def words(self) -> list[int]:
        """What fills the core with its design's constants, as its loader takes it."""
        return words_of(self.pipeline.image())

    @property
    def checksum(self) -> int:
        """Of `words`."""
        return checksum(self.words)

    def verilog(self) -> dict[str, str]:
        """A text for every module, the top first."""
        platform = ecp5.Target() if self.device.cells is not None else None
        return modules(self.component(), self.top, platform)

    def models(self) -> dict[str, str]:
        """Models of the cells that the modules are made of, for simulators and linters."""
        return ecp5.cell_models() if self.device.cells is not None else {}

    @property
    def reset_cycles(self) -> int:
        """How long the reset must last."""
        return self.pipeline.restart_cycles + RESET_MARGIN

    @property
    def _above(self) -> list[str]:
        """Path from the top to the instance that holds the units."""
        return ["pipeline"] if self.bus == "axi" or self.design.loads else []

    def stage_instances(self) -> dict[str, list[str]]:
        """Path from the top to the instance whose ``o`` is a stage's output, by stages' names."""
        return {kind.stage.name: [*self._above, kind.name] for kind in self.pipeline.kinds}

    def queues(self) -> list[dict[str, Any]]:
        """Every unit's output queue: the path to its instance, and how many beats it holds."""
        return [
            {"name": name, "path": [*self._above, name, "fifo"], "depth": unit.fifo.depth}
            for name, unit in zip(self.pipeline.names, self.pipeline.units, strict=True)
        ]

    def container(self, form: Format) -> int:
        """Bits that a channel of a stream takes in a beat."""
        return container_bits(form) if self.bus == "axi" else form.bits
