"""Writes models/digests.json: what files name the shipped networks by, retired ones too.

python benchmarks/digests.py
"""

from __future__ import annotations

from lichen import models
from lichen.files import write_json


def main() -> None:
    names = (*models.names(), *models.retired_names())
    found = {name: models.digests(models.load_network(name)) for name in names}
    write_json(models.folder() / "digests.json", found)


if __name__ == "__main__":
    main()
