"""The recipe for a family: commands that exist, with options that they have."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from lichen.cli import COMMANDS

FILE = Path(__file__).parents[2] / "benchmarks" / "optimize.py"


@pytest.fixture(scope="module")
def optimize():
    spec = importlib.util.spec_from_file_location("optimize", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAMILY = ["--first", "small-q3.fp32", "--others", "small-q1.fp32", "b/x.safetensors"]
PHOTOS = ["--train", "T", "--calibrate", "C"]


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (["--macs", "1"], ["search", "quantize", "quantize", "quantize"]),
        (
            ["--lmbdas", "0.0035", "0.025", "--board", "ulx3s-85f"],
            ["slim", "train", "train", "search", "quantize", "quantize", "quantize"],
        ),
    ],
)
def test_the_commands_exist(optimize, more, names, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    optimize.main([*FAMILY, *PHOTOS, *more, "-o", str(out), "--dry-run"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == names
    assert not out.exists()
    made = []
    for _, name, *arguments in lines:
        if name not in COMMANDS:
            continue
        command = importlib.import_module(f"lichen.commands.{name}").command
        made.append(command.make_context(name, arguments).params["output"])
    assert Path(made[-1]).name == "x.lichen"
    (search,) = (line for line in lines if line[1] == "search")
    assert all(line[line.index("--bits-from") + 1] in search for line in lines[-3:])


def test_what_is_there_is_skipped_and_what_was_begun_goes_on(
    optimize, tmp_path, monkeypatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(
        optimize, "lichen", lambda words, dry: ran.append([str(word) for word in words])
    )
    (tmp_path / "small-q3.slim.safetensors").touch()
    (tmp_path / "small-q1.slim.state.safetensors").touch()
    arguments = [*FAMILY, *PHOTOS, "--lmbdas", "0.0035", "0.025", "-o", str(tmp_path)]
    optimize.main(arguments)
    assert [words[0] for words in ran] == ["train", "train", "search", "quantize", "quantize",
                                           "quantize"]  # fmt: skip
    assert "--resume" in ran[0] and "--init" not in ran[0]
    assert "--resume" not in ran[1] and "--init" in ran[1]
    with pytest.raises(SystemExit):
        optimize.main([*FAMILY, *PHOTOS, "-o", str(tmp_path)])  # without the lambdas
