"""GDN-Slimming."""
