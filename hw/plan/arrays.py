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


_Key = tuple[int, int, int, Backend, int]


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
    tight : bool
        With buffers as small as can be (`UnitKind.tight`).
    """

    def __init__(
        self,
        kind: UnitKind,
        size: tuple[int, int],
        max_width: int,
        backends: tuple[Backend, ...],
        device: Device,
        *,
        tight: bool = False,
    ):
        self.device, self.tight = device, tight
        self.kind, self.size, self.max_width = kind, size, max_width
        packable = packs(*kind.operands)
        self.backends = [b for b in backends if b is not Backend.PACKED or packable]
        # By P, chain length, S and back-end, and channels a beat: hashing a folding takes longer.
        self._costs: dict[_Key, Resources] = {}
        self._cycles: dict[_Key, tuple[ArrayFolding, int]] = {}
        self._phases = {lanes: kind.phases(lanes) for lanes in _divisors(kind.in_channels)}

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
        columns = self._phases[1].columns
        positions = ceil_div(width, columns)
        for pixels in PIXELS:
            groups = height * ceil_div(positions, pixels)
            if pixels > positions or groups * pixels * columns * beats > limit:
                continue
            for lanes, phases in self._phases.items():
                # every row has one of the phases
                passes = min(beats, limit * phases.rows // (groups * phases.total))
                if passes < 1:
                    continue
                for backend in self.backends:
                    ways = ELEMENTS[backend].ways
                    length = ceil_div(ceil_div(beats, passes), ways) * ways
                    if length > beats:
                        continue
                    folding, cycles = self._folded((pixels, length, lanes, backend, chains))
                    if cycles <= limit:
                        yield folding

    def _folded(self, key: _Key) -> tuple[ArrayFolding, int]:
        """A folding and the cycles it takes for a frame."""
        if key not in self._cycles:
            pixels, length, lanes, backend, chains = key
            folding = ArrayFolding(pixels=pixels, chain_length=length, lanes=lanes, backend=backend)
            if self.tight:
                folding = self.kind.tight(folding)
            cycles = self.kind.shape(folding, chains).frame_cycles(*self.size)
            self._cycles[key] = folding, cycles
        return self._cycles[key]

    def cost(self, folding: ArrayFolding, chains: int) -> Resources:
        """What the array takes with its buffers; a convolution's regrouping left out."""
        key = (folding.pixels, folding.chain_length, folding.lanes, folding.backend, chains)
        if key not in self._costs:
            self._costs[key] = self.kind.array_resources(
                self.device, folding, chains, self.max_width
            )
        return self._costs[key]
