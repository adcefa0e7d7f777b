"""Searches for the uniform grid with the least error in the power 2.4, row by row."""

from __future__ import annotations

import numpy as np

from q2n.linalg.kernels import Doubles, FloatBits, Floats, Places, jit, jit_fused, jit_summed

Steps = tuple[Places, Doubles, float]
"""Steps tried, as multiples ``(S,)`` of a unit; minorants ``(S, 7)`` of a weight's error, as
:mod:`q2n.quantization.formats.clip` defines them; and the relative tolerance of a bound."""

MAGNITUDE = 0x7FFFFFFF
"""Mask of a float's bits without its sign: larger numbers have larger bits."""

LANES = 32
"""Rows whose bounds are computed side by side: a loop over fewer would not be vectorised."""

WORTHWHILE = 4
"""Weights times candidates per half unit of the range above which bounds save time."""

CHUNK = 192
"""Weights between two comparisons of an error with its limit."""

SMALLEST_BITS = 228737632
"""Bits of 1e-30, the least square whose root is taken: zero has no root ``x^(-1/5)``, and smaller squares
are negligible beside any error."""

ROOT_BITS = 1277971000
"""Constant of the first guess: the bits of ``x^(-1/5)`` are near this minus a fifth of the bits of ``x``. It
is 6/5 of the bits of 1, less a correction for the difference between a logarithm and a float's bits."""


@jit
def best_shrinkage(
    weight: Floats,
    scales: Floats,
    zeros: Floats,
    levels: int,
    steps: Steps,
    best: Places,
    first: int,
    last: int,
) -> None:
    """Write the index of the best candidate of rows ``first .. last-1`` into ``best`` ``(R,)``.

    Ties go to the first candidate. A candidate whose bound is above the least error so far is not evaluated.
    All candidates are evaluated if rows are short and levels many: bounds would take longer.

    Args:
        weight: ``(R, C)``.
        scales: candidates ``(S, R)``; the scales of a row are proportional to the multiples of ``steps``.
        zeros: zero points of the candidates ``(S, R)``.
        levels: largest code.
        steps: multiples, minorants and margin, see :data:`Steps`.
        best: result, int64.
        first: first row.
        last: row after the last one.
    """
    multiples, minorants, margin = steps
    reach = levels * multiples.max()
    bounded = weight.shape[1] * len(scales) > WORTHWHILE * (4 * reach + 1)
    below = np.empty((4 * reach + 1 if bounded else 0, 4, LANES))
    bound = np.zeros((len(scales), levels + 1, LANES))
    unit, limit, guess = scales[0] / np.float32(multiples[0]), np.empty(LANES), 0
    ends = np.empty((len(scales), 2), np.int64)
    scratch = np.empty((2, CHUNK), np.float32)
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        if bounded:
            for r in range(start, stop):
                step, zero = scales[guess, r], zeros[guess, r]
                error = _error(weight[r], step, zero, levels, float(step), np.inf, scratch)
                limit[r - start] = error / unit[r] ** 2.4 * (1 + margin)
            fewest = _code(zeros[:, start:stop].min(), levels)
            most = _code(zeros[:, start:stop].max(), levels)
            within = _cumulate(weight, unit, start, stop, reach, below)
            _bounds(below, within, levels, fewest, most, multiples, minorants, limit, bound, ends)
        for r in range(start, stop):
            lane, power = r - start, unit[r] ** 2.4
            winner, lowest = 0, np.inf
            for trial in range(len(scales)):
                own = bound[trial, _code(zeros[trial, r], levels), lane]
                if own < lowest:
                    winner, lowest = trial, own
            step, zero = scales[winner, r], zeros[winner, r]
            least = _error(weight[r], step, zero, levels, float(step), np.inf, scratch)
            most_of_it = least / power * (1 + margin)
            for trial in range(len(scales)):
                step, zero = scales[trial, r], zeros[trial, r]
                if bound[trial, _code(zero, levels), lane] > most_of_it:
                    continue
                error = _error(weight[r], step, zero, levels, float(step), least, scratch)
                if error < least or (error == least and trial < winner):
                    least, winner = error, trial
                    most_of_it = least / power * (1 + margin)
            best[r] = guess = winner


@jit
def _code(value: np.float32, levels: int) -> int:
    """Return a zero point as an index, clamped to ``0 .. levels``."""
    return int(min(np.float32(levels), max(np.float32(0), value)))


