"""Who chooses: foldings, tiles, cycles and prices, before any synthesis."""
