"""Real-valued networks, from wherever their weights came."""
