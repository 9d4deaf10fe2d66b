"""Activations get more bits where the loss is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from lichen import models  # noqa: E402
from lichen.commands.quantize import command  # noqa: E402
from lichen.network.description import PHOTO  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages, load_calibration  # noqa: E402
from lichen.quant.calibration.measure import measure  # noqa: E402
from lichen.quant.calibration.options import Options, Widths  # noqa: E402
from lichen.quant.calibration.quantize import quantize  # noqa: E402
from lichen.quant.calibration.widths import Tensor, allocate, prices, widen  # noqa: E402
from lichen.quant.draq.draq import lambda_of  # noqa: E402
from lichen.quant.float.source import load_float_network  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bits_go_where_they_win_most_for_their_price():
    tensors = [
        Tensor("dear", 8, noise=100.0, price=100),
        Tensor("cheap", 8, noise=100.0, price=10),
        Tensor("quiet", 8, noise=0.0, price=1),
    ]
    # the second bit of the cheap one wins a quarter of its first, still more than a tenth
    assert [t.bits for t in allocate(tensors, 10)] == [8, 9, 8]
    assert [t.bits for t in allocate(tensors, 119)] == [8, 10, 8]
    assert [t.bits for t in allocate(tensors, 120)] == [9, 10, 8]
    assert [t.bits for t in allocate(tensors, 1e9)] == [10, 10, 8]
    assert allocate(tensors, 0) == tensors


@pytest.fixture(scope="module")
def images() -> CalibrationImages:
    return load_calibration(models.calibration_photographs(), 16, size=128, limit=8)


def test_a_price_is_what_a_bit_adds(images):
    network = load_float_network("tiny")
    options = Options(method="minmax")
    start = quantize(network, images.some(1), options).network
    for layer, price in list(prices(start).items())[::2]:
        more = Options(method="minmax", per_stage={layer: Widths(activation=9)})
        after = quantize(network, images.some(1), more).network
        assert after.bops(*PHOTO) - start.bops(*PHOTO) == price
    assert len(prices(start)) == 6


def test_widened_activations_lose_less_on_unseen_images(images):
    network, options = load_float_network("tiny"), Options(method="minmax")
    lmbda = lambda_of(network)
    assert lmbda is not None
    wider, report = widen(network, images, options, lmbda, 0.1)
    given = {k: v["to"] - v["from"] for k, v in report["layers"].items()}
    assert sum(given.values()) >= 2 and max(given.values()) <= 2
    assert {k: w.activation for k, w in wider.per_stage.items()} == {
        k: 8 + more for k, more in given.items() if more
    }
    crops = load_calibration(models.calibration_photographs(), 16, size=128).crops
    seen = {crop.tobytes() for crop in images.crops}
    unseen = [crop for crop in crops if crop.tobytes() not in seen][:8]
    before, after = (quantize(network, images, o).network for o in (options, wider))
    added = after.bops(*PHOTO) / before.bops(*PHOTO) - 1
    assert 0 < added <= 0.1 and added == pytest.approx(report["bops_added"])
    losses = [(r := measure(n, unseen)).bpp + lmbda * r.mse for n in (before, after)]
    assert losses[1] < losses[0]
    assert widen(network, images.some(2), options, lmbda, 0.0)[0] == options


def test_the_command(tmp_path: Path):
    report = tmp_path / "r.json"
    arguments = ["tiny.fp32", "-o", str(tmp_path / "w.lichen"), "--method", "minmax", "--quiet"]
    arguments += ["--widen", "0.05", "--crop", "96", "--max-images", "2", "--threads", "1"]
    done = CliRunner().invoke(command, [*arguments, "--json", str(report)])
    assert done.exit_code == 0, done.output
    found = json.loads(report.read_text())
    given = {layer: entry["to"] for layer, entry in found["widened"]["layers"].items()}
    layers = {f"{e['transform']}.{e['stage']}": e["output_bits"] for e in found["layers"]}
    assert {layer: layers[layer] for layer in given} == given
    assert max(given.values()) > 8 and found["widened"]["bops_added"] <= 0.05
