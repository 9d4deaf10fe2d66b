// The moving parts of the test bench; lichen.sim.harness generates the top around them.
//
// All traffic happens here, in the simulator: a frame passes without a single call into Python.
// Files lie in the working directory of the simulation. Beats come in as big-endian binary and go
// out as one line of hexadecimal digits each (so that unknown bits of a four-state simulator stay
// visible).

`timescale 1ns/1ns

// A coin: `hit` is 1 with probability threshold / 65536, a decision holding for 1 .. hold_mask + 1
// clocks.
module lichen_coin (
    input wire clk,
    input wire [31:0] seed,
    input wire [16:0] threshold,
    input wire [15:0] hold_mask,
    output reg hit
);
  reg [31:0] state;
  reg [15:0] hold;
  reg seeded;

  initial begin
    hit = 0;
    hold = 0;
    state = 1;
    seeded = 0;
  end

  always @(posedge clk)
    if (threshold != 0) begin
      if (!seeded) begin
        state = seed;
        seeded = 1;
      end
      if (hold != 0) hold = hold - 1;
      else begin
        state = state ^ (state << 13);
        state = state ^ (state >> 17);
        state = state ^ (state << 5);
        hit <= {1'b0, state[15:0]} < threshold;
        hold = state[31:16] & hold_mask;
      end
    end
endmodule

// Offers the beats of NAME.bin, frame after frame as listed in frames.txt (width, height, beats),
// without a gap; if `drain` is set, the last output of the earlier frame is awaited before. The
// size stands with a frame's first beat alone: with others it is another one.
module lichen_source #(
    parameter WIDTH = 8,
    parameter FILE = "i.bin"
) (
    input wire clk,
    input wire run,
    input wire idle,
    input wire drain,
    input wire [31:0] events,
    input wire [63:0] cycle,
    input wire [31:0] frames_out,
    output reg [WIDTH-1:0] payload,
    output reg valid,
    input wire ready,
    output reg [15:0] width,
    output reg [15:0] height,
    output reg [31:0] accepted,
    output reg finished
);
  localparam CHUNK = 1024;
  localparam PADDED = (WIDTH + 7) / 8 * 8;

  reg [PADDED-1:0] chunk[0:CHUNK-1];
  integer file, frames, code, position;
  reg [31:0] remaining, frames_in;
  reg [31:0] next_width, next_height, next_beats;
  reg [15:0] frame_width, frame_height;
  reg opened, more, fresh, fresh_valid;

  initial begin
    payload = 0;
    valid = 0;
    width = 0;
    height = 0;
    accepted = 0;
    finished = 0;
    position = CHUNK;
    remaining = 0;
    frames_in = 0;
    opened = 0;
    more = 0;
    fresh = 0;
    fresh_valid = 0;
    file = 0;
    frames = 0;
    next_width = 0;
    next_height = 0;
    frame_width = 0;
    frame_height = 0;
    next_beats = 0;
  end

  always @(posedge clk)
    if (run) begin
      if (!opened) begin
        file = $fopen(FILE, "rb");
        frames = $fopen("frames.txt", "r");
        code = $fscanf(frames, "%d %d %d", next_width, next_height, next_beats);
        more = code == 3;
        opened = 1;
      end
      if (valid && ready === 1'b1) begin
        accepted <= accepted + 1;
        if (fresh_valid) begin
          $fwrite(events, "first %0d %0d\n", frames_in - 1, cycle);
          width <= ~width;
          height <= ~height;
        end
      end
      if (!valid || ready === 1'b1) begin
        if (remaining == 0 && more && (!drain || frames_out == frames_in)) begin
          frame_width = next_width[15:0];
          frame_height = next_height[15:0];
          remaining = next_beats;
          frames_in = frames_in + 1;
          fresh = 1;
          code = $fscanf(frames, "%d %d %d", next_width, next_height, next_beats);
          more = code == 3;
        end
        if (remaining != 0 && !idle) begin
          if (position == CHUNK) begin
            code = $fread(chunk, file);
            position = 0;
          end
          payload <= chunk[position][WIDTH-1:0];
          valid <= 1;
          if (fresh) begin
            width <= frame_width;
            height <= frame_height;
          end
          fresh_valid = fresh;
          fresh = 0;
          position = position + 1;
          remaining = remaining - 1;
        end else begin
          valid <= 0;
          finished <= remaining == 0 && !more;
        end
      end
    end
endmodule

// Counts the cycles in which a bit is 1.
module lichen_counter #(
    parameter NAME = "busy"
) (
    input wire clk,
    input wire run,
    input wire closing,
    input wire [31:0] summary,
    input wire bit_in
);
  reg [63:0] count;
  initial count = 0;

  always @(posedge clk)
    if (run) begin
      if (closing) $fwrite(summary, "%0s %0d\n", NAME, count);
      else if (bit_in === 1'b1) count <= count + 1;
    end
endmodule

// Notes the first and the last cycle in which a bit is 1, from one frame's end to the next.
module lichen_marker #(
    parameter NAME = "starts"
) (
    input wire clk,
    input wire run,
    input wire [31:0] events,
    input wire [63:0] cycle,
    input wire [31:0] frames_out,
    input wire bit_in
);
  reg [63:0] first, last;
  reg [31:0] frame;
  reg seen;

  initial begin
    first = 0;
    last = 0;
    frame = 0;
    seen = 0;
  end

  always @(posedge clk)
    if (run) begin
      if (frames_out != frame) begin
        if (seen) $fwrite(events, "%0s %0d %0d %0d\n", NAME, frame, first, last);
        frame = frames_out;
        seen = 0;
      end
      if (bit_in === 1'b1) begin
        if (!seen) first = cycle;
        last = cycle;
        seen = 1;
      end
    end
endmodule

// Writes the beats that cross a stream to FILE, a line at a time because writing has a price, counts
// them, and watches the rules: a beat once offered stays, unchanged, until it is taken.
module lichen_observer #(
    parameter WIDTH = 8,
    parameter LINE = 1,
    parameter FILE = "o.hex",
    parameter NAME = "o"
) (
    input wire clk,
    input wire run,
    input wire closing,
    input wire [31:0] summary,
    input wire [63:0] cycle,
    input wire [WIDTH-1:0] payload,
    input wire valid,
    input wire ready,
    output reg [31:0] count
);
  localparam PADDED = (WIDTH + 7) / 8 * 8;

  integer file, free;
  reg opened, stalled, broken;
  reg [LINE*PADDED-1:0] line;
  reg [WIDTH-1:0] held;
  reg [63:0] first, last, broken_at;
  wire [PADDED-1:0] padded = payload;

  initial begin
    count = 0;
    file = 0;
    free = LINE;
    line = 0;
    opened = 0;
    stalled = 0;
    broken = 0;
    held = 0;
    first = 0;
    last = 0;
    broken_at = 0;
  end

  always @(posedge clk)
    if (run) begin
      if (!opened) begin
        file = $fopen(FILE, "w");
        opened = 1;
      end
      if (closing) begin
        $fwrite(summary, "%0s %0d %b %b %0d %0d %0d %0d\n", NAME, count, valid, ready, first, last,
                broken, broken_at);
        if (free != LINE) $fwrite(file, "%h\n", line);
        $fclose(file);
      end else begin
        if (valid === 1'b1 && ready === 1'b1) begin
          free = free - 1;
          line[free*PADDED+:PADDED] = padded;
          if (free == 0) begin
            $fwrite(file, "%h\n", line);
            free = LINE;
            line = 0;
          end
          if (count == 0) first = cycle;
          last = cycle;
          count <= count + 1;
        end
        if (stalled && !broken && (valid !== 1'b1 || payload !== held)) begin
          broken = 1;
          broken_at = cycle;
        end
        stalled = valid === 1'b1 && ready === 1'b0;
        held = payload;
      end
    end
endmodule
