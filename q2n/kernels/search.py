"""Searches for the uniform grid on which a row of weights has the least error in the 2.4-th power."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from q2n.kernels import Floats, Places
from q2n.kernels.jit import jit, jit_fused, jit_summed

Doubles = npt.NDArray[np.float64]

CHUNK = 192
"""Weights between two looks at whether an error is already too large."""

SMALLEST_BITS = 228737632
"""Those of 1e-30, whose root smaller squares get: zero has none, and beside any error they are nothing."""

ROOT_BITS = 1277971000
"""Bits of ``x^(-1/5)`` as a float are near this minus a fifth of those of ``x``: 6/5 of the bits of 1, less a
correction for how far a logarithm is from a float's bits."""


@jit
def best_shrinkage(
    weight: Floats, scales: Floats, zeros: Floats, levels: int, best: Places, first: int, last: int
) -> None:
    """For rows ``first .. last-1`` of ``weight`` ``(R, C)`` which of the candidates ``scales``, ``zeros``
    ``(S, R)`` is best, the first of equals, into ``best`` ``(R,)``."""
    squares, roots = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for r in range(first, last):
        least = np.inf
        for trial in range(len(scales)):
            step, zero = scales[trial, r], zeros[trial, r]
            error = _error(weight[r], step, zero, levels, float(step), least, squares, roots)
            if error < least:
                least, best[r] = error, trial


@jit
def best_step_and_zero(
    weight: Floats,
    unit: Floats,
    levels: int,
    steps: int,
    margin: float,
    round_off: float,
    best: Places,
    first: int,
    last: int,
) -> None:
    """For rows ``first .. last-1`` of ``weight`` ``(R, C)`` the number ``(i - 1) (levels + 1) + zero`` of the
    step ``i unit`` and zero point that are best, into ``best`` ``(R,)``.

    Bound, its ``margin`` and ``round_off``, and choice are those of :mod:`q2n.grids.mse2d`; here a candidate
    whose bound is above the least error so far is not evaluated.
    """
    columns, reach = weight.shape[1], levels * steps
    below, bound = np.empty((3, 4 * reach + 1)), np.empty(steps * (levels + 1))
    squares, roots = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for r in range(first, last):
        _cumulate(weight[r], float(unit[r]), reach, below)
        _bounds(below, levels, steps, round_off * columns * reach, bound)
        winner = int(np.argmin(bound))
        least = _candidate_error(weight[r], unit[r], winner, levels, np.inf, squares, roots)
        limit = (least * (1 + margin)) ** 5
        for trial in range(len(bound)):
            if bound[trial] > limit:
                continue
            error = _candidate_error(weight[r], unit[r], trial, levels, least, squares, roots)
            if error < least or (error == least and trial < winner):
                least, winner = error, trial
                limit = (least * (1 + margin)) ** 5
        best[r] = winner


