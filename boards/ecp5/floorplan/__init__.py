"""Places for multipliers and block RAMs, chosen before nextpnr places the rest."""
