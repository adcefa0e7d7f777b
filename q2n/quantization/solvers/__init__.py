"""Solvers: rounding of one layer's weight, with or without compensation of the error."""
