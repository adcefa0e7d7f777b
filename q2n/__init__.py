"""q2n: post-training quantization of language models with null-space correction, made reproducible."""

__version__ = "0.1.0"
