"""Loading a bitstream into a board with openFPGALoader."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from lichen.boards.board import Board
from lichen.boards.build.flow import REPORT
from lichen.boards.build.tools import OPENFPGALOADER, Progress, ToolFailedError, run
from lichen.errors import UserError

# Debian's packages of the shared libraries that openFPGALoader wants.
LIBRARIES = {"libusb-1.0.so.0": "libusb-1.0-0", "libftdi1.so.2": "libftdi1-2"}

HEADER_BYTES = 256


def find_bitstream(path: Path, board: Board) -> Path:
    """The bitstream that ``path`` names: itself, or that of a build's folder.

    Raises UserError when there is none, or when it is for another board or device.
    """
    if path.is_dir():
        try:
            report = json.loads((path / REPORT).read_text(encoding="utf-8"))
            bitstream, built_for = path / report["bitstream"], report["board"]
        except FileNotFoundError:
            raise UserError(
                f"{path} is no build (it has no {REPORT}); make one with `lichen build`."
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path / REPORT} is damaged; build again.") from None
        if built_for != board.name:
            raise UserError(f"{path} was built for {built_for}, not for {board.name}.")
    else:
        bitstream = path
    try:
        with bitstream.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{bitstream} does not exist; make it with `lichen build`.") from None
    except OSError as error:
        raise UserError(f"cannot read {bitstream}: {error.strerror}.") from None
    device = board.makers.device_in(header)
    if device is None:
        raise UserError(f"{bitstream} is not a bitstream for an {board.makers.TITLE}.")
    if not (device.startswith(f"{board.device}-") and device.endswith(board.package)):
        raise UserError(
            f"{bitstream} is a bitstream for {device}, but the {board.title} has {board.device} "
            f"in {board.package}."
        )
    return bitstream


def command(board: Board, bitstream: Path) -> list[str]:
    """The command that loads ``bitstream`` into the FPGA's configuration memory.

    It is gone when the power is. Raises UserError when openFPGALoader is missing.
    """
    where = ("--board", board.programmer.board, "--write-sram")
    return [OPENFPGALOADER.find(), *where, str(bitstream.resolve())]


def flash(board: Board, bitstream: Path, progress: Progress | None = None) -> None:
    """Load ``bitstream`` into the board.

    Raises UserError, in one sentence, when no board is there, when it may not be opened, when
    a library is missing, and on any other failure of openFPGALoader.
    """
    progress = progress or Progress()
    call = command(board, bitstream)
    with tempfile.TemporaryDirectory(prefix="lichen-") as folder:
        log = Path(folder) / "openFPGALoader.log"
        try:
            with progress.step("openFPGALoader"):
                run(call, folder=Path(folder), log=log, progress=progress)
        except ToolFailedError as error:
            text = log.read_text(errors="replace", encoding="utf-8") if log.exists() else ""
            raise UserError(explain(text, board) or without_log(str(error), log)) from None


def without_log(sentence: str, log: Path) -> str:
    """The sentence without its pointer to a log that will be gone."""
    return sentence.replace(f"; see {log}", "")


def explain(text: str, board: Board) -> str | None:
    """What openFPGALoader's output means for the user, as a sentence; None if unknown."""
    library = re.search(r"shared libraries: (\S+?):", text)
    if library is not None:
        name = library.group(1)
        how = f"`apt install {LIBRARIES[name]}`" if name in LIBRARIES else "your package manager"
        return f"openFPGALoader needs the library {name}, which {how} installs."
    usb = re.search(r"unable to open ftdi device: (-\d+)", text)
    if usb is None:
        return None
    if usb.group(1) == "-3":
        return f"no board was found; connect the {board.programmer.usb} by USB and try again."
    return (
        "the board is there but may not be opened; give yourself access to it (udev rule "
        "99-openfpgaloader.rules) and close other programs that use it."
    )
