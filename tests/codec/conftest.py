"""What the codec's tests share."""

from __future__ import annotations

import importlib.resources

import pytest

from lichen.network.description import Network
from lichen.network.file import load


@pytest.fixture(scope="session")
def tiny_network() -> Network:
    """The smallest shipped network."""
    with importlib.resources.as_file(
        importlib.resources.files("lichen.models") / "tiny.lichen"
    ) as path:
        return load(path)
