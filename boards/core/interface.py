# amaranth: UnusedElaboratable=no
"""What a program or a person needs to know of a core: ``interface.json``."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict
from typing import Any

from amaranth.hdl import Shape

from lichen.boards.core.axi import registers_of
from lichen.boards.core.core import MAX_HEIGHT, Core
from lichen.boards.core.loader import CYCLES_PER_WORD
from lichen.boards.core.vectors import GoldenFrame
from lichen.boards.record import Board
from lichen.hw.device.load import ADDRESS_BITS, DATA_BITS
from lichen.hw.engine.requantize import SHIFT_SPAN
from lichen.network.stage import Format

VERSION = 2
"""Of the description; 1 had one Verilog file and no golden frames."""

ICARUS_ALL, ICARUS_SMALLEST = 20_000_000, 400_000_000
"""Work up to which Icarus runs a core's whole bench, and up to which it runs the smallest frame.

Work is lookup tables times cycles. Icarus does some four million a second of a processor's time,
whole benches are some 25 times their smallest frame."""


def interface(core: Core, frames: list[GoldenFrame], board: Board | None) -> dict[str, Any]:
    """The description, JSON-serialisable. It depends on the design alone: no date, no path."""
    design, pipeline = core.design, core.pipeline
    transform = design.transform
    height, width = design.frame
    resources = core.resources
    return {
        "version": VERSION,
        "files": [f"{core.top}.v"],
        "top": core.top,
        "target": core.target,
        "bus": core.bus,
        "command": _command(core),
        "parameters": {
            "in_channels": transform.in_channels,
            "in_lanes": pipeline.in_lanes,
            "in_bits": transform.input.bits,
            "in_signed": transform.input.signed,
            "out_channels": transform.out_channels,
            "out_lanes": pipeline.out_lanes,
            "out_bits": transform.output.bits,
            "out_signed": transform.output.signed,
            "out_lo": transform.output.lo,
            "out_hi": transform.output.hi,
            "max_width": design.max_width,
            "max_height": MAX_HEIGHT,
            "downsampling": float(transform.downsampling)
            if transform.downsampling % 1
            else int(transform.downsampling),
        },
        "clock": "clk",
        "reset": {
            "port": "rst",
            "active": "high",
            "kind": "synchronous",
            "cycles": core.reset_cycles,
        },
        "streams": {
            "i": _stream(core, transform.in_channels, pipeline.in_lanes, transform.input),
            "o": _stream(core, transform.out_channels, pipeline.out_lanes, transform.output),
        },
        "registers": _registers(core),
        **_loading(core),
        "stages": stages(core),
        "queues": core.queues(),
        "ports": ports(core),
        "cycles": {"width": width, "height": height, "cycles": design.cycles_per_frame},
        "golden": [
            {
                "name": frame.name,
                "width": frame.tensor.shape[1],
                "height": frame.tensor.shape[0],
                "cycles": frame.cycles,
            }
            for frame in frames
        ],
        "bench": bench(
            resources.lut, min((f.cycles for f in frames), default=0) + filling_cycles(core)
        ),
        "resources": {
            "dsp": resources.dsp,
            "bram": resources.bram,
            "lut": resources.lut,
        },
        "board": None if board is None else board.name,
        **design.describe(),
        "tool_versions": versions(),
    }


def bench(lut: int, cycles: int) -> dict[str, Any]:
    """How much of the bench Icarus runs; Verilator, which is some hundred times as fast, runs all.

    Parameters
    ----------
    lut : int
        Of the core.
    cycles : int
        Of the smallest frame, and of filling the core.
    """
    work = lut * cycles
    share = "all" if work <= ICARUS_ALL else "smallest" if work <= ICARUS_SMALLEST else "ports"
    return {"work": work, "icarus": share}


def filling_cycles(core: Core) -> int:
    """How long it takes to fill a core with constants; 0 where they stand in the Verilog."""
    return len(core.pipeline.image()) * CYCLES_PER_WORD if core.design.loads else 0


def _command(core: Core) -> str:
    """What makes the same core again, from this very file's folding."""
    weights = " --weights load" if core.design.loads else ""
    return (
        f"lichen generate {core.design.name.split()[0]} --transform {core.design.transform_name} "
        f"--target {core.target} --bus {core.bus}{weights} "
        f"--folding interface.json --top {core.top} -o DIR"
    )


def _registers(core: Core) -> list[dict[str, Any]]:
    if core.bus != "axi":
        return []
    return [asdict(register) for register in registers_of(core.design.loads)]


def _loading(core: Core) -> dict[str, Any]:
    """How the core is filled, where that happens at run time, and with what it can be."""
    if core.design.templates is None:
        return {}
    return {
        "load": {
            "map": core.map_digest,
            "words": len(core.pipeline.image()),
            "crc": f"{core.checksum:08x}",
            "data_bits": DATA_BITS,
            "address_bits": ADDRESS_BITS,
            "cycles_per_word": CYCLES_PER_WORD,
            "shift_span": SHIFT_SPAN,
            "stages": [template.model_dump(mode="json") for template in core.design.templates],
            "memories": [
                {
                    "name": name,
                    **asdict(place),
                    "chunks": place.chunks,
                    "word_bits": place.word_bits,
                }
                for name, place in core.pipeline.places.items()
            ],
        }
    }


def _stream(core: Core, channels: int, lanes: int, form: Format) -> dict[str, Any]:
    return {
        "protocol": "valid/ready: a beat moves on a rising edge with both high; payload and "
        "valid then hold until it has moved",
        "order": "row, column, channel",
        **_format(channels, lanes, form, core.container(form)),
        "beats_per_position": -(-channels // lanes),
        "lanes_order": "lane 0 in the least significant bits; lanes past the last channel do not "
        "matter",
    }


def _format(channels: int, lanes: int, form: Format, container: int) -> dict[str, Any]:
    return {
        "channels": channels,
        "lanes": lanes,
        "bits": form.bits,
        "container": container,
        "signed": form.signed,
        "lo": form.lo,
        "hi": form.hi,
    }


def stages(core: Core) -> list[dict[str, Any]]:
    """Every stage's output stream, and the instance below the top that gives it."""
    paths = core.stage_instances()
    found = []
    for stage, fold in zip(core.design.transform.stages, core.design.folding.stages, strict=True):
        form = _format(stage.out_channels, fold.chains, stage.output, stage.output.bits)
        found.append({"name": stage.name, "path": paths[stage.name], **form})
    return found


def ports(core: Core) -> list[dict[str, Any]]:
    """Name, direction and width of every port of the top module."""
    found: list[dict[str, Any]] = [
        {"name": "clk", "direction": "in", "width": 1},
        {"name": "rst", "direction": "in", "width": 1},
    ]
    component = core.component()
    for path, member, value in component.signature.flatten(component):
        found.append(
            {
                "name": "__".join(str(part) for part in path),
                "direction": member.flow.name.lower(),
                "width": Shape.cast(value.shape()).width,
            }
        )
    return found


def versions() -> dict[str, str]:
    """Of what has made the core."""
    return {name: importlib.metadata.version(name) for name in ("lichen", "amaranth")}
