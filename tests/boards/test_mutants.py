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
KILLED = PINS + "a_frame_after_a_host_was_killed_in_mid_frame"
LOST = PINS + "a_frame_after_the_clock_was_lost_in_mid_frame"
THROUGH, MENDED = (
    LINK + "frames_go_through",
    LINK + "what_the_line_does_to_a_packet_in_sequence_is_mended",
)
RENEWED = LINK + "a_new_session_in_mid_frame_leaves_nothing_of_the_old"
FILLING = "tests/boards/test_filling.py::test_"
FILLED, COME = FILLING + "what_is_not_whole_is_not_used", FILLING + "constants_come_and_go"
BROKEN = FILLING + "a_reset_in_mid_load_leaves_nothing"
FILLER = "boards/link/filler.py"
TOP, DEVICE, LINE = "boards/top.py", "boards/link/device.py", "boards/link/line.py"
PORT, INTAKE = "boards/port/port.py", "boards/link/intake.py"
RECEIVER, OUTLET = "boards/link/receiver.py", "boards/link/outlet.py"

MUTANTS = {
    "width wired to height": Mutant(
        file=TOP, old="port.width.eq(end.width)", new="port.width.eq(end.height)",
        test=FRAMES, words="the transform gives no output any more",
    ),
    "height wired to width": Mutant(
        file=TOP, old="port.height.eq(end.height)", new="port.height.eq(end.width)",
        test=FRAMES, words="the transform gives no output any more",
    ),
    "reset open to sessions": Mutant(
        file=TOP, old="port.reset.eq(end.reset | self.hold)", new="port.reset.eq(self.hold)",
        test=KILLED, words="assert",
    ),
    "reset open to the lock": Mutant(
        file=TOP, old="port.reset.eq(end.reset | self.hold)", new="port.reset.eq(0)",
        test=LOST, words="assert",
    ),
    "hold open on the board": Mutant(
        file="boards/ecp5/top.py", old="link.hold.eq(hold)", new="link.hold.eq(0)",
        test=LOST, words="counters begin with the clock",
    ),
    "link not held": Mutant(
        file=TOP, old="link.hold.eq(self.hold)", new="link.hold.eq(0)",
        test=LOST, words="counters begin with the clock",
    ),
    "a byte's loss left open": Mutant(
        file=LINE, old="lost.eq(receiver.framing | receiver.overrun | receiver.break_)",
        new="lost.eq(0)",
        test="tests/boards/test_line.py::test_lost_bytes_are_told", words="assert",
    ),
    "a column too many": Mutant(
        file=DEVICE, old="column_last.eq(width - 1)", new="column_last.eq(width)",
        test=THROUGH, words="it never came",
    ),
    "a row too few": Mutant(
        file=DEVICE, old="row_last.eq(height - 1)", new="row_last.eq(height - 2)",
        test=THROUGH, words="it never came",
    ),
    "checksums not looked at": Mutant(
        file=RECEIVER, old="& (register == protocol.CRC_RESIDUE)", new="",
        test=MENDED, words="packets came in an order that makes no sense",
    ),
    "sessions not looked at": Mutant(
        file=RECEIVER, old="seed = ~Mux(sessionless, 0, self.session)",
        new="seed = ~Mux(1, 0, self.session)",
        test=THROUGH, words="it never came",
    ),
    "numbers not looked at": Mutant(
        file=INTAKE, old="self.arrived & is_due & stored", new="self.arrived & stored",
        test=MENDED, words="packets that were never sent",
    ),
    "packets kept over a session": Mutant(
        file=DEVICE, old="ResetInserter(flush)(intake)", new="intake",
        test=RENEWED, words="packets came in an order that makes no sense",
    ),
    "output kept over a session": Mutant(
        file=DEVICE, old="ResetInserter(flush)(outlet)", new="outlet",
        test=RENEWED, words="it never came",
    ),
    "half a value kept over a session": Mutant(
        file=PORT, old="ResetInserter(restart)(self._packer)", new="self._packer",
        test=RENEWED, words="Mismatched elements",
    ),
    "half an output kept over a session": Mutant(
        file=PORT, old="ResetInserter(restart)(self._serializer)", new="self._serializer",
        test=RENEWED, words="Mismatched elements",
    ),
    "acknowledgements not looked at": Mutant(
        file=OUTLET, old="sender.acked.eq(acked)", new="sender.acked.eq(0)",
        test=MENDED, words="p.number < which",
    ),
    "loads whatever their checksum": Mutant(
        file=DEVICE, old="with m.If(filler.right):", new="with m.If(1):",
        test=FILLED, words="DID NOT RAISE",
    ),
    "held while it is filled": Mutant(
        file=DEVICE, old="[state.loaded.bit_select(which, 1).eq(0), state.cycles.eq(0)]",
        new="[state.cycles.eq(0)]",
        test=BROKEN, words="AssertionError",
    ),
    "constants for another transform": Mutant(
        file=FILLER, old="self.which == number", new="self.which != number",
        test=COME, words="AssertionError",
    ),
    "an address a bit too high": Mutant(
        file=FILLER, old="word[ADDRESS_START:][:ADDRESS_BITS]",
        new="word[ADDRESS_START + 1:][:ADDRESS_BITS]",
        test=COME, words="AssertionError",
    ),
    "zeros for signs": Mutant(
        file="boards/port/serializer.py", old="value.eq(self.i.payload[i])",
        new="value.eq(self.i.payload[i].as_unsigned())",
        test=THROUGH, words="Mismatched elements",
    ),
    "lanes turned round": Mutant(
        file="boards/port/packer.py", old="slot == i", new="slot == slots - 1 - i",
        test=THROUGH, words="Mismatched elements",
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
    file, name = mutant.test.split("::")
    assert f"def {name}(" in (ROOT / file).read_text()


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
