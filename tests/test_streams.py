"""Standard output that is full, closed, or knows few characters; file names that are no text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from lichen import cli, streams
import click

@click.command()
def command():
    {body}

cli.COMMANDS = {{"x": "x"}}
cli.LazyGroup.get_command = lambda self, ctx, name: command
cli.main(["x"])
"""


def lichen(body: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command of our own through the real entry point, with redirections of the shell's."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {before}; exit ${{PIPESTATUS[0]}}',
         sys.executable, CODE.format(body=body)],
        capture_output=True, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "Bad file descriptor"),
        ("| sleep 0", "Broken pipe"),
    ],
)
@pytest.mark.parametrize("length", [1, 100_000])
def test_output_that_cannot_be_written(redirection, reason, length):
    wait = "import time; time.sleep(0.5); " if "|" in redirection else ""
    done = lichen(f"{wait}click.echo('x' * {length})", redirection)
    assert done.returncode == 2
    assert done.stderr.decode() == f"lichen: cannot write to the standard output: {reason}.\n"


def test_messages_that_cannot_be_written_stop_nothing():
    for redirection in ("2>/dev/full", "2>&-", "<&-"):
        done = lichen("click.echo('note', err=True); click.echo('done')", redirection)
        assert (done.returncode, done.stdout) == (0, b"done\n"), redirection


def test_files_do_not_become_the_standard_output(tmp_path):
    """Where that is closed, the next file that is opened would get its number."""
    body = (
        f"file = open('{tmp_path}/result', 'wb'); os = __import__('os'); "
        "os.system('echo stray'); file.write(b'result'); file.close()"
    )
    lichen(body, ">&-")
    assert (tmp_path / "result").read_bytes() == b"result"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "é…\\udcff\n".encode()), ("latin-1", b"\xe9\\u2026\\udcff\n")],
)
def test_characters_that_the_output_does_not_know(encoding, expected):
    done = lichen("click.echo('\\u00e9\\u2026\\udcff')", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (done.returncode, done.stdout) == (0, expected)


def test_what_the_system_refuses_anywhere_is_a_sentence():
    done = lichen("open('/nowhere/file')")
    assert (done.returncode, done.stderr.decode()) == (
        2,
        "lichen: /nowhere/file: No such file or directory.\n",
    )


def test_names_that_are_no_utf8(tmp_path):
    """Bytes that are no text, from the input's name to the result's and the JSON's."""
    from PIL import Image

    names = [b"caf\xe9.png", b"\xff\xfe.lic", b"\xe9.json", b"back\xe9.png"]
    photo, coded, report, back = (tmp_path / os.fsdecode(name) for name in names)
    Image.new("RGB", (16, 16), (9, 99, 199)).save(photo)
    for arguments in (
        ["encode", photo, "-o", coded, "-m", "tiny", "--json", report],
        ["decode", coded, "-o", back],
        ["info", coded],
    ):
        done = subprocess.run([sys.executable, "-m", "lichen.cli", *arguments], capture_output=True)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    made = {os.fsencode(path.name) for path in Path(tmp_path).iterdir()}
    assert made == {*names, names[1] + b".options.toml", names[3] + b".options.toml"}
