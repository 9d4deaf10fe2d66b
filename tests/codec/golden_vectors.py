"""Golden vectors: the digests of files and pixels that must be the same on every machine.

The networks lie beside this in vectors/, all but ``tiny``, which ships. To compare a machine, or
an installation with another NumPy, with those in vectors/digests.json:

    python -m tests.codec.golden_vectors

``--write`` writes them anew, which takes a new version of the file format.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import contextlib
import hashlib
import json
import locale
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from lichen import codec, models
from lichen.network.description import Network
from lichen.network.file import load
from lichen.network.identity import decoder_digest, static_digest
from lichen.sim.images import read_image
from tests.codec.cases import KINDS, pattern

FOLDER = Path(__file__).with_name("vectors")
DIGESTS = FOLDER / "digests.json"
CONTEXTS = "contexts"
"""How the names of networks begin whose files are of version 2."""

CARRY = f"{CONTEXTS}-carry"
"""And of those with all that later formats of the network file brought."""

NETWORKS = (
    "tiny", *KINDS, *(f"{CONTEXTS}-{kind}" for kind in KINDS),
    f"{CARRY}-factorized", f"{CARRY}-hyperprior",
)  # fmt: skip


def network(name: str) -> Network:
    """``tiny``, or one of those in the folder."""
    return models.load_network("tiny") if name == "tiny" else load(FOLDER / f"{name}.lichen")


def images() -> dict[str, np.ndarray]:
    """What is coded with each network."""
    photo = read_image(models.photograph())
    return {
        "1x1": pattern(1, 1),
        "100x75": pattern(75, 100),
        "1x90 grey": pattern(90, 1, 1)[:, :, 0],
        "192x128 photo": photo[200:328, 300:492],
    }


def large_image() -> np.ndarray:
    """4000x3000."""
    return np.tile(read_image(models.photograph()), (6, 6, 1))[:3000, :4000]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def vector(name: str, image: np.ndarray, threads: int | None = None) -> dict[str, str]:
    """Digests of an image, its file and its reconstruction."""
    chosen = network(name)
    version = 2 if name.startswith(CONTEXTS) else 1
    data = codec.encode(image, chosen, threads=threads, version=version)
    return {
        "network": static_digest(chosen) if version == 1 else decoder_digest(chosen).hex(),
        "image": sha(image.tobytes()),
        "file": sha(data),
        "reconstruction": sha(codec.decode(data, chosen, threads=threads).tobytes()),
    }


def vectors(threads: int | None = None) -> dict[str, Any]:
    """All of them, but the large one."""
    return {
        f"{name}, {title}": vector(name, image, threads)
        for name in NETWORKS
        for title, image in images().items()
    }


def expected() -> dict[str, Any]:
    return json.loads(DIGESTS.read_text())


def surroundings() -> dict[str, str]:
    """What the vectors must not depend on."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": ", ".join(
            f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}, "
            f"{blas['num_threads']} threads"
            for blas in threadpool_info()
            if blas["user_api"] == "blas"
        ),
        "locale": locale.setlocale(locale.LC_ALL),
    }


def main() -> None:
    with contextlib.suppress(locale.Error):  # one that is not installed
        locale.setlocale(locale.LC_ALL, "")
    found = vectors()
    print(json.dumps(surroundings(), indent=2))
    if "--write" in sys.argv:
        found["tiny, 4000x3000"] = vector("tiny", large_image())
        DIGESTS.write_text(json.dumps(found, indent=2) + "\n")
        return
    wrong = [name for name, digests in found.items() if digests != expected()[name]]
    print(f"{len(found) - len(wrong)} of {len(found)} golden vectors are equal", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
