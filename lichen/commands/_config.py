"""Options from a TOML file, and the file that says which options a result was made with.

A file holds a table of each command's options, under their long names without dashes; arguments go
by their names in lower case. Keys beside the tables are for any command.

    [plan]
    net = "tiny"
    board = "ulx3s-85f"
    max-width = 64
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lichen import __version__, files
from lichen.errors import UserError

SUFFIX = ".options.toml"
"""What the file beside a result is called, after the result's own name."""

MARK = "# Lichen "
"""How such a file begins; what begins otherwise is somebody else's, and stays."""


def key_of(parameter: click.Parameter) -> str:
    """What a parameter is called in the file."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len).lstrip("-")
    return str(parameter.name)


def _kept(command: click.Command) -> dict[str, click.Parameter]:
    return {
        key_of(parameter): parameter
        for parameter in command.params
        if parameter.expose_value and parameter.name != "help"
    }


def read(path: Path, command: click.Command) -> dict[str, Any]:
    """Values by parameter name; UserError for a file that is no TOML or has unknown options."""
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {files.reason(error)}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not TOML ({str(error).rstrip('.')}).") from None
    general = {key: value for key, value in content.items() if not isinstance(value, dict)}
    own = content.get(str(command.name), {})
    if not general and not own and content:
        tables = ", ".join(content)
        raise UserError(f"{path} has no options of lichen {command.name}, only of {tables}.")
    known = _kept(command)
    values = {}
    for key, value in (general | own).items():
        if key not in known:
            raise UserError(
                f"{path}: lichen {command.name} has no option {key}; it has {', '.join(known)}."
            )
        values[str(known[key].name)] = value
    return values


def text_of(command: click.Command, values: dict[str, Any]) -> str:
    """The file that repeats a run: every option that had a value, given or not."""
    lines = [
        f"{MARK}{__version__}; the same again: lichen {command.name} --config FILE",
        f"[{command.name}]",
    ]
    for key, parameter in _kept(command).items():
        value = values.get(str(parameter.name))
        if value is None or value == ():
            continue
        try:
            line = f"{_toml_key(key)} = {_toml(_plain(parameter, value))}"
            line.encode()
        except UnicodeEncodeError:
            line = f"# {key}: a name that is no text cannot be written here"
        lines.append(line)
    return "\n".join(lines) + "\n"


def write_beside(command: click.Command, values: dict[str, Any], results: tuple[str, ...]) -> None:
    """Write `text_of` beside the first of the results that is a file or folder.

    Where there is no room beside a folder, it goes into it.

    Parameters
    ----------
    results : tuple of str
        Names of parameters that name results, the main one first.
    """
    for name in results:
        value = values.get(name)
        if value in (None, "-"):
            continue
        path = Path(value)
        if not (path.is_file() or path.is_dir()):
            continue
        text = text_of(command, values)
        beside = path.resolve() if path.name in ("", "..") else path
        try:
            _write(beside.with_name(files.temporary_name(beside.name, SUFFIX)), text)
        except UserError:
            if not path.is_dir():
                raise
            _write(path / f"lichen{SUFFIX}", text)
        return


def _write(path: Path, text: str) -> None:
    if path.exists() and not path.read_bytes().startswith(MARK.encode()):
        click.echo(f"lichen: {path} is not of Lichen's, and stays as it is.", err=True)
    else:
        files.write_text(path, text)


def _plain(parameter: click.Parameter, value: Any) -> Any:
    """A value as it would be typed."""
    if isinstance(parameter.type, Size) and isinstance(value, tuple):
        return f"{value[0]}x{value[1]}"
    if isinstance(value, tuple) and not (parameter.multiple or parameter.nargs != 1):
        return ",".join(str(item) for item in value)
    return value


def _toml_key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


class Size(click.ParamType):
    """``WxH`` in pixels, as a tuple (width, height)."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        width, _, height = str(value).partition("x")
        if not all(_is_count(part) for part in (width, height)):
            self.fail(f"{value!r} is not a size such as 96x64, width x height.", param, ctx)
        return int(width), int(height)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and not text.startswith("0")
