"""Estimating the inputs' null space, and the row scales that follow from it: pure functions of tensors."""
