"""Post-training quantization: what calibration images decide."""
