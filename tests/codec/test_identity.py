"""The same image and network give the same file and the same pixels everywhere.

Other BLAS kernels, thread counts, locales, hash seeds and CPU features stand for other machines
here; another NumPy has a test of its own among the slow ones, other simulators in test_commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lichen
from lichen import models
from lichen.network.file import digest
from lichen.sim import golden
from tests.codec import golden_vectors
from tests.codec.cases import KINDS
from tests.codec.golden_vectors import DIGESTS, FOLDER, expected, images, network, vector

ROOT = Path(__file__).parents[2]

LARGE_MIB = 750
"""Most memory, interpreter and libraries included, to code 4000x3000 pixels."""


@pytest.mark.parametrize("name", golden_vectors.NETWORKS)
def test_golden_vectors(name):
    for title, image in images().items():
        assert vector(name, image) == expected()[f"{name}, {title}"]


def test_digests_are_those_of_the_network_files():
    files = [FOLDER / f"{kind}.lichen" for kind in KINDS]
    assert [digest(network(kind)) for kind in KINDS] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    ]
    for name in models.names():
        file = models.shipped_network(name)
        assert digest(models.load_network(name)) == hashlib.sha256(file.read_bytes()).hexdigest()


def run(environment: dict[str, str], *arguments: str, python: str = sys.executable) -> str:
    """What a Python prints in this environment; it must succeed."""
    done = subprocess.run(
        [python, *arguments],
        capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("kernels", "threads", "others"),
    [
        ("Prescott", 1, {"LC_ALL": "C"}),
        (
            "Haswell", 3,
            {"LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "5", "NPY_DISABLE_CPU_FEATURES": "AVX2"},
        ),
        pytest.param("Nehalem", 2, {"NUMBA_CPU_NAME": "generic"}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_in_other_surroundings(kernels, threads, others):
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {"OPENBLAS_CORETYPE": kernels} | dict.fromkeys(variables, str(threads))
    report = run(environment | others, "-m", "tests.codec.golden_vectors")
    assert report.endswith("36 of 36 golden vectors are equal\n")
    # the test is worth something only if the surroundings did change
    if sys.platform == "linux" and "openblas" in report:
        # newer ones give some kernels another name
        names = {kernels, {"Prescott": "Katmai"}.get(kernels, kernels)}
        assert any(f" {name.lower()}, " in report.lower() for name in names)
        assert f", {min(threads, len(os.sched_getaffinity(0)))} threads" in report


@pytest.mark.parametrize("threads", [1, 5])
def test_thread_counts(threads, monkeypatch):
    """Of the entropy coder, and of the golden model's strips, whatever BLAS would have taken."""
    monkeypatch.setattr(golden._blas(), "threads", threads)
    monkeypatch.setattr(golden, "STRIP_BYTES", 1 << 14)
    for name in ("tiny", "mean-scale", "contexts-mean-scale", "contexts-carry-hyperprior"):
        image = images()["192x128 photo"]
        assert vector(name, image, threads) == expected()[f"{name}, 192x128 photo"]


def test_large_image_in_bounded_memory():
    """12 million pixels, coded and decoded; the first layer alone would take 200 MB at once."""
    # Not getrusage: there a process starts with the peak of the one that started it.
    code = (
        "import json, pathlib; import tests.codec.golden_vectors as g; "
        "found, status = g.vector('tiny', g.large_image()), pathlib.Path('/proc/self/status'); "
        "print(json.dumps([found, status.read_text() if status.exists() else '']))"
    )
    found, status = json.loads(run({}, "-c", code))
    assert found == expected()["tiny, 4000x3000"]
    if sys.platform == "linux":
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
        assert peak is not None
        assert int(peak[1]) / 1024 < LARGE_MIB


@pytest.mark.slow
def test_with_another_numpy(tmp_path):
    """NumPy before or after 2, whichever the tests do not run with, and what else pip gives."""
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    wanted = "numpy<2" if int(np.__version__.split(".")[0]) >= 2 else "numpy>=2"
    packages = [wanted, "numba", "pillow", "platformdirs", "safetensors", "threadpoolctl"]
    install = [python, "-m", "pip", "install", "--quiet", *packages]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("pip cannot install another NumPy here")
    # the rooms under the names that they are installed as
    (tmp_path / "lichen").mkdir()
    for room in ("codec", "models", "network", "sim"):
        (tmp_path / "lichen" / room).symlink_to(ROOT / room)
    for file in Path(lichen.__file__).parent.glob("*.py"):
        (tmp_path / "lichen" / file.name).symlink_to(file)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    report = run(environment, "-m", "tests.codec.golden_vectors", python=str(python))
    assert report.endswith("36 of 36 golden vectors are equal\n")
    assert f'"numpy": "{np.__version__}"' not in report


def test_vectors_are_complete():
    names = {f"{name}, {title}" for name in golden_vectors.NETWORKS for title in images()}
    assert set(json.loads(DIGESTS.read_text())) == names | {"tiny, 4000x3000"}
