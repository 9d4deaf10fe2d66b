# amaranth: UnusedElaboratable=no
"""The complete board as a program: what a bitstream holds, its pads and PLL replaced.

The program speaks the board's serial line at a pseudo-terminal, so a host cannot tell it from a
board but by its speed. Its clock stands still while nobody has opened a session and no byte comes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

from lichen import processes
from lichen.boards.link.uart import CYCLES_PER_BIT_MIN
from lichen.boards.record import Board
from lichen.boards.top import Top
from lichen.errors import UserError
from lichen.hw.device.ecp5 import cell_models
from lichen.sim.verilator import build_program

TOP = "lichen_board"


def with_baud(board: Board, baud: int | None) -> Board:
    """The board with another rate of its serial line; None leaves its own.

    Raises UserError for more than a quarter of the oscillator.
    """
    if baud is None:
        return board
    most = board.oscillator_hz // CYCLES_PER_BIT_MIN
    if not 1 <= baud <= most:
        raise UserError(
            f"the line of the {board.title} carries at most {most} baud in simulation, a quarter "
            f"of its {board.oscillator_hz / 1e6:g} MHz, not {baud}."
        )
    return replace(board, uart=replace(board.uart, baud=baud))


def verilog(board: Board, top: Top) -> str:
    """Verilog of the board as the module `TOP`, with models of all cells.

    Its system clock is the oscillator's, so ``top`` must be one for that clock.
    """
    platform, elaboratable = board.platform(top, board.pll(board.oscillator_hz / 1e6))
    text = platform.prepare(elaboratable, "top", emit_src=False).files["top.v"]
    text = text.decode() if isinstance(text, bytes) else text
    kind = _Kind.of(board)
    text, count = re.subn(r"\bEHXPLLL #\(.*?\) pll \(", "EHXPLLL pll (", text, flags=re.DOTALL)
    text, usb = re.subn(r"\bEHXPLLL #\(.*?\) usb_pll \(", "USBPLL usb_pll (", text, flags=re.DOTALL)
    if (count, usb) != (1, kind.usb_plls):
        raise ValueError(f"the board has {count} and {usb} PLLs instead of 1 and {kind.usb_plls}")
    wrapper = _support(kind.wrapper).replace("OSCILLATOR", f"{platform.default_clk}_0__io")
    # Two states know no open input.
    cells = re.sub(r"^.*1'bz.*$", "", "\n".join(cell_models().values()), flags=re.MULTILINE)
    return "\n".join([wrapper, text, _support("models.v"), cells])


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How a link is simulated.

    Attributes
    ----------
    wrapper : str
        The file of Verilog with the module `TOP`.
    main : str
        The file of C++ with the host's end.
    defines : str
        What stands before it.
    usb_plls : int
    """

    wrapper: str
    main: str
    defines: str = ""
    usb_plls: int = 0

    @staticmethod
    def of(board: Board) -> _Kind:
        """That of the board's link."""
        if board.link.kind == "uart":
            return _Kind(wrapper="uart.v", main="main.cpp")
        if board.usb is not None and board.usb.speed == "full":
            return _Kind(wrapper="usb.v", main="usb.cpp", usb_plls=1)
        return _Kind(wrapper="ulpi.v", main="usb.cpp", defines="#define HIGH_SPEED\n")


@cache
def _support(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def build(board: Board, top: Top, cache: Path | None = None) -> Path:
    """The program of a board, or the one in the cache.

    Raises UserError when a tool is missing or fails.
    """
    kind = _Kind.of(board)
    try:
        return build_program(
            top=TOP,
            verilog=verilog(board, top),
            main=kind.defines + _support("terminal.h") + _support(kind.main),
            name="board_main",
            cache=cache,
        )
    except RuntimeError as error:
        raise UserError(f"the board could not be simulated: {error}.") from None


@dataclass(frozen=True)
class SimulatedBoard:
    """A board that runs.

    Attributes
    ----------
    port : str
        Name of the pseudo-terminal.
    process : subprocess.Popen
    """

    port: str
    process: subprocess.Popen[bytes]

    def brown_out(self) -> None:
        """Take the PLL's lock away for a moment."""
        self.process.send_signal(signal.SIGUSR1)


@contextmanager
def running(program: Path, board: Board) -> Iterator[SimulatedBoard]:
    """A board of that program; it ends with the body."""
    own, terminal = os.openpty()
    try:
        tty.setraw(terminal)  # nothing is echoed before a host sets it up
        os.set_blocking(own, False)
        told: float = board.oscillator_hz  # the host at USB knows its own rate
        if board.link.kind == "uart":
            told = told / board.uart.baud  # cycles of a bit
        command = [str(program), str(own), repr(told)]
        with processes.running(command, pass_fds=(own,)) as process:
            yield SimulatedBoard(os.ttyname(terminal), process)
    finally:
        for descriptor in (own, terminal):
            with suppress(OSError):
                os.close(descriptor)
