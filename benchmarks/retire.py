"""Puts a shipped network's decoding half aside, before another takes its name.

    python benchmarks/retire.py small-q3

writes models/retired/small-q3@N.lichen, N being one more than there are (run benchmarks/digests.py
after). Files that it made are decoded by that from then on; it refuses a network whose files
another one decodes already. tests/codec/files holds files of networks as they shipped.
"""

from __future__ import annotations

from typing import Any

import click
import numpy as np

from lichen import models
from lichen.network.file import save
from lichen.network.identity import decoder_digest, decoding_half
from lichen.network.model import Model


def narrowed(value: Any) -> Any:
    """The same with every tensor of integers in the least signed type that holds it."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        low, high = int(value.min()), int(value.max())
        kinds = (np.int8, np.int16, np.int32, np.int64)
        return value.astype(
            next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
        )
    if isinstance(value, Model):
        return value.model_copy(update={key: narrowed(item) for key, item in value})
    if isinstance(value, dict):
        return {key: narrowed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(narrowed(item) for item in value)
    return value


@click.command()
@click.argument("names", nargs=-1, required=True)
def main(names: tuple[str, ...]) -> None:
    """Retire shipped networks."""
    folder = models.folder() / "retired"
    folder.mkdir(exist_ok=True)
    for name in names:
        network = models.load_network(name)
        others = [models.load_network(other) for other in models.retired_names()]
        if any(decoder_digest(other) == decoder_digest(network) for other in others):
            raise click.ClickException(f"files of {name} are decoded by a retired network already.")
        number = 1 + sum(other.partition("@")[0] == name for other in models.retired_names())
        half = narrowed(decoding_half(network)).model_copy(update={"name": f"{name}@{number}"})
        assert models.digests(half) == models.digests(network)
        save(half, folder / f"{name}@{number}.lichen")
        click.echo(f"{folder / f'{name}@{number}.lichen'}")


if __name__ == "__main__":
    main()
