"""The ``lichen`` command: a click group that loads each command when it is asked for."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from lichen import __version__, files, streams
from lichen.errors import UserError
from lichen.network.names import lines
from lichen.processes import orderly_signals

# Name -> one-line help. Commands are imported only when used, so `lichen --help`
# costs no import of torch, amaranth or numba.
COMMANDS = {
    "models": "List the shipped networks.",
    "train": "Train an FP32 network on a folder of images.",
    "slim": "Take channels out of an FP32 network (GDN-Slimming).",
    "quantize": "Turn an FP32 checkpoint into an integer network.",
    "search": "Give every stage the bits that are worth what they cost (experimental).",
    "ablate": "Measure what each part of DRAQ (experimental) changes.",
    "fit-tables": "Fit context models and tables to what a network makes of photographs.",
    "evaluate": "Measure rate and distortion on a folder of images.",
    "bdrate": "Compare two rate-distortion curves.",
    "encode": "Compress images.",
    "decode": "Decompress images.",
    "info": "Describe a compressed file.",
    "simulate": "Run the gateware on an image and compare it with the golden model.",
    "boards": "List the boards there are.",
    "plan": "Fold a network onto a board: cycles, resources, frames per second.",
    "generate": "Write the gateware as Verilog with an interface description.",
    "weights": "Make what fills a core with another network.",
    "build": "Synthesize, place and route for a board.",
    "flash": "Program a board.",
    "load": "Load a network into a board that takes it over its link.",
    "board-sim": "Simulate a whole board, behind a port for --engine.",
    "export": "Write a transform as an ONNX graph for other tools.",
    "report": "Write one page about a network, a build, or two of them.",
    "demo": "Walk the whole path on a shipped network and photograph.",
    "doctor": "Say what is installed, what is missing, and what mends it.",
}


class LazyGroup(click.Group):
    """A click group whose commands live in ``lichen.commands.NAME``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with orderly_signals():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            click.echo("lichen: interrupted", err=True)
            raise click.exceptions.Exit(128 + getattr(error, "signum", signal.SIGINT)) from None

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        command = importlib.import_module(f"lichen.commands.{module}").command
        command.name = cmd_name
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands, without importing them."""
        return [
            CompletionItem(name, help=sentence)
            for name, sentence in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Grow trained learned-image-compression networks on open FPGAs, bit for bit."""


def main(argv: list[str] | None = None) -> None:
    """Entry point: 0 only on success, 2 for unusable arguments or input, 128 + n after signal n."""
    streams.guard()
    # modules make many objects and no garbage, which the collector would look for all the time
    gc.set_threshold(100_000, 20, 20)
    # which at the end would go through all of them, several times, to free what the system frees
    atexit.register(gc.freeze)
    try:
        # what a command gives to Context.exit comes back here, it isn't raised
        status = cli.main(args=argv, prog_name="lichen", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("lichen: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UserError as error:
        # a sentence may quote a file, or name one
        click.echo(f"lichen: {lines(str(error))}", err=True)
        sys.exit(2)
    except OSError as error:
        # what the system refuses anywhere is nothing that a traceback explains
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        click.echo(f"lichen: {lines(place)}{files.reason(error)}.", err=True)
        sys.exit(2)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
