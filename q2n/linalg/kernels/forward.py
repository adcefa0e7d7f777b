"""What lies between the matrix products of a forward pass, in one pass over memory each.

Bfloat16 numbers are given as their bits; arithmetic is float32, results are rounded where torch's own
operations would round them. A NaN comes with no bits below those kept, so rounding leaves it what it is.
"""

from __future__ import annotations

import numpy as np

from q2n.linalg.kernels import FloatBits, Floats, HalfBits, jit, jit_summed

MAGNITUDE = 0x7FFFFFFF
"""The bits of a float without its sign: larger numbers have larger bits, and NaN has the largest."""


@jit
def norm_rows(
    rows: HalfBits, weight: HalfBits, epsilon: float, normed: HalfBits, first: int, last: int
) -> None:
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
    gates: HalfBits, table: Floats, inputs: HalfBits, product: HalfBits, first: int, last: int
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
def round_tokens(
    tokens: Floats, bits: int, clip_ratio: float, rounded: Floats, first: int, last: int
) -> None:
    """Symmetric rounding of rows ``first .. last-1`` of ``tokens`` ``(n, C)``, each on a grid of its own with
    ``clip_ratio`` times the largest magnitude as its largest level."""
    largest = np.empty(1, np.float32)
    for r in range(first, last):
        _round_run(tokens[r], bits, np.float32(clip_ratio), largest, rounded[r])


@jit
def round_half_tokens(
    tokens: HalfBits, bits: int, clip_ratio: float, rounded: HalfBits, first: int, last: int
) -> None:
    """:func:`round_tokens` for bfloat16 numbers, given and returned as their bits."""
    values, results = np.empty(tokens.shape[1], np.float32), np.empty(tokens.shape[1], np.float32)
    largest = np.empty(1, np.float32)
    for r in range(first, last):
        _widen(tokens[r], values.view(np.uint32))
        _round_run(values, bits, np.float32(clip_ratio), largest, results)
        _narrow(results.view(np.uint32), rounded[r])


@jit
def _round_run(values: Floats, bits: int, clip_ratio: np.float32, largest: Floats, rounded: Floats) -> None:
    largest.view(np.uint32)[0] = _largest_magnitude(values.view(np.uint32))
    bound = np.float32(1 << (bits - 1))
    step = largest[0] * clip_ratio / (bound - np.float32(1))
    if step == 0:  # zeros, or numbers too small to be divided
        step = np.float32(1)
    for c in range(len(values)):
        rounded[c] = min(max(np.rint(values[c] / step), -bound), bound - np.float32(1)) * step


@jit
def _largest_magnitude(bits: FloatBits) -> np.uint32:
    largest = np.uint32(0)
    for c in range(len(bits)):
        largest = max(largest, bits[c] & np.uint32(MAGNITUDE))
    return largest


@jit
def _widen(halves: HalfBits, bits: FloatBits) -> None:
    for c in range(len(halves)):
        bits[c] = np.uint32(halves[c]) << np.uint32(16)


@jit
def _narrow(bits: FloatBits, halves: HalfBits) -> None:
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
