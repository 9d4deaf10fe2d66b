// A board with USB at its own pins: clk_step is USB's sampling clock, clk_usb a quarter of it.
module lichen_board (
    input clk, input locked, input clk_step, input clk_usb,
    input host_drives, input host_d_p, input host_d_n,
    output d_p_now, output d_n_now, output pulled
);
  wire d_p, d_n;
  pullup (d_p);
  pulldown (d_n);
  assign d_p = host_drives ? host_d_p : 1'bz;
  assign d_n = host_drives ? host_d_n : 1'bz;
  assign d_p_now = d_p;
  assign d_n_now = d_n;
  top board (
    .OSCILLATOR(clk), .usb_0__d_p__io(d_p), .usb_0__d_n__io(d_n), .usb_0__pullup__io(pulled)
  );
endmodule

module BB (input I, input T, output O, inout B);
  assign B = T ? 1'bz : I;
  assign O = B;
endmodule

// Without its parameters: USB's clocks come from outside.
module USBPLL (
    input CLKI, CLKFB, RST, STDBY, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG,
    input PLLWAKESYNC, ENCLKOP,
    output CLKOP, CLKOS, CLKOS2, LOCK
);
  assign CLKOP = lichen_board.clk_step;
  assign CLKOS = CLKI;
  assign CLKOS2 = lichen_board.clk_usb;
  assign LOCK = lichen_board.locked;
endmodule
