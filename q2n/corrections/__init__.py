"""Corrections: steps after the solver that change scales, codes or bias of a quantized layer."""
