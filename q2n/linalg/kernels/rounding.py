"""Rounding to nearest in one pass over memory, with the range found on the way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from q2n.linalg.kernels import Floats
from q2n.linalg.kernels.jit import jit

Halves = npt.NDArray[np.int16]
Bits = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]

MAGNITUDE = 0x7FFFFFFF
"""The bits of a float without its sign: larger numbers have larger bits, and NaN has the largest."""

LANES = 16
"""Minima and maxima found side by side, so that the processor can compare many numbers at once."""


@jit
def round_scaled(
    weight: Floats,
    scale: Floats,
    size: int,
    levels: int,
    least_range: float,
    rounded: Floats,
    first: int,
    last: int,
) -> None:
    """``Q(w s) / s`` for rows ``first .. last-1`` of ``weight`` ``(R, C)`` with ``scale`` ``(C,)``; runs of
    ``size`` columns have a grid each, from their least to their largest value."""
    top, shortest = np.float32(levels), np.float32(least_range)
    scaled, lanes = np.empty(weight.shape[1], np.float32), np.empty((2, LANES), np.float32)
    for r in range(first, last):
        row, out = weight[r], rounded[r]
        for c in range(len(row)):
            scaled[c] = row[c] * scale[c]
        for start in range(0, len(row), size):
            part, target, own = (
                scaled[start : start + size],
                out[start : start + size],
                scale[start : start + size],
            )
            low, high = _extremes(part, lanes)
            step = max(high - low, shortest) / top
            zero = min(max(-np.rint(low / step), np.float32(0)), top)
            for c in range(len(part)):
                code = min(max(np.rint(part[c] / step) + zero, np.float32(0)), top)
                target[c] = (code - zero) * step / own[c]


@jit
def _extremes(values: Floats, lanes: Floats) -> tuple[np.float32, np.float32]:
    lanes[:] = values[0]
    low, high = lanes[0], lanes[1]
    whole = len(values) - len(values) % LANES
    for start in range(0, whole, LANES):
        part = values[start : start + LANES]
        for lane in range(LANES):
            low[lane] = min(low[lane], part[lane])
        for lane in range(LANES):
            high[lane] = max(high[lane], part[lane])
    for c in range(whole, len(values)):
        low[0], high[0] = min(low[0], values[c]), max(high[0], values[c])
    return low.min(), high.max()


@jit
def add_column_errors(weight: Floats, scale: Floats, zero: Floats, levels: int, errors: Doubles) -> None:
    """Add the squares of what rounding ``weight`` ``(R, C)`` changes to ``errors`` ``(C,)``; every row has
    one ``scale`` and ``zero``, both ``(R,)``."""
    top = np.float32(levels)
    for r in range(weight.shape[0]):
        row, step, point = weight[r], scale[r], zero[r]
        for c in range(len(row)):
            code = min(max(np.rint(row[c] / step) + point, np.float32(0)), top)
            error = row[c] - step * (code - point)
            errors[c] += error * error


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
    tokens: Halves, bits: int, clip_ratio: float, rounded: Halves, first: int, last: int
) -> None:
    """:func:`round_tokens` for bfloat16 numbers, given and returned as their bits."""
    width = tokens.shape[1]
    values, results = np.empty(width, np.float32), np.empty(width, np.float32)
    largest = np.empty(1, np.float32)
    value_bits, result_bits = values.view(np.int32), results.view(np.int32)
    for r in range(first, last):
        run, out = tokens[r], rounded[r]
        for c in range(width):
            value_bits[c] = np.int32(run[c]) << np.int32(16)
        _round_run(values, bits, np.float32(clip_ratio), largest, results)
        for c in range(width):
            # To the nearest bfloat16, of two equally near to the even one.
            whole = result_bits[c]
            odd = (whole >> np.int32(16)) & np.int32(1)
            out[c] = np.int16((whole + np.int32(0x7FFF) + odd) >> np.int32(16))


@jit
def _round_run(values: Floats, bits: int, clip_ratio: np.float32, largest: Floats, rounded: Floats) -> None:
    largest.view(np.int32)[0] = _largest_magnitude(values.view(np.int32))
    bound = np.float32(1 << (bits - 1))
    step = largest[0] * clip_ratio / (bound - np.float32(1))
    if step == 0:  # zeros, or numbers too small to be divided
        step = np.float32(1)
    for c in range(len(values)):
        rounded[c] = min(max(np.rint(values[c] / step), -bound), bound - np.float32(1)) * step


@jit
def _largest_magnitude(bits: Bits) -> np.int32:
    largest = np.int32(0)
    for c in range(len(bits)):
        largest = max(largest, bits[c] & np.int32(MAGNITUDE))
    return largest
