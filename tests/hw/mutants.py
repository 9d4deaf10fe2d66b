"""Faults put into the sources on purpose, and which default test must find each.

A mutant is one textual change. It counts as caught when the test fails, without the mutant having
failed to build, and its message names the unit.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.limits import run_bounded

ROOT = Path(__file__).parents[2]
COPIED = ("boards", "codec", "hw", "lichen", "network", "sim", "tests", "pyproject.toml")
"""What a mutant may change; everything else is linked to."""


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes
    ----------
    name : str
        What is wrong then.
    path : str
        Of the source, from the root.
    old, new : str
        Text that occurs once, and what takes its place.
    test : str
        Test file or node, perhaps with ``-k`` behind a space.
    names : str
        What the failure must mention.
    """

    name: str
    path: str
    old: str
    new: str
    test: str
    names: str


def copy_tree(folder: Path) -> None:
    """The checkout, with sources of its own."""
    ignored = shutil.ignore_patterns("__pycache__", "*.png", "*.jpg")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    for source in ROOT.iterdir():
        if source.name not in COPIED and not source.name.startswith("."):
            (folder / source.name).symlink_to(source)


def apply(mutant: Mutant, folder: Path) -> None:
    """Raises ValueError unless the text occurs exactly once."""
    path = folder / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {text.count(mutant.old)} times in {mutant.path}")
    path.write_text(text.replace(mutant.old, mutant.new))


def run(mutant: Mutant, folder: Path, cpu_s: int = 600) -> tuple[int, list[str]]:
    """Exit status of the mutant's test, and the lines that say why it failed."""
    test, _, choice = mutant.test.partition(" -k ")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    command += ["-k", choice] if choice else []
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run_bounded(command, cpu_s, cwd=folder, env=environment)
    lines = [line for line in done.stdout.splitlines() if re.match(r"E  |FAILED|ERROR", line)]
    return done.returncode, lines


WINDOW = "tests/hw/test_feeders.py::TestWindow"
TRANSPOSED = "tests/hw/test_transposed_window.py"
BUFFER = "tests/hw/test_feeders.py::TestPixelBuffer"
CORE = "tests/hw/test_array.py::TestCore"
ARRAY = "tests/hw/test_array.py::TestSystolicArray"
STREAMS = "tests/hw/test_streams.py"
UNITS = "tests/hw/test_stage_units.py"

