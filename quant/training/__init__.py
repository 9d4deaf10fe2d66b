"""Training of FP32 networks, and fine-tuning through integers."""
