"""What cells, memories and multipliers a device has, and what they cost."""
