"""A transform's gateware as a folder for somebody else's design, with a test bench of its own."""
