"""Waveforms that are readable: streams by their stages' names, and what to show of them.

The bench has a scope for every stream, ``stage_NAME`` for a stage's output, with ``valid``,
``ready``, ``moves`` (both), ``beats`` so far, and each lane of the payload as a number. Beside a
recording lie a save file for GTKWave (``.gtkw``) and a command file for Surfer (``.sucl``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lichen.files import write_text

if TYPE_CHECKING:
    from lichen.sim.harness import Stream

SUFFIX = ".fst"
"""Of a recording, whichever simulator made it."""

SHOWN_LANES = 16
"""Lanes of a stream that the save files show; the recording has all."""


def scope(stream: Stream) -> str:
    """Name of a stream's scope in the bench; with a prefix, since stages may have any name."""
    return {"i": "stream_in", "o": "stream_out"}.get(stream.port, f"stage_{stream.name}")


def scopes(streams: Sequence[Stream]) -> str:
    """Verilog of the scopes, for the inside of the bench."""
    return "\n".join(_scope(stream) for stream in streams)


def _scope(stream: Stream) -> str:
    port, bits = stream.port, stream.lanes.bits
    kind = "wire signed" if stream.lanes.signed else "wire"
    lanes = "\n".join(
        f"    {kind} [{bits - 1}:0] lane{k} = {port}__payload[{k * bits}+:{bits}];"
        for k in range(stream.lanes.count)
    )
    return f"""  if (1) begin : {scope(stream)}
    wire valid = {port}__valid;
    wire ready = {port}__ready;
    wire moves = valid && ready;
    wire [31:0] beats = {port}__count;
{lanes}
  end
"""


def write_saves(waves: Path, bench: str, streams: Sequence[Stream]) -> list[Path]:
    """Write what GTKWave and Surfer are to show of a recording, beside it.

    Parameters
    ----------
    waves : Path
        The recording.
    bench : str
        Name of the scope that the streams' scopes are in.
    streams : sequence of Stream
        In the order in which they are to be shown.

    Returns
    -------
    list of Path
        The ``.gtkw`` and the ``.sucl`` file.
    """
    saves = [waves.with_suffix(".gtkw"), waves.with_suffix(".sucl")]
    write_text(saves[0], _gtkwave(waves, bench, streams))
    write_text(saves[1], _surfer(waves, bench, streams))
    return saves


def _shown(stream: Stream) -> Iterator[tuple[str, int]]:
    """Names and widths of the signals to show of a stream, below its scope."""
    yield from (("valid", 1), ("ready", 1), ("beats", 32))
    for lane in range(min(stream.lanes.count, SHOWN_LANES)):
        yield f"lane{lane}", stream.lanes.bits


def _gtkwave(waves: Path, bench: str, streams: Sequence[Stream]) -> str:
    from vcd.gtkw import GTKWSave

    file = io.StringIO()
    save = GTKWSave(file)
    save.dumpfile(waves.name, abspath=False)
    save.treeopen(f"{bench}.")
    save.trace(f"{bench}.clk")
    for stream in streams:
        with save.group(scope(stream)):
            for name, bits in _shown(stream):
                decimal = "signed" if stream.lanes.signed and name.startswith("lane") else "dec"
                width = f"[{bits - 1}:0]" if bits > 1 else ""
                save.trace(
                    f"{bench}.{scope(stream)}.{name}{width}",
                    datafmt=decimal if bits > 1 else "bin",
                )
    return file.getvalue()


def _surfer(waves: Path, bench: str, streams: Sequence[Stream]) -> str:
    lines = [f"variable_add {bench}.clk"]
    for stream in streams:
        lines.append(f"divider_add {scope(stream)}")
        lines += [f"variable_add {bench}.{scope(stream)}.{name}" for name, _ in _shown(stream)]
    return "\n".join([*lines, "zoom_fit", ""])
