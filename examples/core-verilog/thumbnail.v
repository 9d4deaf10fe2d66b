// A user's own design around a generated core: bytes of an RGB picture of SIZE x SIZE pixels come
// in (R, G, B, R, ..), the core compresses them, and the latents wait in a small memory.

module thumbnail #(
    parameter [15:0] SIZE = 16,
    parameter LATENTS = 48
) (
    input wire clk,
    input wire rst,
    input wire [7:0] byte_in,
    input wire byte_valid,
    output wire byte_ready,
    output wire done,
    input wire [5:0] address,
    output wire [7:0] latent
);
  wire [7:0] coded;
  wire coded_valid;
  reg [7:0] memory [0:63];
  reg [5:0] count;

  initial count = 6'd0;

  encoder core (
      .clk(clk),
      .rst(rst),
      .width(SIZE),
      .height(SIZE),
      .i__payload(byte_in),
      .i__valid(byte_valid),
      .i__ready(byte_ready),
      .o__payload(coded),
      .o__valid(coded_valid),
      .o__ready(!done)
  );

  assign done = count == LATENTS;
  assign latent = memory[address];

  always @(posedge clk)
    if (rst) count <= 6'd0;
    else if (coded_valid && !done) begin
      memory[count] <= coded;
      count <= count + 6'd1;
    end
endmodule
