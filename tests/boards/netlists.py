"""Small netlists, as yosys writes them, without yosys."""

from __future__ import annotations

import random
from typing import Any

OUTPUTS = {
    "TRELLIS_FF": ("Q",),
    "LUT4": ("Z",),
    "TRELLIS_IO": (),
    "MULT18X18D": tuple(f"P{i}" for i in range(36)),
    "DP16KD": tuple(f"DOA{i}" for i in range(18)),
}


class Builder:
    """Collects cells and nets of a module ``top``; the clock is net 2."""

    def __init__(self) -> None:
        self.cells: dict[str, Any] = {}
        self.ports: dict[str, Any] = {}
        self.nets = 2

    def net(self) -> int:
        self.nets += 1
        return self.nets

    def cell(self, name: str, kind: str, **ports: int | str) -> None:
        """A cell; unnamed pins stay open."""
        self.cells[name] = {
            "type": kind,
            "parameters": {},
            "attributes": {},
            "port_directions": {
                port: "output" if port in OUTPUTS[kind] else "input" for port in ports
            },
            "connections": {port: [net] for port, net in ports.items()},
        }

    def flip_flop(self, name: str, data: int) -> int:
        out = self.net()
        self.cell(name, "TRELLIS_FF", CLK=2, DI=data, Q=out)
        return out

    def table(self, name: str, *inputs: int) -> int:
        out = self.net()
        self.cell(name, "LUT4", Z=out, **dict(zip("ABCD", inputs, strict=False)))
        return out

    def pad(self, name: str, net: int) -> None:
        """An output at a port of the same name."""
        outside = self.net()
        self.cell(name, "TRELLIS_IO", I=net, B=outside)
        self.ports[name] = {"direction": "output", "bits": [outside]}

    def design(self) -> dict[str, Any]:
        module = {"attributes": {}, "ports": self.ports, "cells": self.cells, "netnames": {}}
        return {"creator": "a test", "modules": {"top": module}}


def ring(stages: int, *, width: int = 6, seed: int = 0) -> dict[str, Any]:
    """Stages in a ring, in a shuffled order of names: block RAM, flip-flops, two multipliers.

    Every stage reads ``width`` bits of its memory, multiplies them twice, combines the products in
    lookup tables, and addresses the next stage's memory with them.
    """
    build = Builder()
    names = list(range(stages))
    random.Random(seed).shuffle(names)
    address = [[build.net() for _ in range(width)] for _ in range(stages)]
    for stage, name in enumerate(names):
        where = f"link.pipeline.conv{name % 3 + 1}.stage{name}"
        words = [build.net() for _ in range(width)]
        build.cell(
            f"{where}.memory", "DP16KD", CLKA=2,
            **{f"ADA{i}": net for i, net in enumerate(address[stage])},
            **{f"DOA{i}": net for i, net in enumerate(words)},
        )  # fmt: skip
        held = [build.flip_flop(f"{where}.held{i}", net) for i, net in enumerate(words)]
        sums = []
        for k in range(2):
            products = [build.net() for _ in range(width)]
            build.cell(
                f"{where}.times{k}", "MULT18X18D", CLK0=2, CE0="1", RST0="0",
                **{f"A{i}": net for i, net in enumerate(held)},
                **{f"P{i}": net for i, net in enumerate(products)},
            )  # fmt: skip
            sums.append([build.flip_flop(f"{where}.p{k}_{i}", n) for i, n in enumerate(products)])
        for i, net in enumerate(address[(stage + 1) % stages]):
            table = build.table(f"{where}.add{i}", sums[0][i], sums[1][i])
            build.cell(f"{where}.out{i}", "TRELLIS_FF", CLK=2, DI=table, Q=net)
    return build.design()
