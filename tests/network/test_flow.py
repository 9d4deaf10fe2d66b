"""The data flow is declared once: what it says of shipped networks, and a third latent."""

from __future__ import annotations

import subprocess
import sys

from lichen.network.description import LATENTS, ORDER, TRANSFORMS, Network
from lichen.network.random import random_factorized, random_hyperprior


def test_what_transforms_read():
    hyper = random_hyperprior(1, n=2, m=3, means=True)
    assert hyper.latents == LATENTS
    assert hyper.frames(512, 768) == {
        "g_a": (512, 768), "h_a": (32, 48), "h_s": (8, 12), "g_s": (32, 48)
    }  # fmt: skip
    assert list(hyper.frames(1, 65)) == list(ORDER) and set(ORDER) == set(TRANSFORMS)
    assert hyper.padded(1, 65) == hyper.frames(1, 65)["g_a"] == (64, 128)
    assert hyper.latent_shapes(1, 65) == {"z": (1, 2, 2), "y": (4, 8, 3)}
    plain = random_factorized(1, n=2, m=3)
    assert plain.frames(1, 65) == {"g_a": (16, 80), "g_s": (1, 5)}
    assert plain.latent_shapes(1, 65) == {"y": (1, 5, 3)}
    alone = plain.model_copy(update={"transforms": {"g_s": plain.transforms["g_s"]}})
    assert alone.frames(512, 768) == {"g_s": (32, 48)}


def test_means_are_a_fact_of_the_network():
    for means in (False, True):
        network = random_hyperprior(1, n=2, m=3, means=means)
        assert network.means is means and network.optional_parts() == []
        assert network.has_means(LATENTS[0]) is means and not network.has_means(LATENTS[1])
    half = network.model_copy(update={"transforms": {"g_a": network.transforms["g_a"]}})
    assert half.format == 1 and not half.has_means(LATENTS[0])
    # with h_s alone nobody can tell by its channels
    h_s = {"h_s": network.transforms["h_s"]}
    fields = {"architecture": "custom", "n": 2, "m": 3, "transforms": h_s}
    assert not Network(**fields).means
    assert Network(**fields, means=True).optional_parts() == ["means"]


THIRD = """
import numpy as np
from lichen.network import flow
# as in the file itself, before anything reads it
source = open(flow.__file__).read()
line = 'Latent(name="z", source="y", analysis="h_a", synthesis="h_s"),'
assert source.count(line) == 1
more = line + ' Latent(name="w", source="z", analysis="v_a", synthesis="v_s"),'
exec(source.replace(line, more), vars(flow))

from lichen.network.random import UP, StageShape, random_hyperprior, random_tables
from lichen.network.random import random_transform, symmetric
from lichen.network.description import Network
from lichen.sim import golden

rng, code = np.random.default_rng(0), symmetric(8)
two = random_hyperprior(3, n=3, m=4, means=True)
v_a = [StageShape(out_channels=2, output=code)]
v_s = [StageShape(out_channels=3, output=code, **UP)]
transforms = {
    "v_a": random_transform(rng, v_a, in_channels=3, source=code),
    "v_s": random_transform(rng, v_s, in_channels=2, source=code),
}
entropy = {"z": random_tables(rng, 1, code), "w": random_tables(rng, 2, code)}
three = Network(**dict(two) | {
    "transforms": two.transforms | transforms, "entropy": two.entropy | entropy
})
assert three.factor == 128 and three.frames(512, 768)["v_a"] == (8, 12)
image = rng.integers(0, 256, (70, 200, 3), dtype=np.uint8)
latents = golden.analysis(three, image)
shapes = three.latent_shapes(*image.shape[:2])
assert {s.name: s.symbols.shape for s in latents.segments} == shapes and list(shapes) == list("wzy")
# y is coded as before, on the larger padded image
padded = np.pad(image, ((0, 58), (0, 56), (0, 0)), mode="edge")
assert np.array_equal(latents["y"].symbols, golden.analysis(two, padded)["y"].symbols)
assert golden.reconstruct(three, latents).shape == image.shape
assert set(golden.estimate_bits(three, latents)) == set("wzy")
"""


def test_a_third_latent_is_a_line():
    done = subprocess.run([sys.executable, "-c", THIRD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