MUTANTS = [
    # -- window
    Mutant(
        "right padding one column late after a wider frame",
        "hw/engine/row_buffer.py",
        "limit.eq(frame.right - apart)",
        "limit.eq(frame.right + 1 - apart)",
        WINDOW,
        "Window",
    ),
    Mutant(
        "bottom padding a row late",
        "hw/engine/row_buffer.py",
        "bottom.eq(self.height + border)",
        "bottom.eq(self.height + border + 1)",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a group starts a pixel early",
        "hw/engine/window.py",
        "((at.wy == need_y) & (at.wx > need_x))",
        "((at.wy == need_y) & (at.wx >= need_x))",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a pixel is overwritten a column early",
        "hw/engine/row_buffer.py",
        "(at.wx < at.free_before)",
        "(at.wx <= at.free_before)",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a row is overwritten a row early",
        "hw/engine/row_buffer.py",
        "w_last_user = Signal(HEIGHT_BITS, init=last_user)",
        "w_last_user = Signal(HEIGHT_BITS, init=max(0, last_user - 1))",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a window counts as empty when its rows were read",
        "hw/engine/row_buffer.py",
        "m.d.sync += self.empty.eq(0)",
        "m.d.sync += self.empty.eq(at.finished)",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a frame begins with a pointer of the last one",
        "hw/engine/row_buffer.py",
        "w_offset, w_row, w_lead, w_last_user, w_user_sub]",
        "w_offset, w_row, w_lead, w_last_user]",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a beat is written after it was read",
        "hw/engine/row_buffer.py",
        "WRITE_DELAY = 1\n",
        "WRITE_DELAY = 5\n",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a row slot is never used",
        "hw/engine/row_buffer.py",
        "w_lead = Signal(range(shape.rows + 1), init=shape.rows)",
        "w_lead = Signal(range(shape.rows + 1), init=shape.rows - 1)",
        WINDOW,
        "Window",
    ),
    # -- window of transposed convolutions
    Mutant(
        "a pixel is overwritten a row of phases early",
        "hw/engine/window_shape.py",
        "return self.geometry.kernel - 1 - self.geometry.padding, 0",
        "return self.geometry.kernel - 2 - self.geometry.padding, 0",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "a row of input frees one row of output only",
        "hw/engine/window_shape.py",
        "return self.geometry.stride if self.geometry.transposed else 1",
        "return 1",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "columns are freed one early",
        "hw/engine/transposed_window.py",
        "unread = shape.border + shape.reach",
        "unread = shape.border + shape.reach - 2",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "a group of phases starts a pixel early",
        "hw/engine/transposed_window.py",
        "((at.wy == need_y) & (at.wx > need_x))",
        "((at.wy == need_y) & (at.wx >= need_x))",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "a row begins with the first phase",
        "hw/engine/transposed_window.py",
        '"phase": skip,',
        '"phase": 0,',
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "a phase of rows keeps the input row of the one before",
        "hw/engine/transposed_window.py",
        "last_phase = nxt.phase == stride - 1",
        "last_phase = nxt.phase == 0",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "taps of the next column's phase",
        "hw/engine/transposed_window.py",
        "max(0, n - 1), range(shape.reach)) for n in shape.taps)",
        "max(0, n - 1), range(shape.reach)) for n in reversed(shape.taps))",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "rows are read upwards past the ring's first",
        "hw/engine/transposed_window.py",
        "Mux(base == 0, last_base, -shape.row_words)",
        "Mux(base == 0, 0, -shape.row_words)",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "the last group of a row counts what is cropped",
        "hw/engine/row_buffer.py",
        "count.eq(Mux(ends, left, most))",
        "count.eq(most)",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "a row of two groups ends with its first",
        "hw/engine/row_buffer.py",
        "two_groups.eq(left <= 2 * most)",
        "two_groups.eq(left <= 3 * most)",
        WINDOW,
        "Window",
    ),
    Mutant(
        "a row of one group is not told from longer ones",
        "hw/engine/row_buffer.py",
        "one_group.eq(width <= most - skip)",
        "one_group.eq(0)",
        WINDOW,
        "Window",
    ),
    Mutant(
        "columns to skip are not counted",
        "hw/engine/row_buffer.py",
        "one_group.eq(width <= most - skip)",
        "one_group.eq(width <= most)",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "every group of a row is its first",
        "hw/engine/transposed_window.py",
        "head.eq(~row.begun)",
        "head.eq(1)",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "an output padding left out",
        "hw/engine/transposed_window.py",
        "(geometry.output_size(1) - geometry.stride)",
        "(geometry.output_size(1) - geometry.output_padding - geometry.stride)",
        TRANSPOSED,
        "TransposedWindow",
    ),
    Mutant(
        "a pass of phases waits a cycle less than its chain",
        "hw/engine/feed.py",
        "gaps = [[max(0, least_pass - n) for n in r] for r in steps]",
        "gaps = [[max(0, least_pass - 1 - n) for n in r] for r in steps]",
        TRANSPOSED,
        "TransposedWindow",
    ),
    # -- pixel buffer
    Mutant(
        "a third group accepted",
        "hw/engine/pixel_buffer.py",
        "full = self.banks\n",
        "full = self.banks + 1\n",
        BUFFER,
        "PixelBuffer",
    ),
    Mutant(
        "groups cross the end of a row",
        "hw/engine/pixel_buffer.py",
        "((w_pixel == pixels - 1) | x_last)",
        "(w_pixel == pixels - 1)",
        BUFFER,
        "PixelBuffer",
    ),
    Mutant(
        "only one bank is used",
        "hw/engine/pixel_buffer.py",
        "full = self.banks\n",
        "full = self.banks - 1\n",
        BUFFER,
        "PixelBuffer",
    ),
    # -- core and array
    Mutant(
        "too few drain banks",
        "hw/engine/core.py",
        "return 1 + max(1, ceil_div(drained, min(self.group_cycles)))",
        "return max(1, ceil_div(drained, min(self.group_cycles)))",
        CORE,
        "Core",
    ),
    Mutant(
        "a bank too many is given away",
        "hw/engine/core.py",
        "((free == 1 - change) & ~feed.start)",
        "(free == 1 - change)",
        CORE,
        "Core",
    ),
    Mutant(
        "a beat is issued without a credit",
        "hw/engine/core.py",
        "self.o_issue.eq(banks.full & self.credit)",
        "self.o_issue.eq(banks.full)",
        CORE,
        "Core",
    ),
    Mutant(
        "a bank counts as full a word early",
        "hw/engine/core.py",
        "& (written == words - 1))",
        "& (written == max(0, words - 2)))",
        CORE,
        "Core",
    ),
    Mutant(
        "an accumulator keeps what the last pass left",
        "hw/engine/array.py",
        "acc.eq(Mux(clear, 0, acc) + element.total[v])",
        "acc.eq(acc + element.total[v])",
        ARRAY,
        "SystolicArray",
    ),
    Mutant(
        "a drain chain ends an item early",
        "hw/engine/array.py",
        "since = Signal(self.chain_length,",
        "since = Signal(max(1, self.chain_length - 1),",
        ARRAY,
        "SystolicArray",
    ),
    # -- queues
    Mutant(
        "a credit too many",
        "hw/device/memory.py",
        "credits = Signal(range(self.depth + 1), init=self.depth)",
        "credits = Signal(range(self.depth + 2), init=self.depth + 1)",
        STREAMS + "::TestCreditFifo",
        "CreditFifo",
    ),
    Mutant(
        "queues half as deep",
        "hw/device/memory.py",
        "return max(16, 1 << ceil_log2(latency + 2))",
        "return max(16, 1 << ceil_log2(latency + 2) - 1)",
        STREAMS + "::TestCreditFifo",
        "CreditFifo|_CreditPipeline|fifo_depth",
    ),
    Mutant(
        "a skid buffer with one place",
        "hw/engine/skid.py",
        "self.i.ready.eq(~waiting)",
        "self.i.ready.eq(~full)",
        STREAMS + "::TestSkid",
        "Skid",
    ),
    Mutant(
        "a regrouper that does not start a beat with every pixel",
        "hw/engine/regroup.py",
        "m.d.sync += [full.eq(1), slot.eq(0), beat.eq(0)]",
        "m.d.sync += [full.eq(1), beat.eq(0)]",
        STREAMS + " -k Regroup",
        "Regroup",
    ),
    # -- gate
    Mutant(
        "another size does not wait",
        "hw/engine/gate.py",
        "with m.If(self.empty):",
        "with m.If(1):",
        STREAMS + "::TestFrameGate",
        "FrameGate",
    ),
    Mutant(
        "the height is not compared",
        "hw/engine/gate.py",
        "& (self.height == self.frame_height))",
        ")",
        STREAMS + "::TestFrameGate",
        "FrameGate",
    ),
    Mutant(
        "the gate counts columns for rows",
        "hw/engine/gate.py",
        "row_last.eq(row == self.frame_height)",
        "row_last.eq(row == self.frame_width)",
        STREAMS + "::TestFrameGate",
        "FrameGate",
    ),
    # -- sequencer
    Mutant(
        "a group starts without a drain bank",
        "hw/engine/feed.py",
        "m.d.comb += self.start.eq(self.ready & feed.bank_free & free)",
        "m.d.comb += self.start.eq(self.ready & free)",
        BUFFER,
        "PixelBuffer",
    ),
    # -- whole units
    Mutant(
        "a queue of x two groups shorter",
        "hw/stage/norm.py",
        "groups = PixelBuffer.banks + shape.banks + 1",
        "groups = PixelBuffer.banks + shape.banks - 1",
        UNITS + "::TestNormUnit",
        "NormUnit",
    ),
    Mutant(
        "the queue of x turns a place early on its way out",
        "hw/stage/norm.py",
        "x_out.eq(Mux(x_out == x_ram.depth - 1, 0, x_out + 1))",
        "x_out.eq(Mux(x_out == x_ram.depth - 2, 0, x_out + 1))",
        UNITS + "::TestNormUnit",
        "NormUnit",
    ),
    Mutant(
        "a normalization's queue half as deep",
        "hw/stage/unit.py",
        "self.fifo = CreditFifo(shape=payload, depth=fifo_depth(self.latency))",
        "self.fifo = CreditFifo(shape=payload, depth=fifo_depth(self.latency // 4))",
        UNITS + "::TestNormUnit",
        "NormUnit",
    ),
    Mutant(
        "a convolution's queue half as deep",
        "hw/stage/unit.py",
        "self.fifo = CreditFifo(shape=payload, depth=fifo_depth(self.latency))",
        "self.fifo = CreditFifo(shape=payload, depth=fifo_depth(self.latency // 4))",
        UNITS + "::TestConvUnitBeforeANormalization",
        "ConvUnit",
    ),
    Mutant(
        "columns of a kernel taken for rows",
        "hw/stage/conv.py",
        "padded.transpose(0, 2, 3, 1).reshape",
        "padded.transpose(0, 3, 2, 1).reshape",
        UNITS + "::TestConvUnit",
        "ConvUnit",
    ),
    Mutant(
        "a new size does not wait for the units",
        "hw/stage/pipeline.py",
        "empty_here.eq(empty & unit.empty)",
        "empty_here.eq(empty)",
        "tests/hw/test_frames.py -k conv2 and row and not GDN",
        "conv",
    ),
    # -- arithmetic
    Mutant(
        "halves are rounded down",
        "hw/engine/pipe.py",
        "(self[name] + (1 << (amount - 1))) >> amount",
        "(self[name] + (1 << (amount - 1)) - 1) >> amount",
        "tests/hw/test_units.py -k requantizer",
        "requantizer",
    ),
    Mutant(
        "a shift by a value truncates",
        "hw/engine/pipe.py",
        "self.register(**{name: (self[name] + 1) >> 1})",
        "self.register(**{name: self[name] >> 1})",
        "tests/hw/test_units.py -k normalization",
        "normalization",
    ),
    Mutant(
        "saturation at 19 bits",
        "hw/engine/pipe.py",
        "most = (1 << (SATURATION_BITS - 1)) - 1",
        "most = (1 << SATURATION_BITS) - 1",
        "tests/hw/test_units.py -k requantizer",
        "requantizer",
    ),
    Mutant(
        "only what channels' shifts differ by is shifted",
        "hw/engine/requantize.py",
        'amount.eq(pipe["d"] + self._base_shift)',
        'amount.eq(pipe["d"])',
        "tests/hw/test_units.py -k requantizer",
        "requantizer",
    ),
    Mutant(
        "lanes of constants the other way round",
        "hw/engine/requantize.py",
        "channel = beat * lanes + lane\n",
        "channel = beat * lanes + lanes - 1 - lane\n",
        "tests/hw/test_units.py -k requantizer",
        "requantizer",
    ),
    Mutant(
        "a packed product borrows by one weight alone",
        "hw/engine/element.py",
        "odd.eq((w1[0] ^ sign) & self.a[s].as_unsigned()[0])",
        "odd.eq(w1[0] & self.a[s].as_unsigned()[0])",
        "tests/hw/test_element.py -k sums and packed",
        "packed",
    ),
    Mutant(
        "the sign of a weight of lookup tables counts positive",
        "hw/engine/element.py",
        "upper - high if top and negative else upper + high",
        "upper + high",
        "tests/hw/test_element.py -k sums and lut",
        "lut",
    ),
    Mutant(
        "a piece of a memory chosen by its neighbour's addresses",
        "hw/device/memory.py",
        "address[low_bits:] == piece.start >> low_bits",
        "address[low_bits:] == (piece.start >> low_bits) + 1",
        "tests/hw/test_memory.py -k reads_follow",
        "Ram",
    ),
]
