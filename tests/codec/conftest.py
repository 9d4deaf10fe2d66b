"""What the codec's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lichen import models
from lichen.network.description import Network


@pytest.fixture(scope="session")
def tiny_network() -> Network:
    """The smallest shipped network."""
    return models.load_network("tiny")


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A detail of the shipped photograph, 128 rows and 192 columns."""
    with Image.open(models.photograph()) as picture:
        return np.asarray(picture.convert("RGB"))[200:328, 300:492]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Path:
    """Three details of awkward sizes."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(photo[:97, :83]).save(folder / "a.png")
    Image.fromarray(photo[10:30, :192]).save(folder / "b.png")
    Image.fromarray(photo[:1, :1]).save(folder / "c.png")
    return folder
