"""What commands that quantize share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lichen.commands import _options

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lichen.network.description import Network
    from lichen.quant.calibration.calibrate import CalibrationImages
    from lichen.quant.calibration.options import Options
    from lichen.quant.contexts.fit import ContextFit
    from lichen.quant.float.network import FloatNetwork


def import_quant() -> None:
    """Fail with a sentence when the extra is missing."""
    with _options.quant_extra("quantizing"):
        import lichen.quant.float.checkpoint  # noqa: F401


def find_clip_factor(
    network: Any,
    images: Any,
    options: Any,
    weight: float,
    *,
    quiet: bool,
    field: str = "clip_factor",
) -> tuple[float, dict[float, float]]:
    """`lichen.quant.calibration.quantize.choose_clip_factor`, with a progress bar."""
    from tqdm import tqdm

    from lichen.quant.calibration.quantize import CLIP_FACTORS, choose_clip_factor

    what = field.replace("_", " ")
    with tqdm(total=len(CLIP_FACTORS), desc=what, unit="try", disable=quiet) as bar:
        return choose_clip_factor(
            network,
            images,
            options,
            weight,
            field=field,
            progress=lambda step: bar.update() and None,
        )


def find_clip_factors(
    network: FloatNetwork,
    images: CalibrationImages,
    options: Options,
    weight: float,
    *,
    quiet: bool,
) -> tuple[Options, dict[str, dict[float, float]]]:
    """Options with the clip factor that loses least, and then, where there are normalizations
    and no factor is given for their inputs, theirs; the losses of both by field."""
    stages = [stage for part in network.transforms.values() for stage in part.stages]
    names = ["clip_factor"]
    if any(stage.normalized for stage in stages) and options.gdn_input_clip_factor is None:
        names.append("gdn_input_clip_factor")
    losses = {}
    for name in names:
        chosen, losses[name] = find_clip_factor(
            network, images, options, weight, quiet=quiet, field=name
        )
        factors: dict[str, Any] = {name: chosen}
        options = replace(options, **factors)
    return options, losses


def contexts_of(network: Network, crops: Sequence[npt.NDArray[np.uint8]]) -> ContextFit | None:
    """Context models where they are possible and worth it."""
    from lichen.quant.contexts.fit import add_contexts

    try:
        return add_contexts(network, crops)
    except ValueError as error:
        _options.note(f"no context models: {error}.")
        return None


REGULARIZE_LR = 1e-4
"""Default of `lichen.quant.draq.draq.DraqOptions` (a test compares them)."""


# Defaults of `lichen.quant.training.tune_config.TuneConfig` (a test compares them), which cannot be
# imported before the extra is known to be there.
TUNE = {
    "lr": 1e-3,
    "ema": 0.0,
    "lr_scales": 3.0,
    "distill": 0.0,
    "penalty": 0.01,
    "sigmas": 4.0,
    "optimizer": "soap",
    "distortion": "mse",
}


def measure_whole(
    original: FloatNetwork,
    network: Network,
    files: Sequence[Path],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Rate and distortion on whole images, as the network's file records them."""
    from lichen.codec.evaluate import NetworkCodec, evaluate
    from lichen.quant.calibration.measure import measure_float
    from lichen.sim.images import read_image

    # static tables, so that what differs from FP32 is what integers cost
    coded = evaluate(NetworkCodec(network, 1), files, progress=progress)
    before = measure_float(original, (read_image(file) for file in files), network)
    return {
        "images": len(coded.images),
        "bpp": round(coded.bpp_streams or 0.0, 5),
        "psnr": round(coded.psnr, 4),
        "bits_from": "coded bytes",
        "fp32": {
            "bpp": round(before.bpp, 5),
            "psnr": round(before.psnr, 4),
            "bits_from": "entropy model (estimated)",
        },
    }
