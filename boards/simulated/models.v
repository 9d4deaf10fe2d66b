// What stands for the pads and the PLL of a board in its simulation.

module IB (input I, output O);
  assign O = I;
endmodule

module OB (input I, output O);
  assign O = I;
endmodule

module OBZ (input I, input T, output O);
  assign O = T | I;  // pulled up
endmodule

module OFS1P3DX (input SCLK, input SP, input CD, input D, output reg Q);
  always @(posedge SCLK) if (CD) Q <= 0; else if (SP) Q <= D;
endmodule

// Without its parameters: the system's clock is the oscillator's.
module EHXPLLL (
    input CLKI, CLKFB, RST, STDBY, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG,
    input PLLWAKESYNC, ENCLKOP,
    output CLKOP, CLKOS, LOCK
);
  assign CLKOP = CLKI;
  assign CLKOS = CLKI;
  assign LOCK = lichen_board.locked;
endmodule
