# amaranth: UnusedElaboratable=no
"""Every way to fold one unit's array."""

from __future__ import annotations

from collections.abc import Iterator

from lichen.hw.device.device import Device, Resources
from lichen.hw.engine.element import ELEMENTS, Backend, packs
from lichen.hw.stage.folding import ArrayFolding
from lichen.hw.stage.kind import UnitKind
from lichen.network.arithmetic import ceil_div

PIXELS = (1, 2, 3, 4, 6, 8, 9, 12)
"""Pixels per group that are tried."""


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


class ArrayFoldings:
    """One unit's array and every way to fold it.

    Parameters
    ----------
    kind : UnitKind
    size : (int, int)
        Height and width of the unit's output.
    max_width : int
        Of the unit's input.
    backends : tuple of Backend
        To choose from.
    device : Device
        Of which costs are asked.
    """

    def __init__(
        self,
        kind: UnitKind,
        size: tuple[int, int],
        max_width: int,
        backends: tuple[Backend, ...],
        device: Device,
    ):
        self.device = device
        self.kind, self.size, self.max_width = kind, size, max_width
        packable = packs(*kind.operands)
        self.backends = [b for b in backends if b is not Backend.PACKED or packable]
        self._costs: dict[tuple[ArrayFolding, int], Resources] = {}

    @property
    def channels(self) -> int:
        """Of the output."""
        return self.kind.channels

    @property
    def products(self) -> int:
        """Multiplications in a frame."""
        return self.kind.macs(*self.size)

    def foldings(self, limit: int, chains: int) -> Iterator[ArrayFolding]:
        """Every folding that takes at most ``limit`` cycles a frame and could not be shorter."""
        height, width = self.size
        beats = ceil_div(self.channels, chains)
        columns = self.kind.phases(1).columns
        positions = ceil_div(width, columns)
        for pixels in PIXELS:
            groups = height * ceil_div(positions, pixels)
            if pixels > positions or groups * pixels * columns * beats > limit:
                continue
            for lanes in _divisors(self.kind.in_channels):
                phases = self.kind.phases(lanes)
                # every row has one of the phases
                passes = min(beats, limit * phases.rows // (groups * phases.total))
                if passes < 1:
                    continue
                for backend in self.backends:
                    ways = ELEMENTS[backend].ways
                    length = ceil_div(ceil_div(beats, passes), ways) * ways
                    folding = ArrayFolding(
                        pixels=pixels, chain_length=length, lanes=lanes, backend=backend
                    )
                    if length > beats:
                        continue
                    if self.kind.shape(folding, chains).frame_cycles(height, width) <= limit:
                        yield folding

    def cost(self, folding: ArrayFolding, chains: int) -> Resources:
        """What the array takes with its buffers; a convolution's regrouping left out."""
        key = (folding, chains)
        if key not in self._costs:
            self._costs[key] = self.kind.array_resources(
                self.device, folding, chains, self.max_width
            )
        return self._costs[key]
