"""What commands refuse before they begin: results over inputs, over results, and nowhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from lichen import cli, files
from lichen.cli import COMMANDS, main
from lichen.commands import _options
from lichen.commands._command import Command, check_paths
from lichen.errors import UserError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_looks_at_its_files(name):
    assert isinstance(cli.cli.get_command(click.Context(cli.cli), name), Command)


@click.command(cls=Command)
@click.argument("sources", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path))
@click.option("--folding", "folding_file", type=click.Path(path_type=Path))
@click.option("--plot", "plot_file")
@click.option("--json", "json_file")
def example(**_) -> None:
    """Nothing."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for name in ("images/a.png", "a.lic", "folding.json"):
        Path(name).write_text("precious")
    Path("hard.json").hardlink_to("a.lic")
    Path("soft.json").symlink_to("images/../folding.json")
    return tmp_path


def said(*arguments: str) -> str:
    result = CliRunner().invoke(example, arguments)
    if result.exception is None:
        return ""
    assert isinstance(result.exception, UserError), result.exception
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("a.lic --json a.lic", "--json a.lic would replace what SOURCES reads; name another file."),
        ("a.lic --json images/../a.lic", "would replace what SOURCES reads"),
        ("a.lic --json hard.json", "--json hard.json would replace"),
        ("x --folding folding.json --json soft.json", "would replace what --folding reads"),
        ("images --json images/a.png", "would replace what SOURCES reads"),
        ("a.lic -o a.lic", "--output a.lic would replace what SOURCES reads"),
        ("x -o out --json ./out", "--output and --json both name out; name two files."),
        ("x --plot p --json p", "--json and --plot both name p"),
        ("x --json images", "cannot write images: it is a folder."),
        ("x --json nowhere/x.json", "cannot write nowhere/x.json: the folder nowhere does not"),
        ("x --json " + "x" * 256, "File name too long."),
        ("x --json a.lic/x", "the folder a.lic does not exist."),
        ("x --json -", ""),
        ("images --json images/new.json", ""),
        ("x -o images --json images/report.json", ""),
        ("x --json a.lic", ""),
        ("x -o made --json made/report.json", ""),
    ],
)
def test_refused_before_anything_is_done(here, arguments, sentence):
    answer = said(*arguments.split())
    assert sentence in answer and bool(answer) == bool(sentence)
    assert {Path(name).read_text() for name in ("images/a.png", "a.lic", "folding.json")} == {
        "precious"
    }


def test_json_may_go_into_a_folder_that_is_made_but_over_nothing_in_it(tmp_path, capsys):
    """That the folder is not there yet is no reason to refuse; Verilog just written stays."""
    common = ["generate", "tiny", "--board", "ulx3s-85f", "--multipliers", "16"]
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        main([*common, "-o", str(out), "--json", str(out / "tiny_g_a.v")])
    assert exit_.value.code == 2 and "is a result of this command" in capsys.readouterr().err
    assert (out / "tiny_g_a.v").read_text().startswith("//")


def test_shipped_networks_are_inputs(here):
    from lichen import models

    path = models.shipped_network("tiny")
    with pytest.raises(UserError, match="would replace what SOURCES reads"):
        check_paths(example, {"sources": ("tiny",), "json_file": str(path)})


def test_write_protected_results(here, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert said("x", "--json", "a.lic") == "cannot write a.lic: it is write-protected."
    assert said("x", "--json", "new") == "cannot write new: its folder is write-protected."


def test_json_does_not_replace_what_the_command_has_written(here):
    files.forget_written()
    files.write_text("result.v", "module top;")
    Path("again").hardlink_to("result.v")
    for name in ("result.v", "./result.v", "again"):
        with pytest.raises(UserError, match=f"{name} is a result of this command"):
            _options.report({}, name, "")
    assert Path("result.v").read_text() == "module top;"
    # but a build's own report is the same, and may be asked for under its own name
    files.write_json("report.json", {"a": 1})
    _options.report({"a": 1}, "report.json", "")
    _options.report({"a": 2}, "a.lic", "")
    assert json.loads(Path("a.lic").read_text()) == {"a": 2}


def test_a_full_disk_does_not_empty_an_earlier_json(here, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    files.forget_written()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write a.lic: No space left on device\."):
        _options.report({}, "a.lic", "")
    assert Path("a.lic").read_text() == "precious"


def test_the_real_command_keeps_both_image_and_result(tmp_path, capsys):
    image, coded = tmp_path / "a.png", tmp_path / "a.lic"
    Image.new("RGB", (16, 16)).save(image)
    before = image.read_bytes()
    for name in (image, coded):
        with pytest.raises(SystemExit) as exit_:
            main(["encode", str(image), "-o", str(coded), "-m", "tiny", "--json", str(name)])
        assert exit_.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert image.read_bytes() == before and not coded.exists()
