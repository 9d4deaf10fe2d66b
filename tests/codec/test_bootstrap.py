"""Intervals of BD-rates over images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lichen.codec import bootstrap
from lichen.codec.bootstrap import ImageCurves
from lichen.errors import UserError

IMAGES = tuple(f"image{i:02}" for i in range(12))
BPP = np.array([0.2, 0.4, 0.8, 1.6])


def curves(name: str, factors: np.ndarray) -> ImageCurves:
    """A codec that needs ``factors`` (images) times the rate of the others for 30 .. 36 dB."""
    quality = np.repeat(np.array([[30.0], [32.0], [34.0], [36.0]]), len(IMAGES), axis=1)
    return ImageCurves(name, IMAGES, BPP[:, None] * factors, quality)


def test_images_that_agree_leave_no_interval():
    """Ten percent more on every image is ten percent, however images are drawn."""
    found = bootstrap.interval(curves("a", np.full(12, 1.1)), curves("b", np.ones(12)), draws=50)
    assert found is not None
    assert found.low == pytest.approx(10, abs=1e-6)
    assert found.high == pytest.approx(10, abs=1e-6)
    assert found.image_mean == pytest.approx(10, abs=1e-6)


def test_the_interval_holds_the_truth_and_narrows_with_agreement():
    spread = np.linspace(0.8, 1.4, 12)
    wide = bootstrap.interval(curves("a", spread), curves("b", np.ones(12)), draws=200)
    narrow = bootstrap.interval(curves("a", 1 + (spread - 1) / 5), curves("b", np.ones(12)))
    assert wide is not None and narrow is not None
    assert wide.low < 10 < wide.high
    assert narrow.high - narrow.low < 0.3 * (wide.high - wide.low)
    assert wide.image_rates["image00"] == pytest.approx(-20, abs=1e-6)


def test_the_same_measurements_give_the_same_interval():
    a, b = curves("a", np.linspace(0.9, 1.2, 12)), curves("b", np.ones(12))
    assert bootstrap.interval(a, b, draws=40) == bootstrap.interval(a, b, draws=40)


def test_other_images_have_no_interval():
    other = ImageCurves("b", IMAGES[::-1], np.ones((4, 12)), np.ones((4, 12)))
    assert bootstrap.interval(curves("a", np.ones(12)), other) is None


def test_nor_have_curves_that_rarely_compare():
    """One image decides whether the curves meet at all: nothing is said about the rest."""
    a = curves("a", np.ones(12))
    quality = a.quality.copy()
    quality[:, 1:] += 50
    assert bootstrap.interval(a, ImageCurves("b", IMAGES, a.bpp, quality), draws=40) is None


def point(name: str, bpp: float, images=IMAGES) -> dict:
    rows = [{"name": n, "bpp": bpp, "psnr-rgb": 30 + bpp} for n in images]
    return {"name": name, "images": rows}


def test_files_of_evaluate_are_read_in_order_of_rate(tmp_path):
    for name, bpp in (("b", 0.8), ("a", 0.4)):
        (tmp_path / name).write_text(json.dumps({"points": [point(name, bpp)]}))
    found = bootstrap.read_images([str(tmp_path / "b"), str(tmp_path / "a")])
    assert found is not None
    assert found.bpp[:, 0].tolist() == [0.4, 0.8]


def test_points_of_other_images_are_refused(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"points": [point("a", 0.4), point("b", 0.8, IMAGES[:3])]}))
    with pytest.raises(UserError, match=r"b was measured on other images than a"):
        bootstrap.read_images([str(file)])


def test_published_curves_have_no_images():
    assert bootstrap.read_images(["jpeg"]) is None
