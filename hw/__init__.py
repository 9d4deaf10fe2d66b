"""Gateware: from an integer network and a folding to Amaranth components."""
