"""From Amaranth's netlist to Verilog that lints without a waiver."""
