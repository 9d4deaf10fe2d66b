// Models of the ECP5 cells that Lichen instantiates, written from the family's data sheets and
// usage guides, for the configurations in use; anything else stops the simulation.
`timescale 1ns / 1ps

module CCU2C (
    input CIN, A0, B0, C0, D0, A1, B1, C1, D1,
    output S0, S1, COUT
);
    parameter [15:0] INIT0 = 0, INIT1 = 0;
    parameter INJECT1_0 = "YES", INJECT1_1 = "YES";
    initial if (INJECT1_0 != "NO" || INJECT1_1 != "NO") $fatal(1, "INJECT1 is not modelled");
    wire p0 = INIT0[{D0, C0, B0, A0}], g0 = INIT0[{2'b00, B0, A0}];
    wire p1 = INIT1[{D1, C1, B1, A1}], g1 = INIT1[{2'b00, B1, A1}];
    wire c0 = p0 ? CIN : g0;
    assign S0 = p0 ^ CIN, S1 = p1 ^ c0, COUT = p1 ? c0 : g1;
endmodule

module MULT18X18D (
    input A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
    input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
    input CLK3, CLK2, CLK1, CLK0, CE3, CE2, CE1, CE0, RST3, RST2, RST1, RST0,
    output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
    output P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
    parameter REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0";
    parameter REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0";
    parameter REG_PIPELINE_CLK = "NONE", REG_PIPELINE_CE = "CE0", REG_PIPELINE_RST = "RST0";
    parameter REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0";
    initial if (REG_INPUTA_CLK != "CLK0" || REG_INPUTB_CLK != "CLK0"
                || REG_PIPELINE_CLK != "CLK0" || REG_OUTPUT_CLK != "CLK0")
        $fatal(1, "only all registers on CLK0 are modelled");
    wire [17:0] ain = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] bin = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    reg [17:0] a, b;
    reg sa, sb;
    reg [35:0] piped, out;
    wire [35:0] wide_a = {{18{sa & a[17]}}, a}, wide_b = {{18{sb & b[17]}}, b};
    always @(posedge CLK0)
        if (RST0) begin a <= 0; b <= 0; sa <= 0; sb <= 0; piped <= 0; out <= 0; end
        else if (CE0) begin
            a <= ain; b <= bin; sa <= SIGNEDA; sb <= SIGNEDB;
            piped <= wide_a * wide_b;
            out <= piped;
        end
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
            P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = out;
    initial if (SOURCEA !== 0 && SOURCEA !== 1'bz && SOURCEA !== 1'bx) $fatal(1, "SOURCEA");
endmodule
