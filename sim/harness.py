"""The test bench around a streaming component: Verilog, generated from the component's ports.

The bench holds everything that happens per clock (``harness.v``): a source that reads beats from
a file, observers that write every beat of the output and of each tap, random idling and
backpressure, cycle counters, and a watchdog. Python only starts it and reads what it left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from amaranth.hdl import Shape
from amaranth.lib import data, wiring

from lichen.hw.verilog import emit
from lichen.sim import waves as waveforms
from lichen.sim.beats import Lanes

TOP = "lichen_top"
BENCH = "lichen_bench"
FINAL = "output"
"""Name of the output stream in reports, where no tap carries a stage's name."""
COUNTED = "busy_"
"""Prefix of a component's bits whose cycles are counted."""
MARKED = ("starts_", "beats_")
"""Prefixes of a component's bits whose first and last cycles in every frame are noted."""
SURPLUS = 1024
"""Beats of a stream beyond those expected at which a run ends."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One stream of a component.

    Attributes
    ----------
    port : str
        Prefix of its Verilog ports: ``i``, ``o``, ``tap_NAME``.
    name : str
        What reports call it.
    lanes : Lanes
    """

    port: str
    name: str
    lanes: Lanes

    @property
    def file(self) -> str:
        """Where its beats lie, in the working directory of the simulation."""
        return f"{self.port}.bin" if self.port == "i" else f"{self.port}.hex"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A component as Verilog, with the bench that drives it.

    Attributes
    ----------
    source, output : Stream
    taps : list of Stream
        In pipeline order; empty unless asked for.
    counters : list of str
        Names of the bits whose cycles are counted, ``busy_NAME`` of the component.
    marks : list of str
        Bits whose first and last cycles are noted, ``starts_NAME`` and ``beats_NAME``.
    design, bench : str
        Verilog of the component and of the bench's top.
    memories : dict of str to str
        Contents of the component's memories, by the file names under ``memories/`` that the
        design reads.
    """

    source: Stream
    output: Stream
    taps: list[Stream]
    counters: list[str]
    marks: list[str]
    design: str
    bench: str
    memories: dict[str, str]

    @property
    def observed(self) -> list[Stream]:
        """Taps, then the output."""
        return [*self.taps, self.output]


def support_file(name: str) -> str:
    """Text of a file of this package."""
    return resources.files("lichen.sim").joinpath(name).read_text(encoding="utf-8")


def make_bench(
    component: wiring.Component,
    *,
    taps: bool = False,
    waves: bool = False,
    verilog: str | None = None,
) -> Bench:
    """Emit a component and the bench around it.

    Parameters
    ----------
    component : wiring.Component
        With a stream ``i`` in and a stream ``o`` out whose payloads are arrays of one kind of
        integer (or single integers); optionally inputs ``width`` and ``height``; optionally
        outputs ``tap_NAME`` with members ``payload``, ``valid`` and ``ready`` that show inner
        streams, bits ``busy_NAME`` whose cycles are counted, and bits ``starts_NAME`` and
        ``beats_NAME`` whose first and last cycles in every frame are noted. ``component.taps``,
        where present, lists the NAMEs of taps in pipeline order.
    taps : bool
        Observe the taps too.
    waves : bool
        Name the streams for people who will look at waveforms (`lichen.sim.waves`).
    verilog : str, optional
        The component as a module `TOP`, with all it consists of, in place of what is emitted
        here: a synthesized netlist, for one.

    Raises TypeError where the ports are others than these.
    """
    payloads = {
        path[:-1]: value.shape()
        for path, _, value in component.signature.flatten(component)
        if path[-1] == "payload" and len(path) == 2
    }
    for port in ("i", "o"):
        if (port,) not in payloads:
            raise TypeError(f"the component must have a stream {port}")
    names = [path[0] for path in payloads if path[0].startswith("tap_")]
    order = [f"tap_{tap}" for tap in getattr(component, "taps", [])]
    if sorted(order) == sorted(names):
        names = order
    design, memories = compact_memories(emit(component, TOP) if verilog is None else verilog)
    source = Stream(port="i", name="i", lanes=_lanes("i", payloads[("i",)]))
    output = Stream(port="o", name=FINAL, lanes=_lanes("o", payloads[("o",)]))
    observed = [
        Stream(port=name, name=name.removeprefix("tap_"), lanes=_lanes(name, payloads[(name,)]))
        for name in names
        if taps
    ]
    ports = _verilog_ports(design)
    bits = [str(path[0]) for path, _, _ in component.signature.flatten(component) if len(path) == 1]
    counters = [bit.removeprefix(COUNTED) for bit in bits if bit.startswith(COUNTED)]
    marks = [bit for bit in bits if bit.startswith(MARKED)]
    shown = waveforms.scopes([source, *observed, output]) if waves else ""
    bench = _generate(source, output, observed, counters, marks, ports, shown)
    return Bench(
        source=source,
        output=output,
        taps=observed,
        counters=counters,
        marks=marks,
        design=design,
        bench=bench,
        memories=memories,
    )


def _lanes(port: str, shape: Any) -> Lanes:
    count = 1
    if isinstance(shape, data.ArrayLayout):
        shape, count = shape.elem_shape, shape.length
    if not isinstance(shape, data.Layout):
        shape = Shape.cast(shape)
        if shape.width >= 1 and count >= 1:
            return Lanes(count=count, bits=shape.width, signed=shape.signed)
    raise TypeError(f"the payload of {port} must be an array of integers")


def compact_memories(design: str) -> tuple[str, dict[str, str]]:
    """Replace word-by-word initialisations of memories, which make most of a large design.

    Simulators compile each of these assignments; reading a file instead, or a loop where all
    words are zero, makes the build several times faster.

    Returns
    -------
    design : str
    files : dict of str to str
        What ``$readmemh`` finds under ``memories/``.
    """
    files: dict[str, str] = {}

    def replace(block: re.Match[str]) -> str:
        name, index = block["name"], f"init{block.start()}"
        lines = block[0].splitlines()[1:-1]
        words = [_WORD.fullmatch(line) for line in lines]
        if len(words) < SMALL_MEMORY or any(
            w is None or w["name"] != name or int(w["address"]) != address
            for address, w in enumerate(words)
        ):
            return block[0]
        digits = [w["hex"] or "0" for w in words if w is not None]
        if not any(d.strip("0") for d in digits):
            return (
                f"  integer {index};\n"
                f"  initial for ({index} = 0; {index} < {len(digits)}; {index} = {index} + 1)\n"
                f"    {name}[{index}] = 0;\n"
            )
        file = f"{len(files)}.hex"
        files[file] = "\n".join(digits) + "\n"
        return f'  initial $readmemh("memories/{file}", {name});\n'

    return _INITIAL.sub(replace, design), files


SMALL_MEMORY = 16
_INITIAL = re.compile(
    r"^  initial begin\n    (?P<name>\S+ ?)\[0\] = .*;\n(?:    .*;\n)*  end\n", re.MULTILINE
)
# A decimal word of yosys is 32 bits wide and one digit long when it is zero; others stay.
_WORD = re.compile(r"    (?P<name>\S+ ?)\[(?P<address>\d+)\] = \d+'(?:h(?P<hex>[0-9a-f]+)|d0);")


def awaken(design: str) -> str:
    """A design whose combinational blocks run at time zero in Icarus as well, for its bench.

    Icarus runs ``always @*`` when an input changes, and not before: a block whose inputs keep
    their first values, as at an all-black image, would leave its outputs unknown. yosys names a
    register in each, but Icarus sets that before any block waits. ``always_comb`` is no way
    out: Icarus 11 runs such blocks for ever at time zero where two feed a later one, each of the
    two with a default that a ``case`` overrides. So every block watches a bit of the bench.
    """
    return design.replace(_ALWAYS, f"{_ALWAYS}    if ({BENCH}.{_AWAKE}) begin end\n")


_ALWAYS = "always @* begin\n"
_AWAKE = "awake"


def _verilog_ports(design: str) -> set[str]:
    """Names of the ports of the top module."""
    header = re.search(rf"^module {TOP} ?\((.*?)\);", design, re.MULTILINE | re.DOTALL)
    assert header is not None
    return {port.split()[-1] for port in header[1].split(",")}


def _generate(
    source: Stream,
    output: Stream,
    taps: list[Stream],
    counters: list[str],
    marks: list[str],
    ports: set[str],
    scopes: str,
) -> str:
    """The bench's top module; ``scopes`` is what it holds for waveforms alone."""
    wires, connections, observers = [], [], []
    # A component without registers has no clock, a component without frames no size.
    for port in ("clk", "rst", "width", "height"):
        if port in ports:
            connections.append(f".{port}({port})")
    for stream in (source, output, *taps):
        wires.append(
            f"  wire [{stream.lanes.width - 1}:0] {stream.port}__payload;\n"
            f"  wire {stream.port}__valid, {stream.port}__ready;"
        )
        for member in ("payload", "valid", "ready"):
            connections.append(f".{stream.port}__{member}({stream.port}__{member})")
    for stream in (*taps, output):
        observers.append(
            f"""  wire [31:0] {stream.port}__count;
  lichen_observer #(
      .WIDTH({stream.lanes.width}), .LINE({stream.lanes.line}),
      .FILE("{stream.file}"), .NAME("{stream.port}")
  ) observe_{stream.port} (
      .clk(clk), .run(run), .closing(closing == 1), .summary(summary), .cycle(cycle),
      .payload({stream.port}__payload), .valid({stream.port}__valid),
      .ready({stream.port}__ready), .count({stream.port}__count)
  );
"""
        )
    counts = []
    for name in counters:
        connections.append(f".{COUNTED}{name}({COUNTED}{name})")
        counts.append(
            f"""  wire {COUNTED}{name};
  lichen_counter #(.NAME("{COUNTED}{name}")) count_{name} (
      .clk(clk), .run(run), .closing(closing == 1), .summary(summary), .bit_in({COUNTED}{name})
  );
"""
        )
    for name in marks:
        connections.append(f".{name}({name})")
        counts.append(
            f"""  wire {name};
  lichen_marker #(.NAME("{name}")) mark_{name} (
      .clk(clk), .run(run), .events(events), .cycle(cycle), .frames_out(frames_out),
      .bit_in({name})
  );
"""
        )
    moves = [f"({s.port}__valid === 1'b1 && {s.port}__ready === 1'b1)" for s in (source, output)]
    moves += [f"({s.port}__valid === 1'b1 && {s.port}__ready === 1'b1)" for s in taps]
    complete = ["!more", "i__finished"]
    complete += [f"{s.port}__count >= {s.port}__want" for s in taps]
    flooded = [f"{s.port}__count > {s.port}__want + SURPLUS" for s in (*taps, output)]
    wants = [
        f"""  reg [31:0] {s.port}__want;
  initial if (!$value$plusargs("{s.port}__want=%d", {s.port}__want)) {s.port}__want = 0;"""
        for s in (*taps, output)
    ]
    return _TEMPLATE.format(
        bench=BENCH,
        top=TOP,
        awake=_AWAKE,
        wires="\n".join(wires),
        connections=",\n      ".join(connections),
        observers="\n".join([*observers, *counts, scopes]),
        width=source.lanes.width,
        file=source.file,
        moved=" || ".join(moves),
        complete=" && ".join(complete),
        flooded=" || ".join(flooded),
        surplus=SURPLUS,
        wants="\n".join(wants),
    )


