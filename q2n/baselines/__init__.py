"""Baselines: the quantization methods that a correction follows."""
