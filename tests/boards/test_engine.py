# amaranth: UnusedElaboratable=no
"""Images through simulated boards: `lichen.boards.open`, and --engine of encode and decode."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lichen import boards, codec, models
from lichen.boards.board import ULX3S_85F
from lichen.boards.host import connection, find
from lichen.boards.host.engine import from_bytes, to_bytes
from lichen.cli import main
from lichen.errors import UserError
from lichen.network.description import Format, Network
from lichen.network.file import save
from lichen.network.random import random_factorized
from lichen.sim.images import read_image, write_image

ROOT = Path(__file__).parents[2]
SPEED = str(ULX3S_85F.oscillator_hz // 4)


@contextmanager
def board_sim(*arguments: object) -> Iterator[str]:
    """`lichen board-sim`, and the port that it prints."""
    command = [sys.executable, "-m", "lichen.cli", "board-sim", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--board", "ulx3s-85f", "--speed", SPEED],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert re.fullmatch(r"/dev/pts/\d+", port), port
        yield port
    finally:
        process.terminate()
        process.wait(20)


def lichen(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("net") / "two.lichen"
    save(random_factorized(3, n=2, m=2), path)
    return path


@pytest.fixture(scope="module")
def network(net) -> Network:
    return models.load_network(str(net))


@pytest.fixture(scope="module")
def port(net) -> Iterator[str]:
    where = ("--transform", "g_a,g_s", "--max-width", 64, "--multipliers", 12)
    with board_sim(net, *where) as found:
        yield found


def photo(height: int, width: int) -> np.ndarray:
    return read_image(models.photograph())[100 : 100 + height, 200 : 200 + width]


def test_from_python(port, network):
    pixels = photo(48, 80)  # wider than the build
    seen: list[tuple[int, int]] = []
    with boards.open(port, network) as engine:
        data = engine.encode(pixels, progress=lambda done, total: seen.append((done, total)))
        assert data == codec.encode(pixels, network)
        decoded = engine.decode(data)
        np.testing.assert_array_equal(decoded.picture.array(), codec.decode(data, network))
        assert list(engine.transforms) == ["g_a", "g_s"]
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]


def test_on_the_command_line(port, net, network, tmp_path, capsys):
    image, file, back = (tmp_path / name for name in ("a.png", "a.lic", "b.png"))
    write_image(image, photo(48, 64))
    where = ("-m", net, "--engine", port)
    status, _, err = lichen(capsys, "encode", image, "-o", file, *where)
    assert status == 0, err
    assert file.read_bytes() == codec.encode(read_image(image), network)
    status, _, err = lichen(capsys, "decode", file, "-o", back, *where)
    assert status == 0, err
    np.testing.assert_array_equal(read_image(back), codec.decode(file.read_bytes(), network))


def test_another_network_is_refused_with_what_mends_it(port, tmp_path, capsys):
    write_image(tmp_path / "a.png", photo(16, 16))
    arguments = ("encode", tmp_path / "a.png", "-o", tmp_path / "a.lic", "--engine", port)
    status, _, err = lichen(capsys, *arguments, "-m", "tiny")
    assert status == 2 and not (tmp_path / "a.lic").exists()
    assert "not tiny; build and load it: `lichen build tiny" in " ".join(err.split())
    status, _, err = lichen(capsys, *arguments)
    assert status == 2
    assert "none of the shipped ones; name its file with -m." in " ".join(err.split())


def test_a_port_is_one_programs_at_a_time(port, network):
    with boards.open(port, network), pytest.raises(UserError, match="in use by another program"):
        boards.open(port, network)


def test_another_host_that_got_in_all_the_same_is_told_of(port, network, monkeypatch):
    """Where the system cannot tell that a port is in use."""
    monkeypatch.setattr(connection, "SILENCE_S", 0.5)
    monkeypatch.setattr(connection, "SILENCE_BEATS", 5)
    with boards.open(port, network) as engine:

        def steal(done: int, total: int) -> None:
            if not stolen:
                stolen.append(connection.Session())
                stolen[0].begin()
                engine.connection.line.write(stolen[0].send())

        stolen: list[connection.Session] = []
        with pytest.raises(UserError, match="another program has taken the board"):
            engine.encode(photo(64, 64), progress=steal)
    with boards.open(port, network) as engine:
        assert engine.encode(photo(16, 16)) == codec.encode(photo(16, 16), network)


def test_a_transform_that_is_not_there(port, network):
    with boards.open(port, network) as engine:
        del engine.transforms["g_s"]
        with pytest.raises(UserError, match="runs g_a only; build a bitstream with g_s"):
            engine.decode(codec.encode(photo(16, 16), network))


@contextmanager
def terminal(babble: bytes = b"") -> Iterator[str]:
    """A pseudo-terminal with nobody, or nobody sensible, at its other end."""
    own, other = pty.openpty()
    tty.setraw(other)
    over = threading.Event()

    def talk() -> None:
        while not over.wait(0.02):
            os.write(own, babble)

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        yield os.ttyname(other)
    finally:
        over.set()
        talker.join()
        os.close(own)
        os.close(other)


def test_what_is_no_board(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(find, "ANSWER_S", 0.3)
    write_image(tmp_path / "a.png", photo(16, 16))
    arguments = ("encode", tmp_path / "a.png", "-o", tmp_path / "a.lic", "--engine")
    file = tmp_path / "file"
    file.write_bytes(b"")
    for engine, sentence in (
        ("nonsense", "there is no engine nonsense; use golden, verilator, auto"),
        ("/dev/nowhere", "/dev/nowhere does not exist; plug the board in"),
        (str(file), "is no serial port."),
    ):
        status, _, err = lichen(capsys, *arguments, engine)
        assert status == 2 and sentence in " ".join(err.split()), err
    with terminal() as silent:
        status, _, err = lichen(capsys, *arguments, silent)
        assert status == 2 and "nothing answers on " in " ".join(err.split()), err
    with terminal(b"\0what is this\0" * 20) as babbling:
        status, _, err = lichen(capsys, *arguments, babbling)
        assert status == 2 and "makes no sense" in " ".join(err.split()), err
    monkeypatch.setattr(find, "ports", lambda: [])
    status, _, err = lichen(capsys, *arguments, "auto")
    assert status == 2 and "no serial port leads to a USB device" in " ".join(err.split())


def test_the_line_of_a_simulation_has_a_limit(capsys, net):
    arguments = ("board-sim", net, "--board", "ulx3s-85f", "--speed")
    status, _, err = lichen(capsys, *arguments, 6_250_001)
    assert status == 2
    assert "carries at most 6250000 baud in simulation" in " ".join(err.split())


def test_values_as_bytes():
    form = Format(bits=11, signed=True, lo=-1024, hi=1023)
    values = np.array([[[-1024, 1023, -1]]])
    raw = to_bytes(values, form, 2)
    assert raw == b"\x00\xfc\xff\x03\xff\xff"
    np.testing.assert_array_equal(from_bytes(raw, form, 2), values.reshape(-1))
    with pytest.raises(ValueError, match=r"values must lie in -1024 \.\. 1023"):
        to_bytes(values + 1, form, 2)


@pytest.mark.slow
def test_a_photograph_through_a_simulated_board(tmp_path, capsys):
    """768x512 with `tiny`, both ways."""
    image, file, back = models.photograph(), tmp_path / "a.lic", tmp_path / "b.png"
    network = models.load_network("tiny")
    where = ("--transform", "g_a,g_s", "--multipliers", 24, "--max-width", 768)
    with board_sim("tiny", *where) as port:
        status, _, err = lichen(capsys, "encode", image, "-o", file, "--engine", port)
        assert status == 0, err
        assert file.read_bytes() == codec.encode(read_image(image), network)
        status, _, err = lichen(capsys, "decode", file, "-o", back, "--engine", port)
        assert status == 0, err
        np.testing.assert_array_equal(read_image(back), codec.decode(file.read_bytes(), network))
