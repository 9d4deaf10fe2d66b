// A board with USB behind a transceiver, whose clock is clk_step.
module lichen_board (
    input clk, input locked, input clk_step,
    input [7:0] phy_data, input phy_dir, input phy_nxt,
    output [7:0] ulpi_data, output ulpi_stp, output ulpi_rst, output ulpi_dir, output ulpi_nxt
);
  wire [7:0] data;
  assign data = phy_dir ? phy_data : 8'bz;
  assign ulpi_data = data;
  assign ulpi_dir = phy_dir;
  assign ulpi_nxt = phy_nxt;
  top board (
    .OSCILLATOR(clk), .ulpi_0__data__io(data), .ulpi_0__clk__io(clk_step),
    .ulpi_0__dir__io(phy_dir), .ulpi_0__nxt__io(phy_nxt), .ulpi_0__stp__io(ulpi_stp),
    .ulpi_0__rst__io(ulpi_rst)
  );
endmodule

module BB (input I, input T, output O, inout B);
  assign B = T ? 1'bz : I;
  assign O = B;
endmodule
