"""Networks into a simulated board whose weights come over its link: `--weights load`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lichen import boards, codec, models
from lichen.boards.design import Bitstream
from lichen.boards.host import connection
from lichen.boards.host.engine import Engine
from lichen.boards.simulated import board as simulated
from lichen.boards.simulated.board import SimulatedBoard
from lichen.commands import _options
from lichen.errors import UserError
from lichen.network.description import Network
from lichen.network.file import save
from lichen.network.identity import static_digest
from lichen.network.random import random_factorized
from lichen.sim.images import read_image, write_image

from .simulation import QUARTER
from .test_engine import board_sim, lichen, photo

NONE = bytes(32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Networks of one shape, a narrower one, and one that does not fit."""
    folder = tmp_path_factory.mktemp("nets")
    for name, network in {
        "a": random_factorized(3, n=2, m=2),
        "b": random_factorized(4, n=2, m=2),
        "narrow": random_factorized(5, n=1, m=2),
        "wide": random_factorized(6, n=3, m=2),
    }.items():
        save(network.model_copy(update={"name": name}), folder / f"{name}.lichen")
    return folder


@pytest.fixture(scope="module")
def nets(folder) -> dict[str, Network]:
    return {path.stem: models.load_network(str(path)) for path in folder.glob("*.lichen")}


WIDEST, MULTIPLIERS = 64, 12


@pytest.fixture(scope="module")
def port(folder) -> Iterator[str]:
    where = ("--transform", "g_a,g_s", "--max-width", WIDEST, "--multipliers", MULTIPLIERS)
    with board_sim(folder / "a.lichen", *where, "--weights", "load") as found:
        yield found


@pytest.fixture
def board(nets) -> Iterator[SimulatedBoard]:
    """Another one of the same program."""
    limits = (WIDEST, MULTIPLIERS, None)
    designs = _options.designs_of(nets["a"], ["g_a", "g_s"], QUARTER, *limits, loads=True)
    top = Bitstream(designs=tuple(designs)).top(QUARTER, QUARTER.pll(QUARTER.oscillator_hz / 1e6))
    with simulated.running(simulated.build(QUARTER, top), QUARTER) as found:
        yield found


def held(port: str) -> list[bytes]:
    with boards.open(port) as engine:
        return engine.connection.loaded()


def test_one_network_after_another(port, folder, nets, tmp_path, capsys):
    """What --engine asks for is loaded, and no more than that; all results are golden's."""
    assert held(port) == [NONE, NONE]
    image, pixels = tmp_path / "a.png", photo(16, 32)
    write_image(image, pixels)
    status, _, err = lichen(capsys, "encode", image, "-o", tmp_path / "a.lic", "--engine", port)
    assert status == 2 and "holds no network yet; name one with -m" in " ".join(err.split())
    for name in ("a", "b", "narrow"):
        file, back, network = tmp_path / f"{name}.lic", tmp_path / f"{name}.png", nets[name]
        where = ("-m", folder / f"{name}.lichen", "--engine", port)
        status, _, err = lichen(capsys, "encode", image, "-o", file, *where)
        assert status == 0 and f"loaded g_a of {name} into the board on {port}." in err, err
        assert file.read_bytes() == codec.encode(read_image(image), network)
        assert held(port)[0].hex() == static_digest(network)
        status, _, err = lichen(capsys, "decode", file, "-o", back, *where)
        assert status == 0 and f"loaded g_s of {name}" in err, err
        np.testing.assert_array_equal(read_image(back), codec.decode(file.read_bytes(), network))
        status, _, err = lichen(capsys, "encode", image, "-o", file, *where)
        assert status == 0 and "loaded" not in err, err


def test_load_by_itself(port, folder, nets, capsys):
    for name in ("a", "b"):
        where = ("load", folder / f"{name}.lichen", "--engine", port)
        status, out, err = lichen(capsys, *where, "--json", "-")
        assert status == 0, err
        told = json.loads(out)
        assert told["transforms"] == ["g_a", "g_s"]
        assert told["digest"] == static_digest(nets[name])
        assert [digest.hex() for digest in held(port)] == 2 * [told["digest"]]
    status, _, err = lichen(capsys, "load", folder / "a.lichen", "--engine", "golden")
    assert status == 2 and "golden is no board" in err


def test_from_python(port, nets):
    pixels, seen = photo(16, 16), list[tuple[int, int]]()
    with boards.open(port, nets["b"]) as engine:
        engine.load(nets["a"], progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 1000
        data = engine.encode(pixels)
        assert data == codec.encode(pixels, nets["a"])
        np.testing.assert_array_equal(
            engine.decode(data).picture.array(), codec.decode(data, nets["a"])
        )


def test_what_does_not_fit_is_said_and_changes_nothing(port, folder, nets, capsys):
    with boards.open(port, nets["a"]) as engine:
        engine.load(nets["a"])
        with pytest.raises(UserError, match="stage conv1 has out_channels 3 where the core has 2"):
            engine.load(nets["wide"])
        assert engine.network is nets["a"]
    before = held(port)
    status, _, err = lichen(capsys, "load", folder / "wide.lichen", "--engine", port)
    said = " ".join(err.split())
    assert status == 2 and f"wide does not fit the board on {port}: stage conv1 has" in said
    assert "`lichen build wide --board BOARD --transform g_a --weights load -o DIR`" in said
    assert held(port) == before != [NONE, NONE]


def test_a_board_that_loses_its_clock_is_filled_again(board, nets):
    """In mid-image, and in mid-load."""
    pixels, done = photo(32, 32), []

    def disturb(arrived: int, total: int) -> None:
        if not done and arrived:
            done.append(arrived)
            board.brown_out()

    with boards.open(board.port, nets["a"]) as engine:
        assert engine.encode(pixels, progress=disturb) == codec.encode(pixels, nets["a"])
        assert done.pop()
        engine.load(nets["b"], progress=disturb)
        assert done and engine.holds("g_a")
        assert engine.encode(pixels) == codec.encode(pixels, nets["b"])


def test_what_the_board_loses_is_loaded_again(port, nets, monkeypatch):
    """Another host fills it with something else, and the board forgets its session: no frame goes
    through another network."""
    monkeypatch.setattr(connection, "SILENCE_S", 0.5)
    monkeypatch.setattr(connection, "SILENCE_BEATS", 5)
    pixels = photo(64, 64)
    with boards.open(port, nets["a"]) as engine:
        engine.load(nets["a"])
        line, done = engine.connection.line, []

        def disturb(arrived: int, total: int) -> None:
            if not done:
                done.append(arrived)
                ours, engine.connection.session = engine.connection.session, connection.Session()
                Engine(engine.connection, nets["b"]).load(nets["b"])
                engine.connection.session.end()
                line.write(engine.connection.session.send())
                engine.connection.session = ours

        assert engine.encode(pixels, progress=disturb) == codec.encode(pixels, nets["a"])
        assert done and engine.connection.repeated
