"""Exported graphs compute the golden model's integers, in onnxruntime and in QONNX's executor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lichen import models
from lichen.cli import cli
from lichen.network.description import IMAGE_FORMAT, Activation, Format, Network, Transform
from lichen.network.onnx_graph import exact_parts, onnx_model
from lichen.network.random import StageShape, random_stage, symmetric
from lichen.sim.golden import run_stages
from lichen.sim.images import crop_middle, load_image
from lichen.sim.inputs import transform_inputs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def to_graph(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 0, 1)[None].astype(np.float32)


def from_graph(y: np.ndarray) -> np.ndarray:
    assert np.array_equal(y, np.rint(y))
    return y[0].transpose(1, 2, 0).astype(np.int64)


def in_qonnx(model, x: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors, as QONNX's executor computes them node by node."""
    wrapper = pytest.importorskip("qonnx.core.modelwrapper").ModelWrapper(model)
    from qonnx.core.onnx_exec import execute_onnx

    return execute_onnx(wrapper, {"input": to_graph(x)}, return_full_exec_context=True)


def in_onnxruntime(model, x: np.ndarray) -> np.ndarray:
    """The output, as onnxruntime computes it when Quant is what it is here: the identity."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if node.op_type == "Quant":
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
    session = onnxruntime.InferenceSession(plain.SerializeToString())
    return from_graph(session.run(["output"], {"input": to_graph(x)})[0])


def check(transform: Transform, model, x: np.ndarray, *, qonnx: bool = True) -> None:
    """Every stage's output equals the golden model's; the model is well formed and readable."""
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and all(names)
    stages = [stage.name for stage in transform.stages]
    for name in names:  # a viewer shows where one is
        assert name.partition(".")[0] in (*stages, "input", "output"), name
    known = {info.name for info in (*model.graph.value_info, *model.graph.output)}
    assert all(output in known for node in model.graph.node for output in node.output)
    golden = run_stages(transform, x)
    assert np.array_equal(in_onnxruntime(model, x), golden[-1])
    if qonnx:
        tensors = in_qonnx(model, x)
        for stage, want in zip(transform.stages, golden, strict=True):
            assert np.array_equal(from_graph(tensors[f"{stage.name}.output"]), want), stage.name
        assert np.array_equal(from_graph(tensors["output"]), golden[-1])


@pytest.mark.parametrize("name", ["tiny", "small-hyper-q1"])
def test_shipped_networks_in_the_qonnx_executor(name):
    network = models.load_network(name)
    pixels = crop_middle(load_image(models.photograph())[0], 64, 64)
    for transform, x in transform_inputs(network, pixels).items():
        model = onnx_model(network, transform, *x.shape[:2])
        check(network.transforms[transform], model, x)


WIDE = Format(bits=16, signed=True, lo=-32767, hi=32767)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("transposed", [False, True])
def test_random_stages_of_every_kind(activation, transposed):
    """With the widest operands there may be, which take several convolutions to sum exactly."""
    rng = np.random.default_rng(len(activation) + 10 * transposed)
    for bits, source in ((8, IMAGE_FORMAT), (8, symmetric(8)), (12, WIDE)):
        shape = StageShape(
            out_channels=6, kernel=int(rng.integers(2, 7)), stride=2, transposed=transposed,
            output_padding=int(transposed), activation=activation, weight_bits=bits,
            x_bits=min(bits + 2, 12), output_bits=bits, gamma_bits=bits, u_bits=min(bits + 4, 16),
        )  # fmt: skip
        stage = random_stage(rng, "conv1", 3, source, shape)
        transform = Transform(input=source, stages=[stage])
        network = Network(architecture="custom", n=6, m=6, transforms={"h_a": transform})
        x = rng.integers(source.lo, source.hi + 1, (11, 14, 3))
        model = onnx_model(network, "h_a", 11, 14)
        check(transform, model, x, qonnx=bits == 12)
        # at both ends of the range every sum is as large as it gets
        for value in (source.lo, source.hi):
            check(transform, model, np.full_like(x, value), qonnx=False)


def test_weights_are_dealt_to_exact_convolutions():
    rng = np.random.default_rng(5)
    exact = 1 << (np.finfo(np.float32).nmant + 1)  # below it float32 has every integer
    for bits, most in ((8, 127), (8, 255), (12, 255), (12, 65535)):
        limit = (1 << (bits - 1)) - 1
        weight = rng.integers(-limit, limit + 1, (4, 20, 5, 5))
        parts = exact_parts(weight, most)
        assert np.array_equal(sum(part << shift for part, shift in parts), weight)
        for part, _ in parts:
            assert most * np.abs(part).reshape(4, -1).sum(axis=1).max() < exact
    assert len(exact_parts(weight // 4096, 255)) == 1


def test_the_command(tmp_path: Path):
    file = tmp_path / "tiny.onnx"
    arguments = ["export", "tiny", "--qonnx", str(file), "--transform", "g_s", "--size", "60x33"]
    done = CliRunner().invoke(cli, [*arguments, "--json", "-"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["input"] == [1, 48, 3, 4] and report["output"] == [1, 3, 48, 64]
    model = onnx.load(file)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        1,
        48,
        3,
        4,
    ]
    assert {prop.key: prop.value for prop in model.metadata_props}["transform"] == "g_s"


def test_what_the_command_refuses(tmp_path: Path):
    file = tmp_path / "tiny.onnx"
    done = CliRunner().invoke(cli, ["export", "tiny", "--qonnx", str(file), "--transform", "h_a"])
    assert "cannot export h_a: network tiny has no transform h_a, only g_a, g_s" in str(
        done.exception
    )
    assert not file.exists()
