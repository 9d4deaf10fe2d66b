"""Progressive mixed-precision search."""
