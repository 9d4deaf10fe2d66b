"""From your own checkpoint to numbers: quantized, and coded to bytes, beside its FP32 self."""

from __future__ import annotations

import argparse
from pathlib import Path

from lichen import models
from lichen.codec.evaluate import Codec, NetworkCodec, evaluate
from lichen.network import file
from lichen.network.description import PHOTO
from lichen.quant.calibration.calibrate import load_calibration
from lichen.quant.calibration.options import Options, Widths
from lichen.quant.calibration.quantize import quantize
from lichen.quant.float.architectures import build_model
from lichen.quant.float.checkpoint import load_checkpoint
from lichen.quant.float.source import load_float_network
from lichen.quant.training.evaluate import FloatCodec
from lichen.sim.images import list_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="CompressAI's .pth.tar, a state dict, or NAME.fp32")
    parser.add_argument("--images", required=True, help="folder of photographs to measure on")
    parser.add_argument("-o", "--output", required=True, type=Path, help="network to write")
    parser.add_argument("--weight-bits", type=int, default=8)
    options = parser.parse_args()

    network = load_float_network(options.checkpoint)
    photographs = load_calibration(models.calibration_photographs(), network.factor, limit=8)
    widths = Options(widths=Widths(weight=options.weight_bits), clip_factor=1.5)
    integer = quantize(network, photographs, widths, name=options.output.stem).network
    file.save(integer, options.output)

    model = build_model(*load_checkpoint(options.checkpoint)[:4])
    codecs: dict[str, Codec] = {"FP32": FloatCodec(model), "integers": NetworkCodec(integer)}
    files = list_images(options.images)
    for name, codec in codecs.items():
        measured = evaluate(codec, files)
        print(f"{name:10} {measured.bpp_streams:7.4f} bpp {measured.psnr:6.2f} dB")
    print(f"{integer.macs(*PHOTO) / 1e9:.2f} G multiplications for a photograph of 768x512,")
    print(f"{integer.bops(*PHOTO) / 1e9:.1f} G bit-operations")


if __name__ == "__main__":
    main()
