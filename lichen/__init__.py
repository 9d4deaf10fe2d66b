"""Lichen grows trained learned-image-compression networks on open FPGAs."""
