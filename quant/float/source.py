"""What is quantized: a checkpoint of any supported kind, as a float network."""

from __future__ import annotations

from pathlib import Path

from lichen.quant.float.architectures import build_model
from lichen.quant.float.bls2017 import FILES, load_bls2017
from lichen.quant.float.checkpoint import load_checkpoint
from lichen.quant.float.network import FloatNetwork, from_compressai


def load_float_network(checkpoint: str) -> FloatNetwork:
    """The float network of a checkpoint, with what its header says as provenance.

    ``checkpoint`` is what `load_checkpoint` takes, or a folder with the files of bls2017; both
    raise UserError where it is neither.
    """
    if (Path(checkpoint) / FILES[0]).is_file():
        return load_bls2017(checkpoint)
    loaded = load_checkpoint(checkpoint)
    # The header may hold anything; what has no place in JSON is left out.
    source = {
        key: value
        for key, value in loaded.metadata.items()
        if isinstance(value, str | int | bool) or (isinstance(value, float) and value == value)
    }
    source["file"] = source.pop("source", Path(checkpoint).name)
    return from_compressai(
        build_model(*loaded[:4]),
        *loaded[:3],
        provenance={"source": source},
        kept_channels=loaded.metadata.get("kept_channels"),
    )