@jit
def best_step_and_zero(
    weight: Floats, unit: Floats, levels: int, steps: Steps, best: Places, first: int, last: int
) -> None:
    """Write the best step and zero point of rows ``first .. last-1`` into ``best`` ``(R,)``.

    A candidate has the number ``s (levels + 1) + zero`` and the step ``multiples[s] unit``; ties go to the
    first. Bounds and choice are those of :mod:`q2n.quantization.formats.mse2d`; here a candidate whose bound
    is above the least error so far is not evaluated.

    Args:
        weight: ``(R, C)``.
        unit: step of each row for the multiple 1, ``(R,)``.
        levels: largest code.
        steps: multiples, minorants and margin, see :data:`Steps`.
        best: result, int64.
        first: first row.
        last: row after the last one.
    """
    multiples, minorants, margin = steps
    reach = levels * multiples.max()
    below, bounds = np.empty((4 * reach + 1, 4, LANES)), np.empty((len(multiples), levels + 1, LANES))
    limits, ends = np.empty(LANES), np.empty((len(multiples), 2), np.int64)
    guess, guessed = len(multiples) * (levels + 1) // 2, np.empty(LANES)
    scratch = np.empty((2, CHUNK), np.float32)
    for start in range(first, last, LANES):
        stop = min(start + LANES, last)
        for r in range(start, stop):
            error = _candidate_error(weight[r], unit[r], guess, levels, multiples, np.inf, scratch)
            guessed[r - start], limits[r - start] = error, error * (1 + margin)
        known = guess
        within = _cumulate(weight, unit, start, stop, reach, below)
        _bounds(below, within, levels, 0, levels, multiples, minorants, limits, bounds, ends)
        for r in range(start, stop):
            bound, lowest, nearest = bounds[:, :, r - start], np.inf, known
            for s in range(len(ends)):
                for zero in range(ends[s, 0], ends[s, 1] + 1):
                    if bound[s, zero] < lowest:
                        lowest, nearest = bound[s, zero], s * (levels + 1) + zero
            least, winner = guessed[r - start], known
            error = _candidate_error(weight[r], unit[r], nearest, levels, multiples, least, scratch)
            if error < least or (error == least and nearest < winner):
                least, winner = error, nearest
            limit = least * (1 + margin)
            for s in range(len(ends)):
                for zero in range(ends[s, 0], ends[s, 1] + 1):
                    trial = s * (levels + 1) + zero
                    if bound[s, zero] > limit or trial in (nearest, known):
                        continue
                    error = _candidate_error(weight[r], unit[r], trial, levels, multiples, least, scratch)
                    if error < least or (error == least and trial < winner):
                        least, winner = error, trial
                        limit = least * (1 + margin)
            best[r] = guess = winner


