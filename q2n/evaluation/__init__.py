"""Evaluations of the unquantized and the quantized model: config group ``evaluation``."""
