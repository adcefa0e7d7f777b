"""Estimation of the null space of the inputs and of the row scales: pure functions of tensors."""
