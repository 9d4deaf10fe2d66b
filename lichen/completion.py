"""What a shell offers at the Tab key; nothing is imported before it is needed."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def _beginning(names: list[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def networks(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shipped networks, and files."""
    from lichen import models

    return [*_beginning(models.names(), incomplete), CompletionItem(incomplete, type="file")]


def boards(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Boards."""
    from lichen.boards.board import BOARDS

    return _beginning(list(BOARDS), incomplete)
