"""Random and damaged network files: refused in one sentence, or of use without an exception."""

from __future__ import annotations

import numpy as np
import pytest

from lichen.network.description import Network
from tests.network import fuzz


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(5000), marks=pytest.mark.slow)])
def test_what_loads_never_raises(tmp_path, seeds):
    outcomes = [fuzz.check(seed, tmp_path, plan=seed % 50 == 49) for seed in seeds]
    # worth something only if it does both
    assert 0.15 < outcomes.count("loaded") / len(outcomes) < 0.85


def test_untouched_networks_load():
    """So what is refused above is what was changed."""
    for seed in range(20):
        network = fuzz.base(np.random.default_rng(seed))
        Network.model_validate(network.model_dump())
