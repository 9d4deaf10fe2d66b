"""Loading a bitstream into a board with openFPGALoader."""

from __future__ import annotations

import json
import re
import struct
import tempfile
import zlib
from pathlib import Path

from lichen.boards.board import Board
from lichen.boards.build.flow import REPORT
from lichen.boards.build.tools import OPENFPGALOADER, Progress, ToolFailedError, run
from lichen.errors import UserError

# Debian's packages of the shared libraries that openFPGALoader wants.
LIBRARIES = {"libusb-1.0.so.0": "libusb-1.0-0", "libftdi1.so.2": "libftdi1-2"}

HEADER_BYTES = 256

DFU_SUFFIX = ".dfu"
"""Of files for bootloaders."""

RULES = "99-openfpgaloader.rules"
"""The udev rule that comes with openFPGALoader."""


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


def command(board: Board, bitstream: Path, *, persistent: bool = False) -> list[str]:
    """The command that loads ``bitstream`` into the FPGA's configuration memory.

    It is gone when the power is, unless ``persistent``, which writes the SPI flash that the FPGA
    reads at power-up. A board with a bootloader keeps it in any case, and takes a file that
    `dfu_file` makes. Raises UserError when openFPGALoader is missing.
    """
    where = ["--board", board.programmer.board]
    if board.programmer.dfu is None:
        where.append("--write-flash" if persistent else "--write-sram")
    else:
        bitstream = bitstream.with_name(bitstream.name + DFU_SUFFIX)
    return [OPENFPGALOADER.find(), *where, str(bitstream.resolve())]


def dfu_file(content: bytes, device: tuple[int, int]) -> bytes:
    """A bitstream with what a bootloader wants to see behind it.

    USB Device Firmware Upgrade Specification 1.1, section B: any version of the device, product,
    vendor, version of the specification, signature, length, CRC-32 without its last inversion.
    """
    vendor, product = device
    suffix = struct.pack("<HHHH3sB", 0xFFFF, product, vendor, 0x0100, b"UFD", 16)
    crc = ~zlib.crc32(content + suffix) & 0xFFFFFFFF
    return content + suffix + crc.to_bytes(4, "little")


def flash(
    board: Board,
    bitstream: Path,
    progress: Progress | None = None,
    *,
    persistent: bool = False,
) -> None:
    """Load ``bitstream`` into the board; see `command`.

    Raises UserError, in one sentence, when no board is there, when it is another one, when it may
    not be opened, when a library is missing, and on any other failure of openFPGALoader.
    """
    progress = progress or Progress()
    with tempfile.TemporaryDirectory(prefix="lichen-") as name:
        folder = Path(name)
        if board.programmer.dfu is None:
            _check_device(board, folder, progress)
        else:
            content = dfu_file(bitstream.read_bytes(), board.programmer.dfu)
            bitstream = folder / bitstream.name
            bitstream.with_name(bitstream.name + DFU_SUFFIX).write_bytes(content)
        call = command(board, bitstream, persistent=persistent)
        _run(call, board, folder, progress)


def _check_device(board: Board, folder: Path, progress: Progress) -> None:
    """UserError where the FPGA on the desk is another one; no word where it cannot be told."""
    call = [OPENFPGALOADER.find(), "--board", board.programmer.board, "--detect"]
    text = _run(call, board, folder, progress)
    found = re.search(r"idcode:?\s+(?:0x)?([0-9a-fA-F]+)", text)
    if found is None:
        return
    device = board.makers.idcodes().get(int(found.group(1), 16))
    if device is not None and device != board.device:
        raise UserError(
            f"the board that is connected has an {device}, but the {board.title} has an "
            f"{board.device}; name that board with --board, and build for it."
        )


def _run(call: list[str], board: Board, folder: Path, progress: Progress) -> str:
    """What openFPGALoader says; UserError where it fails."""
    log = folder / "openFPGALoader.log"

    def said() -> str:
        return log.read_text(errors="replace", encoding="utf-8") if log.exists() else ""

    try:
        with progress.step("openFPGALoader"):
            run(call, folder=folder, log=log, progress=progress)
    except ToolFailedError as error:
        raise UserError(explain(said(), board) or without_log(str(error), log)) from None
    return said()


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
    no_bootloader = "No DFU compatible device found" in text
    if usb is None and not no_bootloader:
        return None
    if usb is None or usb.group(1) == "-3":
        return f"no board was found; connect the {board.programmer.usb} by USB and try again."
    return (
        "the board is there but may not be opened; give yourself access to it (copy "
        f"openFPGALoader's {RULES} to /etc/udev/rules.d, then `sudo udevadm control --reload` and "
        "plug it in again) and close other programs that use it."
    )
