"""`lichen flash`: the command it runs, and a sentence for everything that goes wrong."""

from __future__ import annotations

import json
import shlex
import zlib

import pytest

from lichen.boards import flash
from lichen.boards.board import BOARDS, ULX3S_85F
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
    where = ("--board", "ulx3s-85f", "--persistent")
    status, out, _ = lichen(capsys, "flash", bitstream, *where, "--dry-run")
    assert shlex.split(out)[1:] == ["--board", "ulx3s", "--write-flash", str(bitstream)]
    assert lichen(capsys, "flash", bitstream, *where)[0] == 0
    assert record.read_text() == repr(shlex.split(out))


@pytest.mark.parametrize("board", [b for b in BOARDS.values() if b.programmer.dfu is None])
def test_another_fpga_on_the_desk_is_refused(tmp_path, monkeypatch, capsys, board):
    """As openFPGALoader prints it; the device IDs once more, from prjtrellis's database."""
    codes = {
        "LFE5U-12F": 0x21111043, "LFE5U-25F": 0x41111043, "LFE5U-45F": 0x41112043,
        "LFE5U-85F": 0x41113043, "LFE5UM5G-45F": 0x81112043, "LFE5UM5G-85F": 0x81113043,
    }  # fmt: skip
    path = tmp_path / "x.bit"
    part = f"{board.device}-{board.speed}{board.package}"
    path.write_bytes(b"\xff\x00Part: " + part.encode() + b"\x00")
    record = tmp_path / "record"
    for device, code in codes.items():
        record.unlink(missing_ok=True)
        body = (
            f"if '--detect' in sys.argv:\n"
            f"    print('index 0:')\n    print('\\tidcode 0x{code:x}')\n"
            f"else:\n    open({str(record)!r}, 'w').close()"
        )
        loader(tmp_path, monkeypatch, body)
        status, _, err = lichen(capsys, "flash", path, "--board", board.name)
        if device == board.device:
            assert status == 0 and record.exists(), err
        else:
            assert status == 2 and not record.exists()
            wanted = f"has an {device}, but the {board.title} has an {board.device}; name that"
            assert wanted in " ".join(err.split())


def test_a_bootloader_gets_a_file_with_its_suffix(tmp_path, monkeypatch, capsys):
    path, copy = tmp_path / "x.bit", tmp_path / "copy"
    content = b"\xff\x00Part: LFE5U-25F-8CSFBGA285\x00" + bytes(range(200))
    path.write_bytes(content)
    loader(
        tmp_path,
        monkeypatch,
        f"import shutil\nassert sys.argv[1:3] == ['--board', 'orangeCrab'], sys.argv\n"
        f"assert len(sys.argv) == 4\nshutil.copy(sys.argv[3], {str(copy)!r})",
    )
    where = ("flash", path, "--board", "orangecrab-25f")
    status, out, err = lichen(capsys, *where, "--dry-run")
    assert status == 0 and shlex.split(out)[1:] == ["--board", "orangeCrab", f"{path}.dfu"]
    assert "a suffix for bootloaders" in err and not path.with_name("x.bit.dfu").exists()
    assert lichen(capsys, *where)[0] == 0
    made = copy.read_bytes()
    assert made[:-16] == content
    assert made[-16:-4] == b"\xff\xff\xf0\x5a\x09\x12\x00\x01UFD\x10"
    # The checksum of dfu-suffix: what zlib gives, without the inversion at the end.
    assert int.from_bytes(made[-4:], "little") == zlib.crc32(made[:-4]) ^ 0xFFFFFFFF


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
        (
            "No DFU compatible device found\n",
            "no board was found; connect the ULX3S (its US1 connector) by USB and try again.",
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
