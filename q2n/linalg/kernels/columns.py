"""Innermost part of the column loop: a few neighbouring columns, rounded one after the other.

The kernels share their first argument, ``strip``: ``current, push, errors, diagonal, target, values``.
``current`` ``(n, R)`` are the columns with the errors of all columns before the strip pushed onto them;
``push`` ``(n, n)`` holds in ``[i, j]``, ``i < j``, the factor of the error of column ``i`` in column ``j``.
``errors`` ``(n, R)`` is the result: ``(w - q) / diagonal``, or ``q - target`` if ``target`` ``(n, R)`` has
any rows. ``values`` ``(n, R)`` receives the rounded columns if it has any rows. All other arguments belong
to the number format.
"""

from __future__ import annotations

import numpy as np

from q2n.linalg.kernels import Floats, GroupedCodes, StripArrays, jit, jit_fused

SLAB = 512
"""Rows per block: a block passes all columns before the next one, so that its errors stay in the cache."""


@jit
def round_uniform(
    strip: StripArrays, grid: GroupedCodes, before: Floats, levels: float, continued: bool
) -> None:
    """Round to a uniform grid: ``code = clamp(round(w / scale + before) + after, 0, levels)``.

    The value is ``q = scale (code - before - after)``.

    Args:
        strip: columns, see the module.
        grid: codes, ``scale`` and ``after`` ``(G, R)``, and each column's group.
        before: offset added before rounding, ``(G, R)``.
        levels: largest code.
        continued: compute the errors from codes that are not clamped.
    """
    current, push, errors, diagonal, target, values = strip
    codes, scale, after, group = grid
    lowest, highest = np.float32(0), np.float32(levels)
    for first in range(0, current.shape[1], SLAB):
        slab = slice(first, min(first + SLAB, current.shape[1]))
        for j in range(len(current)):
            column, error, code = current[j, slab], errors[j, slab], codes[j, slab]
            _absorb(column, push, errors, j, slab)
            step, shift, zero = scale[group[j], slab], before[group[j], slab], after[group[j], slab]
            for r in range(len(column)):
                code[r] = np.rint(column[r] / step[r] + shift[r]) + zero[r]
            if continued:
                for r in range(len(column)):
                    error[r] = (code[r] - (shift[r] + zero[r])) * step[r]
            for r in range(len(column)):
                code[r] = min(max(code[r], lowest), highest)
            if not continued:
                for r in range(len(column)):
                    error[r] = (code[r] - (shift[r] + zero[r])) * step[r]
            if len(values):
                value = values[j, slab]
                for r in range(len(column)):
                    value[r] = (code[r] - (shift[r] + zero[r])) * step[r]
            _settle(column, error, diagonal[j], target, j, slab)


@jit
def round_table(strip: StripArrays, codes: Floats, table: Floats, middles: Floats) -> None:
    """Round to the nearest entry of each row's codebook, the lower of two equally near ones.

    Args:
        strip: columns, see the module.
        codes: result ``(n, R)``.
        table: codebook ``(L, R)``, ascending.
        middles: midpoints of neighbouring entries, ``(L - 1, R)``.
    """
    current, push, errors, diagonal, target, values = strip
    for first in range(0, current.shape[1], SLAB):
        slab = slice(first, min(first + SLAB, current.shape[1]))
        for j in range(len(current)):
            column, error, code = current[j, slab], errors[j, slab], codes[j, slab]
            _absorb(column, push, errors, j, slab)
            lowest = table[0, slab]
            for r in range(len(column)):
                code[r] = 0
            for r in range(len(column)):
                error[r] = lowest[r]
            for k in range(len(middles)):
                middle, above = middles[k, slab], table[k + 1, slab]
                for r in range(len(column)):
                    code[r] += np.float32(1) if column[r] > middle[r] else np.float32(0)
                for r in range(len(column)):
                    passed, lower = above[r], error[r]
                    error[r] = passed if column[r] > middle[r] else lower
            if len(values):
                values[j, slab] = error
            _settle(column, error, diagonal[j], target, j, slab)


@jit
def round_salient(
    strip: StripArrays, low: GroupedCodes, held: Floats, high: GroupedCodes, levels: float
) -> None:
    """Round to one bit, ``q = mean + spread sign(w - mean)``, where ``held`` is 1; uniformly elsewhere.

    Args:
        strip: columns, see the module.
        low: signs, ``mean`` and ``spread`` of the one-bit part, and each column's group.
        held: mask ``(n, R)`` of the one-bit part.
        high: codes, scale and zero of the uniform part; there is no such part if its codes have no rows.
        levels: largest code of the uniform part.
    """
    current, push, errors, diagonal, target, values = strip
    signs, mean, spread, low_group = low
    codes, scale, zero, high_group = high
    lowest, highest = np.float32(0), np.float32(levels)
    for first in range(0, current.shape[1], SLAB):
        slab = slice(first, min(first + SLAB, current.shape[1]))
        for j in range(len(current)):
            column, error, sign = current[j, slab], errors[j, slab], signs[j, slab]
            _absorb(column, push, errors, j, slab)
            centre, width = mean[low_group[j], slab], spread[low_group[j], slab]
            for r in range(len(column)):
                sign[r] = np.sign(column[r] - centre[r])
            for r in range(len(column)):
                error[r] = centre[r] + width[r] * sign[r]
            if len(codes):
                code, one_bit = codes[j, slab], held[j, slab]
                step, point = scale[high_group[j], slab], zero[high_group[j], slab]
                for r in range(len(column)):
                    code[r] = min(max(np.rint(column[r] / step[r]) + point[r], lowest), highest)
                for r in range(len(column)):
                    fine = (code[r] - point[r]) * step[r]
                    error[r] = error[r] if one_bit[r] > 0 else fine
            if len(values):
                values[j, slab] = error
            _settle(column, error, diagonal[j], target, j, slab)


@jit_fused
def _absorb(column: Floats, push: Floats, errors: Floats, j: int, slab: slice) -> None:
    """Push errors ``0 .. j-1`` onto column ``j``, four per pass so that it is seldom loaded and stored."""
    i = 0
    while i + 4 <= j:
        a, b, c, d = push[i, j], push[i + 1, j], push[i + 2, j], push[i + 3, j]
        e, f, g, h = errors[i, slab], errors[i + 1, slab], errors[i + 2, slab], errors[i + 3, slab]
        for r in range(len(column)):
            column[r] -= a * e[r] + b * f[r] + c * g[r] + d * h[r]
        i += 4
    while i < j:
        a, e = push[i, j], errors[i, slab]
        for r in range(len(column)):
            column[r] -= a * e[r]
        i += 1


@jit
def _settle(column: Floats, error: Floats, diagonal: float, target: Floats, j: int, slab: slice) -> None:
    """Replace the rounded column in ``error`` by the error that is pushed for it."""
    if len(target):
        aim = target[j, slab]
        for r in range(len(column)):
            error[r] -= aim[r]
    else:
        for r in range(len(column)):
            error[r] = (column[r] - error[r]) / diagonal
