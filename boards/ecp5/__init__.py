"""Boards with a Lattice ECP5, and its clock."""
