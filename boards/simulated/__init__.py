"""A board in Verilator, behind a pseudo-terminal."""
