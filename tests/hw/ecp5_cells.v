// Models of the ECP5 cells that Lichen instantiates, written from the family's data sheets and
// usage guides, for the configurations in use; anything else stops the simulation.
`timescale 1ns / 1ps

`ifndef YOSYS_MODELS
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
`endif

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
    parameter SOURCEB_MODE = "B_SHIFT", MULT_BYPASS = "DISABLED", RESETMODE = "SYNC";
    parameter GSR = "DISABLED";
    // As synthesis makes it of a multiplication sign: no register at all.
    localparam PLAIN = REG_INPUTA_CLK == "NONE" && REG_INPUTB_CLK == "NONE"
                       && REG_PIPELINE_CLK == "NONE" && REG_OUTPUT_CLK == "NONE";
    initial if (!PLAIN && (REG_INPUTA_CLK != "CLK0" || REG_INPUTB_CLK != "CLK0"
                           || REG_PIPELINE_CLK != "CLK0" || REG_OUTPUT_CLK != "CLK0"))
        $fatal(1, "only all registers on CLK0 or none are modelled");
    initial if (MULT_BYPASS != "DISABLED") $fatal(1, "MULT_BYPASS is not modelled");
    wire [17:0] ain = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] bin = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    reg [17:0] a, b;
    reg sa, sb;
    reg [35:0] piped, out;
    wire [35:0] wide_a = {{18{sa & a[17]}}, a}, wide_b = {{18{sb & b[17]}}, b};
    wire [35:0] plain_a = {{18{SIGNEDA & ain[17]}}, ain}, plain_b = {{18{SIGNEDB & bin[17]}}, bin};
    wire [35:0] plain = plain_a * plain_b;
    always @(posedge CLK0)
        if (RST0) begin a <= 0; b <= 0; sa <= 0; sb <= 0; piped <= 0; out <= 0; end
        else if (CE0) begin
            a <= ain; b <= bin; sa <= SIGNEDA; sb <= SIGNEDB;
            piped <= wide_a * wide_b;
            out <= piped;
        end
    assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
            P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = PLAIN ? plain : out;
    initial if (SOURCEA !== 0 && SOURCEA !== 1'bz && SOURCEA !== 1'bx) $fatal(1, "SOURCEA");
endmodule

// Port A writes, port B reads, output registers on; at 36 bits both halves leave by port B.
module DP16KD (
    input CLKA, CEA, OCEA, RSTA, WEA, CSA2, CSA1, CSA0,
    input CLKB, CEB, OCEB, RSTB, WEB, CSB2, CSB1, CSB0,
    input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
    input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
    input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0,
    input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
    output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0,
    output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
);
    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, REGMODE_A = "NOREG", REGMODE_B = "NOREG";
    parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL", CSDECODE_A = "0b000";
    parameter CSDECODE_B = "0b000", CLKAMUX = "CLKA", CLKBMUX = "CLKB", RESETMODE = "SYNC";
    parameter ASYNC_RESET_RELEASE = "SYNC", GSR = "DISABLED";
    parameter [319:0]
        INITVAL_00 = 0, INITVAL_01 = 0, INITVAL_02 = 0, INITVAL_03 = 0, INITVAL_04 = 0, INITVAL_05 =
        0, INITVAL_06 = 0, INITVAL_07 = 0, INITVAL_08 = 0, INITVAL_09 = 0, INITVAL_0A = 0,
        INITVAL_0B = 0, INITVAL_0C = 0, INITVAL_0D = 0, INITVAL_0E = 0, INITVAL_0F = 0, INITVAL_10 =
        0, INITVAL_11 = 0, INITVAL_12 = 0, INITVAL_13 = 0, INITVAL_14 = 0, INITVAL_15 = 0,
        INITVAL_16 = 0, INITVAL_17 = 0, INITVAL_18 = 0, INITVAL_19 = 0, INITVAL_1A = 0, INITVAL_1B =
        0, INITVAL_1C = 0, INITVAL_1D = 0, INITVAL_1E = 0, INITVAL_1F = 0, INITVAL_20 = 0,
        INITVAL_21 = 0, INITVAL_22 = 0, INITVAL_23 = 0, INITVAL_24 = 0, INITVAL_25 = 0, INITVAL_26 =
        0, INITVAL_27 = 0, INITVAL_28 = 0, INITVAL_29 = 0, INITVAL_2A = 0, INITVAL_2B = 0,
        INITVAL_2C = 0, INITVAL_2D = 0, INITVAL_2E = 0, INITVAL_2F = 0, INITVAL_30 = 0, INITVAL_31 =
        0, INITVAL_32 = 0, INITVAL_33 = 0, INITVAL_34 = 0, INITVAL_35 = 0, INITVAL_36 = 0,
        INITVAL_37 = 0, INITVAL_38 = 0, INITVAL_39 = 0, INITVAL_3A = 0, INITVAL_3B = 0, INITVAL_3C =
        0, INITVAL_3D = 0, INITVAL_3E = 0, INITVAL_3F = 0;
    localparam [64 * 320 - 1:0] INIT =
        {INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39,
        INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32,
        INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B,
        INITVAL_2A, INITVAL_29, INITVAL_28, INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24,
        INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F, INITVAL_1E, INITVAL_1D,
        INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16,
        INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F,
        INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
        INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01,
        INITVAL_00};
    initial begin
        if (REGMODE_A != "OUTREG" || REGMODE_B != "OUTREG" || DATA_WIDTH_A != DATA_WIDTH_B
                || WRITEMODE_A != "NORMAL" || WRITEMODE_B != "NORMAL" || RESETMODE != "SYNC"
                || CSDECODE_A != "0b000" || CSDECODE_B != "0b000" || CLKAMUX != "CLKA"
                || CLKBMUX != "CLKB")
            $fatal(1, "this configuration of DP16KD is not modelled");
    end
    localparam W = DATA_WIDTH_A;
    // Bits that are stored of a word of 9 bits, and words in it.
    localparam SHIFT = W == 36 ? 5 : W == 18 ? 4 : W == 9 ? 3 : W == 4 ? 2 : W == 2 ? 1 : 0;
    reg [18431:0] memory;
    integer i;
    initial for (i = 0; i < 1024; i = i + 1) memory[18 * i +: 18] = INIT[20 * i +: 18];
    wire [13:0] ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    wire [35:0] di = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
                      DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
    function integer place(input [13:0] address);
        // Address bit 3 counts words of 9 bits, the bits below select within one.
        place = W >= 9 ? (address >> SHIFT) * W : (address >> 3) * 9 + (address[2:0] >> SHIFT) * W;
    endfunction
    wire [3:0] enables = W == 36 ? ada[3:0] : W == 18 ? {2'b00, ada[1:0]} : 4'b0001;
    wire write = CEA && WEA && (W < 18 || |enables) && !CSA0 && !CSA1 && !CSA2;
    wire collides = write && ada >> SHIFT == adb >> SHIFT;
    reg [35:0] read, out;
    integer b;
    always @(posedge CLKA) if (write)
        if (W < 9) memory[place(ada) +: W] <= di[(W < 9 ? W - 1 : 0):0];
        else for (b = 0; b < (W + 8) / 9; b = b + 1)
            if (enables[b]) memory[place(ada) + 9 * b +: 9] <= di[9 * b +: 9];
    always @(posedge CLKB) begin
        if (OCEB) out <= RSTB ? 36'd0 : read;
        if (CEB) read <= collides ? 36'dx : memory[place(adb) +: W];
        if (WEB) $fatal(1, "port B does not write");
    end
    assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0} = W == 36 ? out[17:0] : 18'dx;
    assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0} = W == 36 ? out[35:18] : out[17:0];
endmodule
