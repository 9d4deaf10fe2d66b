"""The design's energy is the golden model's."""

from __future__ import annotations

import numpy as np
import stripes

from lichen.sim.golden import run_transform


def test_energy_is_golden() -> None:
    latents = run_transform(stripes.transform(), stripes.image())
    assert stripes.simulate() == int((latents.astype(np.int64) ** 2).sum())
