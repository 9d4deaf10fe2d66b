"""What primitives are worth while a folding is searched."""

from __future__ import annotations

from dataclasses import dataclass

from lichen.hw.device.device import Resources

DSP_PRICE = 0.25
"""What a share of the multipliers is worth, in equal shares of the other primitives."""


@dataclass(frozen=True)
class Prices:
    """What a primitive costs while searching."""

    dsp: float
    bram: float
    lut: float

    @classmethod
    def start(cls, budget: Resources) -> Prices:
        """All of every kind of primitive is worth the same."""
        # Except multipliers: what they take off the lookup tables makes routes shorter.
        return cls(DSP_PRICE / max(1, budget.dsp), 1 / max(1, budget.bram), 1 / max(1, budget.lut))

    def of(self, resources: Resources) -> float:
        """The price of resources."""
        return resources.dsp * self.dsp + resources.bram * self.bram + resources.lut * self.lut

    def adjusted(self, used: Resources, budget: Resources) -> Prices:
        """What is overdrawn gets dearer, what is left over cheaper."""

        def change(need: int, have: int) -> float:
            return min(1.6, max(0.7, (need / max(1, have)) ** 2))

        return Prices(
            self.dsp * change(used.dsp, budget.dsp),
            self.bram * change(used.bram, budget.bram),
            self.lut * change(used.lut, budget.lut),
        )
