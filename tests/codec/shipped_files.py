"""Files of networks as they shipped, and what they decode to: both for ever.

    python -m tests.codec.shipped_files

adds files of shipped networks of which there are none yet, in both versions of the file. Run it
before a network is replaced (benchmarks/retire.py), and never take a file away.
"""

from __future__ import annotations

# First, as in the command line: it chooses the kernels that NumPy will use.
import lichen  # noqa: F401

# isort: split

import hashlib
import json
from pathlib import Path

from lichen import models
from lichen.codec.container import Container
from lichen.codec.picture import Picture
from lichen.network.description import Network
from lichen.sim.images import read_image

FOLDER = Path(__file__).with_name("files")
DIGESTS = FOLDER / "digests.json"


def pixels_digest(data: bytes, network: Network) -> str:
    """SHA-256 of the pixels that a file decodes to."""
    return hashlib.sha256(Container(network).decode(data).picture.pixels.tobytes()).hexdigest()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    known = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    image = Picture.of(read_image(models.photograph())[180:276, 300:428])
    for name in models.names():
        network = models.load_network(name)
        for version, digest in enumerate(models.digests(network), 1):
            title = f"{name}.{version}.{digest[:8]}.lic"
            if title in known:
                continue
            data = Container(network, version=version).encode(image)
            (FOLDER / title).write_bytes(data)
            known[title] = pixels_digest(data, network)
    DIGESTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
