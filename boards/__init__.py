"""Boards: budgets, clocks, the host link, and the way from gateware to a bitstream."""
