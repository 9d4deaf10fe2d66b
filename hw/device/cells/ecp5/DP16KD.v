// Behavioural model of ECP5's block RAM as Lichen uses it: port A writes, port B reads through its
// output register, both 36, 18, 9, 4, 2 or 1 bits wide. Words of 36 bits leave by both ports. Who
// reads what is written in the same cycle gets unknown bits. Other uses end the simulation.

module DP16KD #(
    parameter integer DATA_WIDTH_A = 18,
    parameter integer DATA_WIDTH_B = 18,
    parameter REGMODE_A = "NOREG",
    parameter REGMODE_B = "NOREG",
    parameter WRITEMODE_A = "NORMAL",
    parameter WRITEMODE_B = "NORMAL",
    parameter CSDECODE_A = "0b000",
    parameter CSDECODE_B = "0b000",
    parameter CLKAMUX = "CLKA",
    parameter CLKBMUX = "CLKB",
    parameter RESETMODE = "SYNC",
    parameter ASYNC_RESET_RELEASE = "SYNC",
    parameter GSR = "DISABLED",
    parameter [319:0] INITVAL_00 = 320'd0,
    parameter [319:0] INITVAL_01 = 320'd0,
    parameter [319:0] INITVAL_02 = 320'd0,
    parameter [319:0] INITVAL_03 = 320'd0,
    parameter [319:0] INITVAL_04 = 320'd0,
    parameter [319:0] INITVAL_05 = 320'd0,
    parameter [319:0] INITVAL_06 = 320'd0,
    parameter [319:0] INITVAL_07 = 320'd0,
    parameter [319:0] INITVAL_08 = 320'd0,
    parameter [319:0] INITVAL_09 = 320'd0,
    parameter [319:0] INITVAL_0A = 320'd0,
    parameter [319:0] INITVAL_0B = 320'd0,
    parameter [319:0] INITVAL_0C = 320'd0,
    parameter [319:0] INITVAL_0D = 320'd0,
    parameter [319:0] INITVAL_0E = 320'd0,
    parameter [319:0] INITVAL_0F = 320'd0,
    parameter [319:0] INITVAL_10 = 320'd0,
    parameter [319:0] INITVAL_11 = 320'd0,
    parameter [319:0] INITVAL_12 = 320'd0,
    parameter [319:0] INITVAL_13 = 320'd0,
    parameter [319:0] INITVAL_14 = 320'd0,
    parameter [319:0] INITVAL_15 = 320'd0,
    parameter [319:0] INITVAL_16 = 320'd0,
    parameter [319:0] INITVAL_17 = 320'd0,
    parameter [319:0] INITVAL_18 = 320'd0,
    parameter [319:0] INITVAL_19 = 320'd0,
    parameter [319:0] INITVAL_1A = 320'd0,
    parameter [319:0] INITVAL_1B = 320'd0,
    parameter [319:0] INITVAL_1C = 320'd0,
    parameter [319:0] INITVAL_1D = 320'd0,
    parameter [319:0] INITVAL_1E = 320'd0,
    parameter [319:0] INITVAL_1F = 320'd0,
    parameter [319:0] INITVAL_20 = 320'd0,
    parameter [319:0] INITVAL_21 = 320'd0,
    parameter [319:0] INITVAL_22 = 320'd0,
    parameter [319:0] INITVAL_23 = 320'd0,
    parameter [319:0] INITVAL_24 = 320'd0,
    parameter [319:0] INITVAL_25 = 320'd0,
    parameter [319:0] INITVAL_26 = 320'd0,
    parameter [319:0] INITVAL_27 = 320'd0,
    parameter [319:0] INITVAL_28 = 320'd0,
    parameter [319:0] INITVAL_29 = 320'd0,
    parameter [319:0] INITVAL_2A = 320'd0,
    parameter [319:0] INITVAL_2B = 320'd0,
    parameter [319:0] INITVAL_2C = 320'd0,
    parameter [319:0] INITVAL_2D = 320'd0,
    parameter [319:0] INITVAL_2E = 320'd0,
    parameter [319:0] INITVAL_2F = 320'd0,
    parameter [319:0] INITVAL_30 = 320'd0,
    parameter [319:0] INITVAL_31 = 320'd0,
    parameter [319:0] INITVAL_32 = 320'd0,
    parameter [319:0] INITVAL_33 = 320'd0,
    parameter [319:0] INITVAL_34 = 320'd0,
    parameter [319:0] INITVAL_35 = 320'd0,
    parameter [319:0] INITVAL_36 = 320'd0,
    parameter [319:0] INITVAL_37 = 320'd0,
    parameter [319:0] INITVAL_38 = 320'd0,
    parameter [319:0] INITVAL_39 = 320'd0,
    parameter [319:0] INITVAL_3A = 320'd0,
    parameter [319:0] INITVAL_3B = 320'd0,
    parameter [319:0] INITVAL_3C = 320'd0,
    parameter [319:0] INITVAL_3D = 320'd0,
    parameter [319:0] INITVAL_3E = 320'd0,
    parameter [319:0] INITVAL_3F = 320'd0
) (
    input wire CLKA,
    input wire CEA,
    input wire OCEA,
    input wire RSTA,
    input wire WEA,
    input wire CLKB,
    input wire CEB,
    input wire OCEB,
    input wire RSTB,
    input wire WEB,
    input wire CSA0,
    input wire CSA1,
    input wire CSA2,
    input wire CSB0,
    input wire CSB1,
    input wire CSB2,
    input wire ADA0,
    input wire ADA1,
    input wire ADA2,
    input wire ADA3,
    input wire ADA4,
    input wire ADA5,
    input wire ADA6,
    input wire ADA7,
    input wire ADA8,
    input wire ADA9,
    input wire ADA10,
    input wire ADA11,
    input wire ADA12,
    input wire ADA13,
    input wire ADB0,
    input wire ADB1,
    input wire ADB2,
    input wire ADB3,
    input wire ADB4,
    input wire ADB5,
    input wire ADB6,
    input wire ADB7,
    input wire ADB8,
    input wire ADB9,
    input wire ADB10,
    input wire ADB11,
    input wire ADB12,
    input wire ADB13,
    input wire DIA0,
    input wire DIA1,
    input wire DIA2,
    input wire DIA3,
    input wire DIA4,
    input wire DIA5,
    input wire DIA6,
    input wire DIA7,
    input wire DIA8,
    input wire DIA9,
    input wire DIA10,
    input wire DIA11,
    input wire DIA12,
    input wire DIA13,
    input wire DIA14,
    input wire DIA15,
    input wire DIA16,
    input wire DIA17,
    input wire DIB0,
    input wire DIB1,
    input wire DIB2,
    input wire DIB3,
    input wire DIB4,
    input wire DIB5,
    input wire DIB6,
    input wire DIB7,
    input wire DIB8,
    input wire DIB9,
    input wire DIB10,
    input wire DIB11,
    input wire DIB12,
    input wire DIB13,
    input wire DIB14,
    input wire DIB15,
    input wire DIB16,
    input wire DIB17,
    output wire DOA0,
    output wire DOA1,
    output wire DOA2,
    output wire DOA3,
    output wire DOA4,
    output wire DOA5,
    output wire DOA6,
    output wire DOA7,
    output wire DOA8,
    output wire DOA9,
    output wire DOA10,
    output wire DOA11,
    output wire DOA12,
    output wire DOA13,
    output wire DOA14,
    output wire DOA15,
    output wire DOA16,
    output wire DOA17,
    output wire DOB0,
    output wire DOB1,
    output wire DOB2,
    output wire DOB3,
    output wire DOB4,
    output wire DOB5,
    output wire DOB6,
    output wire DOB7,
    output wire DOB8,
    output wire DOB9,
    output wire DOB10,
    output wire DOB11,
    output wire DOB12,
    output wire DOB13,
    output wire DOB14,
    output wire DOB15,
    output wire DOB16,
    output wire DOB17
);
  localparam integer W = DATA_WIDTH_B;
  wire [13:0] write_at = {
    ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0
  };
  wire [13:0] read_at = {
    ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0
  };
  wire [35:0] data = {
    DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9,
    DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
    DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9,
    DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0
  };
  wire write = CEA && WEA && !CSA0 && !CSA1 && !CSA2;
  reg [17:0] memory [0:1023];
  reg [35:0] word, out;
  integer i;

  // Sixteen words of a parameter, which holds 18 bits in 20.
  task load(input [5:0] row, input [319:0] value);
    for (i = 0; i < 16; i = i + 1) memory[{row, i[3:0]}] = value[20 * i +: 18];
  endtask

  initial begin
    load(6'h00, INITVAL_00);
    load(6'h01, INITVAL_01);
    load(6'h02, INITVAL_02);
    load(6'h03, INITVAL_03);
    load(6'h04, INITVAL_04);
    load(6'h05, INITVAL_05);
    load(6'h06, INITVAL_06);
    load(6'h07, INITVAL_07);
    load(6'h08, INITVAL_08);
    load(6'h09, INITVAL_09);
    load(6'h0A, INITVAL_0A);
    load(6'h0B, INITVAL_0B);
    load(6'h0C, INITVAL_0C);
    load(6'h0D, INITVAL_0D);
    load(6'h0E, INITVAL_0E);
    load(6'h0F, INITVAL_0F);
    load(6'h10, INITVAL_10);
    load(6'h11, INITVAL_11);
    load(6'h12, INITVAL_12);
    load(6'h13, INITVAL_13);
    load(6'h14, INITVAL_14);
    load(6'h15, INITVAL_15);
    load(6'h16, INITVAL_16);
    load(6'h17, INITVAL_17);
    load(6'h18, INITVAL_18);
    load(6'h19, INITVAL_19);
    load(6'h1A, INITVAL_1A);
    load(6'h1B, INITVAL_1B);
    load(6'h1C, INITVAL_1C);
    load(6'h1D, INITVAL_1D);
    load(6'h1E, INITVAL_1E);
    load(6'h1F, INITVAL_1F);
    load(6'h20, INITVAL_20);
    load(6'h21, INITVAL_21);
    load(6'h22, INITVAL_22);
    load(6'h23, INITVAL_23);
    load(6'h24, INITVAL_24);
    load(6'h25, INITVAL_25);
    load(6'h26, INITVAL_26);
    load(6'h27, INITVAL_27);
    load(6'h28, INITVAL_28);
    load(6'h29, INITVAL_29);
    load(6'h2A, INITVAL_2A);
    load(6'h2B, INITVAL_2B);
    load(6'h2C, INITVAL_2C);
    load(6'h2D, INITVAL_2D);
    load(6'h2E, INITVAL_2E);
    load(6'h2F, INITVAL_2F);
    load(6'h30, INITVAL_30);
    load(6'h31, INITVAL_31);
    load(6'h32, INITVAL_32);
    load(6'h33, INITVAL_33);
    load(6'h34, INITVAL_34);
    load(6'h35, INITVAL_35);
    load(6'h36, INITVAL_36);
    load(6'h37, INITVAL_37);
    load(6'h38, INITVAL_38);
    load(6'h39, INITVAL_39);
    load(6'h3A, INITVAL_3A);
    load(6'h3B, INITVAL_3B);
    load(6'h3C, INITVAL_3C);
    load(6'h3D, INITVAL_3D);
    load(6'h3E, INITVAL_3E);
    load(6'h3F, INITVAL_3F);
    word = 36'd0;
    out = 36'd0;
  end

  generate
    if (W == 36) begin : words
      always @(posedge CLKA)
        if (write) begin
          memory[{write_at[13:5], 1'b0}] <= data[17:0];
          memory[{write_at[13:5], 1'b1}] <= data[35:18];
        end
      always @(posedge CLKB)
        if (CEB)
          word <= write && write_at[13:5] == read_at[13:5] ? 36'dx
            : {memory[{read_at[13:5], 1'b1}], memory[{read_at[13:5], 1'b0}]};
      wire unused = &{1'b0, read_at[4:0], write_at[4:0]};
    end else if (W == 18) begin : halves
      always @(posedge CLKA) if (write) memory[write_at[13:4]] <= data[17:0];
      always @(posedge CLKB)
        if (CEB)
          word <= write && write_at[13:4] == read_at[13:4] ? 36'dx
            : {18'd0, memory[read_at[13:4]]};
      wire unused = &{1'b0, read_at[3:0], write_at[3:0], data[35:18]};
    end else begin : parts
      // Address bit 3 counts nine bits, of which narrower words leave the last one out.
      localparam integer BITS = W;
      localparam [2:0] INSIDE = W == 9 ? 3'd0 : ~(W[2:0] - 3'd1);
      wire [4:0] write_bit = (write_at[3] ? 5'd9 : 5'd0) + {2'b00, write_at[2:0] & INSIDE};
      wire [4:0] read_bit = (read_at[3] ? 5'd9 : 5'd0) + {2'b00, read_at[2:0] & INSIDE};
      wire same = write_at[13:4] == read_at[13:4] && write_bit == read_bit;
      always @(posedge CLKA) if (write) memory[write_at[13:4]][write_bit +: BITS] <= data[BITS-1:0];
      always @(posedge CLKB)
        if (CEB)
          word <= write && same ? 36'dx
            : {{(36 - BITS){1'b0}}, memory[read_at[13:4]][read_bit +: BITS]};
      wire unused = &{1'b0, data[35:BITS]};
    end
  endgenerate

  always @(posedge CLKB) if (OCEB) out <= RSTB ? 36'd0 : word;

  assign {
    DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9,
    DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0
  } = W == 36 ? out[17:0] : 18'dx;
  assign {
    DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9,
    DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
  } = W == 36 ? out[35:18] : out[17:0];

  initial
    if (REGMODE_A != "OUTREG" || REGMODE_B != "OUTREG" || DATA_WIDTH_A != DATA_WIDTH_B
        || WRITEMODE_A != "NORMAL" || WRITEMODE_B != "NORMAL" || CSDECODE_A != "0b000"
        || CSDECODE_B != "0b000" || CLKAMUX != "CLKA" || CLKBMUX != "CLKB"
        || RESETMODE != "SYNC" || ASYNC_RESET_RELEASE != "SYNC" || GSR != "DISABLED") begin
      $display("DP16KD: these parameters are not modelled");
      $finish;
    end
  always @(posedge CLKB)
    if (WEB) begin
      $display("DP16KD: port B does not write");
      $finish;
    end

  wire unused = &{1'b0, OCEA, RSTA, CSB0, CSB1, CSB2};
endmodule
