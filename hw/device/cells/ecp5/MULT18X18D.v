// Behavioural model of ECP5's multiplier: with input, pipeline and output registers on CLK0, CE0 and
// RST0, or without any. Operands are signed or not, each by itself. Other uses end the simulation.

module MULT18X18D #(
    parameter REG_INPUTA_CLK = "NONE",
    parameter REG_INPUTA_CE = "CE0",
    parameter REG_INPUTA_RST = "RST0",
    parameter REG_INPUTB_CLK = "NONE",
    parameter REG_INPUTB_CE = "CE0",
    parameter REG_INPUTB_RST = "RST0",
    parameter REG_PIPELINE_CLK = "NONE",
    parameter REG_PIPELINE_CE = "CE0",
    parameter REG_PIPELINE_RST = "RST0",
    parameter REG_OUTPUT_CLK = "NONE",
    parameter REG_OUTPUT_CE = "CE0",
    parameter REG_OUTPUT_RST = "RST0",
    parameter SOURCEB_MODE = "B_SHIFT",
    parameter MULT_BYPASS = "DISABLED",
    parameter RESETMODE = "SYNC",
    parameter GSR = "DISABLED"
) (
    input wire A0,
    input wire A1,
    input wire A2,
    input wire A3,
    input wire A4,
    input wire A5,
    input wire A6,
    input wire A7,
    input wire A8,
    input wire A9,
    input wire A10,
    input wire A11,
    input wire A12,
    input wire A13,
    input wire A14,
    input wire A15,
    input wire A16,
    input wire A17,
    input wire B0,
    input wire B1,
    input wire B2,
    input wire B3,
    input wire B4,
    input wire B5,
    input wire B6,
    input wire B7,
    input wire B8,
    input wire B9,
    input wire B10,
    input wire B11,
    input wire B12,
    input wire B13,
    input wire B14,
    input wire B15,
    input wire B16,
    input wire B17,
    input wire C0,
    input wire C1,
    input wire C2,
    input wire C3,
    input wire C4,
    input wire C5,
    input wire C6,
    input wire C7,
    input wire C8,
    input wire C9,
    input wire C10,
    input wire C11,
    input wire C12,
    input wire C13,
    input wire C14,
    input wire C15,
    input wire C16,
    input wire C17,
    input wire SIGNEDA,
    input wire SIGNEDB,
    input wire SOURCEA,
    input wire SOURCEB,
    input wire CLK0,
    input wire CLK1,
    input wire CLK2,
    input wire CLK3,
    input wire CE0,
    input wire CE1,
    input wire CE2,
    input wire CE3,
    input wire RST0,
    input wire RST1,
    input wire RST2,
    input wire RST3,
    output wire P0,
    output wire P1,
    output wire P2,
    output wire P3,
    output wire P4,
    output wire P5,
    output wire P6,
    output wire P7,
    output wire P8,
    output wire P9,
    output wire P10,
    output wire P11,
    output wire P12,
    output wire P13,
    output wire P14,
    output wire P15,
    output wire P16,
    output wire P17,
    output wire P18,
    output wire P19,
    output wire P20,
    output wire P21,
    output wire P22,
    output wire P23,
    output wire P24,
    output wire P25,
    output wire P26,
    output wire P27,
    output wire P28,
    output wire P29,
    output wire P30,
    output wire P31,
    output wire P32,
    output wire P33,
    output wire P34,
    output wire P35
);
  localparam REGISTERS = REG_INPUTA_CLK != "NONE";

  wire [17:0] a_in = {
    A17, A16, A15, A14, A13, A12, A11, A10, A9,
    A8, A7, A6, A5, A4, A3, A2, A1, A0
  };
  wire [17:0] b_in = {
    B17, B16, B15, B14, B13, B12, B11, B10, B9,
    B8, B7, B6, B5, B4, B3, B2, B1, B0
  };
  reg [17:0] a, b;
  reg a_signed, b_signed;
  reg [35:0] product, out;

  // Both extended to the product's width by what they are, so that it is right in any case.
  wire [35:0] a_wide = REGISTERS ? {{18{a_signed & a[17]}}, a} : {{18{SIGNEDA & a_in[17]}}, a_in};
  wire [35:0] b_wide = REGISTERS ? {{18{b_signed & b[17]}}, b} : {{18{SIGNEDB & b_in[17]}}, b_in};
  wire [35:0] now = a_wide * b_wide;

  initial begin
    a = 18'd0;
    b = 18'd0;
    a_signed = 1'b0;
    b_signed = 1'b0;
    product = 36'd0;
    out = 36'd0;
  end

  always @(posedge CLK0)
    if (RST0) begin
      a <= 18'd0;
      b <= 18'd0;
      a_signed <= 1'b0;
      b_signed <= 1'b0;
      product <= 36'd0;
      out <= 36'd0;
    end else if (CE0) begin
      a <= a_in;
      b <= b_in;
      a_signed <= SIGNEDA;
      b_signed <= SIGNEDB;
      product <= now;
      out <= product;
    end

  assign {
    P35, P34, P33, P32, P31, P30, P29, P28, P27,
    P26, P25, P24, P23, P22, P21, P20, P19, P18,
    P17, P16, P15, P14, P13, P12, P11, P10, P9,
    P8, P7, P6, P5, P4, P3, P2, P1, P0
  } = REGISTERS ? out : now;

  initial
    if (REG_INPUTB_CLK != REG_INPUTA_CLK || REG_PIPELINE_CLK != REG_INPUTA_CLK
        || REG_OUTPUT_CLK != REG_INPUTA_CLK || (REGISTERS && REG_INPUTA_CLK != "CLK0")
        || REG_INPUTA_CE != "CE0" || REG_INPUTB_CE != "CE0" || REG_PIPELINE_CE != "CE0"
        || REG_OUTPUT_CE != "CE0" || REG_INPUTA_RST != "RST0" || REG_INPUTB_RST != "RST0"
        || REG_PIPELINE_RST != "RST0" || REG_OUTPUT_RST != "RST0" || SOURCEB_MODE != "B_SHIFT"
        || MULT_BYPASS != "DISABLED" || RESETMODE != "SYNC" || GSR != "DISABLED") begin
      $display("MULT18X18D: these parameters are not modelled");
      $finish;
    end

  wire unused = &{1'b0, SOURCEA, SOURCEB, CLK1, CLK2, CLK3, CE1, CE2, CE3, RST1, RST2, RST3,
    C0, C1, C2, C3, C4, C5, C6, C7, C8,
    C9, C10, C11, C12, C13, C14, C15, C16, C17};
endmodule
