"""What lies between the matrix products of a forward pass, in one pass over memory each.

For bfloat16 numbers given as their bits; arithmetic is float32, results are rounded where torch's own
operations would round them. A NaN comes with no bits below those kept, so rounding leaves it what it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from q2n.linalg.kernels import Floats
from q2n.linalg.kernels.jit import jit, jit_summed

Halves = npt.NDArray[np.uint16]
Bits = npt.NDArray[np.uint32]


@jit
def norm_rows(rows: Halves, weight: Halves, epsilon: float, normed: Halves, first: int, last: int) -> None:
    """``weight * round(x / sqrt(mean(x^2) + epsilon))`` for rows ``first .. last-1`` of ``rows`` ``(n, C)``,
    into ``normed``; ``weight`` ``(C,)``."""
    width = rows.shape[1]
    values, factors = np.empty(width, np.float32), np.empty(width, np.float32)
    bits, factor_bits = values.view(np.uint32), factors.view(np.uint32)
    _widen(weight, factor_bits)
    for r in range(first, last):
        _widen(rows[r], bits)
        mean = _sum_of_squares(values) / np.float32(width)
        scale = np.float32(1) / np.sqrt(mean + np.float32(epsilon))
        for c in range(width):
            values[c] = values[c] * scale
        for c in range(width):
            bits[c] = _rounded(bits[c])
        for c in range(width):
            values[c] = factors[c] * values[c]
        _narrow(bits, normed[r])


@jit
def multiply_activated(
    gates: Halves, table: Floats, inputs: Halves, product: Halves, first: int, last: int
) -> None:
    """``table[gates] * inputs`` for rows ``first .. last-1`` of ``gates`` and ``inputs`` ``(n, C)``, into
    ``product`` (it may be one of them); ``table`` ``(65536,)`` has the activation of every bfloat16 number at
    the place its bits count."""
    width = gates.shape[1]
    values = np.empty(width, np.float32)
    bits = values.view(np.uint32)
    for r in range(first, last):
        own = gates[r]
        _widen(inputs[r], bits)
        for c in range(width):
            values[c] = table[own[c]] * values[c]
        _narrow(bits, product[r])


@jit
def _widen(halves: Halves, bits: Bits) -> None:
    for c in range(len(halves)):
        bits[c] = np.uint32(halves[c]) << np.uint32(16)


@jit
def _narrow(bits: Bits, halves: Halves) -> None:
    for c in range(len(bits)):
        halves[c] = np.uint16(_rounded(bits[c]) >> np.uint32(16))


@jit
def _rounded(bits: np.uint32) -> np.uint32:
    """The nearest bfloat16, of two equally near ones the even, as a float32's bits."""
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint32((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000))


@jit_summed
def _sum_of_squares(values: Floats) -> np.float32:
    total = np.float32(0)
    for c in range(len(values)):
        total += values[c] * values[c]
    return total
