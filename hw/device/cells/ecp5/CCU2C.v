// Behavioural model of ECP5's carry cell: two lookup tables and two steps of a carry chain.
// Without INJECT1, which Lichen never uses.

module CCU2C #(
    parameter [15:0] INIT0 = 16'h0000,
    parameter [15:0] INIT1 = 16'h0000,
    parameter INJECT1_0 = "YES",
    parameter INJECT1_1 = "YES"
) (
    input wire CIN,
    input wire A0,
    input wire B0,
    input wire C0,
    input wire D0,
    input wire A1,
    input wire B1,
    input wire C1,
    input wire D1,
    output wire S0,
    output wire S1,
    output wire COUT
);
  // A carry passes where the table's output is 1; elsewhere the table of A and B alone makes it.
  wire pass_0 = INIT0[{D0, C0, B0, A0}];
  wire pass_1 = INIT1[{D1, C1, B1, A1}];
  wire make_0 = INIT0[{2'b00, B0, A0}];
  wire make_1 = INIT1[{2'b00, B1, A1}];
  wire between = pass_0 ? CIN : make_0;

  assign S0 = pass_0 ^ CIN;
  assign S1 = pass_1 ^ between;
  assign COUT = pass_1 ? between : make_1;

  initial
    if (INJECT1_0 != "NO" || INJECT1_1 != "NO") begin
      $display("CCU2C: INJECT1 is not modelled");
      $finish;
    end
endmodule
