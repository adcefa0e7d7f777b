"""Transforms of weights and activations before rounding: rotations, scales, incoherence processing."""
