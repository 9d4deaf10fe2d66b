"""The command line as a whole: every command is there, and explains itself."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from lichen.cli import COMMANDS, cli, main
from lichen.errors import UserError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_complete_help(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[-1] in result.output
            assert parameter.help, f"{name} {parameter.opts[-1]} has no help"


def test_help_lists_every_command():
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, sentence in COMMANDS.items():
        assert name in result.output and sentence.split()[0] in result.output


def test_user_errors_are_one_sentence_and_status_2(capsys):
    for arguments in (["nosuchcommand"], ["plan", "tiny"], ["plan", "nosuchnet", "--board", "x"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_interruption_is_no_traceback(capsys, monkeypatch):
    def interrupted(**_):
        raise click.exceptions.Abort

    monkeypatch.setattr(cli, "main", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 130
    monkeypatch.setattr(cli, "main", lambda **_: (_ for _ in ()).throw(UserError("no.")))
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2 and capsys.readouterr().err.endswith("lichen: no.\n")