@jit
def _candidate_error(
    row: Floats, unit: float, candidate: int, levels: int, limit: float, squares: Floats, roots: Floats
) -> float:
    multiple = np.float32(candidate // (levels + 1) + 1)
    zero = np.float32(candidate % (levels + 1))
    return _error(row, np.float32(unit) * multiple, zero, levels, float(multiple), limit, squares, roots)


@jit
def _cumulate(row: Floats, unit: float, reach: int, below: Doubles) -> None:
    """Count, sum and sum of squares of the values, in units, below each half unit from ``-reach`` to
    ``reach``."""
    below[:] = 0
    for value in row:
        x = min(max(value / unit, -float(reach)), float(reach))
        place = min(max(int(np.floor(2 * x)) + 2 * reach, 0), 4 * reach - 1) + 1
        below[0, place] += 1
        below[1, place] += x
        below[2, place] += x * x
    count = total = squares = 0.0
    for place in range(below.shape[1]):
        count += below[0, place]
        total += below[1, place]
        squares += below[2, place]
        below[0, place], below[1, place], below[2, place] = count, total, squares


@jit_fused
def _bounds(below: Doubles, levels: int, steps: int, slack: float, bound: Doubles) -> None:
    """Fifth powers of the bounds ``(sum d^2)^1.4 / (sum |d|)^0.4`` of all candidates, in powers of a unit."""
    reach = levels * steps
    count, total, squares = below[0], below[1], below[2]
    ends = 2 * levels + 2
    first, second = np.zeros(ends), np.zeros(ends)
    left, left_squares, right, right_squares = np.empty(ends), np.empty(ends), np.empty(ends), np.empty(ends)
    for i in range(1, steps + 1):
        low = max(2 * reach - (2 * levels + 1) * i, 0)
        for m in range(-levels, levels + 1):
            # What lies nearer to level m than to any other, were there no end to the levels.
            at, value = m + levels, float(m * i)
            middle, high = 2 * reach + 2 * m * i, min(2 * reach + (2 * m + 1) * i, 4 * reach)
            inside, sum_inside = count[high] - count[low], total[high] - total[low]
            outward = count[high] + count[low] - 2 * count[middle]
            sum_outward = total[high] + total[low] - 2 * total[middle]
            first[at + 1] = first[at] + sum_outward - outward * value
            shifted = sum_inside - value * inside
            second[at + 1] = second[at] + squares[high] - squares[low] - value * (sum_inside + shifted)
            # What lies beyond level m, were it the lowest one or the highest one.
            shifted = total[low] - value * count[low]
            left[at], left_squares[at] = shifted, squares[low] - value * (total[low] + shifted)
            inside, sum_inside = count[-1] - count[high], total[-1] - total[high]
            shifted = sum_inside - value * inside
            right[at] = shifted
            right_squares[at] = squares[-1] - squares[high] - value * (sum_inside + shifted)
            low = high
        for zero in range(levels + 1):
            a, b = levels - zero, 2 * levels - zero
            moment = first[b + 1] - first[a] - left[a] + right[b] + slack
            square = second[b + 1] - second[a] + left_squares[a] + right_squares[b] - slack * reach
            square = max(square, 0.0)
            cube = square * square * square
            bound[(i - 1) * (levels + 1) + zero] = cube * cube * square / (moment * moment)


@jit_summed
def _error(
    row: Floats,
    step: np.float32,
    zero: np.float32,
    levels: int,
    unit: float,
    limit: float,
    squares: Floats,
    roots: Floats,
) -> float:
    """``unit^2.4 sum |w / step - level|^2.4`` with the nearest of the levels ``-zero .. levels - zero``, in
    single precision; infinite as soon as it is above ``limit``.

    ``|d|^2.4 = (x (x^(-1/5))^2)^2`` with ``x = d^2``; the root by Newton's iteration from a float's bits.
    ``squares`` and ``roots`` ``(CHUNK,)`` are scratch.
    """
    square_bits, root_bits = squares.view(np.int32), roots.view(np.int32)
    lowest, highest = -zero, np.float32(levels) - zero
    factor = np.float32(unit) ** np.float32(2.4)
    total = np.float32(0)
    for start in range(0, len(row), CHUNK):
        part = row[start : start + CHUNK]
        for c in range(len(part)):
            ratio = part[c] / step
            distance = ratio - min(max(np.rint(ratio), lowest), highest)
            squares[c] = distance * distance
        for c in range(len(part)):
            bits = max(square_bits[c], np.int32(SMALLEST_BITS))
            root_bits[c] = np.int32(ROOT_BITS) - bits // np.int32(5)
        for c in range(len(part)):
            square, root = squares[c], roots[c]
            for _ in range(3):
                fourth = root * root * root * root
                root *= np.float32(1.2) - np.float32(0.2) * square * fourth * root
            power = square * root * root
            total += power * power
        if total * factor > limit:
            return np.inf
    return float(total * factor)
