"""The integer network: its arithmetic, its typed description and its file."""
