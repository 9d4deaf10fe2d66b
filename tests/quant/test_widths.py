"""Operands get more bits where the loss is."""

from __future__ import annotations

import json
from dataclasses import replace
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
from lichen.quant.calibration.widths import (  # noqa: E402
    KINDS,
    Product,
    Tensor,
    allocate,
    operands,
    widen,
)
from lichen.quant.draq.draq import lambda_of  # noqa: E402
from lichen.quant.float.source import load_float_network  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bits_go_where_they_win_most_for_their_price():
    tensors = [
        Tensor("dear", "weight", 8, noise=100.0),
        Tensor("cheap", "activation", 8, noise=100.0),
        Tensor("quiet", "u", 8, noise=0.0),
    ]
    products = [
        Product(100, ("dear.weight", 1)),
        Product(10, (1, "cheap.activation")),
        Product(1, (8, "quiet.u")),
    ]
    all_ = 8 * (100 + 10 + 8)
    # the second bit of the cheap one wins a quarter of its first, still more than a tenth
    assert [t.bits for t in allocate(tensors, products, 10.5 / all_)] == [8, 9, 8]
    assert [t.bits for t in allocate(tensors, products, 119.5 / all_)] == [8, 10, 8]
    assert [t.bits for t in allocate(tensors, products, 120.5 / all_)] == [9, 10, 8]
    assert [t.bits for t in allocate(tensors, products, 1e9)] == [10, 10, 8]
    assert allocate(tensors, products, 0) == tensors
    full = [replace(tensors[0], most=9), *tensors[1:]]
    assert [t.bits for t in allocate(full, products, 1e9)] == [9, 10, 8]


def test_a_bit_is_dearer_the_wider_what_it_meets():
    tensors = [Tensor("a", "weight", 8, noise=100.0), Tensor("a", "activation", 8, noise=99.0)]
    products = [Product(1, ("a.weight", "a.activation"))]
    # 8 * 8 to 9 * 8, to 9 * 9, to 10 * 9, to 10 * 10
    for budget, bits in ((7, [8, 8]), (8, [9, 8]), (17, [9, 9]), (26, [10, 9]), (36, [10, 10])):
        assert [t.bits for t in allocate(tensors, products, (budget + 0.5) / 64)] == bits
    assert [t.bits for t in allocate(tensors, products, 35.5 / 64)] == [10, 9]


def test_weights_pay_for_their_memory():
    tensors = [
        Tensor("many", "weight", 8, stored=900, noise=100.0),
        Tensor("few", "weight", 8, stored=100, noise=100.0),
    ]
    products = [Product(10, ("many.weight", 8)), Product(20, ("few.weight", 8))]
    # a bit: a 24th and 0.9 / 8 for one, a 12th and 0.1 / 8 for the other
    assert [t.bits for t in allocate(tensors, products, 1 / 12 + 0.0126)] == [8, 9]
    few = [replace(tensor, stored=0) for tensor in tensors]
    assert [t.bits for t in allocate(few, products, 1 / 12 + 0.0126)] == [10, 8]


@pytest.fixture(scope="module")
def images() -> CalibrationImages:
    return load_calibration(models.calibration_photographs(), 16, size=128, limit=8)


def test_products_are_the_networks_and_a_bit_more_costs_what_it_adds(images):
    network = load_float_network("tiny")
    options = Options(method="minmax", widths=Widths(gdn_input=12))
    start = quantize(network, images.some(1), options).network
    tensors, products = operands(start)
    bits = {tensor.name: tensor.bits for tensor in tensors}
    assert sum(product.bops(bits) for product in products) == start.bops(*PHOTO)
    assert [sum(t.kind == kind for t in tensors) for kind in KINDS] == [8, 6, 6]
    for tensor in tensors[::3]:
        own = replace(options.widths, **{tensor.kind: 10})
        after = quantize(
            network, images.some(1), replace(options, per_stage={tensor.layer: own})
        ).network
        more = sum(product.bops(bits | {tensor.name: 10}) for product in products)
        assert after.bops(*PHOTO) == more > start.bops(*PHOTO), tensor.name


def test_squares_that_nothing_is_cut_from_get_no_more_bits(images):
    network = load_float_network("tiny")
    options = Options(method="minmax", widths=Widths(gdn_input=5))  # squares of 0 .. 15: 8 bits
    tensors, _ = operands(quantize(network, images.some(1), options).network)
    assert {(t.bits, t.most) for t in tensors if t.kind == "u"} == {(8, 8)}


def test_a_widened_network_loses_less_on_unseen_images(images):
    network, options = load_float_network("tiny"), Options(method="minmax")
    lmbda = lambda_of(network)
    assert lmbda is not None
    wider, report = widen(network, images, options, lmbda, 0.1)
    given = {k: v["to"] - v["from"] for k, v in report["tensors"].items()}
    assert sum(given.values()) >= 2 and max(given.values()) <= 2
    got = {
        f"{layer}.{kind}": getattr(own, kind) - 8
        for layer, own in wider.per_stage.items()
        for kind in KINDS
    }
    assert {k: more for k, more in got.items() if more} == {k: m for k, m in given.items() if m}
    crops = load_calibration(models.calibration_photographs(), 16, size=128).crops
    seen = {crop.tobytes() for crop in images.crops}
    unseen = [crop for crop in crops if crop.tobytes() not in seen][:8]
    before, after = (quantize(network, images, o).network for o in (options, wider))
    added = after.bops(*PHOTO) / before.bops(*PHOTO) - 1
    assert 0 < added <= 0.1 and added == pytest.approx(report["bops_added"])
    stored = [
        sum(
            stage.convolution.weight.size * stage.convolution.weight_bits
            for transform in n.transforms.values()
            for stage in transform.stages
        )
        for n in (before, after)
    ]
    assert stored[1] / stored[0] - 1 == pytest.approx(report["weight_bits_added"])
    assert report["bops_added"] + report["weight_bits_added"] <= 0.1
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
    layers = {f"{e['transform']}.{e['stage']}": e for e in found["layers"]}
    fields = {"weight": "weight_bits", "activation": "output_bits", "u": "u_bits"}
    given = {name: entry["to"] for name, entry in found["widened"]["tensors"].items()}
    for name, bits in given.items():
        layer, _, kind = name.rpartition(".")
        assert layers[layer][fields[kind]] == bits, name
    assert max(given.values()) > 8 and found["widened"]["bops_added"] <= 0.05
