"""``lichen doctor``: what is installed, what is missing, and what mends it."""

from __future__ import annotations

import click

from lichen.commands import _options
from lichen.commands._command import Command
from lichen.errors import UserError


@click.command(cls=Command)
@_options.json_file
def command(json_file: str | None) -> None:
    """Say what is installed, in which version, what is missing, and the command that mends it.

    Tools are asked for their versions; the first time that compiles some of them, which takes a
    minute or two.

    Exit status: 0 only if nothing is missing but what is optional, 1 otherwise.
    """
    try:
        from lichen.boards.doctor import examine
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed, without which nothing runs; install it with: "
            "pip install --force-reinstall lichen"
        ) from None

    findings = examine()
    if json_file != "-":
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state = "ok" if finding.found else "optional" if finding.optional else "MISSING"
            text = finding.version or "" if finding.found else f"for {finding.needed_for}"
            click.echo(f"{state:8}  {finding.name:{width}}  {text}".rstrip())
            if finding.problem is not None:
                click.echo(f"{'':8}  {'':{width}}  {finding.problem}")
            if finding.mend is not None:
                click.echo(f"{'':8}  {'':{width}}  mend: {finding.mend}")
    missing = [finding.name for finding in findings if not (finding.found or finding.optional)]
    _options.report(
        {"ok": not missing, "missing": missing, "checks": [f.to_json() for f in findings]},
        json_file,
        f"missing: {', '.join(missing)}" if missing else "nothing is missing",
    )
    click.get_current_context().exit(1 if missing else 0)
