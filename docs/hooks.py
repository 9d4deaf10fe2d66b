"""What mkdocs asks while it builds the site: the manual of every command is its own help."""

from __future__ import annotations

import click

from lichen.cli import COMMANDS, cli

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the help of all commands in the place of `MARK`."""
    if MARK not in markdown:
        return markdown
    context = click.Context(cli, info_name="lichen")
    sections = []
    for name, summary in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        with click.Context(command, info_name=name, parent=context, max_content_width=96) as own:
            own.terminal_width = 96
            sections.append(f"## {name}\n\n{summary}\n\n```text\n{command.get_help(own)}\n```\n")
    return markdown.replace(MARK, "\n".join(sections))
