"""Files of a hyperprior decode alike in processes of other threads and other BLAS kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("compressai")

from PIL import Image  # noqa: E402

from lichen.models import photograph  # noqa: E402
from lichen.network.file import save  # noqa: E402
from lichen.quant.calibration.calibrate import CalibrationImages  # noqa: E402
from lichen.quant.calibration.options import Options  # noqa: E402
from lichen.quant.calibration.quantize import quantize  # noqa: E402
from lichen.quant.float.architectures import new_model, parameters_of  # noqa: E402
from lichen.quant.float.checkpoint import save_checkpoint  # noqa: E402
from lichen.quant.float.network import from_compressai  # noqa: E402
from lichen.sim.images import read_image  # noqa: E402

FILE = Path(__file__).parents[2] / "benchmarks" / "determinism.py"


@pytest.mark.skipif(not FILE.exists(), reason="needs the repository's benchmarks")
def test_processes_agree(tmp_path):
    spec = importlib.util.spec_from_file_location("determinism", FILE)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    torch.manual_seed(3)
    model = new_model("mbt2018-mean", 16, 24)
    with torch.no_grad():
        model.g_a[6].weight *= 100
        model.h_a[4].weight *= 20
        model.h_s[4].weight *= 10
    image = read_image(photograph())[:192, :256]
    Image.fromarray(image).save(tmp_path / "image.png")
    save_checkpoint(tmp_path / "net.safetensors", "mbt2018-mean", 16, 24, parameters_of(model), {})
    parent = from_compressai(model, "mbt2018-mean", 16, 24)
    network = quantize(parent, CalibrationImages([image[:128, :128]]), Options(samples=1000))
    save(network.network, tmp_path / "net.lichen")
    report = benchmark.experiment(
        tmp_path / "net.lichen", tmp_path / "image.png", tmp_path / "net.safetensors"
    )
    assert report["integer_identical"]
    # the experiment can tell: float32 differs between the same processes
    assert report["float32"]["differing_outputs"] > 0
    assert np.isfinite(report["float32"]["greatest_difference"])
