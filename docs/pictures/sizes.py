"""A photograph at three sizes of file: `python docs/pictures/sizes.py` writes sizes.jpg.

Files are really coded and decoded; what stands below each crop is measured then.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lichen import codec, models
from lichen.sim.quality import psnr

HERE = Path(__file__).parent
NETWORKS = ("small-hyper-q1", "small-hyper-q2", "small-hyper-q4")
CROP = (150, 60, 406, 316)
TEXT = 26


def main() -> None:
    with Image.open(models.photograph()) as image:
        original = image.convert("RGB")
    panels = [(original, f"original, {models.photograph().stat().st_size / 1000:.0f} kB as PNG")]
    for name in NETWORKS:
        network = models.load_network(name)
        data = codec.encode(original, network)
        decoded = codec.decode(data, network)
        quality = psnr(np.asarray(original), decoded)
        label = f"{name}: {len(data) / 1000:.1f} kB, {quality:.1f} dB"
        panels.append((Image.fromarray(decoded), label))
    width, height = CROP[2] - CROP[0], CROP[3] - CROP[1]
    sheet = Image.new("RGB", (width * len(panels) + 8 * (len(panels) - 1), height + TEXT), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(panels):
        x = i * (width + 8)
        sheet.paste(picture.crop(CROP), (x, 0))
        draw.text((x + 2, height + 6), label, "black", font=ImageFont.load_default(13))
        print(label)
    sheet.save(HERE / "sizes.jpg", quality=92)


if __name__ == "__main__":
    main()
