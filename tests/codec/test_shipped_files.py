"""Files outlive the networks that made them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lichen import models
from lichen.cli import main
from lichen.codec.container import Container, inspect
from lichen.errors import UserError
from lichen.network.file import load, save
from lichen.network.identity import decoding_half
from lichen.sim.images import read_image
from tests.codec.shipped_files import DIGESTS, FOLDER, pixels_digest

KNOWN = json.loads(DIGESTS.read_text())


def test_there_are_files_of_all_networks_in_both_versions():
    assert {path.name for path in FOLDER.glob("*.lic")} == set(KNOWN)
    titles = {title.rpartition(".")[0] for title in KNOWN}
    for name in (*models.names(), *(n for n in models.retired_names())):
        for version, digest in enumerate(models.digests(models.load_network(name)), 1):
            assert f"{name.partition('@')[0]}.{version}.{digest[:8]}" in titles, (
                "run python -m tests.codec.shipped_files before a network is replaced"
            )


@pytest.mark.parametrize("title", sorted(KNOWN))
def test_files_decode_to_the_pixels_that_they_did(title):
    data = (FOLDER / title).read_bytes()
    network = models.find(inspect(data).digest)
    assert network is not None, f"no network decodes {title} any more; retire it instead"
    assert pixels_digest(data, network) == KNOWN[title]


@pytest.mark.parametrize("name", ["tiny", "small-hyper-q1"])
def test_half_a_network_decodes_the_files_of_the_whole(name, tmp_path):
    whole = models.load_network(name)
    save(decoding_half(whole), tmp_path / "half.lichen")
    half = load(tmp_path / "half.lichen")
    assert models.digests(half) == models.digests(whole)
    image = read_image(models.photograph())[:48, :64]
    for version in (1, 2):
        data = Container(whole, version=version).encode(image)
        pixels = Container(half).decode(data).picture.pixels
        assert np.array_equal(pixels, Container(whole).decode(data).picture.pixels)
    with pytest.raises(UserError, match=r"has no g_a, so it codes no images"):
        Container(half).encode(image)


@pytest.mark.parametrize("name", models.retired_names())
def test_retired_networks_only_decode(name, tmp_path, capsys):
    half = models.load_network(name)
    assert half.name == name and set(half.transforms) <= {"g_s", "h_s"}
    photo = str(models.calibration_photographs()[0])
    with pytest.raises(SystemExit) as exit_:
        main(["encode", photo, "-o", str(tmp_path / "a.lic"), "-m", name])
    assert exit_.value.code == 2 and "codes no images" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_are_listed(capsys):
    main(["models", "--all", "--json", "-"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*models.names(), *models.retired_names()]