_TEMPLATE = """\
`timescale 1ns/1ns

module {bench} (
`ifdef VERILATOR
    input wire clk,
`endif
    output reg done /*verilator public_flat_rd*/
);
  // What cocotb sees.
  reg start /*verilator public_flat_rw*/;
  reg deadlock /*verilator public_flat_rd*/;
  reg endless /*verilator public_flat_rd*/;
  reg [63:0] cycle /*verilator public_flat_rd*/;

  localparam RESET = 8;
  localparam SURPLUS = {surplus};

  reg rst, run, opened, more;
  reg [31:0] in_reset, quiet, closing, frames_out, collected, beats;
  reg [31:0] watchdog, hold, idle_threshold, stall_threshold, idle_seed, stall_seed, drain;
  reg [63:0] limit, least_cycles, linger_least, linger_most, watched_until;
  reg watching;
  integer events, summary, frames, code;

  initial begin
    done = 0;
    start = 0;
    deadlock = 0;
    endless = 0;
    cycle = 0;
    rst = 1;
    run = 0;
    opened = 0;
    more = 0;
    in_reset = 0;
    quiet = 0;
    watching = 0;
    watched_until = 0;
    closing = 0;
    frames_out = 0;
    collected = 0;
    beats = 0;
    events = 0;
    summary = 0;
    frames = 0;
    if (!$value$plusargs("watchdog=%d", watchdog)) watchdog = 100000;
    if (!$value$plusargs("limit=%d", limit)) limit = 0;
    if (!$value$plusargs("least_cycles=%d", least_cycles)) least_cycles = 0;
    if (!$value$plusargs("linger_least=%d", linger_least)) linger_least = 1024;
    if (!$value$plusargs("linger_most=%d", linger_most)) linger_most = 8192;
    if (!$value$plusargs("hold=%d", hold)) hold = 0;
    if (!$value$plusargs("idle=%d", idle_threshold)) idle_threshold = 0;
    if (!$value$plusargs("stall=%d", stall_threshold)) stall_threshold = 0;
    if (!$value$plusargs("idle_seed=%d", idle_seed)) idle_seed = 1;
    if (!$value$plusargs("stall_seed=%d", stall_seed)) stall_seed = 2;
    if (!$value$plusargs("drain=%d", drain)) drain = 0;
  end

`ifndef VERILATOR
  reg clk;
  initial clk = 0;
  always #5 clk = !clk;
  // Changes once, at time zero, when all blocks wait already; see `awaken`.
  reg {awake};
  initial {awake} <= 0;
  initial
    if ($test$plusargs("waves")) begin
      $dumpfile("waves.fst");
      $dumpvars(0, {bench});
    end
`endif

{wires}
{wants}
  wire [15:0] width, height;
  wire [31:0] i__count;
  wire idle, stall, i__finished, complete;

  lichen_coin idle_coin (
      .clk(clk), .seed(idle_seed), .threshold(idle_threshold[16:0]), .hold_mask(hold[15:0]),
      .hit(idle)
  );
  lichen_coin stall_coin (
      .clk(clk), .seed(stall_seed), .threshold(stall_threshold[16:0]), .hold_mask(hold[15:0]),
      .hit(stall)
  );
  // What comes when all has come is not to be held back.
  assign o__ready = !stall || complete;

  lichen_source #(.WIDTH({width}), .FILE("{file}")) source (
      .clk(clk), .run(run), .idle(idle), .drain(drain[0]), .events(events), .cycle(cycle),
      .frames_out(frames_out),
      .payload(i__payload), .valid(i__valid), .ready(i__ready), .width(width), .height(height),
      .accepted(i__count), .finished(i__finished)
  );

{observers}
  {top} top (
      {connections}
  );

  wire moved = {moved};
  wire flooded = {flooded};
  assign complete = {complete};

  always @(posedge clk)
    if (start && !done) begin
      if (!opened) begin
        events = $fopen("events.txt", "w");
        summary = $fopen("summary.txt", "w");
        frames = $fopen("frames_out.txt", "r");
        code = $fscanf(frames, "%d", beats);
        more <= code == 1;
        opened = 1;
      end
      in_reset <= in_reset == 2 * RESET ? in_reset : in_reset + 1;
      rst <= in_reset < RESET;
      run <= in_reset == 2 * RESET;
      if (run) begin
        cycle <= cycle + 1;
        if (more && o__valid === 1'b1 && o__ready) begin
          collected = collected + 1;
          if (collected == beats) begin
            $fwrite(events, "last %0d %0d\\n", frames_out, cycle);
            frames_out <= frames_out + 1;
            collected = 0;
            code = $fscanf(frames, "%d", beats);
            more <= code == 1;
          end
        end
        quiet <= moved ? 0 : quiet + 1;
        // Late beats are waited for: as long again as the run took, within bounds, or until it
        // should have ended.
        if (complete && !watching) begin
          watching <= 1;
          watched_until <= cycle + (cycle < linger_least ? linger_least
                                    : cycle > linger_most ? linger_most : cycle);
        end
        if (closing != 0) begin
          closing <= closing + 1;
          if (closing == 1) begin
            $fwrite(summary, "i %0d %b %b\\n", i__count, i__valid, i__ready);
            $fclose(events);
          end
          if (closing == 3) begin
            $fclose(summary);
            done <= 1;
          end
        end else if (watching) begin
          if (cycle >= watched_until && cycle >= least_cycles) closing <= 1;
        end else if (quiet == watchdog) begin
          deadlock <= 1;
          closing <= 1;
        end else if (flooded || (limit != 0 && cycle >= limit)) begin
          endless <= 1;
          closing <= 1;
        end
      end
    end
endmodule
"""
