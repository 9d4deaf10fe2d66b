"""Two codecs compared for a report."""

from __future__ import annotations

import numpy as np
import pytest

from lichen.codec import compared
from lichen.codec.bootstrap import ImageCurves
from lichen.codec.evaluate import Evaluation, ImageResult
from lichen.codec.rd import FILES, STREAMS
from lichen.errors import UserError

QUALITIES = (30.0, 32.0, 34.0, 36.0)
RATES = (0.2, 0.4, 0.8, 1.6)


def points(factors: np.ndarray, header: float = 0.0, ssim: bool = False) -> list[Evaluation]:
    """A codec that needs ``factors`` (images) times the rate of the others, and a file's header."""
    found = []
    for rate, quality in zip(RATES, QUALITIES, strict=True):
        images = [
            ImageResult(
                f"image{i}", 8, 8, 0, rate * factor + header, quality,
                1 - 1 / quality**2 if ssim else None, bpp_streams=rate * factor,
            )
            for i, factor in enumerate(factors)
        ]  # fmt: skip
        found.append(Evaluation(f"point{rate}", "", images))
    return found


def test_what_every_image_says_is_the_mean_and_the_interval():
    found = compared.compare(points(np.full(6, 1.1)), points(np.ones(6)), names=("a", "b"))
    assert found is not None
    assert (found["test"], found["anchor"]) == ("a", "b")
    for key in ("bd_rate", "low", "high", "image_mean"):
        assert found[key] == pytest.approx(10, abs=1e-6)
    assert "bd_rate_msssim" not in found
    assert compared.cells(found) == ["+10.0 %", "+10.0 to +10.0 %", "+10.0 %"]
    assert compared.cells(found, 2)[0] == "+10.00 %"


def test_images_that_differ_widen_the_interval_and_part_the_means():
    factors = np.array([0.9, 1.0, 1.5, 1.0, 0.8, 1.0])
    found = compared.compare(points(factors), points(np.ones(6)))
    assert found is not None
    assert found["low"] < found["bd_rate"] - 5 < found["bd_rate"] + 5 < found["high"]
    assert found["image_mean"] == pytest.approx(100 * (factors.mean() - 1), abs=1e-6)


def test_streams_leave_headers_out():
    plain, whole = points(np.ones(4)), points(np.ones(4), header=0.1)
    files, streams = (compared.compare(whole, plain, rate) for rate in (FILES, STREAMS))
    assert files is not None
    assert files["bd_rate"] > 5
    assert streams is not None
    assert streams["bd_rate"] == pytest.approx(0, abs=1e-9)


def test_ms_ssim_where_both_have_it():
    both = compared.compare(points(np.full(4, 1.1), ssim=True), points(np.ones(4), ssim=True))
    one = compared.compare(points(np.full(4, 1.1), ssim=True), points(np.ones(4)))
    assert both is not None
    assert both["bd_rate_msssim"] == pytest.approx(10, abs=1e-6)
    assert one is not None
    assert "bd_rate_msssim" not in one


def test_what_cannot_be_compared_is_a_dash():
    assert compared.compare(points(np.ones(4))[:1], points(np.ones(4))) is None
    assert compared.cells(None) == ["–", "–", "–"]
    single = compared.compare(points(np.ones(1)), points(np.ones(1)))
    assert compared.cells(single) == ["+0.0 %", "–", "–"]


def test_points_of_other_images_make_no_curve():
    mixed = [*points(np.ones(4))[:2], *points(np.ones(5))[2:]]
    with pytest.raises(UserError, match="measured on other images"):
        ImageCurves.of("mixed", mixed)
