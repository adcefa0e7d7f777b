"""Lloyd's iterations of weighted k-means on scalars, row by row."""

from __future__ import annotations

import numpy as np

from q2n.linalg.kernels import Doubles, Floats, Places, jit, jit_summed

BUCKETS = 4
"""Buckets per value, for sorting."""

CROWDED = 32
"""Values in the fullest bucket above which a general sort is faster."""


@jit
def lloyd_rows(
    values: Floats,
    weights: Floats,
    tolerance: float,
    iterations: int,
    centres: Doubles,
    first: int,
    last: int,
) -> None:
    """Iterate on ``centres`` ``(R, K)`` of rows ``first .. last-1`` of ``values`` ``(R, C)``, in place.

    ``weights`` ``(C,)`` belong to columns. A row stops when the squared moves of its centres add up to at
    most ``tolerance`` times its variance. Conventions are those of :mod:`q2n.quantization.formats.kmeans`.
    """
    count, clusters = values.shape[1], centres.shape[1]
    ordered, mass, moment = np.empty(count, np.float32), np.zeros(count + 1), np.zeros(count + 1)
    ends, held, drawn = np.empty(clusters + 1, np.int64), np.empty(clusters), np.empty(clusters)
    place, bucket = np.empty(count, np.int64), np.empty(count, np.int64)
    starts = np.empty(BUCKETS * count + 1, np.int64)
    for r in range(first, last):
        _order(values[r], place, bucket, starts)
        least_move = tolerance * _variance(values[r])
        for c in range(count):
            weight, value = weights[place[c]], values[r, place[c]]
            ordered[c] = value
            mass[c + 1] = mass[c] + weight
            moment[c + 1] = moment[c] + np.float32(weight * value)
        ends[:-1], ends[-1] = 0, count
        for _ in range(iterations):
            _divide(ordered, centres[r], ends)
            vacant = False
            for k in range(clusters):
                held[k] = mass[ends[k + 1]] - mass[ends[k]]
                drawn[k] = moment[ends[k + 1]] - moment[ends[k]]
                vacant |= ends[k + 1] == ends[k]
            if vacant:
                _relocate(ordered, weights[place], centres[r], ends, held, drawn)
            moved, rising = 0.0, True
            for k in range(clusters):
                new = drawn[k] / held[k] if held[k] > 0 else centres[r, k]
                moved += (new - centres[r, k]) ** 2
                centres[r, k] = new
                rising &= k == 0 or centres[r, k - 1] <= new
            if not rising:
                centres[r].sort()
            if moved <= least_move:
                break


@jit
def _order(values: Floats, place: Places, bucket: Places, starts: Places) -> None:
    """Write the indices that sort ``values`` ``(C,)`` in ascending order, stable, into ``place`` ``(C,)``.

    Values go into evenly spaced buckets and are then sorted by insertion, which is little work unless
    outliers leave the others few buckets. ``bucket`` ``(C,)`` and ``starts`` are scratch.
    """
    low, high = values.min(), values.max()
    buckets = len(starts) - 1
    per_value = np.float32((buckets - 1) / (high - low)) if high > low else np.float32(0)
    starts[:] = 0
    for c in range(len(values)):
        # Subnormal values make the factor infinite, and zero times infinity is NaN.
        within = min(np.float32(buckets), max(np.float32(0), (values[c] - low) * per_value))
        bucket[c] = min(int(within), buckets - 1)
    for c in range(len(values)):
        starts[bucket[c] + 1] += 1
    if starts.max() > CROWDED:
        place[:] = np.argsort(values, kind="mergesort")
        return
    for b in range(buckets):
        starts[b + 1] += starts[b]
    for c in range(len(values)):
        place[starts[bucket[c]]] = c
        starts[bucket[c]] += 1
    for c in range(1, len(values)):
        own, before = place[c], c - 1
        while before >= 0 and values[place[before]] > values[own]:
            place[before + 1] = place[before]
            before -= 1
        place[before + 1] = own


@jit_summed
def _variance(values: Floats) -> float:
    total = squares = 0.0
    for c in range(len(values)):
        total += values[c]
    mean = total / len(values)
    for c in range(len(values)):
        squares += (values[c] - mean) ** 2
    return squares / len(values)


@jit
def _divide(ordered: Floats, centres: Doubles, ends: Places) -> None:
    """Update the ends of the clusters of sorted values: nearest centre, the lower of two equally near ones.

    The search starts from the previous ``ends``, which move by few values per iteration.
    """
    for k in range(len(centres) - 1):
        middle, end = np.float32((centres[k + 1] + centres[k]) / 2), max(ends[k + 1], ends[k])
        while end < len(ordered) and ordered[end] <= middle:
            end += 1
        while end > 0 and ordered[end - 1] > middle:
            end -= 1
        ends[k + 1] = end


@jit
def _relocate(
    ordered: Floats, weights: Floats, centres: Doubles, ends: Places, held: Doubles, drawn: Doubles
) -> None:
    """Give each empty cluster the value farthest from its own centre, taken from that cluster."""
    counts, owner = np.diff(ends), np.zeros(len(ordered), np.int64)
    distance = np.zeros(len(ordered))
    for k in range(len(centres)):
        for c in range(ends[k], ends[k + 1]):
            owner[c], distance[c] = k, (ordered[c] - centres[k]) ** 2
    if distance.max() == 0:
        return
    for k in range(len(centres)):
        if ends[k + 1] > ends[k]:
            continue
        c = int(np.argmax(distance))
        if distance[c] < 0:
            return
        distance[c] = -1
        weight, source = weights[c], owner[c]
        product = np.float32(weight * ordered[c])
        drawn[source] -= product
        held[source] -= weight
        drawn[k], held[k] = product, weight
        counts[source] -= 1
        if counts[source] == 0:
            # scikit-learn works on centred values and leaves the emptied cluster at zero.
            mean = float(ordered.mean())
            if not np.isfinite(mean):  # the sum of large numbers overflows
                mean = ordered.astype(np.float64).mean()
            drawn[source], held[source] = mean, 1
