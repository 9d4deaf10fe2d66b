"""Dynamic Range-Aware Quantization."""