@jit
def _candidate_error(
    row: Floats, unit: float, candidate: int, levels: int, multiples: Places, limit: float, scratch: Floats
) -> float:
    multiple = np.float32(multiples[candidate // (levels + 1)])
    zero = np.float32(candidate % (levels + 1))
    return _error(row, np.float32(unit) * multiple, zero, levels, float(multiple), limit, scratch)


@jit
def _cumulate(weight: Floats, unit: Floats, start: int, stop: int, reach: int, below: Doubles) -> int:
    """Sum the powers 0 to 3 of a row's values, in units, below each half unit of ``-within .. within``.

    The sums go into ``below`` ``(4 within + 1, 4, LANES)``. Returns ``within``, the largest magnitude rounded
    up to a whole unit and at most ``reach``.
    """
    values, places = np.empty(weight.shape[1]), np.empty(weight.shape[1], np.int64)
    magnitude, within = np.empty(1, np.float32), 1
    for r in range(start, stop):
        magnitude.view(np.uint32)[0] = _largest_magnitude(weight[r].view(np.uint32))
        within = max(within, int(min(float(reach), np.ceil(magnitude[0] / unit[r]))))
    below[: 4 * within + 1] = 0
    for r in range(start, stop):
        lane, row, per_weight, end = r - start, weight[r], 1 / float(unit[r]), float(within)
        for c in range(len(row)):
            values[c] = min(end, max(-end, row[c] * per_weight))
        for c in range(len(row)):
            places[c] = min(int(np.floor(2 * values[c])) + 2 * within, 4 * within - 1) + 1
        for c in range(len(row)):
            x, sums = values[c], below[places[c]]
            sums[0, lane] += 1
            sums[1, lane] += x
            sums[2, lane] += x * x
            sums[3, lane] += x * x * x
    flat = below.reshape(len(below), -1)
    for place in range(1, 4 * within + 1):
        total, before = flat[place], flat[place - 1]
        for n in range(4 * LANES):
            total[n] += before[n]
    return within


@jit
def _largest_magnitude(bits: FloatBits) -> np.uint32:
    largest = np.uint32(0)
    for c in range(len(bits)):
        largest = max(largest, bits[c] & np.uint32(MAGNITUDE))
    return largest


@jit
def _bounds(
    below: Doubles,
    within: int,
    levels: int,
    fewest: int,
    most: int,
    multiples: Places,
    minorants: Doubles,
    limit: Doubles,
    bound: Doubles,
    ends: Places,
) -> None:
    """Compute lower bounds of all steps with zero points ``fewest .. most``.

    They go into ``bound`` ``(S, levels + 1, LANES)``. A bound is infinite, and not computed, where the
    weights beyond the outermost levels alone exceed ``limit`` ``(LANES,)`` in every row: at zero points
    outside ``ends[s, 0] .. ends[s, 1]``.
    """
    cells = levels + 1 - fewest + most
    inside, left, right = np.zeros((cells + 1, LANES)), np.empty((cells, LANES)), np.empty((cells, LANES))
    centre, top = 2 * within, 4 * within
    for s in range(len(multiples)):
        i, (a, b, c, p, q, t, slack) = multiples[s], minorants[s]
        bound[s] = np.inf
        first, last = most + 1, fewest - 1
        for zero in range(fewest, most + 1):
            low, high = most - zero, most - zero + levels
            v = float(-zero * i)
            place = max(centre - (2 * zero + 1) * i, 0)
            _sum_between(below[0], below[place], p + q * v + t * v * v, -q - 2 * t * v, t, left[low])
            v = float((levels - zero) * i)
            place = min(centre + (2 * (levels - zero) + 1) * i, top)
            _sum_between(below[place], below[top], p - q * v + t * v * v, q - 2 * t * v, t, right[high])
            if _any_within(left[low], right[high], slack, limit):
                first, last = min(first, zero), zero
        ends[s, 0], ends[s, 1] = first, last
        if first > last:
            continue
        for m in range(-last, levels - first + 1):
            at, v = m + most, float(m * i)
            low = min(max(centre + (2 * m - 1) * i, 0), top)
            middle = min(max(centre + 2 * m * i, 0), top)
            high = min(max(centre + (2 * m + 1) * i, 0), top)
            if low == high:
                inside[at + 1] = inside[at]
                continue
            above = (-a * v + b * v * v - c * v * v * v, a - 2 * b * v + 3 * c * v * v, b - 3 * c * v, c)
            under = (a * v + b * v * v + c * v * v * v, -a - 2 * b * v - 3 * c * v * v, b + 3 * c * v, -c)
            total = inside[at + 1]
            _add(inside[at], below[low], -under[0], -under[1], -under[2], -under[3], total)
            between = (under[0] - above[0], under[1] - above[1], under[2] - above[2], under[3] - above[3])
            _add(total, below[middle], between[0], between[1], between[2], between[3], total)
            _add(total, below[high], above[0], above[1], above[2], above[3], total)
        for zero in range(first, last + 1):
            low, high = most - zero, most - zero + levels
            start, end, lower, upper = inside[low], inside[high + 1], left[low], right[high]
            own = bound[s, zero]
            for n in range(LANES):
                own[n] = (end[n] - start[n]) + (lower[n] + upper[n]) - slack


@jit
def _any_within(left: Doubles, right: Doubles, slack: float, limit: Doubles) -> bool:
    count = 0
    for n in range(LANES):
        count += left[n] + right[n] - slack <= limit[n]
    return count > 0


@jit_fused
def _add(start: Doubles, powers: Doubles, a: float, b: float, c: float, d: float, total: Doubles) -> None:
    zeroth, first, second, third = powers[0], powers[1], powers[2], powers[3]
    for n in range(LANES):
        total[n] = start[n] + a * zeroth[n] + b * first[n] + c * second[n] + d * third[n]


@jit_fused
def _sum_between(below: Doubles, above: Doubles, a: float, b: float, c: float, total: Doubles) -> None:
    """Sum ``a + b x + c x^2`` over the weights between two places, from the powers summed below each."""
    zeroth, first, second = below[0], below[1], below[2]
    all_zeroth, all_first, all_second = above[0], above[1], above[2]
    for n in range(LANES):
        total[n] = (
            a * (all_zeroth[n] - zeroth[n]) + b * (all_first[n] - first[n]) + c * (all_second[n] - second[n])
        )


@jit_summed
def _error(
    row: Floats, step: np.float32, zero: np.float32, levels: int, unit: float, limit: float, scratch: Floats
) -> float:
    """Compute ``unit^2.4 sum |w / step - level|^2.4``, nearest of the levels ``-zero .. levels - zero``.

    The arithmetic is float32; the result is infinite as soon as the sum is above ``limit``. ``|d|^2.4 = (x
    (x^(-1/5))^2)^2`` with ``x = d^2``; the root is found by Newton's iteration that starts from the bits of
    the float. ``scratch`` is ``(2, CHUNK)``.
    """
    squares, roots = scratch[0], scratch[1]
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
