"""The link and the board's top broken on purpose: a default test fails and says where.

Every mutant is one line of source changed in a copy of the tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHANGED = ("boards", "lichen", "tests")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A change of ``file``, and the words with which ``test`` fails on it."""

    file: str
    old: str
    new: str
    test: str
    words: str


PINS, LINK = "tests/boards/test_pins.py::test_", "tests/boards/test_link.py::test_"
FRAMES = PINS + "frames_of_any_size_go_through"
BREAK = PINS + "a_frame_after_a_break_in_mid_frame"
LOST = PINS + "a_frame_after_the_clock_was_lost_in_mid_frame"
CREDIT = LINK + "a_credit_comes_with_the_64th_byte_and_not_before"
TOP, DEVICE, PORT = "boards/top.py", "boards/link/device.py", "boards/port/port.py"

MUTANTS = {
    "width wired to height": Mutant(
        file=TOP, old="width.eq(end.width)", new="width.eq(end.height)",
        test=FRAMES, words="frames one after the other: ",
    ),
    "height wired to width": Mutant(
        file=TOP, old="height.eq(end.height)", new="height.eq(end.width)",
        test=FRAMES, words="frames one after the other: ",
    ),
    "restart open to breaks": Mutant(
        file=TOP, old="reset.eq(end.reset | self.hold)", new="reset.eq(self.hold)",
        test=BREAK, words="after a break in mid-frame: ",
    ),
    "restart open to the lock": Mutant(
        file=TOP, old="reset.eq(end.reset | self.hold)", new="reset.eq(end.reset)",
        test=LOST, words="after the clock was lost in mid-frame: ",
    ),
    "hold open on the board": Mutant(
        file="boards/ecp5/serial.py", old="link.hold.eq(hold)", new="link.hold.eq(0)",
        test=FRAMES, words="deadlock in stage events",
    ),
    "receiver not held": Mutant(
        file=TOP, old="hold(receiver)", new="receiver",
        test=FRAMES, words="frames one after the other: ",
    ),
    "link not held": Mutant(
        file=TOP, old="hold(link)", new="link",
        test=LOST, words="after the clock was lost in mid-frame: ",
    ),
    "break left open": Mutant(
        file=TOP, old="link.break_.eq(receiver.break_)", new="link.break_.eq(0)",
        test=BREAK, words="after a break in mid-frame: ",
    ),
    "framing left open": Mutant(
        file=TOP, old="link.framing.eq(receiver.framing)", new="link.framing.eq(0)",
        test=LINK + "a_byte_without_stop_bit_is_reported", words="no status packet came",
    ),
    "credits a byte early": Mutant(
        file=DEVICE, old="consumed == protocol.CREDIT_BYTES - 1",
        new="consumed == protocol.CREDIT_BYTES - 2",
        test=CREDIT, words="credits before their bytes",
    ),
    "credits at the first byte": Mutant(
        file=DEVICE, old="consumed == protocol.CREDIT_BYTES - 1", new="consumed == 0",
        test=CREDIT, words="credits before their bytes",
    ),
    "a column too many": Mutant(
        file=DEVICE, old="column_last.eq(state.width - 1)", new="column_last.eq(state.width)",
        test=LINK + "frames_go_through", words="WATCHDOG",
    ),
    "a row too few": Mutant(
        file=DEVICE, old="row_last.eq(state.height - 1)", new="row_last.eq(state.height - 2)",
        test=LINK + "frames_go_through", words="WATCHDOG",
    ),
    "a byte too many": Mutant(
        file=DEVICE, old="more.eq(state.expected != 1)", new="more.eq(state.expected != 0)",
        test=LINK + "frames_go_through", words="WATCHDOG",
    ),
    "zeros for signs": Mutant(
        file="boards/port/serializer.py", old="value.eq(self.i.payload[i])",
        new="value.eq(self.i.payload[i].as_unsigned())",
        test=LINK + "frames_go_through", words="Mismatched elements",
    ),
    "lanes turned round": Mutant(
        file="boards/port/packer.py", old="slot == i", new="slot == slots - 1 - i",
        test=LINK + "frames_go_through", words="Mismatched elements",
    ),
    "status bytes swapped": Mutant(
        file="boards/link/sender.py", old="fields[i - 1] if", new="fields[3 - i] if",
        test=LINK + "the_watchdog_names_the_stuck_stream", words="Stuck",
    ),
    "length of a packet": Mutant(
        file="boards/link/sender.py", old="left.eq(self.level)", new="left.eq(self.level - 1)",
        test=LINK + "frames_go_through", words="Error",
    ),
    "pixels kept over a break": Mutant(
        file=DEVICE, old="ResetInserter(flush)(self._received)", new="self._received",
        test=LINK + "a_break_drops_what_waits", words="MAGIC",
    ),
    "half a pixel kept over a break": Mutant(
        file=PORT, old="ResetInserter(restart)(self._packer)", new="self._packer",
        test=LINK + "a_break_in_the_middle_of_a_frame", words="Mismatched elements",
    ),
    "half a latent kept over a break": Mutant(
        file=PORT, old="ResetInserter(restart)(self._serializer)",
        new="self._serializer",
        test=LINK + "a_break_drops_what_waits", words="SURPLUS",
    ),
    "halves of values exchanged": Mutant(
        file="boards/port/packer.py", old="divmod(i, per_value)", new="divmod(i ^ 1, per_value)",
        test=PINS + "encoder_and_decoder_in_one_bitstream", words="encoder and decoder in turn: ",
    ),
    "the first transform alone": Mutant(
        file=DEVICE, old="state.which.eq(number)", new="state.which.eq(0)",
        test=PINS + "encoder_and_decoder_in_one_bitstream", words="encoder and decoder in turn: ",
    ),
    "half the window": Mutant(
        file=DEVICE, old="depth=protocol.WINDOW_BYTES", new="depth=protocol.WINDOW_BYTES // 2",
        test=LINK + "overrun_is_reported", words="KIND_STATUS",
    ),
}  # fmt: skip


def mutate(mutant: Mutant, folder: Path) -> None:
    """A tree in ``folder`` that is the project's but for one line."""
    for path in ROOT.iterdir():
        if path.name in CHANGED:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, folder / path.name, symlinks=True, ignore=leave)
        elif not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    target = folder / mutant.file
    target.write_text(target.read_text().replace(mutant.old, mutant.new))


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_is_one_change(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    mutate(mutant, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutant.test],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, f"{mutant.test} passes:\n{done.stdout[-2000:]}"
    assert mutant.words in done.stdout, done.stdout[-4000:]
