"""`lichen flash`: the command it runs, and a sentence for everything that goes wrong."""

from __future__ import annotations

import json
import shlex

import pytest

from lichen.boards import flash
from lichen.boards.board import ULX3S_85F
from lichen.cli import main

from . import fakes


@pytest.fixture
def bitstream(tmp_path):
    path = tmp_path / "top.bit"
    path.write_bytes(fakes.BIT_HEADER)
    return path


def lichen(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command line."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def loader(tmp_path, monkeypatch, body: str):
    monkeypatch.setenv("OPENFPGALOADER", str(fakes.program(tmp_path / "loader", body)))


def test_dry_run_prints_the_command_that_would_run(tmp_path, monkeypatch, capsys, bitstream):
    record = tmp_path / "record"
    loader(tmp_path, monkeypatch, f"open({str(record)!r}, 'w').write(repr(sys.argv))")
    status, out, _ = lichen(capsys, "flash", bitstream, "--board", "ulx3s-85f", "--dry-run")
    assert status == 0
    assert not record.exists()
    command = shlex.split(out)
    assert command[1:] == ["--board", "ulx3s", "--write-sram", str(bitstream)]
    assert lichen(capsys, "flash", bitstream, "--board", "ulx3s-85f")[0] == 0
    assert record.read_text() == repr(command)


def test_a_build_folder_names_its_bitstream(tmp_path, capsys, bitstream):
    report = {"bitstream": "top.bit", "board": "ulx3s-85f"}
    (tmp_path / "report.json").write_text(json.dumps(report))
    status, out, _ = lichen(capsys, "flash", tmp_path, "--board", "ulx3s-85f", "--dry-run")
    assert status == 0
    assert shlex.split(out)[-1] == str(bitstream)
    (tmp_path / "report.json").write_text(json.dumps(report | {"board": "icestick"}))
    status, _, err = lichen(capsys, "flash", tmp_path, "--board", "ulx3s-85f", "--dry-run")
    assert status == 2
    assert err == f"lichen: {tmp_path} was built for icestick, not for ulx3s-85f.\n"
    (tmp_path / "report.json").write_text("[")
    status, _, err = lichen(capsys, "flash", tmp_path, "--board", "ulx3s-85f", "--dry-run")
    assert status == 2
    assert "report.json is damaged" in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist; make it with `lichen build`."),
        (b"", "is not a bitstream for an ECP5."),
        (b"\x89PNG", "is not a bitstream for an ECP5."),
        (
            b"\xff\x00Part: LFE5U-25F-6CABGA381\x00",
            "is a bitstream for LFE5U-25F-6CABGA381, but the ULX3S 85F has LFE5U-85F in CABGA381.",
        ),
        (  # an OrangeCrab's: the same device in another package
            b"\xff\x00Part: LFE5U-85F-8CSFBGA285\x00",
            "is a bitstream for LFE5U-85F-8CSFBGA285, but the ULX3S 85F has LFE5U-85F in CABGA381.",
        ),
    ],
)
def test_wrong_files(tmp_path, capsys, content, sentence):
    path = tmp_path / "x.bit"
    if content is not None:
        path.write_bytes(content)
    status, out, err = lichen(capsys, "flash", path, "--board", "ulx3s-85f", "--dry-run")
    assert (status, out, err) == (2, "", f"lichen: {path} {sentence}\n")


def test_a_folder_that_is_no_build(tmp_path, capsys):
    status, _, err = lichen(capsys, "flash", tmp_path, "--board", "ulx3s-85f")
    assert status == 2
    assert err == (
        f"lichen: {tmp_path} is no build (it has no report.json); make one with `lichen build`.\n"
    )


@pytest.mark.parametrize(
    ("printed", "sentence"),
    [
        (
            "unable to open ftdi device: -3 (device not found)\n"
            "JTAG init failed with: unable to open ftdi device\n",
            "no board was found; connect the ULX3S (its US1 connector) by USB and try again.",
        ),
        (
            "unable to open ftdi device: -4 (usb_open() failed)\n",
            "the board is there but may not be opened; give yourself access to it",
        ),
        (
            "openFPGALoader: error while loading shared libraries: libusb-1.0.so.0: cannot open "
            "shared object file: No such file or directory\n",
            "openFPGALoader needs the library libusb-1.0.so.0, which "
            "`apt install libusb-1.0-0` installs.",
        ),
        (
            "x: error while loading shared libraries: libftdi1.so.2: cannot open\n",
            "openFPGALoader needs the library libftdi1.so.2, which "
            "`apt install libftdi1-2` installs.",
        ),
        (
            "x: error while loading shared libraries: libfoo.so: cannot open\n",
            "openFPGALoader needs the library libfoo.so, which your package manager installs.",
        ),
        ("Error: CRC mismatch\n", "loader failed: CRC mismatch."),
        ("", "loader failed: exit status 1."),
    ],
)
def test_failures_are_one_sentence(tmp_path, monkeypatch, capsys, bitstream, printed, sentence):
    loader(tmp_path, monkeypatch, f"sys.stderr.write({printed!r}); sys.exit(1)")
    status, out, err = lichen(capsys, "flash", bitstream, "--board", "ulx3s-85f")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"lichen: {sentence}")


def test_an_unknown_failure_is_left_to_the_caller():
    assert flash.explain("some other output", ULX3S_85F) is None
