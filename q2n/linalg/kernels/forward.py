"""Operations between the matrix products of a forward pass, each in one pass over memory.

bfloat16 numbers are given as their bits; arithmetic is float32, results are rounded where torch's own
operations would round them. A NaN has no bits set below those that are kept, so rounding keeps it.
"""

from __future__ import annotations

import numpy as np

from q2n.linalg.kernels import FloatBits, Floats, HalfBits, jit, jit_summed

MAGNITUDE = 0x7FFFFFFF
"""Mask of a float's bits without its sign: larger numbers have larger bits, and NaN has the largest."""


@jit
def norm_rows(
    rows: HalfBits, weight: HalfBits, epsilon: float, normed: HalfBits, first: int, last: int
) -> None:
    """Apply an RMS norm: ``weight * round(x / sqrt(mean(x^2) + epsilon))``.

    Rows ``first .. last-1`` of ``rows`` ``(n, C)`` go into ``normed``; ``weight`` is ``(C,)``.
    """
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
    """Write ``table[gates] * inputs`` for rows ``first .. last-1`` into ``product``.

    ``gates``, ``inputs`` and ``product`` are ``(n, C)``; ``product`` may be one of the others. ``table``
    ``(65536,)`` holds the activation of every bfloat16 number, indexed by its bits.
    """
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
    """Round rows ``first .. last-1`` of ``tokens`` ``(n, C)`` symmetrically, each on its own grid.

    The largest level is ``clip_ratio`` times the largest magnitude of the row.
    """
    largest = np.empty(1, np.float32)
    for r in range(first, last):
        _round_run(tokens[r], bits, np.float32(clip_ratio), largest, rounded[r])


@jit
def round_half_tokens(
    tokens: HalfBits, bits: int, clip_ratio: float, rounded: HalfBits, first: int, last: int
) -> None:
    """Round tokens like :func:`round_tokens`, for bfloat16 numbers given and returned as their bits."""
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
    """Round to the nearest bfloat16, ties to even; argument and result are bits of a float32."""
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint32((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000))


@jit_summed
def _sum_of_squares(values: Floats) -> np.float32:
    total = np.float32(0)
    for c in range(len(values)):
        total += values[c] * values[c]
    return total
