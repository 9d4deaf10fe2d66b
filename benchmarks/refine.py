"""Give the activations of a fine-tuned network more bits, without quantizing anything anew.

    python benchmarks/refine.py NET.lichen g_s.conv3=10 g_s.conv2.x=12 -o OUT.lichen --name NAME

``STAGE.x`` is the input of the stage's normalization, ``x`` alone that of all of them.

Rounding of activations is a noise that fine-tuning cannot train away, and the last stages of g_s
read few products by few bits. Fine-tuning itself is three times as fast on bytes, so bits beyond
8 come afterwards (`lichen.quant.draq.refine`).
"""

from __future__ import annotations

from pathlib import Path

import click

from lichen import models
from lichen.errors import UserError
from lichen.files import write_atomically
from lichen.network.file import dumps
from lichen.quant.draq.refine import refine_input, refine_output


@click.command()
@click.argument("net")
@click.argument("bits", nargs=-1, required=True, metavar="STAGE=BITS...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--name", help="Name of the network [default: as it was].")
def main(net: str, bits: tuple[str, ...], output: Path, name: str | None) -> None:
    """Refine the activations of NET, and the inputs of its normalizations."""
    refined: dict[str, int] = {}
    try:
        network = models.load_network(net)
        transforms = dict(network.transforms)
        for word in bits:
            layer, _, number = word.partition("=")
            chosen = [
                (key, i, name.endswith(".x"))
                for key, transform in transforms.items()
                for i, stage in enumerate(transform.stages)
                for name in (f"{key}.{stage.name}", f"{key}.{stage.name}.x")
                if name == layer
                or (layer == "x" and name.endswith(".x") and stage.normalization is not None)
            ]
            if not chosen or not number.isdigit():
                raise UserError(f"{word!r} is no STAGE=BITS of this network.")
            refined[layer] = int(number)
            for key, i, is_input in chosen:
                refine = refine_input if is_input else refine_output
                transforms[key] = refine(transforms[key], i, refined[layer])
    except UserError as error:
        raise click.UsageError(str(error)) from None
    provenance = dict(network.provenance)
    provenance["quantization"] = dict(provenance["quantization"]) | {"refined": refined}
    changes = {"transforms": transforms, "provenance": provenance, "name": name or network.name}
    write_atomically(output, dumps(network.model_copy(update=changes)))


if __name__ == "__main__":
    main()
