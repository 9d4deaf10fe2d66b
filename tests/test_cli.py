"""The command line as a whole: every command is there, and explains itself."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete
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


def test_the_end_looks_for_no_garbage():
    """It took an eighth of the time that decoding a photograph takes."""
    # what is registered first runs last
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); "
        "from lichen.cli import main; main(['--version'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("\nTrue\n")


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


def completions(words: str, incomplete: str) -> list[str]:
    """What the shell is offered behind ``words``; a type other than plain stands before it."""
    found = ShellComplete(cli, {}, "lichen", "_LICHEN_COMPLETE").get_completions(
        words.split(), incomplete
    )
    return [item.value if item.type == "plain" else f"{item.type}:{item.value}" for item in found]


def test_the_shell_completes_commands_options_networks_and_boards():
    assert completions("", "pl") == ["plan"]
    assert completions("", "") == list(COMMANDS)
    assert completions("plan", "small-opt-q") == [
        *(f"small-opt-q{rate}" for rate in (1, 2, 3, 4)),
        "file:small-opt-q",
    ]
    assert completions("encode photo.png -m", "tin") == ["tiny", "file:tin"]
    assert completions("plan tiny --board", "ulx3s-8") == ["ulx3s-85f"]
    assert completions("plan tiny", "--max") == ["--max-width"]


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_takes_a_network_or_a_board_offers_them(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for parameter in command.params:
        for kind, offer in (("net", "tiny"), ("board_name", "ulx3s-85f")):
            if parameter.name == kind:
                found = parameter.shell_complete(click.Context(command), offer[:3])
                assert offer in [item.value for item in found], f"{name} {kind}"


def test_completing_commands_imports_none():
    """A Tab key that takes a second is not pressed twice."""
    script = (
        "import sys; from lichen.cli import cli; from click.shell_completion import ShellComplete;"
        "ShellComplete(cli, {}, 'lichen', '_LICHEN_COMPLETE').get_completions([], 's');"
        "print([name for name in sys.modules if name.startswith('lichen.commands')])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
