"""Round-to-nearest in one pass over memory, range search included."""

from __future__ import annotations

import numpy as np

from q2n.linalg.kernels import Doubles, Floats, jit

LANES = 16
"""Minima and maxima found side by side, so that comparisons are vectorised."""


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
    """Write ``Q(w s) / s`` for rows ``first .. last-1`` of ``weight`` into ``rounded``, both ``(R, C)``.

    ``scale`` ``(C,)`` is ``s``. Each run of ``size`` columns has a grid of its own from its smallest to its
    largest value, or of the width ``least_range`` if that is larger.
    """
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
    """Add the squared rounding errors of the columns of ``weight`` ``(R, C)`` to ``errors`` ``(C,)``.

    Every row has one ``scale`` and one ``zero``, both ``(R,)``; ``levels`` is the largest code.
    """
    top = np.float32(levels)
    for r in range(weight.shape[0]):
        row, step, point = weight[r], scale[r], zero[r]
        for c in range(len(row)):
            code = min(max(np.rint(row[c] / step) + point, np.float32(0)), top)
            error = row[c] - step * (code - point)
            errors[c] += error * error
