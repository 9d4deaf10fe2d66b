"""What multiplies: elements, arrays, the buffers that feed them and what requantizes their sums."""
