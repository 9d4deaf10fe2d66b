"""Writes models/digests.json: what files name the shipped networks by.

python benchmarks/digests.py
"""

from __future__ import annotations

from lichen import models
from lichen.files import write_json


def main() -> None:
    found = {name: models.digests(models.load_network(name)) for name in models.names()}
    write_json(models.folder() / "digests.json", found)


if __name__ == "__main__":
    main()
